"""Datasets that are described by a split JSON: one declaration each, one reader for all.

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
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import uuid
from collections import Counter

from proxyfda.dassl import DatasetBase, Datum

SUBSAMPLE_WORDS = ("all", "base", "new")
MAX_VAL_SHOTS = 4
CACHE_FORMAT = 1


class SplitDataset(DatasetBase):
    """A dataset under ``cfg.DATASET.ROOT`` read from a split JSON.

    Class attributes:
        dataset_dir: folder under the root.
        image_dir: folder under ``dataset_dir`` to which the paths of the split file are relative;
            empty for ``dataset_dir`` itself.
        split_file: name of the split JSON in ``dataset_dir``.
        template: hand-written prompt with one ``{}`` for the class name (zero-shot CLIP, anchors).
        hint: how to get the data, appended to the error when something is missing.

    Reads ``DATASET.ROOT``, ``DATASET.NUM_SHOTS`` (-1: all images), ``DATASET.SUBSAMPLE_CLASSES``
    (``all``, ``base``: first half of the labels rounded up, ``new``: the rest) and ``SEED``.
    With ``SEED`` below 0 the shots come from the global ``random`` stream and are not cached.

    The few-shot cache ``<dataset_dir>/split_fewshot/shot_{K}-seed_{SEED}.json`` records which
    images were drawn, before base/new subsampling, so that base and new runs share it. It holds a
    checksum of the split it came from; one that does not fit is sampled again, with a line saying
    so. Where it cannot be written the run goes on without.

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
    template = "a photo of a {}."
    hint = ""

    def __init__(self, cfg):
        shots, subsample = cfg.DATASET.NUM_SHOTS, cfg.DATASET.SUBSAMPLE_CLASSES
        if shots < 1 and shots != -1:
            raise ValueError(
                f"DATASET.NUM_SHOTS is {shots}; give 1 or more images per class, or -1 for all"
            )
        _check_subsample(subsample)
        self.name = type(self).__name__
        self.locate(_data_root(cfg))
        train, val, test = self.read()
        if shots >= 1:
            train, val = self._fewshot(train, val, shots, cfg.SEED)
        train, val, test = self.subsample_classes(train, val, test, subsample=subsample)
        super().__init__(train_x=train, val=val, test=test)

    def locate(self, root):
        """Turn the declared names into absolute paths under the data root ``root``."""
        self.dataset_dir = os.path.join(root, self.dataset_dir)
        self.image_dir = os.path.join(self.dataset_dir, self.image_dir).rstrip(os.sep)
        self.split_path = os.path.join(self.dataset_dir, self.split_file)
        self.split_fewshot_dir = os.path.join(self.dataset_dir, "split_fewshot")

    def read(self):
        """All images as ``(train, val, test)``, three lists of ``Datum``."""
        for what, path in (
            ("folder", self.dataset_dir),
            ("split file", self.split_path),
            ("image folder", self.image_dir),
        ):
            if not os.path.exists(path):
                raise FileNotFoundError(
                    f"{self.name}: the {what} {path} does not exist; "
                    + (self.hint or "check --root (DATASET.ROOT)")
                )
        return self.read_split(self.split_path, self.image_dir, hint=self.hint)

    def _fewshot(self, train, val, shots, seed):
        """``shots`` images per class of train and ``min(shots, 4)`` of val, cached by seed."""
        counts = _counts(train)
        few = {item.classname: counts[item.label] for item in train if counts[item.label] < shots}
        if few:
            classname, n = next(iter(few.items()))
            print(
                f"{self.name}: {len(few)} classes have fewer than {shots} training images, the "
                f"first is {classname!r} with {n}; all of theirs are used"
            )
        if seed < 0:
            return self._sample(train, val, shots, seed)
        path = os.path.join(self.split_fewshot_dir, f"shot_{shots}-seed_{seed}.json")
        parts = {"train": (train, shots), "val": (val, min(shots, MAX_VAL_SHOTS))}
        listed = {k: self._listed(items) for k, (items, _) in parts.items()}
        checksum = _checksum(listed)
        if os.path.exists(path):
            try:
                chosen = _read_cache(path, listed, parts, checksum)
                print(f"Loading preprocessed few-shot data from {path}")
                return chosen["train"], chosen["val"]
            except (OSError, ValueError) as error:
                print(f"Few-shot cache {path} is not used ({error}); sampling again")
        train, val = self._sample(train, val, shots, seed)
        cache = {
            "format": CACHE_FORMAT,
            "split_sha256": checksum,
            "shots": shots,
            "seed": seed,
            "train": self._listed(train),
            "val": self._listed(val),
        }
        try:
            _write_json(cache, path)
            print(f"Saved few-shot data to {path}")
        except OSError as error:
            print(f"Few-shot cache not written ({error}); the same shots are drawn every time")
        return train, val

    def _sample(self, train, val, shots, seed):
        # The sampler of DatasetBase draws from the global stream, so that stream is lent to it.
        state = random.getstate()
        if seed >= 0:
            random.seed(seed)
        try:
            train = self.generate_fewshot_dataset(train, num_shots=shots)
            val = self.generate_fewshot_dataset(val, num_shots=min(shots, MAX_VAL_SHOTS))
        finally:
            if seed >= 0:
                random.setstate(state)
        return train, val

    def _listed(self, items):
        return _listed(items, self.image_dir)

    @staticmethod
    def read_split(filepath, path_prefix, hint=""):
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
        print(f"Reading split from {filepath}")
        split = _parse_split(filepath)
        paths = {
            part: [os.path.join(path_prefix, entry[0]) for entry in entries]
            for part, entries in split.items()
        }
        everything = [path for part in paths.values() for path in part]
        missing = missing_files(everything)
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of {len(everything)} images listed in {filepath} are missing, the "
                f"first is {missing[0]}; " + (hint or "complete the images or check --root")
            )
        return tuple(
            [
                Datum(impath=path, label=label, classname=classname)
                for path, (_, label, classname) in zip(paths[part], split[part])
            ]
            for part in ("train", "val", "test")
        )

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
            raise ValueError(
                f"DATASET.SUBSAMPLE_CLASSES {subsample} leaves no class of the {len(labels)} there "
                "are; use all, or a dataset with more classes"
            )
        print(f"SUBSAMPLE {subsample.upper()} CLASSES!")
        renumbered = {old: new for new, old in enumerate(kept)}
        return [
            [
                Datum(
                    impath=item.impath,
                    label=renumbered[item.label],
                    domain=item.domain,
                    classname=item.classname,
                )
                for item in items
                if item.label in renumbered
            ]
            for items in args
        ]


def missing_files(paths):
    """Those of ``paths`` that are no files, found by one listing per folder, not one stat each."""
    listings = {}
    missing = []
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in listings:
            try:
                with os.scandir(folder) as entries:
                    listings[folder] = {entry.name for entry in entries if entry.is_file()}
            except OSError:
                listings[folder] = set()
        # The stat decides where the listing spells a name otherwise (case, Unicode form).
        if name not in listings[folder] and not os.path.isfile(path):
            missing.append(path)
    return missing


def _check_subsample(word):
    if word not in SUBSAMPLE_WORDS:
        raise ValueError(f"DATASET.SUBSAMPLE_CLASSES is {word!r}; use all, base or new")


def _data_root(cfg):
    if not cfg.DATASET.ROOT:
        raise ValueError("DATASET.ROOT is empty; name the folder of the datasets with --root")
    root = os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))
    if not os.path.isdir(root):
        raise FileNotFoundError(
            f"the data root {root} is no folder; name the folder of the datasets with --root"
        )
    return root


def _parse_split(filepath):
    """The split file as a dict of lists of ``(path, label, classname)``, checked."""

    def fault(what):
        return ValueError(f"{filepath} is no valid split file ({what}); fetch or make it again")

    try:
        with open(filepath, encoding="utf-8") as file:
            raw = json.load(file)
    except ValueError as error:
        raise fault(f"not JSON: {error}") from error
    names, split = {}, {}
    for part in ("train", "val", "test"):
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
            if names.setdefault(label, classname) != classname:
                raise fault(f"label {label} is both {names[label]!r} and {classname!r}")
            split[part].append((path, label, classname))
    trained = {label for _, label, _ in split["train"]}
    if not split["train"] or not split["test"]:
        raise fault("train or test is empty")
    for label in range(max(names) + 1):
        if label not in trained:
            raise fault(f"label {label} of 0 to {max(names)} has no training image")
    return split


def _listed(items, prefix):
    """``Datum`` objects as ``[path relative to prefix, label, classname]``."""
    prefix = os.path.join(prefix, "")
    listed = []
    for item in items:
        path = item.impath
        path = path[len(prefix) :] if path.startswith(prefix) else os.path.relpath(path, prefix)
        listed.append([path.replace(os.sep, "/"), item.label, item.classname])
    return listed


def _checksum(listed):
    """SHA-256 of what the shots are drawn from: the train and val lists in their order."""
    digest = hashlib.sha256()
    for part in ("train", "val"):
        digest.update(f"{part}\n".encode())
        for path, label, classname in listed[part]:
            digest.update(f"{path}\t{label}\t{classname}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _read_cache(path, listed, parts, checksum):
    """The cached choice as lists of the ``Datum`` of ``parts``; ValueError says why not."""
    with open(path, encoding="utf-8") as file:
        cache = json.load(file)
    if not isinstance(cache, dict) or cache.get("format") != CACHE_FORMAT:
        raise ValueError("another format")
    if cache.get("split_sha256") != checksum:
        raise ValueError("it was drawn from another split")
    chosen = {}
    for part, (items, shots) in parts.items():
        known = {tuple(entry): item for entry, item in zip(listed[part], items)}
        try:
            chosen[part] = [known[tuple(entry)] for entry in cache[part]]
        except (KeyError, TypeError):
            raise ValueError(f"its {part} list names images that the split does not have") from None
        wanted = {label: min(shots, n) for label, n in _counts(items).items()}
        if _counts(set(chosen[part])) != wanted or len(chosen[part]) != sum(wanted.values()):
            raise ValueError(f"its {part} list has not {shots} images per class")
    return chosen


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
