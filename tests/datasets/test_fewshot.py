"""Few-shot choices are upstream's, and what is kept of them is used only while it holds."""

import json
import os
import random
import stat
from pathlib import Path

import pytest
from dataset_trees import digest, make_cfg, make_split, make_tree, names, write_images

from datasets import imagenet
from datasets.imagenet import ImageNet
from datasets.split import SplitDataset

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
        assert "the disk is full" in capsys.readouterr().out


class TestUnchangedImageNet:
    """While its folders are untouched, a cached draw is read without listing training images."""

    @pytest.fixture
    def root(self, tmp_path):
        make_tree(tmp_path, "ImageNet", per_class=12)
        for folder in self.class_folders(tmp_path):
            self.age(folder)
        return tmp_path

    @staticmethod
    def class_folders(root):
        return sorted((root / "imagenet" / "images" / "train").iterdir())

    @staticmethod
    def age(folder, seconds=3600):
        """Let a folder's last change be some time ago, as that of real data is."""
        at = folder.stat().st_mtime_ns - seconds * 10**9
        os.utime(folder, ns=(at, at))

    @pytest.fixture
    def listed(self, monkeypatch):
        """The folders of training images that were listed."""
        seen = []
        for name in ("listdir", "scandir"):
            real = getattr(os, name)

            def listing(folder, real=real):
                if Path(folder).parent.name == "train":
                    seen.append(Path(folder).name)
                return real(folder)

            monkeypatch.setattr(os, name, listing)
        return seen

    def read(self, root, shots=2, subsample="all", seed=1):
        return ImageNet(make_cfg(root, shots, subsample, seed))

    @pytest.mark.parametrize("subsample", ["all", "base", "new"])
    @pytest.mark.parametrize("shots", [2, 16], ids=["2 shots", "more shots than images"])
    def test_same_images_without_a_listing(self, root, listed, shots, subsample, capsys):
        fresh = self.read(root, shots, subsample)
        said = capsys.readouterr().out
        assert len(listed) == 7
        del listed[:]
        again = self.read(root, shots, subsample)
        assert listed == []
        assert digest(again, root) == digest(fresh, root)
        told = capsys.readouterr().out
        assert "Loading preprocessed few-shot data" in told
        assert ("7 classes have fewer than 16" in told) == ("7 classes have fewer" in said)
        assert ("7 classes have fewer than 16" in told) == (shots == 16)

    def add(folder):
        (folder / "a_new_one.JPEG").touch()

    def remove(folder):
        sorted(folder.iterdir())[0].unlink()

    def rename(folder):
        sorted(folder.iterdir())[0].rename(folder / "zzz.JPEG")

    @pytest.mark.parametrize("change", [add, remove, rename], ids=["added", "removed", "renamed"])
    def test_notices_a_changed_folder(self, root, listed, change, capsys):
        self.read(root)
        change(self.class_folders(root)[3])
        del listed[:]
        capsys.readouterr()
        data = self.read(root)
        assert len(listed) == 7
        assert "it was drawn from another split" in capsys.readouterr().out
        (root / "imagenet" / "split_fewshot" / "shot_2-seed_1.json").unlink()
        assert digest(self.read(root), root) == digest(data, root)

    def test_notices_a_new_class_and_another_name(self, root, listed, capsys):
        self.read(root)
        names_file = root / "imagenet" / "classnames.txt"
        names_file.write_text(names_file.read_text().replace("goldfish", "gold fish"))
        assert "gold fish" in self.read(root).classnames
        for part in ("train", "val"):
            folder = root / "imagenet" / "images" / part / "n00000001"
            folder.mkdir()
            (folder / "1.JPEG").touch()
            self.age(folder)
        names_file.write_text("n00000001 something\n" + names_file.read_text())
        data = self.read(root)
        assert data.classnames[0] == "something" and data.train_x[0].impath.endswith("1.JPEG")

    def test_notices_a_missing_file_where_folders_have_no_times(self, root, listed):
        chosen = Path(self.read(root).train_x[0].impath)
        before = chosen.parent.stat().st_mtime_ns
        chosen.unlink()
        os.utime(chosen.parent, ns=(before, before))
        assert str(chosen) not in [item.impath for item in self.read(root).train_x]

    @pytest.mark.parametrize("age", ["fresh", "no time"])
    def test_times_that_tell_nothing_are_not_relied_on(self, root, listed, age):
        folder = self.class_folders(root)[2]
        at = 0 if age == "no time" else (root / "imagenet" / "classnames.txt").stat().st_mtime_ns
        os.utime(folder, ns=(at, at))
        self.read(root)
        assert "fingerprint" not in self.cache(root).read_text()
        del listed[:]
        self.read(root)
        assert len(listed) == 7
        self.age(folder, 3600 if at else -1000)
        self.read(root)
        del listed[:]
        self.read(root)
        assert listed == []

    @staticmethod
    def cache(root):
        return root / "imagenet" / "split_fewshot" / "shot_2-seed_1.json"

    @pytest.mark.parametrize(
        "damage",
        [
            lambda content: content["train"].pop(),
            lambda content: content["train"].__setitem__(0, content["train"][1]),
            lambda content: content["train"][0].__setitem__(1, 3),
            lambda content: content["train"][0].__setitem__(0, "train/n01440764/other.JPEG"),
            lambda content: content.pop("fingerprint_sha256"),
        ],
        ids=["one less", "twice", "other label", "other image", "no fingerprint"],
    )
    def test_damaged_lists_are_not_used(self, root, listed, damage):
        before = digest(self.read(root), root)
        content = json.loads(self.cache(root).read_text())
        damage(content)
        self.cache(root).write_text(json.dumps(content))
        del listed[:]
        assert digest(self.read(root), root) == before
        assert len(listed) == 7
        self.read(root)
        assert len(listed) == 7  # the file was put right

    def test_a_folder_missing_in_val_is_still_refused(self, root):
        self.read(root)
        (root / "imagenet" / "images" / "val" / "n02119789").rename(root / "elsewhere")
        with pytest.raises(ValueError, match="different class folders, n02119789 is in one"):
            self.read(root)

    def test_moved_data_are_still_unchanged(self, root, listed, tmp_path):
        before = digest(self.read(root), root)
        (tmp_path / "other").mkdir()
        (root / "imagenet").rename(tmp_path / "other" / "imagenet")
        del listed[:]
        moved = self.read(tmp_path / "other")
        assert listed == [] and digest(moved, tmp_path / "other") == before
        assert imagenet.CLOCK_TICK > 2 * 10**9  # FAT has times of 2 seconds
