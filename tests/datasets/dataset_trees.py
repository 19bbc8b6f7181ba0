"""Tiny data roots and configs for the reader tests.

``make_tree(root, "OxfordPets")`` lays out any of the benchmarks as its authors distribute it, with
a few classes and images, with or without the split file.
"""

import hashlib
import json
import os
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np


def make_cfg(root, shots=-1, subsample="all", seed=1):
    dataset = SimpleNamespace(ROOT=str(root), NUM_SHOTS=shots, SUBSAMPLE_CLASSES=subsample)
    return SimpleNamespace(DATASET=dataset, SEED=seed)


def write_images(root, split):
    """Empty files: readers look only at names."""
    for entries in split.values():
        for path, _, _ in entries:
            file = Path(root) / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()


def make_split(classes=5, train=6, val=3, test=2):
    """Class i is called name_i; classes come in descending order of label."""
    return {
        part: [
            [f"c{i}/{part}_{j}.jpg", i, f"name_{i}"]
            for i in reversed(range(classes))
            for j in range(n)
        ]
        for part, n in (("train", train), ("val", val), ("test", test))
    }


def names(items):
    """What a list of Datum holds, with the last two parts of the path only."""
    return [("/".join(Path(d.impath).parts[-2:]), d.label, d.classname) for d in items]


def digest(data, root):
    """SHA-256 over all that was read: train, val, test in order, and the class names."""
    lists = [
        [(os.path.relpath(item.impath, root), item.label, item.classname) for item in items or ()]
        for items in (data.train_x, data.val, data.test)
    ]
    text = json.dumps([lists, data.classnames, data.num_classes])
    return hashlib.sha256(text.encode()).hexdigest()


def files_below(root):
    return sorted(str(p.relative_to(root)) for p in Path(root).rglob("*") if p.is_file())


# --- the benchmarks -------------------------------------------------------------------------------

CLASSES = {
    "Caltech101": (
        "Faces",
        "Leopards",
        "Motorbikes",
        "accordion",
        "airplanes",
        "anchor",
        "yin_yang",
    ),
    "OxfordPets": ("Abyssinian", "american_bulldog", "Bengal", "Egyptian_Mau", "wheaten_terrier"),
    "StanfordCars": (
        "AM General Hummer SUV 2000",
        "Acura RL Sedan 2012",
        "Audi 100 Wagon 1994",
        "smart fortwo Convertible 2012",
        "Volvo 240 Sedan 1993",
    ),
    "OxfordFlowers": ("pink primrose", "hard-leaved pocket orchid", "canterbury bells", "rose"),
    "Food101": ("apple_pie", "baby_back_ribs", "baklava", "tacos", "waffles"),
    "FGVCAircraft": ("707-320", "727-200", "A300B4", "F/A-18", "Model B200", "Yak-42"),
    "SUN397": (
        "/a/abbey",
        "/a/airplane_cabin",
        "/a/apartment_building/outdoor",
        "/b/basement",
        "/c/church/indoor",
    ),
    "DescribableTextures": ("banded", "blotchy", "braided", "polka-dotted", "zigzagged"),
    "EuroSAT": (
        "AnnualCrop",
        "Forest",
        "HerbaceousVegetation",
        "Highway",
        "Industrial",
        "Pasture",
        "PermanentCrop",
        "Residential",
        "River",
        "SeaLake",
    ),
    "UCF101": ("ApplyEyeMakeup", "HandstandPushups", "TaiChi", "WallPushups", "YoYo"),
}
IMAGENET_CLASSES = {
    "n01440764": "tench",
    "n01443537": "goldfish",
    "n01484850": "great white shark",
    "n01491361": "tiger shark",
    "n01494475": "hammerhead shark",
    "n01498041": "electric ray",
    "n02119789": "kit fox",
}
BENCHMARKS = ("ImageNet", *CLASSES)
IMAGENET_TEST_SETS = ("ImageNetV2", "ImageNetSketch", "ImageNetA", "ImageNetR")


def make_tree(root, name, images=None, per_class=10, split=True, seed=0):
    """Lay out a benchmark below ``root``.

    Args:
        root: data root; made if needed.
        name: registered name of the dataset.
        images: image files to copy in turn; empty files if there are none (readers look at names
            only), ``"noise"`` for small generated JPEGs.
        per_class: images per class, at least 4; where training and test images lie apart, so many
            training and half as many test images.
        split: write the split JSON as well (for a dataset that has one).
        seed: of the split written.

    Returns:
        The dataset's folder (a ``Path``).
    """
    tree = _Tree(Path(root), images, per_class)
    folder = _LAYOUTS[name](tree, name)
    if split and name in _SPLIT_FILES:
        image_dir, listed = tree.listed
        _write_split(folder / _SPLIT_FILES[name], image_dir, listed, seed)
    return folder


_SPLIT_FILES = {
    name: f"split_zhou_{name}.json" for name in CLASSES if name not in ("FGVCAircraft",)
}


class _Tree:
    def __init__(self, root, images, per_class):
        self.root, self.n = root, per_class
        self.images = [Path(image) for image in images or () if images != "noise"]
        self.noise = images == "noise"
        self.made = 0
        self.listed = None  # (image folder, [(path, label, class name)]) for the split file

    def image(self, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.images:
            shutil.copyfile(self.images[self.made % len(self.images)], path)
        elif self.noise:
            from PIL import Image

            noise = np.random.default_rng(self.made).integers(0, 256, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(noise).save(path, "JPEG")
        else:
            path.touch()
        self.made += 1

    def text(self, path, lines):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _write_split(path, image_dir, listed, seed):
    """Half, a fifth and the rest of each class at random, the classes in no order of label."""
    rng = random.Random(seed)
    groups = {}
    for entry in listed:
        groups.setdefault(entry[1], []).append(entry)
    groups = list(groups.values())
    rng.shuffle(groups)
    split = {"train": [], "val": [], "test": []}
    for entries in groups:
        rng.shuffle(entries)
        n_train, n_val = round(0.5 * len(entries)), max(1, round(0.2 * len(entries)))
        split["train"] += entries[:n_train]
        split["val"] += entries[n_train : n_train + n_val]
        split["test"] += entries[n_train + n_val :]
    path.write_text(json.dumps(split, indent=4))


def _class_folders(dataset_dir, image_dir, extra=()):
    def lay_out(tree, name):
        folder = tree.root / dataset_dir
        listed = []
        for label, cls in enumerate(sorted(CLASSES[name])):
            for i in range(tree.n):
                path = f"{cls}/{cls.lower()}_{i:04d}.jpg"
                tree.image(folder / image_dir / path)
                listed.append((path, label, _DISPLAYED.get((name, cls), cls)))
        for cls in extra:
            tree.image(folder / image_dir / cls / "image_0001.jpg")
        tree.listed = image_dir, listed
        return folder

    return lay_out


# Class names that a published split gives to class folders, written down independently of ours.
_DISPLAYED = {
    ("Caltech101", "Faces"): "face",
    ("Caltech101", "Leopards"): "leopard",
    ("Caltech101", "Motorbikes"): "motorbike",
    ("Caltech101", "airplanes"): "airplane",
    ("EuroSAT", "AnnualCrop"): "Annual Crop Land",
    ("EuroSAT", "HerbaceousVegetation"): "Herbaceous Vegetation Land",
    ("EuroSAT", "Highway"): "Highway or Road",
    ("EuroSAT", "Industrial"): "Industrial Buildings",
    ("EuroSAT", "Pasture"): "Pasture Land",
    ("EuroSAT", "PermanentCrop"): "Permanent Crop Land",
    ("EuroSAT", "Residential"): "Residential Buildings",
    ("EuroSAT", "SeaLake"): "Sea or Lake",
}


def _pets(tree, name):
    folder = tree.root / "oxford_pets"
    listed, lines = [], {"trainval": [], "test": []}
    for label, breed in enumerate(CLASSES[name]):
        for i in range(tree.n + tree.n // 2):
            stem = f"{breed}_{i + 1}"
            tree.image(folder / "images" / f"{stem}.jpg")
            part = "trainval" if i < tree.n else "test"
            lines[part].append(f"{stem} {label + 1} {1 + label % 2} {label // 2 + 1}")
            listed.append((f"{stem}.jpg", label, breed.lower()))
    for part, rows in lines.items():
        tree.text(folder / "annotations" / f"{part}.txt", rows)
    tree.listed = "images", listed
    return folder


def _cars(tree, name):
    from scipy.io import savemat

    folder = tree.root / "stanford_cars"
    listed, rows = [], {"train": [], "test": []}
    for part, n in (("train", tree.n), ("test", tree.n // 2)):
        # the authors' lists mix the classes
        for number in range(n * len(CLASSES[name])):
            label = (number * 3) % len(CLASSES[name])
            file = f"{number + 1:05d}.jpg"
            tree.image(folder / f"cars_{part}" / file)
            rows[part].append((np.array([[label + 1]], dtype=np.uint8), file))
            *words, year = CLASSES[name][label].split(" ")
            listed.append((f"cars_{part}/{file}", label, " ".join([year, *words])))
    (folder / "devkit").mkdir()
    meta = np.empty((1, len(CLASSES[name])), dtype=object)
    meta[0] = CLASSES[name]
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": meta})
    for part, where in (
        ("train", folder / "devkit" / "cars_train_annos.mat"),
        ("test", folder / "cars_test_annos_withlabels.mat"),
    ):
        annotations = np.array([rows[part]], dtype=[("class", object), ("fname", object)])
        savemat(where, {"annotations": annotations})
    tree.listed = "", listed
    return folder


def _flowers(tree, name):
    from scipy.io import savemat

    folder = tree.root / "oxford_flowers"
    n = len(CLASSES[name])
    labels = [n - i // tree.n for i in range(n * tree.n)]  # first appearance is not their order
    listed = []
    for i, label in enumerate(labels):
        tree.image(folder / "jpg" / f"image_{i + 1:05d}.jpg")
        listed.append((f"image_{i + 1:05d}.jpg", label - 1, CLASSES[name][label - 1]))
    savemat(folder / "imagelabels.mat", {"labels": np.array([labels], dtype=np.uint8)})
    cat_to_name = {str(i + 1): cls for i, cls in enumerate(CLASSES[name])}
    (folder / "cat_to_name.json").write_text(json.dumps(cat_to_name))
    tree.listed = "jpg", listed
    return folder


def _aircraft(tree, name):
    folder = tree.root / "fgvc_aircraft"
    number = 1000000
    lines = {"train": [], "val": [], "test": []}
    for part, n in (("train", tree.n), ("val", tree.n // 2), ("test", tree.n // 2)):
        for _ in range(n):
            for variant in reversed(CLASSES[name]):
                number += 7
                tree.image(folder / "images" / f"{number:07d}.jpg")
                lines[part].append(f"{number:07d} {variant}")
        tree.text(folder / f"images_variant_{part}.txt", lines[part])
    tree.text(folder / "variants.txt", CLASSES[name])
    return folder


def _sun(tree, name):
    folder = tree.root / "sun397"
    listed, lines = [], {"Training_01.txt": [], "Testing_01.txt": []}
    displayed = ("abbey", "airplane_cabin", "outdoor apartment_building", "basement")
    displayed += ("indoor church",)
    for label, scene in enumerate(CLASSES[name]):
        for i in range(tree.n + tree.n // 2):
            path = f"{scene}/sun_{label:02d}{i:04d}.jpg"
            tree.image(folder / "SUN397" / path[1:])
            lines["Training_01.txt" if i < tree.n else "Testing_01.txt"].append(path)
            listed.append((path[1:], label, displayed[label]))
    tree.text(folder / "ClassName.txt", CLASSES[name])
    for file, rows in lines.items():
        tree.text(folder / file, rows)
    tree.listed = "SUN397", listed
    return folder


def _ucf(tree, name):
    folder = tree.root / "ucf101"
    displayed = ("Apply_Eye_Makeup", "Handstand_Pushups", "Tai_Chi", "Wall_Pushups", "Yo_Yo")
    listed, lines = [], {"trainlist01.txt": [], "testlist01.txt": []}
    for label, action in enumerate(CLASSES[name]):
        for i in range(tree.n + tree.n // 2):
            stem = f"v_{action}_g{i:02d}_c01"
            path = f"{displayed[label]}/{stem}.jpg"
            tree.image(folder / "UCF-101-midframes" / path)
            if i < tree.n:
                lines["trainlist01.txt"].append(f"{action}/{stem}.avi {label + 1}")
            else:
                lines["testlist01.txt"].append(f"{action}/{stem}.avi")
            listed.append((path, label, displayed[label]))
    lines["classInd.txt"] = [f"{i + 1} {action}" for i, action in enumerate(CLASSES[name])]
    for file, rows in lines.items():
        tree.text(folder / "ucfTrainTestlist" / file, rows)
    tree.listed = "UCF-101-midframes", listed
    return folder


def _classnames(tree, folder):
    # not in the order of the folders, as nothing promises that
    rows = [f"{wnid} {cls}" for wnid, cls in IMAGENET_CLASSES.items()]
    tree.text(folder / "classnames.txt", rows[::-1])


def _imagenet(tree, name):
    folder = tree.root / "imagenet"
    for wnid in IMAGENET_CLASSES:
        for i in range(tree.n):
            tree.image(folder / "images" / "train" / wnid / f"{wnid}_{i}.JPEG")
        for i in range(tree.n // 2):
            tree.image(folder / "images" / "val" / wnid / f"ILSVRC2012_val_{i:08d}.JPEG")
    _classnames(tree, folder)
    return folder


def _imagenet_v2(tree, name):
    folder = tree.root / "imagenetv2"
    for label in range(len(IMAGENET_CLASSES)):
        for i in range(tree.n):
            path = f"imagenetv2-matched-frequency-format-val/{label}/{label:02x}{i:04x}.jpeg"
            tree.image(folder / path)
    _classnames(tree, folder)
    return folder


def _imagenet_folders(dataset_dir, image_dir, wnids, suffix):
    def lay_out(tree, name):
        folder = tree.root / dataset_dir
        for wnid in wnids:
            for i in range(tree.n):
                tree.image(folder / image_dir / wnid / f"{name}_{i}{suffix}")
        if name in ("ImageNetA", "ImageNetR"):
            tree.text(folder / image_dir / "README.txt", ["about the data"])
        _classnames(tree, folder)
        return folder

    return lay_out


_ALL = tuple(IMAGENET_CLASSES)
_LAYOUTS = {
    "ImageNet": _imagenet,
    "Caltech101": _class_folders(
        "caltech-101", "101_ObjectCategories", ("BACKGROUND_Google", "Faces_easy")
    ),
    "OxfordPets": _pets,
    "StanfordCars": _cars,
    "OxfordFlowers": _flowers,
    "Food101": _class_folders("food-101", "images"),
    "FGVCAircraft": _aircraft,
    "SUN397": _sun,
    "DescribableTextures": _class_folders("dtd", "images"),
    "EuroSAT": _class_folders("eurosat", "2750"),
    "UCF101": _ucf,
    "ImageNetV2": _imagenet_v2,
    "ImageNetSketch": _imagenet_folders("imagenet-sketch", "images", _ALL, ".JPEG"),
    "ImageNetA": _imagenet_folders("imagenet-adversarial", "imagenet-a", _ALL[1::2], ".jpg"),
    "ImageNetR": _imagenet_folders("imagenet-rendition", "imagenet-r", _ALL[::3], ".jpg"),
}
