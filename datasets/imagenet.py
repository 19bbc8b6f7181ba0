"""ImageNet (Deng et al., CVPR 2009; ILSVRC 2012), and what its test sets share."""

from __future__ import annotations

import json
import os
import time

from datasets.entry import Counts, Entry
from datasets.ldifs import pooled
from datasets.make_split import class_folders, read_rows, report_skipped
from datasets.split import SplitDataset
from datasets.split_file import check_parts
from proxyfda.dassl import DATASET_REGISTRY

CLASSNAMES = "classnames.txt"
CLOCK_TICK = 5 * 10**9  # ns; no file system that is in use has times as coarse as that


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
        report_skipped(self.name, skipped)
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
    """Only test images, in class folders; the labels are those of the folders that are there."""

    test_only = True

    def parts(self):
        self.require("folder", self.dataset_dir)
        self.require("image folder", self.image_dir)
        parts = {"train": [], "val": [], "test": self.folder_entries(self.image_dir)}
        return check_parts(parts, self._fault, leading="test")


@DATASET_REGISTRY.register()
class ImageNet(ImageNetBase):
    """Listed sorted, at every start whose shots are not kept already; upstream's
    ``preprocessed.pkl`` is not used. The official validation images are val and test, all of them.
    """

    dataset_dir = "imagenet"
    image_dir = "images"
    val_is_test = True
    expected = Counts(classes=1000, train=1281167, val=0, test=50000)

    def locate(self, root):
        super().locate(root)
        self.train_dir = os.path.join(self.image_dir, "train")
        self.test_dir = os.path.join(self.image_dir, "val")

    def parts(self):
        self.require("folder", self.dataset_dir)
        self.require("folder of the training images", self.train_dir)
        self.require("folder of the validation images", self.test_dir)
        parts = self.parts_for_evaluation()
        parts["train"] = self.folder_entries(self.train_dir)
        return check_parts(parts, self._fault)

    def ldifs_parts(self):
        """A part of the training images, in the order of folders and names, is val."""
        return pooled(self.parts(), self.name, order=lambda entry: entry.path)

    def parts_for_evaluation(self):
        self._compare_classes()
        return {"train": [], "val": [], "test": self.folder_entries(self.test_dir)}

    def _compare_classes(self):
        train, test = (set(visible_folders(folder)) for folder in (self.train_dir, self.test_dir))
        if test and train != test:
            odd = sorted(train ^ test)[0]
            raise self._fault(
                f"train and val have different class folders, {odd} is in one of them only"
            )

    def fingerprint(self):
        """Class names, and when each class folder last had a file added, removed or renamed.

        Empty where a folder has no such time, or changed so recently that the file system's clock
        might give the next change the same time.
        """
        now = time.time_ns()
        try:
            names = self.read_classnames(self.classnames_file())
            changed = {
                folder: os.stat(os.path.join(self.train_dir, folder)).st_mtime_ns
                for folder in sorted(visible_folders(self.train_dir))
            }
        except (OSError, ValueError):
            return ""  # parts() says what is wrong
        if not changed or not 0 < min(changed.values()) <= max(changed.values()) < now - CLOCK_TICK:
            return ""
        return json.dumps([[folder, names.get(folder), at] for folder, at in changed.items()])


def visible_folders(folder):
    """Names of the folders in ``folder`` that do not start with a dot."""
    with os.scandir(folder) as entries:
        return [e.name for e in entries if not e.name.startswith(".") and e.is_dir()]
