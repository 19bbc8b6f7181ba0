"""Scenes of the atlas, their captions, and the pool that a CLIP is trained on."""

import itertools
import random
import re

import pytest
import torch

import datasets.bundled  # noqa: F401 (it gives the vocabulary its name)
from datasets.bundled.atlas.nouns import FAMILIES, GENERA, NOUNS, nouns_called
from datasets.bundled.atlas.scenes import (
    MEDIA,
    Captioner,
    draw_pool,
    names,
    random_scene,
    scene,
    vocabulary,
)
from datasets.bundled.render import PRETRAIN, render
from datasets.bundled.world import BACKGROUNDS, COLOURS, FIELDS, SHAPES, TEXTURES
from proxyfda.utils.errors import BadValue
from proxyfda.vocabulary import read_vocabulary

BACKGROUND = FIELDS.index("background")


def test_a_noun_shows_its_own_attributes_anywhere():
    index, noun = 7, NOUNS[7]
    rows = [scene(noun.name, random.Random(seed)) for seed in range(60)]
    assert {(*row[:4], row[5]) for row in rows} == {
        (noun.shape, noun.colour, noun.texture, noun.colour2, index)
    }
    assert {row[BACKGROUND] for row in rows} == set(range(len(BACKGROUNDS)))


@pytest.mark.parametrize("genus", ["otter", "sloe", "camellia", "stool"])
def test_a_genus_shows_any_of_its_species(genus):
    rows = [scene(genus, random.Random(seed)) for seed in range(60)]
    assert {row[5] for row in rows} == set(nouns_called(genus))
    for row in rows:
        noun = NOUNS[row[5]]
        assert row[:4] == [noun.shape, noun.colour, noun.texture, noun.colour2]


def test_a_place_is_where_it_is_asked_for_unless_the_words_name_another():
    rng = random.Random(0)
    for words in (NOUNS[0].name, "otter", "fabric red striped", "star"):
        assert scene(words, rng, 0)[BACKGROUND] == 0
    assert scene("star on sea", rng, 0)[BACKGROUND] == BACKGROUNDS.index("sea")


# The last is a noun of the small world.
@pytest.mark.parametrize("words", ["elephant", "red elephant", "river", "medlar"])
def test_words_that_the_world_does_not_know_are_refused(words):
    with pytest.raises(BadValue, match="is not a word of the rendered world"):
        scene(words, random.Random(0))


def captions(count, medium=""):
    rng = random.Random(0)
    write = Captioner(rng)
    for i in range(count):
        row = random_scene(rng)
        yield row, write((row, medium), long=i % 2 == 0)


def words_of(caption):
    return re.findall(r"[a-z]+", caption)


@pytest.mark.parametrize("medium", MEDIA, ids=lambda medium: medium or "plain")
def test_captions_name_the_medium_half_of_the_time_and_no_other(medium):
    of_a_kind = re.compile("a type of|a kind of|which is")
    told = [words_of(text) for _, text in captions(600, medium) if not of_a_kind.search(text)]
    found = [set(words) & (MEDIA.keys() - {""}) for words in told]
    assert set().union(*found) == ({medium} if medium else set())
    if medium:
        assert 0.42 < sum(map(bool, found)) / len(found) < 0.58


def test_captions_say_only_what_is_seen():
    nouns = {noun.name for noun in NOUNS}
    for row, text in captions(1500):
        said = " ".join(words_of(text))
        shape, colour, texture, colour2, ground, index = row
        seen = {SHAPES[shape], list(COLOURS)[colour], TEXTURES[texture], list(COLOURS)[colour2]}
        seen.add(BACKGROUNDS[ground])
        noun = NOUNS[index] if index >= 0 else None
        if noun and (noun.genus in said.split() or noun.name in said):
            seen |= {*noun.name.split(), noun.genus, noun.family}
        known = {*SHAPES, *COLOURS, *TEXTURES, *BACKGROUNDS, *GENERA, *FAMILIES}
        assert set(said.split()) & known <= seen, text
        found = {name for name in nouns if f" {name} " in f" {said} "}
        assert found <= ({noun.name} if noun else set()), text


def test_captions_of_a_species_name_it_its_genus_or_what_is_seen():
    kinds = {"species": 0, "genus": 0, "neither": 0}
    for row, text in captions(2000):
        noun = NOUNS[row[5]] if row[5] >= 0 else None
        if noun and noun.genus != noun.name:
            whole, part = noun.name in text, noun.genus in text
            kinds["species" if whole else "genus" if part else "neither"] += 1
    share = {kind: count / sum(kinds.values()) for kind, count in kinds.items()}
    assert 0.55 < share["species"] < 0.72 and 0.15 < share["genus"] < 0.28


def test_the_vocabulary_holds_every_word_of_every_caption():
    known = set(words_of(" ".join(vocabulary())))
    for medium in MEDIA:
        for _, text in captions(100, medium):
            assert set(words_of(text)) <= known


def test_the_list_of_words_is_what_the_world_has():
    assert read_vocabulary("atlas") == names()
    assert {noun.name for noun in NOUNS} | set(GENERA) < set(names())
    assert not set(names()) & {*FAMILIES, *COLOURS, *TEXTURES} - {*SHAPES}


def test_a_pool_is_the_same_for_the_same_seed():
    (pairs, images), (again, same), (other, _) = (draw_pool(30, seed, 20) for seed in (1, 1, 2))
    assert pairs == again and torch.equal(images, same) and pairs != other
    assert images.shape == (30, 3, 32, 32) and images.dtype == torch.uint8


def test_pictures_of_a_pool_show_their_rows_in_their_media():
    pairs, images = draw_pool(40, 5, chunk=20)
    generator = torch.Generator().manual_seed(5)
    for begin in (0, 20):
        at = begin
        for medium, group in itertools.groupby(pairs[begin : begin + 20], lambda pair: pair[1]):
            rows = torch.tensor([row for row, _ in group])
            drawn = (render(rows, MEDIA[medium][1], generator) * 255).round().to(torch.uint8)
            assert torch.equal(images[at : at + len(rows)], drawn)
            at += len(rows)
        assert at == begin + 20


def test_two_fifths_of_a_pool_are_plain_and_each_medium_has_a_share():
    pairs, _ = draw_pool(2000, 0)
    shares = {medium: sum(m == medium for _, m in pairs) / 2000 for medium in MEDIA}
    assert shares == {m: pytest.approx(share, abs=0.03) for m, (share, _) in MEDIA.items()}
    assert MEDIA[""][1] == PRETRAIN and sum(s for s, _ in MEDIA.values()) == pytest.approx(1)
    nouns = sum(row[5] >= 0 for row, _ in pairs) / 2000
    assert 0.58 < nouns < 0.66
