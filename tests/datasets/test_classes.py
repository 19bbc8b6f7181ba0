"""Halves of the base classes, and what stands in for validation images."""

import json
import math

import pytest
from dataset_trees import (
    IMAGENET_TEST_SETS,
    files_below,
    make_cfg,
    make_split,
    make_tree,
    write_images,
)
from dataset_trees import names as listed

from datasets.classes import chosen_labels, halves_base, hold_out, in_hash_order
from datasets.entry import Entry
from datasets.folder import ImageFolder
from proxyfda.dassl import DATASET_REGISTRY
from proxyfda.utils.errors import BadValue

NUMBERS = range(1, 9)


@pytest.mark.parametrize("classes", [7, 8, 10, 11, 97, 1000])
def test_halves_are_disjoint_and_cover_the_base_classes(classes):
    labels = [3 * label for label in range(classes)]
    base = labels[: math.ceil(classes / 2)]
    for number in NUMBERS:
        seen, unseen = (chosen_labels(labels, f"{part}@{number}") for part in ("seen", "unseen"))
        assert sorted(seen + unseen) == base and not set(seen) & set(unseen)
        assert seen == sorted(seen) and unseen == sorted(unseen)
        # The odd class is seen in split 1, unseen in split 2.
        assert len(seen) - len(unseen) == (len(base) % 2) * (1 if number % 2 else -1)


def test_two_splits_share_a_permutation_and_the_next_two_have_another():
    labels = list(range(40))
    half = {
        (part, number): tuple(chosen_labels(labels, f"{part}@{number}"))
        for part in ("seen", "unseen")
        for number in NUMBERS
    }
    for number in (1, 3, 5):
        assert half["seen", number] == half["unseen", number + 1]
        assert half["unseen", number] == half["seen", number + 1]
    assert len({half["seen", number] for number in NUMBERS}) == len(NUMBERS)


def test_the_halves_are_written_down():
    """So that results of one version go on in the next."""
    assert [chosen_labels(list(range(24)), f"seen@{n}") for n in (1, 2, 3)] == WRITTEN


WRITTEN = [[1, 2, 4, 6, 7, 10], [0, 3, 5, 8, 9, 11], [0, 1, 3, 5, 6, 11]]


@pytest.mark.parametrize("word", ["seen", "seen@0", "seen@01", "unseen@-1", "seen@1 ", "SEEN@1"])
def test_other_words_are_refused(word):
    assert not halves_base(word)
    with pytest.raises(BadValue, match="use all, base or new, or a part of the base classes"):
        chosen_labels([0, 1, 2], word)


def test_three_base_classes_are_too_few():
    assert len(chosen_labels(range(7), "unseen@1")) == 2
    with pytest.raises(BadValue, match=r"of which there are 3; .* at least 4 of them \(7 classes"):
        chosen_labels(range(6), "seen@1")


@pytest.fixture
def toy(tmp_path, Toy):
    """A data root with a toy dataset of 9 classes; made with (val, test) images per class."""

    def make(val=3, test=2):
        split = make_split(9, train=10, val=val, test=test)
        write_images(tmp_path / "toy" / "images", split)
        (tmp_path / "toy" / "split.json").write_text(json.dumps(split))
        return Toy, tmp_path

    return make


def test_a_reader_gives_validation_images_of_base_classes_alone(toy):
    Toy, root = toy()
    found = {word: Toy(make_cfg(root, subsample=word)) for word in ("base", "seen@1", "unseen@1")}
    base, seen, unseen = found.values()
    assert sorted(seen.classnames + unseen.classnames) == base.classnames
    for data in (seen, unseen):
        assert listed(data.test) == listed(data.val) != []
        assert {path.split("/")[1][:3] for path, *_ in listed(data.val)} == {"val"}
        for items in (data.train_x, data.val):
            assert sorted({item.label for item in items}) == list(range(len(data.classnames)))
            assert all(item.classname == data.classnames[item.label] for item in items)


def test_shots_are_those_of_the_base_run(toy):
    Toy, root = toy()
    base = listed(Toy(make_cfg(root, shots=2, subsample="base")).train_x)
    halves = [Toy(make_cfg(root, shots=2, subsample=f"{p}@1")).train_x for p in ("seen", "unseen")]
    assert sorted(path for path, *_ in base) == sorted(
        path for items in halves for path, *_ in listed(items)
    )
    assert files_below(root / "toy" / "split_fewshot") == ["shot_2-seed_1.json"]


@pytest.mark.parametrize("test_is_val", [False, True], ids=["no val", "val is test"])
def test_training_images_are_held_out_where_there_are_no_validation_images(toy, test_is_val):
    Toy, root = toy(val=0)
    Toy.val_is_test = test_is_val
    whole = Toy(make_cfg(root, subsample="seen@1"))
    assert listed(whole.test) == listed(whole.val)
    trained, held = ({path for path, *_ in listed(items)} for items in (whole.train_x, whole.val))
    assert not trained & held and all("/train_" in path for path in trained | held)
    assert len(held) == 2 * len(whole.classnames) and len(trained) == 8 * len(whole.classnames)
    for seed in (1, 2):
        few = Toy(make_cfg(root, shots=4, subsample="seen@1", seed=seed))
        assert {path for path, *_ in listed(few.train_x)} <= trained
        assert {path for path, *_ in listed(few.val)} <= held
    # The choice of the final run is kept beside it and takes all training images.
    Toy(make_cfg(root, shots=4, subsample="base"))
    assert files_below(root / "toy" / "split_fewshot") == [
        "shot_4-seed_1-held_out.json",
        "shot_4-seed_1.json",
        "shot_4-seed_2-held_out.json",
    ]


def test_imagenet_holds_out_training_images_with_and_without_its_cache(tmp_path):
    make_tree(tmp_path, "ImageNet", per_class=10)
    ImageNet = DATASET_REGISTRY.get("ImageNet")
    everything = ImageNet(make_cfg(tmp_path, subsample="all"))
    first, second = (ImageNet(make_cfg(tmp_path, shots=2, subsample="seen@1")) for _ in range(2))
    tested = {item.impath for item in everything.test}
    for data in (first, second):
        assert not tested & {item.impath for item in data.val + data.test + data.train_x}
    assert listed(first.val) == listed(second.val)


def test_held_out_images_depend_on_nothing_but_their_paths():
    entries = [Entry(f"a/{i:03d}.jpg", 0, "a") for i in range(300)]
    entries += [Entry(f"b/{i}.jpg", 1, "b") for i in range(3)]
    parts = hold_out({"train": entries, "val": [], "test": []}, "Toy")
    held = [entry.path for entry in parts["val"]]
    assert [sum(path[0] == name for path in held) for name in "ab"] == [50, 1]
    again = hold_out({"train": entries[::-1], "val": [], "test": []}, "Toy")
    assert sorted(held) == sorted(entry.path for entry in again["val"])
    assert held[:50] == sorted(held[:50]) != [f"a/{i:03d}.jpg" for i in range(50)]


def test_a_class_with_one_image_cannot_be_held_out():
    parts = {"train": [Entry("a/1.jpg", 0, "a")], "val": [], "test": []}
    with pytest.raises(BadValue, match="Toy has no validation images .* class 'a' has one"):
        hold_out(parts, "Toy")


def test_a_half_without_validation_images(toy):
    Toy, root = toy()
    split = json.loads((root / "toy" / "split.json").read_text())
    seen = Toy(make_cfg(root, subsample="seen@1")).classnames
    split["val"] = [entry for entry in split["val"] if entry[2] not in seen]
    (root / "toy" / "split.json").write_text(json.dumps(split))
    with pytest.raises(BadValue, match="no validation image of the classes seen@1"):
        Toy(make_cfg(root, subsample="seen@1"))


@pytest.mark.parametrize("name", IMAGENET_TEST_SETS)
def test_test_sets_are_refused(tmp_path, name):
    with pytest.raises(BadValue, match="only test images, on which no settings may be chosen"):
        DATASET_REGISTRY.get(name)(make_cfg(tmp_path, subsample="seen@1"))


def test_own_folders_have_halves_too(tmp_path):
    for number in range(8):
        folder = tmp_path / f"class{number}"
        folder.mkdir()
        for i in range(5):
            (folder / f"{i}.jpg").touch()
    data = ImageFolder(make_cfg(tmp_path, subsample="unseen@2"))
    assert len(data.classnames) == 2 and listed(data.test) == listed(data.val)
    assert set(data.classnames) < {f"class{number}" for number in range(4)}


def test_a_hash_order_is_a_permutation_that_does_not_follow_the_list():
    items = list(range(50))
    order = in_hash_order(items, str)
    assert sorted(order) == items != order
    assert in_hash_order(items[::-1], str) == order
