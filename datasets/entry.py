"""Images as datasets list them, and finding their files."""

from __future__ import annotations

import os
import unicodedata
from typing import NamedTuple

from proxyfda.dassl import Datum
from proxyfda.utils.errors import NotFound

PARTS = ("train", "val", "test")


class Entry(NamedTuple):
    """One listed image: path below the image folder (with ``/``), label from 0, class name."""

    path: str
    label: int
    classname: str


class Counts(NamedTuple):
    """How much a complete dataset holds: classes, and images of each part."""

    classes: int
    train: int
    val: int
    test: int


class ListedDatum(Datum):
    """A ``Datum`` whose file was seen in a listing, so that nobody has to stat it again.

    A file that goes missing later is named by the loader's ``ImageError``.
    """

    # The attributes behind Datum's properties, in Dassl as in the embedded engine. ImageNet has a
    # million of them, so none gets a dict.
    __slots__ = ("_classname", "_domain", "_impath", "_label")

    def __init__(self, impath="", label=0, domain=0, classname=""):
        self._impath, self._label = impath, label
        self._domain, self._classname = domain, classname


class ArrayDatum(ListedDatum):
    """A ``Datum`` whose image is in memory: the engine's loader calls :meth:`read` instead of
    opening a file, and ``impath`` is only a name, always the same for the same image.

    Args:
        source: a torchvision dataset without transforms, shared by all of its items.
        place: the image's place in it.
    """

    __slots__ = ("_place", "_source")

    def __init__(self, source, place, impath, label, classname):
        super().__init__(impath, label, classname=classname)
        self._source, self._place = source, place

    def read(self):
        """The image, a PIL image in RGB."""
        return self._source[self._place][0].convert("RGB")

    def relabelled(self, label):
        """The same image with another label."""
        return type(self)(self._source, self._place, self.impath, label, self.classname)


def relabelled(item, label):
    """A ``Datum`` of any kind as one with another label."""
    if isinstance(item, ArrayDatum):
        return item.relabelled(label)
    return ListedDatum(item.impath, label, item.domain, item.classname)


def make_data(entries, image_dir, found_as):
    """Entries as a list of :class:`ListedDatum` with absolute paths.

    Args:
        entries: list of :class:`Entry`.
        image_dir: the folder to which their paths are relative.
        found_as: listed path -> path of the file, where the two differ (see :func:`find_files`).
    """
    paths = (os.path.join(image_dir, entry.path) for entry in entries)
    return [
        ListedDatum(found_as.get(path, path), entry.label, classname=entry.classname)
        for path, entry in zip(paths, entries)
    ]


def make_entries(items, image_dir):
    """``Datum`` objects as a list of :class:`Entry` with the path relative to ``image_dir``."""
    prefix = os.path.join(image_dir, "")
    entries = []
    for item in items:
        path = item.impath
        path = path[len(prefix) :] if path.startswith(prefix) else os.path.relpath(path, prefix)
        entries.append(Entry(path.replace(os.sep, "/"), item.label, item.classname))
    return entries


def listed_paths(parts, image_dir):
    """The absolute paths of all entries, part after part."""
    for part in PARTS:
        for entry in parts[part]:
            yield os.path.join(image_dir, entry.path)


def leaves_folder(path):
    """Whether a listed path is no path of a file below the folder that it is relative to."""
    path = path.replace("\\", "/")
    return not path or "\0" in path or os.path.isabs(path) or ".." in path.split("/")


def same_prompts(classnames):
    """Pairs of class names that are the same text in a prompt: CLIP's texts are in lower case, and
    an underscore is a space."""
    seen, pairs = {}, []
    for name in classnames:
        text = " ".join(name.replace("_", " ").casefold().split())
        if text in seen:
            pairs.append((seen[text], name))
        seen.setdefault(text, name)
    return pairs


def find_files(paths):
    """Look for files by one listing per folder, not one stat each.

    A file is taken for a listed one if their names differ in nothing but upper and lower case,
    ``.jpeg`` for ``.jpg``, or the Unicode form, and there is only one such file.

    Returns:
        ``(found_as, missing)``: a dict from those of ``paths`` that are there under another such
        name to the path of the file, and the list of those that are not there.
    """
    listings, alike = {}, {}
    found_as, missing = {}, []
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in listings:
            try:
                with os.scandir(folder) as entries:
                    listings[folder] = {entry.name for entry in entries if entry.is_file()}
            except OSError:
                listings[folder] = set()
        # The stat decides where the file system takes several spellings of a name for one.
        if name in listings[folder] or os.path.isfile(path):
            continue
        if folder not in alike:
            alike[folder] = {}
            for other in sorted(listings[folder]):
                alike[folder].setdefault(_normalised(other), []).append(other)
        others = alike[folder].get(_normalised(name), [])
        if len(others) == 1:
            found_as[path] = os.path.join(folder, others[0])
        else:
            missing.append(path)
    return found_as, missing


def _normalised(name):
    stem, suffix = os.path.splitext(unicodedata.normalize("NFC", name).casefold())
    return stem + (".jpg" if suffix == ".jpeg" else suffix)


def find_all_files(parts, image_dir, source, hint):
    """``found_as`` of :func:`find_files` for the images of a whole dataset.

    Args:
        parts: ``{"train": [Entry, ...], "val": [...], "test": [...]}``.
        image_dir: the folder to which their paths are relative.
        source: what lists them, for the error.
        hint: how to get missing images, for the error.

    Raises:
        FileNotFoundError: images are missing; the message names the first and the number.
    """
    found_as, missing = find_files(listed_paths(parts, image_dir))
    if missing:
        raise NotFound(
            f"{len(missing)} of {sum(map(len, parts.values()))} images listed in {source} are "
            f"missing, the first is {missing[0][:400]}; {hint}"
        )
    if found_as:
        listed, there = next(iter(found_as.items()))
        print(
            f"{len(found_as)} images have a differently spelled name on disk and were taken, the "
            f"first is {there} for {os.path.basename(listed)}"
        )
    return found_as


def similar_neighbour(path):
    """The one neighbour of a missing ``path`` whose name has the same letters and digits, or
    ``""``."""

    def squashed(name):
        return "".join(filter(str.isalnum, name.casefold()))

    folder, wanted = os.path.split(path)
    try:
        near = [name for name in os.listdir(folder) if squashed(name) == squashed(wanted)]
    except OSError:
        return ""
    return os.path.join(folder, near[0]) if len(near) == 1 else ""
