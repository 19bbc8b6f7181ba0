"""The datasets of end-to-end fine-tuning, in the layouts of the libraries that read them."""

import hashlib
import json
import pickle
import struct

import numpy as np
import pytest
import torch
import torchvision
from dataset_trees import make_cfg, make_tree
from PIL import Image
from scipy.io import savemat

from datasets.check import examine
from datasets.cifar10 import CIFAR10
from datasets.cifar100 import CIFAR100
from datasets.dtd import DescribableTextures
from datasets.entry import Counts
from datasets.eurosat import EuroSAT
from datasets.gtsrb import GTSRB
from datasets.gtsrb import NAMES as SIGNS
from datasets.imagenet import ImageNet
from datasets.ldifs import cut
from datasets.mnist import MNIST
from datasets.oxford_pets import OxfordPets
from datasets.resisc45 import RESISC45
from datasets.stanford_cars import StanfordCars
from datasets.sun397 import SUN397
from datasets.svhn import SVHN
from proxyfda.benchmarks import BENCHMARKS, FINETUNE, TITLES, dataset_key
from proxyfda.dassl import DataManager, get_cfg_default
from proxyfda.engine.data import DatasetWrapper
from proxyfda.utils.errors import BadValue, NotFound

CLASSES, TRAIN, TEST = 4, 80, 24


def labels_of(number):
    return [i * 3 % CLASSES for i in range(number)]


def noise(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_cifar(root, monkeypatch, name):
    """Batches of pickled dicts; torchvision's checksums become those of these files."""
    theirs = getattr(torchvision.datasets, name)
    folder = root / theirs.base_folder
    folder.mkdir()
    key = "labels" if name == "CIFAR10" else "fine_labels"

    def write(listed, number, seed):
        found = []
        for place, (file, _) in enumerate(listed):
            each = number // len(listed)
            labels = labels_of(number)[place * each : (place + 1) * each]
            content = {"data": noise(seed + place, each, 3072), key: labels}
            (folder / file).write_bytes(pickle.dumps(content))
            found.append([file, md5(folder / file)])
        return found

    monkeypatch.setattr(theirs, "train_list", write(theirs.train_list, TRAIN, 1))
    monkeypatch.setattr(theirs, "test_list", write(theirs.test_list, TEST, 11))
    meta = folder / theirs.meta["filename"]
    meta.write_bytes(pickle.dumps({theirs.meta["key"]: [f"class_{i}" for i in range(CLASSES)]}))
    monkeypatch.setattr(theirs, "meta", {**theirs.meta, "md5": md5(meta)})


def write_mnist(root, monkeypatch, name):
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part, number in (("train", TRAIN), ("t10k", TEST)):
        images = struct.pack(">IIII", 0x803, number, 28, 28) + noise(number, number, 784).tobytes()
        (folder / f"{part}-images-idx3-ubyte").write_bytes(images)
        labels = struct.pack(">II", 0x801, number) + bytes(labels_of(number))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(labels)


def write_svhn(root, monkeypatch, name):
    folder = root / "svhn"
    folder.mkdir()
    listed = {}
    for part, number in (("train", TRAIN), ("test", TEST)):
        labels = np.array([label or 10 for label in labels_of(number)])[:, None]  # 10 stands for 0
        path = folder / f"{part}_32x32.mat"
        savemat(path, {"X": noise(number, 32, 32, 3, number), "y": labels})
        listed[part] = ["", path.name, md5(path)]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", listed)


def write_gtsrb(root, monkeypatch, name):
    base = root / "gtsrb"
    for i, label in enumerate(labels_of(TRAIN)):
        folder = base / "GTSRB" / "Training" / f"{label:05d}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(i, 9, 8, 3)).save(folder / f"00000_{i:05d}.ppm")
    folder = base / "GTSRB" / "Final_Test" / "Images"
    folder.mkdir(parents=True)
    rows = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for i, label in enumerate(labels_of(TEST)):
        Image.fromarray(noise(100 + i, 9, 8, 3)).save(folder / f"{i:05d}.ppm")
        rows.append(f"{i:05d}.ppm;8;9;1;1;7;8;{label}")
    (base / "GT-final_test.csv").write_text("\n".join(rows) + "\n")


SCENES = ("airplane", "dense_residential", "sea_ice", "wetland")


def write_resisc(root, monkeypatch, name):
    lists = {"train": [], "val": [], "test": []}
    for scene in SCENES:
        folder = root / "resisc45" / "NWPU-RESISC45" / scene
        folder.mkdir(parents=True)
        for i in range(30):
            image = f"{scene}_{i:03d}.jpg"
            Image.fromarray(noise(i, 6, 6, 3)).save(folder / image)
            lists["train" if i < 20 else "val" if i < 24 else "test"].append(image)
    for part, images in lists.items():
        path = root / "resisc45" / f"resisc45-{part}.txt"
        path.write_text("\n".join(reversed(images)) + "\n")


WRITERS = {
    CIFAR10: write_cifar,
    CIFAR100: write_cifar,
    MNIST: write_mnist,
    SVHN: write_svhn,
    GTSRB: write_gtsrb,
    RESISC45: write_resisc,
}
ARRAYS = (CIFAR10, CIFAR100, MNIST, SVHN)
NEW = tuple(WRITERS)


def ids(reader):
    return reader.__name__


@pytest.fixture
def write(tmp_path, monkeypatch):
    def write(reader):
        WRITERS[reader](tmp_path, monkeypatch, reader.__name__)
        return tmp_path

    return write


def theirs(reader, root, part):
    """torchvision's own dataset of a part."""
    of = getattr(torchvision.datasets, reader.__name__)
    if reader in (SVHN, GTSRB):
        return of(root / ("svhn" if reader is SVHN else ""), split=part)
    return of(root, train=part == "train")


def permuted(n):
    """LDIFS's cut in its own words: the places of train and of val among n images."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0)).tolist()
    n_train = n - min(n // 10, 20000)
    return set(order[:n_train]), set(order[n_train:])


class TestCut:
    @pytest.mark.parametrize("n", [10, 80, 1009, 250000])
    def test_is_that_of_a_permutation_of_seed_0(self, n):
        train, val = cut(list(range(n)), "x")
        assert (set(train), set(val)) == permuted(n)
        assert train == sorted(train) and val == sorted(val)

    def test_first_training_image_of_mnist_is_the_one_that_ldifs_asserts(self):
        order = torch.randperm(60000, generator=torch.Generator().manual_seed(0))
        assert order[0] == 36044  # datasets/registry.py of omegafragger/ldifs_code
        assert 36044 in cut(list(range(60000)), "MNIST")[0]

    def test_of_less_than_ten_images_is_refused(self):
        with pytest.raises(BadValue, match="x has 9 training images"):
            cut(list(range(9)), "x")


@pytest.mark.parametrize("reader", [*ARRAYS, GTSRB], ids=ids)
def test_items_are_those_of_torchvision(reader, write):
    root = write(reader)
    data, cfg = reader(make_cfg(root)), get_cfg_default()
    train, val = permuted(TRAIN)
    for items, part, places in (
        (data.train_x, "train", sorted(train)),
        (data.val, "train", sorted(val)),
        (data.test, "test", range(TEST)),
    ):
        wrapped, own = DatasetWrapper(cfg, items), theirs(reader, root, part)
        assert len(items) == len(places)
        for number, place in enumerate(places):
            image, label = own[place]
            read = wrapped[number]
            assert read["label"] == label
            assert read["img"].mode == "RGB"
            assert np.array_equal(np.asarray(read["img"]), np.asarray(image.convert("RGB")))
    everything = [*data.train_x, *data.val, *data.test]
    assert len({item.impath for item in everything}) == TRAIN + TEST
    again = reader(make_cfg(root))
    assert [item.impath for item in again.train_x] == [item.impath for item in data.train_x]


def test_resisc_follows_its_lists(write):
    root = write(RESISC45)
    data = RESISC45(make_cfg(root))
    assert data.classnames == ["airplane", "dense residential", "sea ice", "wetland"]
    folder = root / "resisc45" / "NWPU-RESISC45"
    listed = [str(folder / s / f"{s}_{i:03d}.jpg") for s in SCENES for i in range(20)]
    train, val = permuted(80)
    assert [item.impath for item in data.train_x] == [listed[i] for i in sorted(train)]
    assert [item.impath for item in data.val] == [listed[i] for i in sorted(val)]
    assert [item.impath for item in data.test] == [
        str(folder / s / f"{s}_{i:03d}.jpg") for s in SCENES for i in range(24, 30)
    ]
    assert all(SCENES[item.label] in item.impath for item in data.test)


def test_class_names_and_templates(write):
    write(CIFAR100), write(MNIST), write(SVHN)
    root = write(GTSRB)
    assert CIFAR100(make_cfg(root)).classnames == ["class_0", "class_1", "class_2", "class_3"]
    assert MNIST(make_cfg(root)).classnames == SVHN(make_cfg(root)).classnames == list("0123")
    assert GTSRB(make_cfg(root)).classnames == list(SIGNS[:4])
    assert len(SIGNS) == len(set(SIGNS)) == 43
    first_of_clips = {  # data/prompts.md of openai/CLIP
        CIFAR10: "a photo of a {}.",
        CIFAR100: "a photo of a {}.",
        GTSRB: 'a zoomed in photo of a "{}" traffic sign.',
        MNIST: 'a photo of the number: "{}".',
        RESISC45: "satellite imagery of {}.",
        SVHN: 'a photo of the number: "{}".',
    }
    assert {reader: reader.template for reader in NEW} == first_of_clips


@pytest.mark.parametrize("reader", NEW, ids=ids)
def test_check_counts_and_calls_it_complete(reader, write, monkeypatch):
    root = write(reader)
    report = examine(reader, str(root), deep=True, workers=1)
    assert report.verdict == "incomplete" and "classes instead of" in report.faults[0]
    counts = report.classes, report.train, report.val, report.test
    assert counts == (CLASSES, 72, 8, TEST)
    monkeypatch.setattr(reader, "expected", Counts(*counts))
    report = examine(reader, str(root), deep=True, workers=1)
    assert report.verdict == "complete" and report.unreadable == {} and not report.remarks


# Official sizes: the papers' and torchvision's pages; RESISC45's lists; and LDIFS's tenth of train.
OFFICIAL = {
    CIFAR10: (10, 50000, 10000),
    CIFAR100: (100, 50000, 10000),
    MNIST: (10, 60000, 10000),
    SVHN: (10, 73257, 26032),
    GTSRB: (43, 26640, 12630),
    RESISC45: (45, 18900, 6300),
}


@pytest.mark.parametrize("reader", NEW, ids=ids)
def test_expected_counts_are_a_tenth_off_the_official_ones(reader):
    classes, train, test = OFFICIAL[reader]
    assert reader.expected == (classes, train - train // 10, train // 10, test)


@pytest.mark.parametrize("reader", NEW, ids=ids)
def test_shots_and_halves(reader, write):
    root = write(reader)
    shots = reader(make_cfg(root, shots=2, seed=3))
    assert sorted(item.label for item in shots.train_x) == [0, 0, 1, 1, 2, 2, 3, 3]
    again = reader(make_cfg(root, shots=2, seed=3))  # from the file that keeps them
    assert [item.impath for item in again.train_x] == [item.impath for item in shots.train_x]
    new = reader(make_cfg(root, shots=2, seed=3, subsample="new"))
    assert new.num_classes == 2 and new.classnames == shots.classnames[2:]
    kept = [item for item in shots.train_x if item.label >= 2]
    assert [(i.impath, i.label + 2) for i in new.train_x] == [(i.impath, i.label) for i in kept]
    for item, other in zip(new.train_x, kept):
        if reader in ARRAYS:
            assert np.array_equal(np.asarray(item.read()), np.asarray(other.read()))


def test_loaders_carry_arrays_to_workers(write):
    cfg = get_cfg_default()
    cfg.DATASET.ROOT, cfg.DATASET.NAME = str(write(CIFAR10)), "CIFAR10"
    cfg.DATASET.SUBSAMPLE_CLASSES, cfg.INPUT.SIZE = "all", (8, 8)
    cfg.DATALOADER.NUM_WORKERS, cfg.VERBOSE = 1, False
    batch = next(iter(DataManager(cfg).test_loader))
    assert batch["img"].shape[1:] == (3, 8, 8)
    assert "/cifar-10-batches-py/test/" in batch["impath"][0]


class TestWhatIsMissing:
    @pytest.mark.parametrize("reader", NEW, ids=ids)
    def test_no_folder(self, reader, tmp_path):
        with pytest.raises(NotFound, match=f"{reader.__name__}: the folder .* does not exist") as e:
            reader(make_cfg(tmp_path))
        assert "docs/DATASETS.md" in str(e.value)

    @pytest.mark.parametrize(
        ("reader", "file"),
        [
            (CIFAR10, "cifar-10-batches-py/data_batch_3"),
            (CIFAR100, "cifar-100-python/test"),
            (MNIST, "MNIST/raw/t10k-labels-idx1-ubyte"),
            (SVHN, "svhn/test_32x32.mat"),
            (GTSRB, "gtsrb/GT-final_test.csv"),
            (GTSRB, "gtsrb/GTSRB/Final_Test/Images/00003.ppm"),
            (RESISC45, "resisc45/resisc45-test.txt"),
            (RESISC45, "resisc45/NWPU-RESISC45/sea_ice/sea_ice_003.jpg"),
        ],
        ids=lambda value: getattr(value, "__name__", value),
    )
    def test_no_file(self, reader, file, write):
        root = write(reader)
        (root / file).unlink()
        with pytest.raises(NotFound, match="DATASETS.md") as e:
            reader(make_cfg(root))
        assert "\n" not in str(e.value) and "download=True" not in str(e.value)

    @pytest.mark.parametrize("reader", ARRAYS, ids=ids)
    def test_damaged_file(self, reader, write):
        root = write(reader)
        folder = next(p for p in root.iterdir() if p.is_dir())
        file = next(p for p in sorted(folder.rglob("*")) if p.is_file() and "test" in p.name
                    or "t10k-images" in p.name)  # fmt: skip
        file.write_bytes(file.read_bytes()[:-40])
        with pytest.raises((NotFound, BadValue), match=reader.__name__) as e:
            reader(make_cfg(root))
        assert "\n" not in str(e.value)

    def test_a_pickle_with_another_checksum_is_not_opened(self, write, monkeypatch):
        root = write(CIFAR10)
        (root / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickle.dumps({"data": 0}))
        opened = []
        monkeypatch.setattr(pickle, "load", lambda *args, **more: opened.append(args))
        with pytest.raises(NotFound, match="missing or damaged"):
            CIFAR10(make_cfg(root))
        assert not opened

    def test_sign_beyond_the_classes(self, write):
        root = write(GTSRB)
        with (root / "gtsrb" / "GT-final_test.csv").open("a") as file:
            file.write("00000.ppm;8;9;1;1;7;8;43\n")
        with pytest.raises(BadValue, match="label 43"):
            GTSRB(make_cfg(root))

    def test_installed_dassl_reads_files_only(self, write, monkeypatch):
        monkeypatch.setattr("datasets.array.ENGINE", "dassl")
        with pytest.raises(BadValue, match="PROXYFDA_ENGINE=embedded"):
            MNIST(make_cfg(write(MNIST)))


def ldifs(root):
    cfg = make_cfg(root)
    cfg.DATASET.SPLIT = "ldifs"
    return cfg


def below(items, root):
    return {str(item.impath)[len(str(root)) + 1 :] for item in items}


class TestLdifsSplit:
    @pytest.mark.parametrize("reader", [StanfordCars, SUN397], ids=ids)
    def test_pools_the_official_training_images(self, reader, tmp_path):
        make_tree(tmp_path, reader.__name__, "noise")
        usual = reader(make_cfg(tmp_path))
        data = reader(ldifs(tmp_path))
        official = [*usual.train_x, *usual.val]

        def key(item):
            folder, _, name = item.impath.rpartition("/")
            return (folder.replace("/", "_"), name)

        paths = [item.impath for item in sorted(official, key=key)]
        train, val = permuted(len(paths))
        assert [item.impath for item in data.train_x] == [paths[i] for i in sorted(train)]
        assert [item.impath for item in data.val] == [paths[i] for i in sorted(val)]
        assert below(data.test, tmp_path) == below(usual.test, tmp_path)
        labels = {item.impath: item.label for item in official}
        assert all(labels[item.impath] == item.label for item in [*data.train_x, *data.val])

    def test_of_dtd_is_its_first_partition(self, tmp_path):
        make_tree(tmp_path, "DescribableTextures", "noise")
        root = tmp_path / "dtd"
        found = sorted(str(p.relative_to(root / "images")) for p in root.glob("images/*/*.jpg"))
        lists = {"train": found[::2], "val": found[1::4], "test": found[3::4]}
        (root / "labels").mkdir(exist_ok=True)
        for part, paths in lists.items():
            (root / "labels" / f"{part}1.txt").write_text("\n".join(paths) + "\n")
        data = DescribableTextures(ldifs(tmp_path))
        train, val = permuted(len(lists["train"]))
        images = str(root / "images")
        assert below(data.train_x, images) == {lists["train"][i] for i in train}
        assert below(data.val, images) == {lists["train"][i] for i in val}
        assert below(data.test, images) == set(lists["test"])
        classes = sorted({path.partition("/")[0] for path in found})
        assert data.classnames == classes
        (root / "labels" / "test1.txt").unlink()
        with pytest.raises(NotFound, match="labels/test1.txt"):
            DescribableTextures(ldifs(tmp_path))

    def test_of_eurosat_are_folders(self, tmp_path):
        make_tree(tmp_path, "EuroSAT", "noise")
        with pytest.raises(NotFound, match="EuroSAT_splits"):
            EuroSAT(ldifs(tmp_path))
        for part, number in (("train", 3), ("val", 1), ("test", 2)):
            for folder in ("Forest", "SeaLake"):
                here = tmp_path / "EuroSAT_splits" / part / folder
                here.mkdir(parents=True)
                for i in range(number):
                    Image.fromarray(noise(i, 5, 5, 3)).save(here / f"{i}.jpg")
        data = EuroSAT(ldifs(tmp_path))
        assert data.classnames == ["Forest", "Sea or Lake"]
        assert list(map(len, (data.train_x, data.val, data.test))) == [6, 2, 4]

    def test_of_imagenet_validates_on_training_images(self, tmp_path):
        make_tree(tmp_path, "ImageNet", "noise")
        usual, data = ImageNet(make_cfg(tmp_path)), ImageNet(ldifs(tmp_path))
        train, val = permuted(len(usual.train_x))
        listed = [item.impath for item in usual.train_x]
        assert [item.impath for item in data.train_x] == [listed[i] for i in sorted(train)]
        assert [item.impath for item in data.val] == [listed[i] for i in sorted(val)]
        assert len(data.test) == len(usual.test)

    def test_nothing_is_written_over_the_usual_split(self, tmp_path):
        make_tree(tmp_path, "StanfordCars", "noise")
        file = tmp_path / "stanford_cars" / StanfordCars.split_file
        before = json.loads(file.read_text())
        cfg = ldifs(tmp_path)
        cfg.DATASET.NUM_SHOTS = 1
        StanfordCars(cfg)
        cfg.DATASET.SPLIT = ""
        StanfordCars(cfg)
        assert json.loads(file.read_text()) == before
        kept = sorted(p.name for p in (tmp_path / "stanford_cars" / "split_fewshot").iterdir())
        assert kept == ["shot_1-seed_1-ldifs.json", "shot_1-seed_1.json"]

    def test_other_datasets_and_words_are_refused(self, tmp_path):
        make_tree(tmp_path, "OxfordPets", "noise")
        with pytest.raises(BadValue, match="OxfordPets has no split of LDIFS's"):
            OxfordPets(ldifs(tmp_path))
        cfg = ldifs(tmp_path)
        cfg.DATASET.SPLIT = "official"
        with pytest.raises(BadValue, match="DATASET.SPLIT is 'official'"):
            OxfordPets(cfg)


def test_names():
    assert len(FINETUNE) == 10 and len(BENCHMARKS) == 11 and set(FINETUNE) <= set(TITLES)
    words = ("CIFAR-10", "cifar_100", "Cars", "RESISC-45", "Stanford Cars")
    keys = ["cifar10", "cifar100", "stanford_cars", "resisc45", "stanford_cars"]
    assert list(map(dataset_key, words)) == keys
