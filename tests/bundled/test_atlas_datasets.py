"""The nine datasets of the atlas: classes, one medium for both halves, and habits of classes."""

import random
import subprocess
import sys
from dataclasses import astuple, replace

import pytest
import torch

from datasets.bundled import BUNDLED
from datasets.bundled.atlas.datasets import COUNTS, PLATES, Habits
from datasets.bundled.atlas.nouns import FAMILIES, GENERA, NOUNS
from datasets.bundled.render import PRETRAIN
from datasets.bundled.world import BACKGROUNDS, FIELDS
from proxyfda.vocabulary import names_without, read_vocabulary

BY_NAME = {plate.name: plate for plate in PLATES}
BACKGROUND = FIELDS.index("background")

each = pytest.mark.parametrize("plate", PLATES, ids=lambda plate: plate.name)


@each
def test_halves_have_forty_to_fifty_classes_of_their_own(plate):
    names = [name for name, _ in plate.classes]
    base, new = ([names[i] for i in half] for half in plate.groups.values())
    least, most = (5, 5) if plate.name == "grounds" else (40, 50)
    assert least <= len(new) <= len(base) <= most and len(base) - len(new) <= 1
    assert len(set(names)) == len(names) and not set(base) & set(new)
    assert plate.template.count("{}") == 1


@each
def test_counts_are_those_of_the_declaration(plate):
    assert plate.counts == {**COUNTS, "test": 100 if plate.name == "grounds" else 20}
    n = len(plate.classes)
    assert tuple(BUNDLED[plate.folder].expected) == (n, *(n * c for c in plate.counts.values()))
    assert plate.counts["train"] >= 16 and BUNDLED[plate.folder].template == plate.template


def test_classes_are_whole_families_and_all_genera():
    for family in FAMILIES:
        classes = {name for name, _ in BY_NAME[f"{family}s"].classes}
        assert classes == {noun.name for noun in NOUNS if noun.family == family}
    assert {name for name, _ in BY_NAME["things"].classes} == set(GENERA)


@each
def test_both_halves_share_one_style_up_to_the_habits_of_classes(plate):
    wear, habits = plate.wear, plate.habits
    lights, sizes = set(), set()
    for half in plate.groups.values():
        for label in half:
            style = plate.style(label)
            assert replace(style, cast=wear.cast, scale=wear.scale) == wear
            light = [own / all_ for own, all_ in zip(style.cast, wear.cast)]
            (least, most) = (own / all_ for own, all_ in zip(style.scale, wear.scale))
            assert least == pytest.approx(most)
            assert all(abs(factor - 1) <= habits.light for factor in light)
            assert abs(least - 1) <= habits.size + 1e-9
            lights.add(tuple(light))
            sizes.add(least)
    own = 1 if habits == Habits() else len(plate.classes)
    assert len(lights) == len(sizes) == own
    assert wear != PRETRAIN, "a medium that pre-training did not have"


def test_every_dataset_has_a_medium_of_its_own_and_all_but_the_grounds_the_same_habits():
    assert len({astuple(plate.wear) for plate in PLATES}) == len(PLATES)
    (habits,) = {plate.habits for plate in PLATES if plate.name != "grounds"}
    assert min(astuple(habits)) > 0 and BY_NAME["grounds"].habits == Habits()


@each
def test_habits_follow_from_the_class_alone(plate):
    order = list(reversed(range(len(plate.classes))))
    turned = replace(plate, classes=tuple(plate.classes[i] for i in order))
    for label, other in enumerate(order):
        assert turned.style(label) == plate.style(other)
    # The first class of the grounds is a place.
    words = plate.classes[0][1]
    places = {plate.scene(words, random.Random(seed))[BACKGROUND] for seed in range(30)}
    assert len(places) == 1


def test_classes_of_a_dataset_are_at_many_places():
    plate = BY_NAME["creatures"]
    for half in plate.groups.values():
        rows = [plate.scene(plate.classes[i][1], random.Random(0)) for i in half]
        assert len({row[BACKGROUND] for row in rows}) > 8


@pytest.mark.parametrize("name", ["scenes", "grounds"])
def test_a_class_that_names_a_place_is_there(name):
    plate = BY_NAME[name]
    for classname, words in plate.classes:
        ground = BACKGROUNDS[plate.scene(words, random.Random(1))[BACKGROUND]]
        assert ground == classname.split()[-1]


def test_another_process_draws_the_same():
    code = (
        "from datasets.bundled.atlas.datasets import PLATES;"
        "plate = next(p for p in PLATES if p.name == 'things');"
        "print([plate.style(i) for i in (0, 70)]); print(plate.draw_scenes('val', 1)[2])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    plate = BY_NAME["things"]
    assert done[0] == str([plate.style(i) for i in (0, 70)])
    assert done[1] == str(plate.draw_scenes("val", 1)[2])


def test_splits_have_pictures_of_their_own():
    plate = BY_NAME["grounds"]
    seen = [{p.numpy().tobytes() for p in plate.draw(split, 3)[0]} for split in COUNTS]
    assert all(len(pictures) == 3 * len(plate.classes) for pictures in seen)
    assert len(set().union(*seen)) == sum(map(len, seen))
    assert torch.equal(plate.draw("val", 2)[0], plate.draw("val", 2)[0])


@each
def test_words_beyond_the_classes_are_of_neither_half(plate):
    assert plate.vocabulary == BUNDLED[plate.folder].vocabulary == "atlas"
    names = [name for name, _ in plate.classes]
    left = names_without(read_vocabulary("atlas"), names)
    assert not set(left) & set(names) and len(left) > 100
    if plate.name == "things":
        assert not any(name.split()[-1] in names for name in left), "nor their species"
