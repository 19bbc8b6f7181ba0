"""The readers of the benchmarks on tiny trees, against upstream's readings of the same trees."""

import json
import os
import random
from pathlib import Path

import pytest
import yaml
from dataset_trees import (
    BENCHMARKS,
    IMAGENET_TEST_SETS,
    digest,
    files_below,
    make_cfg,
    make_tree,
    names,
)

import datasets
from datasets.dtd import DescribableTextures
from datasets.imagenet import ImageNet
from datasets.make_split import FolderDataset
from datasets.oxford_pets import OxfordPets
from datasets.split import SplitDataset
from proxyfda.dassl import DATASET_REGISTRY, DatasetBase, Datum

HERE = Path(__file__).parent
UPSTREAM = json.loads((HERE / "readings_upstream.json").read_text())["readings"]
ALL = BENCHMARKS + IMAGENET_TEST_SETS
WITH_SPLIT_FILE = tuple(name for name in BENCHMARKS if name not in ("ImageNet", "FGVCAircraft"))

# From the upstream repositories: config file, folder, image folder, split file, template; and the
# numbers of classes, train, val and test images from the table in CoOp's paper (arXiv 2109.01134),
# of the ImageNet variants from their own.
A_PHOTO = "a photo of a {}."
FACTS = {
    "ImageNet": ("imagenet", "imagenet", "images", "", A_PHOTO, (1000, 1281167, 0, 50000)),
    "Caltech101": (
        "caltech101", "caltech-101", "101_ObjectCategories", "split_zhou_Caltech101.json", A_PHOTO,
        (100, 4128, 1649, 2465),
    ),
    "OxfordPets": (
        "oxford_pets", "oxford_pets", "images", "split_zhou_OxfordPets.json",
        "a photo of a {}, a type of pet.", (37, 2944, 736, 3669),
    ),
    "StanfordCars": (
        "stanford_cars", "stanford_cars", "", "split_zhou_StanfordCars.json", A_PHOTO,
        (196, 6509, 1635, 8041),
    ),
    "OxfordFlowers": (
        "oxford_flowers", "oxford_flowers", "jpg", "split_zhou_OxfordFlowers.json",
        "a photo of a {}, a type of flower.", (102, 4093, 1633, 2463),
    ),
    "Food101": (
        "food101", "food-101", "images", "split_zhou_Food101.json",
        "a photo of {}, a type of food.", (101, 50500, 20200, 30300),
    ),
    "FGVCAircraft": (
        "fgvc_aircraft", "fgvc_aircraft", "images", "", "a photo of a {}, a type of aircraft.",
        (100, 3334, 3333, 3333),
    ),
    "SUN397": (
        "sun397", "sun397", "SUN397", "split_zhou_SUN397.json", A_PHOTO, (397, 15880, 3970, 19850),
    ),
    "DescribableTextures": (
        "dtd", "dtd", "images", "split_zhou_DescribableTextures.json", "{} texture.",
        (47, 2820, 1128, 1692),
    ),
    "EuroSAT": (
        "eurosat", "eurosat", "2750", "split_zhou_EuroSAT.json",
        "a centered satellite photo of {}.", (10, 13500, 5400, 8100),
    ),
    "UCF101": (
        "ucf101", "ucf101", "UCF-101-midframes", "split_zhou_UCF101.json",
        "a photo of a person doing {}.", (101, 7639, 1898, 3783),
    ),
    "ImageNetV2": (
        "imagenetv2", "imagenetv2", "imagenetv2-matched-frequency-format-val", "", A_PHOTO,
        (1000, 0, 0, 10000),
    ),
    "ImageNetSketch": (
        "imagenet_sketch", "imagenet-sketch", "images", "", A_PHOTO, (1000, 0, 0, 50889),
    ),
    "ImageNetA": (
        "imagenet_a", "imagenet-adversarial", "imagenet-a", "", A_PHOTO, (200, 0, 0, 7500),
    ),
    "ImageNetR": (
        "imagenet_r", "imagenet-rendition", "imagenet-r", "", A_PHOTO, (200, 0, 0, 30000),
    ),
}  # fmt: skip


def read(name, root, *args, **kwargs):
    return DATASET_REGISTRY.get(name)(make_cfg(root, *args, **kwargs))


@pytest.mark.parametrize("name", ALL)
def test_declarations_and_configs(name):
    module, folder, image_dir, split_file, template, counts = FACTS[name]
    reader = DATASET_REGISTRY.get(name)
    assert (reader.dataset_dir, reader.image_dir) == (folder, image_dir)
    assert (reader.split_file, reader.template) == (split_file, template)
    assert tuple(reader.expected) == counts
    assert reader.__module__ == f"datasets.{module}"
    config = HERE.parents[1] / "configs" / "datasets" / f"{module}.yaml"
    assert yaml.safe_load(config.read_text()) == {"DATASET": {"NAME": name}}


def test_the_lists_of_benchmarks_are_in_the_usual_order():
    modules = [FACTS[name][0] for name in ALL]
    assert [*datasets.BENCHMARKS, *datasets.SHIFTED] == modules


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """Roots with all trees, with and without split files."""
    roots = {}
    for kind in ("split", "raw"):
        roots[kind] = tmp_path_factory.mktemp(f"{kind} dätá")
        for name in ALL:
            make_tree(roots[kind], name, split=kind == "split", per_class=11)
    return roots


CASES = [(name, key) for name in ALL for key in UPSTREAM[name]]


@pytest.mark.parametrize("name, key", CASES, ids=[f"{n}-{k.replace(' ', '-')}" for n, k in CASES])
def test_reads_what_upstream_reads(trees, name, key):
    kind, shots, subsample = key.split(" ")
    expected = UPSTREAM[name][key]
    data = read(name, trees[kind], int(shots), subsample)
    assert [len(data.train_x), len(data.val or ()), len(data.test)] == expected["counts"]
    assert data.classnames == expected.get("classnames", data.classnames)
    assert digest(data, trees[kind]) == expected["sha256"]
    assert all(os.path.isfile(item.impath) for item in data.train_x + data.test)
    assert all(isinstance(item, Datum) for item in data.train_x + data.test)


@pytest.mark.parametrize("name", WITH_SPLIT_FILE)
class TestMakingASplit:
    def test_is_said_and_saved_once(self, tmp_path, name, capsys):
        folder = make_tree(tmp_path, name, split=False)
        path = folder / FACTS[name][3]
        first = digest(read(name, tmp_path), tmp_path)
        said = capsys.readouterr().out
        assert f"there is no {path.name}, so a split was made" in said
        assert "it is not the published one" in said and f"Saved split to {path}" in said
        written = path.read_bytes()
        assert digest(read(name, tmp_path), tmp_path) == first
        assert "made" not in capsys.readouterr().out
        assert path.read_bytes() == written

    def test_does_not_depend_on_the_seed_or_the_order_of_listings(
        self, tmp_path, name, monkeypatch
    ):
        splits = []
        for where, seed in (("a", 1), ("b", 2)):
            folder = make_tree(tmp_path / where, name, split=False)
            before = random.getstate()
            read(name, tmp_path / where, seed=seed)
            assert random.getstate() == before
            splits.append((folder / FACTS[name][3]).read_text())
            listdir, scandir = os.listdir, os.scandir
            monkeypatch.setattr(os, "listdir", lambda f, real=listdir: real(f)[::-1])
            monkeypatch.setattr(
                os, "scandir", lambda f, real=scandir: _Reversed(list(real(f))[::-1])
            )
        assert splits[0] == splits[1]

    def test_shots_are_those_of_a_later_run(self, tmp_path, name):
        for where in ("a", "b"):
            make_tree(tmp_path / where, name, split=False)
        read(name, tmp_path / "a")
        later = digest(read(name, tmp_path / "a", 2), tmp_path / "a")
        assert digest(read(name, tmp_path / "b", 2), tmp_path / "b") == later

    def test_nothing_is_saved_while_images_are_missing(self, tmp_path, name):
        folder = make_tree(tmp_path, name, split=False)
        if issubclass(DATASET_REGISTRY.get(name), FolderDataset):
            pytest.skip("made from the folders, so that nothing can be missing")
        next((folder / FACTS[name][2]).rglob("*.jpg")).unlink()
        before = files_below(tmp_path)
        with pytest.raises(FileNotFoundError, match="1 of [0-9]+ images listed in .* missing"):
            read(name, tmp_path)
        assert files_below(tmp_path) == before

    def test_where_it_cannot_be_saved_the_run_goes_on(self, tmp_path, name, monkeypatch, capsys):
        make_tree(tmp_path, name, split=False)

        def full(*args):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "replace", full)
        read(name, tmp_path)
        assert "Split not written" in capsys.readouterr().out


class _Reversed(list):
    """A listing in another order, usable as os.scandir's."""

    def __enter__(self):
        return iter(self)

    def __exit__(self, *error):
        pass


ANNOTATIONS = {
    "OxfordPets": ["annotations/trainval.txt", "annotations/test.txt"],
    "StanfordCars": ["devkit/cars_meta.mat", "cars_test_annos_withlabels.mat"],
    "OxfordFlowers": ["imagelabels.mat", "cat_to_name.json"],
    "SUN397": ["ClassName.txt", "Training_01.txt", "Testing_01.txt"],
    "UCF101": ["ucfTrainTestlist/classInd.txt", "ucfTrainTestlist/trainlist01.txt"],
}
ANNOTATION_CASES = [(name, path) for name, paths in ANNOTATIONS.items() for path in paths]


@pytest.mark.parametrize("name, gone", ANNOTATION_CASES)
def test_neither_split_file_nor_annotations(tmp_path, name, gone):
    folder = make_tree(tmp_path, name, split=False)
    (folder / gone).unlink()
    with pytest.raises(FileNotFoundError) as error:
        read(name, tmp_path)
    assert str(error.value) == (
        f"{name}: there is neither the split file {folder / FACTS[name][3]} nor the annotation "
        f"file {folder / gone} to make one from; docs/DATASETS.md says how to get it, or check "
        "--root (DATASET.ROOT)"
    )


@pytest.mark.parametrize("name, spoiled", ANNOTATION_CASES)
def test_spoiled_annotations_are_named(tmp_path, name, spoiled):
    folder = make_tree(tmp_path, name, split=False)
    (folder / spoiled).write_text("x\n" * 3)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        read(name, tmp_path)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ALL)
class TestMissing:
    def test_folder(self, tmp_path, name):
        folder = tmp_path / FACTS[name][1]
        with pytest.raises(FileNotFoundError) as error:
            read(name, tmp_path)
        assert str(error.value) == (
            f"{name}: the folder {folder} does not exist; docs/DATASETS.md says how to get it, or "
            "check --root (DATASET.ROOT)"
        )

    def test_folder_under_another_name(self, tmp_path, name):
        other = tmp_path / FACTS[name][1].upper().replace("-", "").replace("_", "-")
        other.mkdir()
        if other.name == FACTS[name][1]:
            pytest.skip("the same name")
        with pytest.raises(FileNotFoundError, match=f"rename or link {other}, which is there"):
            read(name, tmp_path)

    def test_no_image_is_asked_for_alone(self, tmp_path, name, monkeypatch):
        folder = make_tree(tmp_path, name)
        isfile = os.path.isfile

        def no_image(path):
            assert not str(path).lower().endswith((".jpg", ".jpeg")), "a stat per image"
            return isfile(path)

        monkeypatch.setattr(os.path, "isfile", no_image)
        read(name, tmp_path, 2, "base")
        assert folder.is_dir()


@pytest.mark.parametrize("name", ["OxfordPets", "FGVCAircraft", "StanfordCars"])
def test_a_listed_image_that_is_missing(tmp_path, name):
    folder = make_tree(tmp_path, name)
    gone = sorted(folder.rglob("*.jpg"))[3]
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=f"1 of .* missing, the first is {gone}; docs/DATA"):
        read(name, tmp_path)


@pytest.mark.parametrize("spelled", ["Bengal_2.JPG", "bengal_2.jpg", "Bengal_2.jpeg"])
def test_images_under_another_spelling_are_taken(tmp_path, spelled, capsys):
    folder = make_tree(tmp_path, "OxfordPets")
    reference = names(read("OxfordPets", tmp_path, 2).train_x)
    (folder / "images" / "Bengal_2.jpg").rename(folder / "images" / spelled)
    capsys.readouterr()
    data = read("OxfordPets", tmp_path, 2)
    assert "1 images have a differently spelled name on disk" in capsys.readouterr().out
    assert [item.classname for item in data.train_x] == [name for _, _, name in reference]
    everything = read("OxfordPets", tmp_path)
    paths = {item.impath for item in everything.train_x + everything.val + everything.test}
    assert str(folder / "images" / spelled) in paths
    assert all(os.path.isfile(path) for path in paths)


def test_two_spellings_are_not_guessed_between(tmp_path):
    folder = make_tree(tmp_path, "OxfordPets")
    (folder / "images" / "Bengal_2.jpg").rename(folder / "images" / "Bengal_2.JPG")
    (folder / "images" / "Bengal_2.jpeg").touch()
    with pytest.raises(FileNotFoundError, match=r"1 of .* the first is .*Bengal_2\.jpg"):
        read("OxfordPets", tmp_path)


def test_datasets_may_be_links(tmp_path):
    make_tree(tmp_path / "disk", "EuroSAT")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "eurosat").symlink_to(tmp_path / "disk" / "eurosat")
    linked = read("EuroSAT", tmp_path / "data", 4)
    assert names(linked.train_x) == names(read("EuroSAT", tmp_path / "disk", 4).train_x)


class TestImageNet:
    def test_test_images_are_the_validation_images(self, tmp_path):
        make_tree(tmp_path, "ImageNet")
        for shots in (-1, 2):
            data = read("ImageNet", tmp_path, shots)
            assert names(data.val) == names(data.test) and len(data.test) == 35

    def test_a_preprocessed_file_is_left_alone(self, tmp_path):
        folder = make_tree(tmp_path, "ImageNet")
        (folder / "preprocessed.pkl").write_bytes(b"stale")
        assert len(read("ImageNet", tmp_path).test) == 35
        assert (folder / "preprocessed.pkl").read_bytes() == b"stale"

    def test_a_folder_missing_in_val_shifts_no_label(self, tmp_path):
        folder = make_tree(tmp_path, "ImageNet")
        (folder / "images" / "val" / "n02119789").rename(folder / "elsewhere")
        with pytest.raises(ValueError, match="different class folders, n02119789 is in one"):
            read("ImageNet", tmp_path)

    def test_an_empty_folder(self, tmp_path):
        folder = make_tree(tmp_path, "ImageNet")
        for image in (folder / "images" / "train" / "n01443537").iterdir():
            image.unlink()
        with pytest.raises(ValueError, match="class folder .*n01443537 has no images"):
            read("ImageNet", tmp_path)

    def test_unsorted_validation_images(self, tmp_path):
        folder = make_tree(tmp_path, "ImageNet")
        for path in (folder / "images" / "val").iterdir():
            path.rename(folder / path.name)
        (folder / "images" / "val" / "ILSVRC2012_val_00000001.JPEG").touch()
        with pytest.raises(ValueError, match="val holds no class folders"):
            read("ImageNet", tmp_path)

    def test_another_list_of_class_names(self, tmp_path):
        folder = make_tree(tmp_path, "ImageNet")
        (folder / "classnames.txt").write_text("n01440764 tench\n")
        with pytest.raises(ValueError, match="no line for the class folder n01443537"):
            read("ImageNet", tmp_path)

    def test_names_are_read_as_upstream_does(self, tmp_path):
        file = tmp_path / "classnames.txt"
        file.write_bytes(b"n2 great white shark\r\nn1 tench\r\n\r\n")
        assert ImageNet.read_classnames(str(file)) == {"n2": "great white shark", "n1": "tench"}
        assert list(ImageNet.read_classnames(str(file))) == ["n2", "n1"]

    def test_files_that_are_no_images_are_skipped_with_a_line(self, tmp_path, capsys):
        folder = make_tree(tmp_path, "ImageNet")
        before = digest(read("ImageNet", tmp_path), tmp_path)
        for stray in ("train/n01440764/Thumbs.db", "train/n01440764/.DS_Store", "val/list.txt"):
            (folder / "images" / stray).touch()
        assert digest(read("ImageNet", tmp_path), tmp_path) == before
        assert "skipped 1 files" in capsys.readouterr().out


class TestImageNetTestSets:
    @pytest.mark.parametrize("name", IMAGENET_TEST_SETS)
    def test_class_names_may_come_from_imagenet(self, tmp_path, name, capsys):
        folder = make_tree(tmp_path, name)
        own = digest(read(name, tmp_path), tmp_path)
        (tmp_path / "imagenet").mkdir()
        (folder / "classnames.txt").rename(tmp_path / "imagenet" / "classnames.txt")
        assert digest(read(name, tmp_path), tmp_path) == own
        assert f"class names from {tmp_path / 'imagenet'}" in capsys.readouterr().out

    @pytest.mark.parametrize("name", IMAGENET_TEST_SETS)
    def test_shots_and_subsampling_are_ignored_with_a_line(self, tmp_path, name, capsys):
        make_tree(tmp_path, name)
        whole = digest(read(name, tmp_path), tmp_path)
        assert "only for testing" not in capsys.readouterr().out
        assert digest(read(name, tmp_path, 2, "new"), tmp_path) == whole
        assert f"{name} is only for testing" in capsys.readouterr().out

    @pytest.mark.parametrize("change", ["rename", "remove"])
    def test_v2_has_a_folder_for_every_name(self, tmp_path, change):
        folder = make_tree(tmp_path, "ImageNetV2") / FACTS["ImageNetV2"][2]
        (folder / "6").rename(folder / "7" if change == "rename" else tmp_path / "6")
        with pytest.raises(ValueError, match=f"have to be 0 to 6, but {folder}/6 is not there"):
            read("ImageNetV2", tmp_path)


class TestNamesThatOtherReadersImport:
    def test_a_reader_written_for_the_coop_family(self, tmp_path):
        """As in other repositories: own annotations, everything else borrowed."""
        folder = make_tree(tmp_path, "OxfordPets", split=False)
        image_dir = str(folder / "images")

        class Theirs(DatasetBase):
            def __init__(self, cfg):
                trainval = [
                    Datum(f"{image_dir}/{breed}_{i + 1}.jpg", label, classname=breed)
                    for label, breed in enumerate(("Abyssinian", "Bengal"))
                    for i in range(10)
                ]
                train, val = OxfordPets.split_trainval(trainval)
                path = str(tmp_path / "split.json")
                OxfordPets.save_split(train, val, val, path, image_dir)
                train, val, test = OxfordPets.read_split(path, image_dir)
                train, val, test = OxfordPets.subsample_classes(train, val, test, subsample="new")
                super().__init__(train_x=train, val=val, test=test)

        random.seed(3)
        data = Theirs(None)
        assert data.classnames == ["Bengal"] and len(data.train_x) == 8 and len(data.val) == 2

    def test_splits_draw_from_the_global_stream_as_upstreams_do(self, tmp_path):
        folder = make_tree(tmp_path, "DescribableTextures", split=False)
        random.seed(1)
        theirs = DescribableTextures.read_and_split_data(str(folder / "images"))
        ours = read("DescribableTextures", tmp_path)
        for mine, their in zip((ours.train_x, ours.val, ours.test), theirs):
            assert names(mine) == names(their)

    def test_ignored_and_renamed_folders(self, tmp_path):
        folder = make_tree(tmp_path, "DescribableTextures", split=False)
        train, _, _ = DescribableTextures.read_and_split_data(
            str(folder / "images"), ignored=["banded"], new_cnames={"blotchy": "with blots"}
        )
        assert [(e.label, e.classname) for e in train[:1]] == [(0, "with blots")]

    @pytest.mark.parametrize("n, val", [(1, None), (2, None), (3, 1), (7, 1), (8, 2), (13, 3)])
    def test_a_fifth_is_rounded_as_python_does(self, tmp_path, n, val):
        (tmp_path / "x.jpg").touch()
        items = [Datum(str(tmp_path / "x.jpg"), 0, classname="x")] * n
        if val is None:
            with pytest.raises(ValueError, match=rf"label 0 \(x\) has {n} trainval images, too"):
                OxfordPets.split_trainval(items)
        else:
            assert [len(part) for part in OxfordPets.split_trainval(items)] == [n - val, val]


def test_a_class_too_small_to_be_split(tmp_path):
    folder = make_tree(tmp_path, "DescribableTextures", split=False)
    for image in sorted((folder / "images" / "braided").iterdir())[2:]:
        image.unlink()
    with pytest.raises(ValueError, match=r"a class with 2 images \(braided/.*restore its images"):
        read("DescribableTextures", tmp_path)


def test_every_registered_reader_is_a_split_dataset():
    for name in ALL:
        assert issubclass(DATASET_REGISTRY.get(name), SplitDataset)
