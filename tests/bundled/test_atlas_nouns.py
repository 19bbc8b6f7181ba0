"""The nouns of the atlas: species of genera of families."""

from collections import Counter, defaultdict
from itertools import combinations

import pytest

from datasets.bundled import world
from datasets.bundled.atlas.nouns import FAMILIES, GENERA, NOUNS, nouns_called
from datasets.bundled.atlas.scenes import MEDIA

SPECIES = [noun for noun in NOUNS if noun.genus != noun.name]


def test_several_hundred_names_that_nothing_else_has():
    names = [noun.name for noun in NOUNS]
    assert len(names) == 460 and len(GENERA) == 90
    words = [*names, *GENERA, *FAMILIES]
    assert len(set(words)) == len(words)
    attributes = {*world.COLOURS, *world.TEXTURES, *world.BACKGROUNDS, *MEDIA}
    assert not set(words) & attributes
    assert set(words) & set(world.SHAPES) == {"flower"}  # a family, never the name of a class


@pytest.mark.parametrize("genus", GENERA)
def test_species_share_outline_and_texture_and_differ_in_both_colours(genus):
    species = [NOUNS[i] for i in nouns_called(genus)]
    assert len(species) == 4
    assert len({(n.family, n.shape, n.texture) for n in species}) == 1
    for one, other in combinations(species, 2):
        assert one.colour != other.colour and one.colour2 != other.colour2
    assert all(noun.colour != noun.colour2 for noun in species)


def test_genera_of_a_family_differ_in_outline_or_texture():
    looks = defaultdict(set)
    for noun in SPECIES:
        looks[noun.family, noun.shape, noun.texture].add(noun.genus)
    assert all(len(genera) == 1 for genera in looks.values())


def test_a_species_is_called_by_a_word_of_its_family_and_its_genus():
    for noun in SPECIES:
        assert noun.name.endswith(f" {noun.genus}")
    families = defaultdict(set)
    for noun in SPECIES:
        families[noun.name[: -len(noun.genus) - 1]].add(noun.family)
    assert all(len(found) == 1 for found in families.values())


def test_the_first_word_says_the_main_colour_often_but_not_always():
    colours = defaultdict(Counter)
    for noun in SPECIES:
        colours[noun.name.split()[0]][noun.colour] += 1
    named = sum(found.most_common(1)[0][1] for found in colours.values())
    assert 0.5 < named / len(SPECIES) < 0.75


def test_banners_are_fabrics_of_different_looks():
    banners = [noun for noun in NOUNS if noun.family == "banner"]
    assert banners == [noun for noun in NOUNS if noun not in SPECIES] and len(banners) == 100
    assert {world.SHAPES[noun.shape] for noun in banners} == {"fabric"}
    assert len({(noun.texture, noun.colour, noun.colour2) for noun in banners}) == 100


def test_a_name_stands_for_its_noun_and_other_words_for_none():
    for i, noun in enumerate(NOUNS):
        assert nouns_called(noun.name) == [i]
        assert noun.genus == noun.name or i in nouns_called(noun.genus)
    assert nouns_called("striped") == nouns_called("medlar") == []
