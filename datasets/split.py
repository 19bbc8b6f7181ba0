"""Datasets that are described by lists of images: one declaration each, one reader for all.

A split file is an object with ``train``, ``val`` and ``test``, each a list of
``[path, label, classname]`` with the path relative to the image folder and labels from 0
(the format of the CoOp family). A dataset is declared by class attributes only::

    @DATASET_REGISTRY.register()
    class OxfordPets(SplitDataset):
        dataset_dir = "oxford_pets"
        image_dir = "images"
        split_file = "split_zhou_OxfordPets.json"
        template = "a photo of a {}, a type of pet."

Few-shot sampling draws exactly what the CoOp family draws for the same seed, but from a stream of
its own that starts at ``cfg.SEED``: the result depends neither on what drew from Python's global
``random`` before nor on whether a few-shot cache existed, and the global stream is left as it was.
A split that has to be made first is drawn from yet another stream (see :mod:`datasets.make_split`),
whereas upstream's shots go on in the stream that made it, in that one run.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import unicodedata
import uuid
from collections import Counter
from contextlib import contextmanager
from typing import NamedTuple

from datasets.upstream_cache import read_upstream_cache
from proxyfda.dassl import DatasetBase, Datum
from proxyfda.utils.errors import BadValue, NotFound

PARTS = ("train", "val", "test")
SUBSAMPLE_WORDS = ("all", "base", "new")
MAX_VAL_SHOTS = 4
CACHE_FORMAT = 1


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

    def __init__(self, impath="", label=0, domain=0, classname=""):
        # The attributes behind Datum's properties, in Dassl as in the embedded engine.
        self._impath, self._label = impath, label
        self._domain, self._classname = domain, classname


class SplitDataset(DatasetBase):
    """A dataset under ``cfg.DATASET.ROOT`` read from a split JSON.

    Class attributes:
        dataset_dir: folder under the root.
        image_dir: folder under ``dataset_dir`` to which the paths of the split file are relative;
            empty for ``dataset_dir`` itself.
        split_file: name of the split JSON in ``dataset_dir``.
        split_sha256: of the published split file, or empty; looked at by the check alone.
        template: hand-written prompt with one ``{}`` for the class name (zero-shot CLIP, anchors).
        hint: how to get the data, appended to the error when something is missing.
        expected: :class:`Counts` of the complete data, or ``None``; ``python -m datasets.check
            check`` compares with them, reading does not.
        val_is_test: the test images serve as validation images, all of them.
        test_only: there are test images alone; they stand for the training images, too, and
            ``NUM_SHOTS`` and ``SUBSAMPLE_CLASSES`` are ignored, which a line says.
        from_listing: :meth:`parts` lists folders, so that no image has to be looked for again.

    Reads ``DATASET.ROOT``, ``DATASET.NUM_SHOTS`` (-1: all images), ``DATASET.SUBSAMPLE_CLASSES``
    (``all``, ``base``: first half of the labels rounded up, ``new``: the rest) and ``SEED``.
    With ``SEED`` below 0 the shots come from the global ``random`` stream and are not cached.

    The few-shot cache ``<dataset_dir>/split_fewshot/shot_{K}-seed_{SEED}.json`` records which
    images were drawn, before base/new subsampling, so that base and new runs share it. It holds a
    checksum of the split it came from; one that does not fit is sampled again, with a line saying
    so. Where there is none, upstream's ``shot_{K}-seed_{SEED}.pkl`` is taken if it fits. Where the
    cache cannot be written the run goes on without.

    A listed image that is there under another spelling only (upper and lower case, ``.jpeg`` for
    ``.jpg``, another Unicode form) is taken, and a line counts these.

    Subclasses with other sources override :meth:`parts` or :meth:`build_split`.

    Attributes after construction: ``name``, ``template``, ``train_x``, ``val``, ``test`` (lists of
    ``Datum``), ``classnames``, ``lab2cname``, ``num_classes`` and the absolute ``dataset_dir``,
    ``image_dir``, ``split_path``, ``split_fewshot_dir``.

    Raises:
        FileNotFoundError: root, dataset folder, split file, image folder or images missing.
        ValueError: malformed split file, invalid ``NUM_SHOTS`` or ``SUBSAMPLE_CLASSES``.
    """

    dataset_dir = ""
    image_dir = ""
    split_file = ""
    split_sha256 = ""
    template = "a photo of a {}."
    hint = "docs/DATASETS.md tells how to get it, or check --root (DATASET.ROOT)"
    expected = None
    val_is_test = False
    test_only = False
    from_listing = False

    def __init__(self, cfg):
        shots, subsample = cfg.DATASET.NUM_SHOTS, cfg.DATASET.SUBSAMPLE_CLASSES
        if shots < 1 and shots != -1:
            raise BadValue(
                f"DATASET.NUM_SHOTS is {shots}; give 1 or more images per class, or -1 for all"
            )
        _check_subsample(subsample)
        self._locate_at(_data_root(cfg))
        parts = self.parts()
        source = self.dataset_dir if self.made or not self.split_file else self.split_path
        spelled = {}
        if not self.from_listing:
            spelled = _find_images(parts, self.image_dir, source, self.hint)
        if self.made:
            self._keep_split(parts)
        if self.test_only:
            if shots != -1 or subsample != "all":
                print(
                    f"{self.name} is for testing alone: all of its images and classes are used, "
                    f"whatever DATASET.NUM_SHOTS ({shots}) and SUBSAMPLE_CLASSES ({subsample}) say"
                )
            items = _data(parts["test"], self.image_dir, spelled)
            super().__init__(train_x=items, test=items)
            return
        if shots >= 1:
            parts = self._fewshot(parts, shots, cfg.SEED)
        train, val, test = self.subsample_classes(
            *(_data(parts[part], self.image_dir, spelled) for part in PARTS), subsample=subsample
        )
        super().__init__(train_x=train, val=test if self.val_is_test else val, test=test)

    @classmethod
    def at(cls, root):
        """The reader of the data below ``root`` with its paths set and nothing read, for checks:
        call :meth:`parts` and :meth:`images` on it."""
        reader = cls.__new__(cls)
        reader._locate_at(os.path.abspath(os.path.expanduser(root)))
        return reader

    def _locate_at(self, root):
        self.name = type(self).__name__
        self.root = root
        self.made = False  # whether parts() had to make a split
        self.locate(root)

    def locate(self, root):
        """Turn the declared names into absolute paths under the data root ``root``."""
        self.dataset_dir = os.path.join(root, self.dataset_dir)
        self.image_dir = os.path.join(self.dataset_dir, self.image_dir).rstrip(os.sep)
        self.split_path = os.path.join(self.dataset_dir, self.split_file)
        self.split_fewshot_dir = os.path.join(self.dataset_dir, "split_fewshot")

    def parts(self):
        """What the dataset consists of, whether or not the image files are there.

        Returns:
            ``{"train": [Entry, ...], "val": [...], "test": [...]}``. Nothing is written; ``made``
            is true afterwards if there was no split file and a split was made.

        Raises:
            FileNotFoundError, ValueError: as the class says.
        """
        self.require("folder", self.dataset_dir)
        if os.path.isfile(self.split_path):
            self.require("image folder", self.image_dir)
            return _parse_split(self.split_path)
        split = dict(zip(PARTS, self.build_split()))
        self.made = True
        return check_parts(split, self._fault)

    def build_split(self):
        """Make a split from something other than a split file: ``(train, val, test)``, lists of
        :class:`Entry`. There is no such thing unless a subclass knows one."""
        if not self.split_file:
            raise BadValue(f"{self.name} declares no split_file; name one or override parts()")
        raise self._gone("split file", self.split_path)

    def require(self, what, path):
        """``path`` if it exists; FileNotFoundError saying what was looked for otherwise."""
        if not os.path.exists(path):
            raise self._gone(what, path)
        return path

    def _gone(self, what, path):
        near = _alike(path)
        return NotFound(
            f"{self.name}: the {what} {path} does not exist; "
            + (f"rename or link {near}, which is there, or " if near else "")
            + self.hint
        )

    def nearby(self):
        """A folder that might be the missing ``dataset_dir`` under another name, or ``""``."""
        return _alike(self.dataset_dir)

    def _fault(self, what):
        return BadValue(f"{self.name} in {self.dataset_dir} cannot be read ({what}); {self.hint}")

    def images(self, parts):
        """The absolute paths of all listed images: ``(there, missing)``, without repetition."""
        paths = dict.fromkeys(_paths(parts, self.image_dir))
        spelled, missing = find_files(paths)
        gone = set(missing)
        return [spelled.get(path, path) for path in paths if path not in gone], missing

    def _keep_split(self, parts):
        """Save a split that was made, and say what it is."""
        print(
            f"{self.name}: there is no {self.split_file}, so a split was made by this project's "
            "rule; it is not the published one, with which published numbers were obtained "
            "(docs/DATASETS.md tells where to get that)"
        )
        try:
            _write_json(parts, self.split_path, 4)
            print(f"Saved split to {self.split_path}")
        except OSError as error:
            print(f"Split not written ({error}); the same one is made every time")

    def _fewshot(self, parts, shots, seed):
        """``shots`` images per class of train and ``min(shots, 4)`` of val, cached by seed."""
        counts = _counts(parts["train"])
        few = {e.classname: counts[e.label] for e in parts["train"] if counts[e.label] < shots}
        if few:
            classname, n = next(iter(few.items()))
            print(
                f"{self.name}: {len(few)} classes have fewer than {shots} training images, the "
                f"first is {classname!r} with {n}; all of theirs are used"
            )
        if seed < 0:
            return self._sample(parts, shots, seed)
        stem = os.path.join(self.split_fewshot_dir, f"shot_{shots}-seed_{seed}")
        checksum = _checksum(parts)
        ours, chosen = f"{stem}.json", None
        for path, read in ((ours, _read_cache), (f"{stem}.pkl", read_upstream_cache)):
            if chosen is not None or not os.path.exists(path):
                continue
            try:
                chosen = read(path, parts, checksum)
                _check_choice(chosen, parts, shots)
                print(f"Loading preprocessed few-shot data from {path}")
                if path == ours:
                    return chosen
            except (OSError, ValueError) as error:
                print(f"Few-shot cache {path} is not used ({error}); sampling again")
                chosen = None
        chosen = chosen or self._sample(parts, shots, seed)
        cache = {
            "format": CACHE_FORMAT,
            "split_sha256": checksum,
            "shots": shots,
            "seed": seed,
            "train": chosen["train"],
            "val": chosen["val"],
        }
        try:
            _write_json(cache, ours)
            print(f"Saved few-shot data to {ours}")
        except OSError as error:
            print(f"Few-shot cache not written ({error}); the same shots are drawn every time")
        return chosen

    def _sample(self, parts, shots, seed):
        # The sampler of DatasetBase draws from the global stream, so that stream is lent to it.
        with lent_stream(seed):
            return {
                "train": self.generate_fewshot_dataset(parts["train"], num_shots=shots),
                "val": self.generate_fewshot_dataset(
                    parts["val"], num_shots=min(shots, MAX_VAL_SHOTS)
                ),
                "test": parts["test"],
            }

    @staticmethod
    def read_split(filepath, path_prefix, hint="complete the images or check --root"):
        """Read a split JSON.

        Args:
            filepath: the JSON file.
            path_prefix: image folder to which its paths are relative.
            hint: how to get missing images, appended to the error.

        Returns:
            ``(train, val, test)``, lists of ``Datum`` with absolute paths, in file order.

        Raises:
            ValueError: the file is not a split file; the message names the first fault.
            FileNotFoundError: images are missing; the message names the first and the number.
        """
        parts = _parse_split(filepath)
        spelled = _find_images(parts, path_prefix, filepath, hint)
        return tuple(_data(parts[part], path_prefix, spelled) for part in PARTS)

    @staticmethod
    def save_split(train, val, test, filepath, path_prefix):
        """Write lists of ``Datum`` as a split JSON with paths relative to ``path_prefix``."""
        parts = {"train": train, "val": val, "test": test}
        _write_json({k: _listed(items, path_prefix) for k, items in parts.items()}, filepath, 4)
        print(f"Saved split to {filepath}")

    @staticmethod
    def subsample_classes(*args, subsample="all"):
        """Keep the base or the new half of the classes, relabelled from 0.

        The sorted labels of the first list are cut in two, base being the first ceil(n / 2).

        Args:
            args: lists of ``Datum``, the first one decides about the classes.
            subsample: ``all`` (lists returned as they are), ``base`` or ``new``.

        Returns:
            As many lists as were given.

        Raises:
            ValueError: another word, or no class is left.
        """
        _check_subsample(subsample)
        if subsample == "all":
            return args
        labels = sorted({item.label for item in args[0]})
        half = math.ceil(len(labels) / 2)
        kept = labels[:half] if subsample == "base" else labels[half:]
        if not kept:
            raise BadValue(
                f"DATASET.SUBSAMPLE_CLASSES {subsample} leaves no class of the {len(labels)} there "
                "are; use all, or a dataset with more classes"
            )
        print(f"SUBSAMPLE {subsample.upper()} CLASSES!")
        renumbered = {old: new for new, old in enumerate(kept)}
        return [
            [
                ListedDatum(item.impath, renumbered[item.label], item.domain, item.classname)
                for item in items
                if item.label in renumbered
            ]
            for items in args
        ]


@contextmanager
def lent_stream(seed):
    """Python's global random stream, started at ``seed``, and put back as it was afterwards; with
    a seed below 0 the stream is used as it is."""
    state = random.getstate()
    if seed >= 0:
        random.seed(seed)
    try:
        yield
    finally:
        if seed >= 0:
            random.setstate(state)


def find_files(paths):
    """Look for files by one listing per folder, not one stat each.

    Returns:
        ``(spelled, missing)``: for those of ``paths`` that are there under one other spelling only
        (see :class:`SplitDataset`) a dict to that path, and the list of those that are not there.
    """
    listings, alike = {}, {}
    spelled, missing = {}, []
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
                alike[folder].setdefault(_one_spelling(other), []).append(other)
        others = alike[folder].get(_one_spelling(name), [])
        if len(others) == 1:
            spelled[path] = os.path.join(folder, others[0])
        else:
            missing.append(path)
    return spelled, missing


def _one_spelling(name):
    stem, suffix = os.path.splitext(unicodedata.normalize("NFC", name).casefold())
    return stem + (".jpg" if suffix == ".jpeg" else suffix)


def _paths(parts, image_dir):
    for part in PARTS:
        for entry in parts[part]:
            yield os.path.join(image_dir, entry.path)


def _find_images(parts, image_dir, source, hint):
    """Refuse missing images; returns what is spelled otherwise on disk, as ``find_files`` does."""
    spelled, missing = find_files(_paths(parts, image_dir))
    if missing:
        raise NotFound(
            f"{len(missing)} of {sum(map(len, parts.values()))} images listed in {source} are "
            f"missing, the first is {missing[0]}; {hint}"
        )
    if spelled:
        listed, there = next(iter(spelled.items()))
        print(
            f"{len(spelled)} images are spelled otherwise than listed and were taken, the first is "
            f"{there} for {os.path.basename(listed)}"
        )
    return spelled


def _data(entries, image_dir, spelled):
    paths = (os.path.join(image_dir, entry.path) for entry in entries)
    return [
        ListedDatum(spelled.get(path, path), entry.label, classname=entry.classname)
        for path, entry in zip(paths, entries)
    ]


def _alike(path):
    """The one neighbour of a missing ``path`` whose name has the same letters and digits."""

    def squashed(name):
        return "".join(filter(str.isalnum, name.casefold()))

    folder, wanted = os.path.split(path)
    try:
        near = [name for name in os.listdir(folder) if squashed(name) == squashed(wanted)]
    except OSError:
        return ""
    return os.path.join(folder, near[0]) if len(near) == 1 else ""


def _check_subsample(word):
    if word not in SUBSAMPLE_WORDS:
        raise BadValue(f"DATASET.SUBSAMPLE_CLASSES is {word!r}; use all, base or new")


def _data_root(cfg):
    if not cfg.DATASET.ROOT:
        raise BadValue("DATASET.ROOT is empty; name the folder of the datasets with --root")
    root = os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))
    if not os.path.isdir(root):
        raise NotFound(
            f"the data root {root} is no folder; name the folder of the datasets with --root"
        )
    return root


def _parse_split(filepath):
    """The split file as a dict of lists of :class:`Entry`, checked."""

    print(f"Reading split from {filepath}")

    def fault(what):
        return BadValue(f"{filepath} is no valid split file ({what}); fetch or make it again")

    try:
        with open(filepath, encoding="utf-8") as file:
            raw = json.load(file)
    except ValueError as error:
        raise fault(f"not JSON: {error}") from error
    split = {}
    for part in PARTS:
        if not isinstance(raw, dict) or not isinstance(raw.get(part), list):
            raise fault(f"no list {part!r}")
        split[part] = []
        for number, entry in enumerate(raw[part]):
            try:
                path, label, classname = entry
                label = int(label)
                if label < 0 or not isinstance(path, str) or not isinstance(classname, str):
                    raise ValueError
            except (TypeError, ValueError):
                raise fault(
                    f"entry {number} of {part!r} is {entry!r}, not [path, label, class name]"
                ) from None
            split[part].append(Entry(path, label, classname))
    return check_parts(split, fault)


def check_parts(split, fault, leading="train"):
    """``split`` if its labels are sound; raises ``fault(what is wrong)`` otherwise.

    Sound: train and test (``leading`` and test) have images, every label has one class name, and
    the part ``leading`` has all labels from 0 to the largest there is.
    """
    names = {}
    for entry in (entry for part in PARTS for entry in split[part]):
        if names.setdefault(entry.label, entry.classname) != entry.classname:
            raise fault(
                f"label {entry.label} is both {names[entry.label]!r} and {entry.classname!r}"
            )
    if not split[leading] or not split["test"]:
        raise fault(f"{leading} or test is empty" if leading != "test" else "no images")
    trained = {entry.label for entry in split[leading]}
    for label in range(max(names) + 1):
        if label not in trained:
            kind = "training" if leading == "train" else leading
            raise fault(f"label {label} of 0 to {max(names)} has no {kind} image")
    return split


def _listed(items, prefix):
    """``Datum`` objects as :class:`Entry` with the path relative to ``prefix``."""
    prefix = os.path.join(prefix, "")
    listed = []
    for item in items:
        path = item.impath
        path = path[len(prefix) :] if path.startswith(prefix) else os.path.relpath(path, prefix)
        listed.append(Entry(path.replace(os.sep, "/"), item.label, item.classname))
    return listed


def _checksum(parts):
    """SHA-256 of what the shots are drawn from: the train and val lists in their order."""
    digest = hashlib.sha256()
    for part in ("train", "val"):
        lines = [f"{path}\t{label}\t{classname}\n" for path, label, classname in parts[part]]
        digest.update("".join([part, "\n", *lines]).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _read_cache(path, parts, checksum):
    """The choice in our cache; ValueError says why it is none."""
    with open(path, encoding="utf-8") as file:
        cache = json.load(file)
    if not isinstance(cache, dict) or cache.get("format") != CACHE_FORMAT:
        raise BadValue("another format")
    if cache.get("split_sha256") != checksum:
        raise BadValue("it was drawn from another split")
    try:
        chosen = {part: [Entry(*entry) for entry in cache[part]] for part in ("train", "val")}
    except (KeyError, TypeError):
        raise BadValue("its lists are damaged") from None
    return {**chosen, "test": parts["test"]}


def _check_choice(chosen, parts, shots):
    """Raise ValueError unless ``chosen`` is a few-shot choice from ``parts``."""
    for part, most in (("train", shots), ("val", min(shots, MAX_VAL_SHOTS))):
        try:
            strangers = set(chosen[part]) - set(parts[part])
        except TypeError:
            raise BadValue(f"its {part} list is damaged") from None
        if strangers:
            raise BadValue(f"its {part} list names images that the split does not have")
        wanted = {label: min(most, n) for label, n in _counts(parts[part]).items()}
        if _counts(set(chosen[part])) != wanted or len(chosen[part]) != sum(wanted.values()):
            raise BadValue(f"its {part} list has not {most} images per class")


def _counts(items):
    return Counter(item.label for item in items)


def _write_json(content, path, indent=None):
    """Write ``path`` in one step, so that no other process ever reads half of it."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    partial = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        with open(partial, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=indent)
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.remove(partial)
