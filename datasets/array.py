"""Datasets of which torchvision holds all images in memory, out of a few files."""

from __future__ import annotations

from datasets.entry import ArrayDatum, Entry
from datasets.ldifs import cut
from datasets.split import SplitDataset
from datasets.split_file import check_parts
from proxyfda.dassl import ENGINE
from proxyfda.utils.errors import BadValue, NotFound

__all__ = ["ArrayDataset"]


class ArrayDataset(SplitDataset):
    """A dataset that one of torchvision's classes reads, as files of its own layout.

    Nothing is downloaded. The images stay in memory as torchvision keeps them (bytes: 184 MB for
    CIFAR, 55 MB for MNIST, 305 MB for SVHN) and an item reads its own from there, see
    :class:`~datasets.entry.ArrayDatum`; ``impath`` is ``<dataset folder>/<train or test>/<number>``
    and names no file.

    Train and val are the official training images cut as LDIFS cuts them (:mod:`datasets.ldifs`),
    test are the official test images; there is no other split.

    Class attributes:
        digits: the classes are the digits; otherwise torchvision names them.

    Subclasses open torchvision's dataset by :meth:`open`.

    Raises:
        FileNotFoundError: the folder or files of it are missing, or are not those that torchvision
            knows by their checksums.
        ValueError: the files cannot be read, or the engine is an installed Dassl, whose loader
            reads files only.
    """

    from_listing = True
    digits = False

    def __init__(self, cfg):
        if ENGINE == "dassl":
            raise BadValue(
                f"{type(self).__name__} comes from memory, whereas the loader of the installed "
                "Dassl reads image files only; set PROXYFDA_ENGINE=embedded"
            )
        super().__init__(cfg)

    def open(self, part):
        """torchvision's dataset of the part ``train`` or ``test``."""
        raise NotImplementedError

    def labels(self, opened):
        """The labels of all images of an opened part, a sequence of whole numbers."""
        return opened.targets

    def parts(self):
        self.require("folder", self.dataset_dir)
        self._opened = {part: self._open(part) for part in ("train", "test")}
        found = {}
        for part, opened in self._opened.items():
            names = list(map(str, range(10))) if self.digits else opened.classes
            labels = [int(label) for label in self.labels(opened)]
            if len(labels) != len(opened) or not set(labels) <= set(range(len(names))):
                raise self._fault(f"its {part} images and labels do not fit")
            found[part] = [
                Entry(f"{part}/{number:05d}", label, names[label])
                for number, label in enumerate(labels)
            ]
        train, val = cut(found["train"], self.name)
        return check_parts({"train": train, "val": val, "test": found["test"]}, self._fault)

    def ldifs_parts(self):
        return self.parts()

    def _open(self, part):
        try:
            return self.open(part)
        except RuntimeError as error:  # what torchvision raises for missing files and checksums
            raise NotFound(
                f"{self.name}: the {part} files in {self.dataset_dir} are missing or damaged "
                f"({_first_sentence(error)}); {self.hint}"
            ) from None
        except Exception as error:  # files cut short and the like
            raise self._fault(f"{part}: {' '.join(str(error).split())}") from None

    def items(self, entries, found_as):
        """The entries as list of :class:`~datasets.entry.ArrayDatum`."""
        return [
            ArrayDatum(self._opened[part], int(number), f"{self.dataset_dir}/{path}", label, name)
            for path, label, name in entries
            for part, number in (path.split("/"),)
        ]

    def images(self, parts):
        """No files: torchvision has read all images when the parts are known."""
        return [], []


def _first_sentence(error):
    return str(error).split(". ")[0].rstrip(".")
