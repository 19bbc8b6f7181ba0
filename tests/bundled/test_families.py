"""Families of pictures with texts: always the same, and none like another."""

import subprocess
import sys
from itertools import combinations

import pytest
import torch

from datasets.bundled.families import ASKED, FAMILIES, FAMILY_COUNTS, pictures
from datasets.bundled.texts import QUESTIONS
from proxyfda.utils.errors import BadValue

ONE = (
    "from datasets.bundled.families import pictures;"
    "p = pictures('toys', 'test', ask=True, count=1);"
    "print(p.images.sum().item(), [(e.question, e.texts) for e in p.examples])"
)


def test_another_process_draws_and_asks_the_same():
    run = [sys.executable, "-c", ONE]
    said = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    found = pictures("toys", "test", ask=True, count=1)
    asked = [(e.question, e.texts) for e in found.examples]
    assert said.strip() == f"{found.images.sum().item()} {asked}"


def test_no_picture_is_in_two_splits_or_families():
    seen = {}
    for family in FAMILIES:
        for split in FAMILY_COUNTS:
            seen[family, split] = {
                image.numpy().tobytes()
                for image in pictures(family, split, ask=False, count=2).images
            }
    for one, other in combinations(seen.values(), 2):
        assert not one & other


def test_classes_of_families_are_disjoint():
    names = [{name for name, _ in family.classes} for family in FAMILIES.values()]
    for one, other in combinations(names, 2):
        assert not one & other


@pytest.mark.parametrize("family", FAMILIES)
def test_training_pictures_are_asked_everything_others_a_little(family):
    train = pictures(family, "train", ask=True, count=1)
    test = pictures(family, "test", ask=True, count=1)
    assert len(test.examples) == ASKED * len(test.images)
    assert len(train.examples) > 3 * len(train.images)
    assert {e.family for e in (*train.examples, *test.examples)} == {family}
    assert test.picture.tolist() == [i for i in range(len(test.images)) for _ in range(ASKED)]


def test_all_kinds_of_questions_are_asked_somewhere():
    words = {" ".join(e.question.split()[:3]) for family in FAMILIES
             for e in pictures(family, "train", ask=True, count=2).examples}  # fmt: skip
    assert {"how many stripes", "how many colours", "what colour is"} <= words
    assert len(QUESTIONS) == 9


def test_captions_of_a_picture_belong_to_it():
    found = pictures("scenes", "test", ask=False, count=1)
    assert torch.equal(found.picture, torch.arange(len(found.images)))
    names = [name for name, _ in FAMILIES["scenes"].classes]
    for example, label in zip(found.examples, found.labels):
        assert all(text.endswith(names[label]) for text in example.texts)


def test_an_unknown_family_is_named_with_those_there_are():
    with pytest.raises(BadValue, match="no bundled family 'creature'.*creatures.*banners"):
        pictures("creature", "test", ask=False)
