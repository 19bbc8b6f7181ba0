"""Captions, questions and answers: what they say is what is drawn."""

import random

import pytest
import torch

from datasets.bundled import texts
from datasets.bundled.families import FAMILIES, pictures
from datasets.bundled.pretrain_git import HELD_OUT, KNOWN, general_scene, striped_scene
from datasets.bundled.render import STRIPED_HALF_HEIGHTS, Style, render
from datasets.bundled.world import BACKGROUNDS, COLOURS, NOUNS, SHAPES, scene_for

CLEAN = Style(
    scale=(0.9, 0.9), shift=0, angle=0, colour=0, desaturate=(0, 0), contrast=(1, 1), noise=0,
    blur=(0, 0), occlude=0,
)  # fmt: skip
SCENES = {
    "a noun": "otter", "a fruit": "quince", "a banner": "oslo", "a plain shape": "plain star",
    "a hollow shape": "hollow heart", "a fabric": "fabric wavy",
}  # fmt: skip


def drawn(row):
    return render(torch.tensor([row]), CLEAN, torch.Generator().manual_seed(5))[0]


def asked(row, seed=0):
    return texts.questions(texts.Seen(row), random.Random(seed))


@pytest.mark.parametrize("words", SCENES.values(), ids=SCENES)
def test_the_answers_alone_draw_the_picture_again(words):
    for seed in range(6):
        row = scene_for(words, random.Random(seed))
        found = {kind: answer for kind, (_, answer) in asked(row).items()}
        kinds = ("colour", "second colour", "pattern", "shape", "place")
        again = scene_for(" ".join(found[k] for k in kinds if k in found), random.Random(99))
        for place in (3, 4):  # of what is not asked since it is not seen
            if ("second colour", "place")[place - 3] not in found:
                again[place] = row[place]
        assert torch.equal(drawn(again), drawn(row))


@pytest.mark.parametrize("noun", ["otter", "quince", "oslo"])
def test_the_noun_alone_draws_the_thing_again(noun):
    row = scene_for(noun, random.Random(0))
    question, answer = asked(row)["kind"]
    again = scene_for(answer, random.Random(1))
    again[4] = row[4]
    assert torch.equal(drawn(again), drawn(row))
    assert question == f"what {NOUNS[row[5]].family} is this?"


@pytest.mark.parametrize("shape", STRIPED_HALF_HEIGHTS)
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_as_many_stripes_are_drawn_as_the_answer_says(shape, count):
    row = [*scene_for(f"striped {shape} red white paper", random.Random(0)), count]
    row[3] = list(COLOURS).index("blue")
    red, _, blue = drawn(row)[:, :, 15]  # along the middle
    blue = blue - red > 0.3
    begins = (blue[1:] & ~blue[:-1]).sum().item()
    question, answer = asked(row)["stripes"]
    assert begins == count == texts.NUMBERS.index(answer)
    assert question == f"how many stripes does the {shape} have?"
    assert f"{answer} blue stripe" in texts.captions(texts.Seen(row))[0]


def test_stripes_that_are_not_counted_are_not_asked_about():
    assert "stripes" not in asked(scene_for("striped square", random.Random(0)))


def test_yes_and_no_are_about_the_ground_that_is_drawn():
    found = set()
    for seed in range(40):
        row = scene_for("star", random.Random(seed))
        question, answer = asked(row, seed)["on"]
        there = BACKGROUNDS.index(question.split()[-1].strip("?"))
        assert (answer == "yes") == (row[4] == there)
        found.add(answer)
    assert found == {"yes", "no"}


@pytest.mark.parametrize(
    ("words", "count"), [("plain red square", "one"), ("halved red blue square", "two")]
)
def test_as_many_colours_are_drawn_as_the_answer_says(words, count):
    row = scene_for(words, random.Random(3))
    inside = drawn(row)[:, 12:20, 10:22].flatten(1).t()
    named = torch.tensor(list(COLOURS.values()))
    nearest = torch.cdist(inside, named).argmin(1)
    many = (nearest.bincount() > len(inside) / 4).sum().item()
    assert texts.NUMBERS[many] == count == asked(row)["colours"][1]


def test_a_caption_says_all_that_is_seen():
    row = scene_for("otter sand", random.Random(0))
    otter = NOUNS[row[5]]
    colours = list(COLOURS)
    said = texts.captions(texts.Seen(row))
    assert len(set(said)) == len(texts.FRAMES)
    for caption in said:
        assert caption.endswith(" otter on sand")
        assert colours[otter.colour] in caption


def test_the_held_out_family_is_never_named_in_pretraining():
    rng = random.Random(0)
    named = {noun.name for noun in NOUNS if noun.family == HELD_OUT} | {HELD_OUT}
    banners, said = 0, set()
    for _ in range(600):
        row = general_scene(rng)
        banners += row[5] >= 0 and NOUNS[row[5]].family == HELD_OUT
        seen = texts.Seen(row, KNOWN)
        for text in (*texts.captions(seen), *sum(texts.questions(seen, rng).values(), ())):
            said |= set(texts.split(text))
    assert banners > 20  # they are seen, without their names
    assert not said & named
    assert named <= set(texts.words())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_word_of_a_family_has_a_token(family):
    known = set(texts.words())
    for ask in (False, True):
        for example in pictures(family, "train", ask=ask, count=2).examples:
            for text in (example.question, *example.texts):
                assert set(texts.split(text)) <= known


def test_a_striped_scene_is_counted():
    row = striped_scene("circle", random.Random(1))
    assert SHAPES[row[0]] == "circle" and 1 <= row[-1] <= 4
