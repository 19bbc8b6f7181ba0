"""Splits made here where a dataset comes without its split file, and reading annotation files.

The rules are those of the CoOp family, with Python's ``random`` and its rounding:

* class folders: each class is shuffled; round(0.5 n) images train, round(0.2 n) val, the rest test;
* official lists of trainval and test: each class's trainval images are shuffled; the first
  round(0.2 n) are val, the rest train.

Two things are ours, so that everybody who makes a split gets the same one. Listings are sorted,
where upstream takes the order of the file system. And the draws start from ``SPLIT_SEED`` whatever
seed the run has, where upstream's first run decides; with seed 1 and a sorted listing the split is
upstream's. Afterwards the shots are drawn from ``cfg.SEED`` as in every later run.
"""

from __future__ import annotations

import os
import random
import sys

from datasets.entry import Entry
from datasets.fewshot import seeded_random
from datasets.split import SplitDataset
from proxyfda.dassl import Datum
from proxyfda.utils.errors import BadValue, NotFound

SPLIT_SEED = 1
IMAGE_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".png",
    ".bmp",
    ".gif",
    ".webp",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".pbm",
)


def is_image(name):
    """Whether a file name is that of a visible image."""
    return not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES)


def class_folders(folder, what="image folder"):
    """The images of each class folder, both sorted.

    Returns:
        ``({class folder: [image name, ...]}, [path of a skipped file, ...])``. Hidden entries are
        passed over, files that are no images skipped.
    """
    found, skipped = {}, []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            skipped.append(entry.path)
            continue
        names = sorted(os.listdir(entry.path))
        found[entry.name] = [name for name in names if is_image(name)]
        if len(found[entry.name]) < len(names):
            odd = (name for name in names if not name.startswith(".") and not is_image(name))
            skipped += [os.path.join(entry.path, name) for name in odd]
    return found, skipped


def report_skipped(name, skipped):
    """Say how many files were skipped, and which is the first."""
    if skipped:
        print(
            f"{name}: skipped {len(skipped)} files that are not images in a class folder, the "
            f"first is {skipped[0]}"
        )


def cut(groups, p_trn=0.5, p_val=0.2):
    """Shuffle each list of ``groups`` and cut it into train, val and the rest.

    Draws from Python's global ``random``. Returns three lists.

    Raises:
        ValueError: a group so small that one of the three would get nothing.
    """
    train, val, test = [], [], []
    for items in groups:
        items = list(items)
        random.shuffle(items)
        n_train, n_val = round(len(items) * p_trn), round(len(items) * p_val)
        if not 0 < n_train < n_train + n_val < len(items):
            where = f" ({items[0].path})" if items and isinstance(items[0], Entry) else ""
            raise BadValue(
                f"a class with {len(items)} images{where} cannot be split into train, val and "
                "test; restore its images or fetch the split file"
            )
        train += items[:n_train]
        val += items[n_train : n_train + n_val]
        test += items[n_train + n_val :]
    return train, val, test


class FolderDataset(SplitDataset):
    """A dataset whose split is made from class folders where there is no split file.

    Class attributes:
        ignored: class folders that are not classes.
        renamed: class folder -> class name; the folder's name otherwise.

    Labels are the positions of the folders in sorted order (capitals first).
    """

    ignored = ()
    renamed = {}

    def build_split(self):
        self.require("image folder", self.image_dir)
        groups, skipped = _folder_groups(self.image_dir, self.ignored, self.renamed)
        report_skipped(self.name, skipped)
        with seeded_random(SPLIT_SEED):
            return cut(groups)

    @staticmethod
    def read_and_split_data(image_dir, p_trn=0.5, p_val=0.2, ignored=(), new_cnames=None):
        """For readers of other projects: split class folders into three lists of ``Datum``.

        Draws from Python's global ``random``, as theirs do.
        """
        groups, skipped = _folder_groups(image_dir, ignored, new_cnames or {})
        report_skipped(image_dir, skipped)
        return tuple(
            [Datum(os.path.join(image_dir, e.path), e.label, classname=e.classname) for e in part]
            for part in cut(groups, p_trn, p_val)
        )


def _folder_groups(image_dir, ignored, renamed):
    found, skipped = class_folders(image_dir)
    classes = [folder for folder in found if folder not in ignored]
    groups = [
        [Entry(f"{folder}/{name}", label, renamed.get(folder, folder)) for name in found[folder]]
        for label, folder in enumerate(classes)
    ]
    return groups, skipped


class AnnotatedDataset(SplitDataset):
    """A dataset whose split is made from annotation files where there is no split file."""

    def official(self, part):
        """The images that the dataset's authors list as ``part``, ``trainval`` or ``test``: an
        iterable of :class:`Entry`."""
        raise NotImplementedError

    def build_split(self):
        trainval, test = list(self.official("trainval")), list(self.official("test"))
        with seeded_random(SPLIT_SEED):
            train, val = self.split_trainval(trainval)
        return train, val, test

    @staticmethod
    def split_trainval(trainval, p_val=0.2):
        """Cut ``p_val`` of each class off as val.

        Draws from Python's global ``random``, class by class in order of first appearance.

        Args:
            trainval: list of objects with a ``label``.

        Returns:
            ``(train, val)``, lists of these objects.

        Raises:
            ValueError: a class too small to give one.
        """
        by_label = {}
        for item in trainval:
            by_label.setdefault(item.label, []).append(item)
        train, val = [], []
        for label, items in by_label.items():
            n_val = round(len(items) * p_val)
            if n_val == 0:
                raise BadValue(
                    f"label {label} ({items[0].classname}) has {len(items)} trainval images, too "
                    "few to cut val from; restore the annotation files or fetch the split file"
                )
            random.shuffle(items)
            val += items[:n_val]
            train += items[n_val:]
        return train, val

    def annotation(self, *where):
        """The path of an annotation file in the dataset folder, which has to exist."""
        path = os.path.join(self.dataset_dir, *where)
        if self.split_file and not os.path.exists(path):
            raise NotFound(
                f"{self.name}: there is neither the split file {self.split_path} nor the "
                f"annotation file {path} to make one from; {self.hint}"
            )
        return self.require("annotation file", path)

    def rows(self, *where, types=(str,)):
        """The lines of an annotation file, cut at white space into fields of these types (the last
        takes the rest of the line). Blank lines are passed over."""
        yield from read_rows(self.annotation(*where), types)

    def mat(self, *where, key):
        """A variable of a MATLAB file."""
        from scipy.io import loadmat  # comes with scikit-learn

        path = self.annotation(*where)
        try:
            return loadmat(path)[key]
        except Exception as error:  # scipy raises nearly anything
            reason = " ".join(str(error).split())
            raise BadValue(
                f"{path} cannot be read as a MATLAB file with {key!r} ({reason}); fetch it again"
            ) from None


def read_rows(path, types):
    """See :meth:`AnnotatedDataset.rows`.

    Raises:
        ValueError: a line with other fields, named by file and number.
    """
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            fields = line.strip().split(maxsplit=len(types) - 1)
            if not fields:
                continue
            try:
                if len(fields) != len(types):
                    raise ValueError
                row = tuple(kind(field) for kind, field in zip(types, fields))
            except ValueError:
                raise BadValue(
                    f"{path}, line {number}, is {line.strip()!r}, not {len(types)} fields "
                    f"({', '.join(kind.__name__ for kind in types)}); fetch the file again"
                ) from None
            yield row


if __name__ == "__main__":
    sys.exit(
        "error: datasets.make_split is no command; a training makes a missing split by itself, and "
        "python -m datasets.check --root DATA says whose split file is there"
    )
