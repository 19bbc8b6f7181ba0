"""ImageNet (Deng et al., CVPR 2009; ILSVRC 2012), and what its test sets share."""

from __future__ import annotations

import os

from datasets.make_split import class_folders, read_rows, tell_skipped
from datasets.split import Counts, Entry, SplitDataset, check_parts
from proxyfda.dassl import DATASET_REGISTRY

CLASSNAMES = "classnames.txt"


class ImageNetBase(SplitDataset):
    """Images in class folders; ``classnames.txt`` in the dataset folder has their names, one line
    ``<folder> <name>`` each. A test set without this file takes that of ``imagenet/``."""

    template = "a photo of a {}."
    from_listing = True

    def classnames_file(self):
        own = os.path.join(self.dataset_dir, CLASSNAMES)
        shared = os.path.join(self.root, ImageNet.dataset_dir, CLASSNAMES)
        if not os.path.exists(own) and os.path.exists(shared):
            print(f"{self.name}: class names from {shared}")
            return shared
        return self.require("list of class names", own)

    @staticmethod
    def read_classnames(text_file):
        """``{folder: class name}`` in the order of the lines."""
        return dict(read_rows(text_file, (str, str)))

    def remarks(self, parts):
        """For the check: how far the class names are from CLIP's, which upstream's file has."""
        from open_clip import IMAGENET_CLASSNAMES

        names = {entry.label: entry.classname for entry in parts["test"]}
        if len(names) != len(IMAGENET_CLASSNAMES):
            return []
        others = [i for i, name in enumerate(IMAGENET_CLASSNAMES) if names.get(i) != name]
        if not others:
            return []
        return [
            f"{len(others)} of the {len(names)} class names in {CLASSNAMES} are not those of CLIP, "
            f"the first is {names[others[0]]!r} for {IMAGENET_CLASSNAMES[others[0]]!r}; results "
            "depend on the names, see docs/DATASETS.md"
        ]

    def folder_entries(self, folder):
        """The images of the class folders of ``folder``; labels are the folders' positions."""
        names = self.read_classnames(self.classnames_file())
        found, skipped = class_folders(folder)
        tell_skipped(self.name, skipped)
        if not found:
            raise self._fault(
                f"{folder} holds no class folders; the images have to be sorted into them"
            )
        for wnid, images in found.items():
            if wnid not in names:
                raise self._fault(f"{CLASSNAMES} has no line for the class folder {wnid}")
            if not images:
                raise self._fault(f"the class folder {os.path.join(folder, wnid)} has no images")
        below = os.path.relpath(folder, self.image_dir)
        prefix = "" if below == "." else f"{below}/"
        return [
            Entry(f"{prefix}{wnid}/{image}", label, names[wnid])
            for label, (wnid, images) in enumerate(found.items())
            for image in images
        ]


class ImageNetTestSet(ImageNetBase):
    """Test images alone, in class folders; the labels are those of the folders that are there."""

    test_only = True

    def parts(self):
        self.require("folder", self.dataset_dir)
        self.require("image folder", self.image_dir)
        parts = {"train": [], "val": [], "test": self.folder_entries(self.image_dir)}
        return check_parts(parts, self._fault, leading="test")


@DATASET_REGISTRY.register()
class ImageNet(ImageNetBase):
    """Listed anew at every start, sorted: upstream's ``preprocessed.pkl`` is not used. The official
    validation images are val and test, all of them."""

    dataset_dir = "imagenet"
    image_dir = "images"
    val_is_test = True
    expected = Counts(classes=1000, train=1281167, val=0, test=50000)

    def parts(self):
        self.require("folder", self.dataset_dir)
        train = self.require("folder of the training images", os.path.join(self.image_dir, "train"))
        val = self.require("folder of the validation images", os.path.join(self.image_dir, "val"))
        there = [set(class_folders_of(folder)) for folder in (train, val)]
        if there[1] and there[0] != there[1]:
            odd = sorted(there[0] ^ there[1])[0]
            raise self._fault(
                f"train and val have different class folders, {odd} is in one of them only"
            )
        parts = {"train": self.folder_entries(train), "val": [], "test": self.folder_entries(val)}
        return check_parts(parts, self._fault)


def class_folders_of(folder):
    return [e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith(".")]
