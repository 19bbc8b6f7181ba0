import json
import os
import random
import stat
from pathlib import Path

import pytest
from dataset_trees import files_below, make_cfg, make_split, names, write_images

from datasets.split import SplitDataset, find_files

UPSTREAM = json.loads(Path(__file__).with_name("fewshot_upstream.json").read_text())


@pytest.fixture(scope="module")
def pets_root(tmp_path_factory):
    """The tree on which the CoOp family's reader was run for fewshot_upstream.json."""
    root = tmp_path_factory.mktemp("data")
    split = {
        part: [
            [f"breed_{letter}_{part}_{j:02d}.jpg", label, f"breed_{letter}"]
            for letter, label in zip(UPSTREAM["letters"], UPSTREAM["labels"])
            for j in range(n)
        ]
        for part, n in UPSTREAM["images"].items()
    }
    write_images(root / "pets" / "images", split)
    (root / "pets" / "split.json").write_text(json.dumps(split))
    return root


class Pets(SplitDataset):
    dataset_dir, image_dir, split_file = "pets", "images", "split.json"


@pytest.mark.parametrize("cached", [False, True], ids=["fresh", "cached"])
@pytest.mark.parametrize("subsample", ["all", "base", "new"])
@pytest.mark.parametrize("shots", [1, 4, 16])
def test_draws_the_shots_of_upstream(pets_root, shots, subsample, cached):
    cache = pets_root / "pets" / "split_fewshot" / f"shot_{shots}-seed_1.json"
    if cached:
        Pets(make_cfg(pets_root, shots))
        assert cache.exists()
    elif cache.exists():
        cache.unlink()
    data = Pets(make_cfg(pets_root, shots, subsample))
    classnames = UPSTREAM["classnames"][subsample]
    assert data.classnames == classnames
    assert data.num_classes == len(classnames)
    for part, items in (("train", data.train_x), ("val", data.val)):
        drawn = UPSTREAM["drawn"][str(shots)][part]
        expected = [
            f"breed_{letter}_{part}_{i:02d}.jpg"
            for letter, picked in drawn.items()
            if f"breed_{letter}" in classnames
            for i in picked
        ]
        assert [os.path.basename(item.impath) for item in items] == expected
    assert len(data.test) == 2 * len(classnames)
    for item in data.train_x + data.val + data.test:
        assert item.classname == classnames[item.label]
        assert item.classname in item.impath


def test_reads_the_whole_split_in_file_order(toy_root, Toy):
    data = Toy(make_cfg(toy_root))
    split = make_split()
    for part, items in (("train", data.train_x), ("val", data.val), ("test", data.test)):
        assert names(items) == [tuple(entry) for entry in split[part]]
        assert all(os.path.isabs(item.impath) for item in items)
    assert data.classnames == [f"name_{i}" for i in range(5)]
    assert (data.name, data.template) == ("Toy", "a toy {}.")
    assert not (toy_root / "toy" / "split_fewshot").exists()


def test_home_directory_in_the_root(toy_root, Toy, monkeypatch):
    monkeypatch.setenv("HOME", str(toy_root.parent))
    assert len(Toy(make_cfg(f"~/{toy_root.name}")).test) == 10


def test_paths_may_start_in_the_dataset_folder(toy_root, Toy):
    Toy.image_dir = ""
    write_images(toy_root / "toy", make_split())
    data = Toy(make_cfg(toy_root, shots=2))
    assert data.image_dir == data.dataset_dir == str(toy_root / "toy")
    cache = json.loads((toy_root / "toy" / "split_fewshot" / "shot_2-seed_1.json").read_text())
    assert cache["train"][0][0].startswith("c4/train_")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_shots_depend_on_the_seed_of_the_config_only(toy_root, Toy, seed):
    before = random.getstate()
    first = names(Toy(make_cfg(toy_root, 2, seed=seed)).train_x)
    assert random.getstate() == before
    random.random()
    (toy_root / "toy" / "split_fewshot" / f"shot_2-seed_{seed}.json").unlink()
    assert names(Toy(make_cfg(toy_root, 2, seed=seed)).train_x) == first
    assert names(Toy(make_cfg(toy_root, 2, seed=seed + 10)).train_x) != first


def test_without_a_seed_shots_come_from_the_global_stream_uncached(toy_root, Toy):
    random.seed(1)
    unseeded = names(Toy(make_cfg(toy_root, 2, seed=-1)).train_x)
    assert not (toy_root / "toy" / "split_fewshot").exists()
    assert unseeded == names(Toy(make_cfg(toy_root, 2, seed=1)).train_x)


def test_val_has_at_most_four_shots_and_small_classes_give_all(tmp_path, Toy, capsys):
    split = make_split(classes=2, train=9, val=7)
    split["train"] = [e for e in split["train"] if e[1] == 1] + [["c0/only.jpg", 0, "name_0"]]
    write_images(tmp_path / "toy" / "images", split)
    (tmp_path / "toy" / "split.json").write_text(json.dumps(split))
    data = Toy(make_cfg(tmp_path, 8))
    assert [item.label for item in data.train_x] == [1] * 8 + [0]
    assert [item.label for item in data.val] == [1] * 4 + [0] * 4
    assert "1 classes have fewer than 8 training images, the first is 'name_0' with 1" in (
        capsys.readouterr().out
    )


class TestCache:
    @pytest.fixture
    def path(self, toy_root, Toy):
        self.before = names(Toy(make_cfg(toy_root, 2)).train_x)
        return toy_root / "toy" / "split_fewshot" / "shot_2-seed_1.json"

    def test_holds_relative_paths_and_moves_with_the_data(self, path, toy_root, Toy, capsys):
        assert str(toy_root) not in path.read_text()
        moved = toy_root / "elsewhere"
        moved.mkdir()
        (toy_root / "toy").rename(moved / "toy")
        capsys.readouterr()
        data = Toy(make_cfg(moved, 2))
        assert names(data.train_x) == self.before
        assert all(Path(item.impath).is_file() for item in data.train_x)
        assert "Loading preprocessed few-shot data" in capsys.readouterr().out

    def test_nothing_partial_is_left(self, path):
        assert os.listdir(path.parent) == [path.name]

    def test_is_readable_for_others_as_any_file(self, path, toy_root):
        other = toy_root / "plain"
        other.touch()
        assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"{",
            b"\xff\xfe\x00",
            b"[]",
            b'{"format": 1}',
            b"null",
        ],
        ids=["empty", "truncated", "binary", "list", "no-checksum", "null"],
    )
    def test_corrupt_is_replaced_with_a_line(self, path, toy_root, Toy, capsys, content):
        good = path.read_bytes()
        path.write_bytes(content)
        capsys.readouterr()
        assert names(Toy(make_cfg(toy_root, 2)).train_x) == self.before
        assert f"Few-shot cache {path} is not used" in capsys.readouterr().out
        assert path.read_bytes() == good

    @pytest.mark.parametrize(
        "damage",
        [
            lambda cache: cache["train"].pop(),
            lambda cache: cache["train"].append(cache["train"][0]),
            lambda cache: cache["train"].__setitem__(0, cache["train"][1]),
            lambda cache: cache["train"][0].__setitem__(0, "c9/other.jpg"),
            lambda cache: cache["val"][0].__setitem__(1, 3),
            lambda cache: cache.pop("val"),
        ],
        ids=["one-less", "one-more", "twice", "unknown-image", "other-label", "no-val"],
    )
    def test_damaged_lists_are_not_used(self, path, toy_root, Toy, damage):
        cache = json.loads(path.read_text())
        damage(cache)
        path.write_text(json.dumps(cache))
        assert names(Toy(make_cfg(toy_root, 2)).train_x) == self.before

    def test_of_another_split_is_replaced(self, path, toy_root, Toy, capsys):
        split = make_split()
        split["train"] = split["train"][::-1]
        (toy_root / "toy" / "split.json").write_text(json.dumps(split))
        capsys.readouterr()
        after = names(Toy(make_cfg(toy_root, 2)).train_x)
        assert "it was drawn from another split" in capsys.readouterr().out
        path.unlink()
        assert names(Toy(make_cfg(toy_root, 2)).train_x) == after

    def test_where_nothing_can_be_written_the_run_goes_on(self, path, toy_root, Toy, capsys):
        path.unlink()
        path.parent.rmdir()
        path.parent.write_text("a file where the folder should be")
        capsys.readouterr()
        assert names(Toy(make_cfg(toy_root, 2)).train_x) == self.before
        assert "Few-shot cache not written" in capsys.readouterr().out

    def test_a_failed_write_leaves_nothing(self, path, toy_root, Toy, monkeypatch, capsys):
        path.unlink()

        def full(*args):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "replace", full)
        assert names(Toy(make_cfg(toy_root, 2)).train_x) == self.before
        assert os.listdir(path.parent) == []
        assert "No space left" in capsys.readouterr().out


@pytest.mark.parametrize("classes, base", [(2, 1), (3, 2), (5, 3), (11, 6)])
def test_base_is_the_larger_half_and_labels_start_at_zero(tmp_path, Toy, classes, base):
    split = make_split(classes, train=1, val=1, test=1)
    write_images(tmp_path / "toy" / "images", split)
    (tmp_path / "toy" / "split.json").write_text(json.dumps(split))
    everything = [f"name_{i}" for i in range(classes)]
    for subsample, expected in (("base", everything[:base]), ("new", everything[base:])):
        data = Toy(make_cfg(tmp_path, subsample=subsample))
        assert data.classnames == expected
        for items in (data.train_x, data.val, data.test):
            assert sorted(item.label for item in items) == list(range(len(expected)))
            assert all(item.classname == expected[item.label] for item in items)


def test_upstreams_names_are_callable_on_the_class(toy_root, Toy, tmp_path):
    lists = Toy.read_split(str(toy_root / "toy" / "split.json"), str(toy_root / "toy" / "images"))
    assert Toy.subsample_classes(*lists) == lists
    train, test = Toy.subsample_classes(lists[0], lists[2], subsample="new")
    assert (
        {item.classname for item in train}
        == {item.classname for item in test}
        == {"name_3", "name_4"}
    )
    again = tmp_path / "again.json"
    Toy.save_split(*lists, str(again), str(toy_root / "toy" / "images"))
    assert json.loads(again.read_text()) == make_split()


class TestBadInput:
    @pytest.mark.parametrize("subsample", ["Base", "", "novel"])
    def test_subsample_word(self, toy_root, Toy, subsample):
        with pytest.raises(ValueError, match="SUBSAMPLE_CLASSES is .* use all, base or new"):
            Toy(make_cfg(toy_root, subsample=subsample))
        with pytest.raises(ValueError, match="use all, base or new"):
            Toy.subsample_classes([], subsample=subsample)

    @pytest.mark.parametrize("shots", [0, -2, -16])
    def test_number_of_shots(self, toy_root, Toy, shots):
        with pytest.raises(ValueError, match=f"NUM_SHOTS is {shots}; give 1 or more"):
            Toy(make_cfg(toy_root, shots))

    def test_no_new_class_left(self, tmp_path, Toy):
        split = make_split(1)
        write_images(tmp_path / "toy" / "images", split)
        (tmp_path / "toy" / "split.json").write_text(json.dumps(split))
        with pytest.raises(ValueError, match="new leaves no class of the 1 there are"):
            Toy(make_cfg(tmp_path, subsample="new"))

    def test_empty_root(self, Toy):
        with pytest.raises(ValueError, match="DATASET.ROOT is empty; .* --root"):
            Toy(make_cfg(""))

    def test_missing_root(self, tmp_path, Toy):
        with pytest.raises(FileNotFoundError, match="data root .*nowhere is no folder; .* --root"):
            Toy(make_cfg(tmp_path / "nowhere"))

    @pytest.mark.parametrize(
        "gone, what",
        [
            ("toy", "folder"),
            ("toy/split.json", "split file"),
            ("toy/images", "image folder"),
        ],
    )
    def test_missing_pieces(self, toy_root, Toy, gone, what):
        (toy_root / gone).rename(toy_root / "gone")
        with pytest.raises(FileNotFoundError) as error:
            Toy(make_cfg(toy_root))
        assert str(error.value) == (
            f"Toy: the {what} {toy_root / gone} does not exist; run the toy factory"
        )

    def test_missing_images_are_counted_and_the_first_is_named(self, toy_root, Toy):
        images = toy_root / "toy" / "images"
        for gone in ("c4/train_2.jpg", "c1/test_0.jpg"):
            (images / gone).unlink()
        with pytest.raises(FileNotFoundError) as error:
            Toy(make_cfg(toy_root))
        assert str(error.value) == (
            f"2 of 55 images listed in {toy_root / 'toy' / 'split.json'} are missing, the first is "
            f"{images / 'c4' / 'train_2.jpg'}; run the toy factory"
        )

    @pytest.mark.parametrize(
        "text, fault",
        [
            ("{", "not JSON"),
            ("[]", "no list 'train'"),
            ('{"train": []}', "no list 'val'"),
            ('{"train": [], "val": [], "test": []}', "train or test is empty"),
            ('{"train": [["a.jpg", 0]], "val": [], "test": []}', "entry 0 of 'train' is"),
            ('{"train": [["a.jpg", "x", "a"]], "val": [], "test": []}', "entry 0 of 'train' is"),
            ('{"train": [["a.jpg", -1, "a"]], "val": [], "test": []}', "entry 0 of 'train' is"),
            ('{"train": [[1, 0, "a"]], "val": [], "test": []}', "entry 0 of 'train' is"),
            (
                '{"train": [["a", 0, "a"]], "val": [["b", 0, "b"]], "test": []}',
                "label 0 is both 'a' and 'b'",
            ),
            (
                '{"train": [["a", 0, "a"]], "val": [], "test": [["b", 2, "b"]]}',
                "label 1 of 0 to 2 has no training image",
            ),
            (
                '{"train": [["a", 0, "a"]], "val": [], "test": [["b", 1, "b"]]}',
                "label 1 of 0 to 1 has no training image",
            ),
        ],
        ids=[
            "truncated",
            "list",
            "parts",
            "empty",
            "short",
            "label",
            "negative",
            "path",
            "names",
            "gap",
            "unseen",
        ],
    )
    def test_malformed_split(self, toy_root, Toy, text, fault):
        path = toy_root / "toy" / "split.json"
        path.write_text(text)
        with pytest.raises(ValueError) as error:
            Toy(make_cfg(toy_root))
        message = str(error.value)
        assert message.startswith(f"{path} is no valid split file ({fault}")
        assert message.endswith("; fetch or make it again")


def test_a_declaration_without_split_file(toy_root, Toy):
    Toy.split_file = ""
    with pytest.raises(ValueError, match=r"Toy declares no split_file; name one or override parts"):
        Toy(make_cfg(toy_root))


class TestMissingFiles:
    def test_one_listing_per_folder(self, tmp_path, monkeypatch):
        write_images(tmp_path, {"x": [[f"{d}/{i}.jpg", 0, ""] for d in "ab" for i in range(20)]})
        paths = [str(tmp_path / path) for path in files_below(tmp_path)]
        looked, scandir = [], os.scandir
        monkeypatch.setattr(os, "scandir", lambda folder: looked.append(folder) or scandir(folder))
        monkeypatch.setattr(os.path, "isfile", lambda path: pytest.fail("a stat per image"))
        assert find_files(paths) == ({}, [])
        assert looked == [str(tmp_path / "a"), str(tmp_path / "b")]

    def test_folders_and_dangling_links_are_no_files(self, tmp_path):
        (tmp_path / "folder.jpg").mkdir()
        (tmp_path / "real.jpg").touch()
        (tmp_path / "link.jpg").symlink_to("real.jpg")
        (tmp_path / "dangling.jpg").symlink_to("gone.jpg")
        paths = [str(tmp_path / f"{n}.jpg") for n in ("folder", "real", "link", "dangling")]
        assert find_files([*paths, str(tmp_path / "no" / "x.jpg")])[1] == [
            paths[0],
            paths[3],
            str(tmp_path / "no" / "x.jpg"),
        ]
