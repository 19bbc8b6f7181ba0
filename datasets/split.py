"""Datasets that are described by lists of images: one declaration each, one reader for all.

A dataset is declared by class attributes only::

    @DATASET_REGISTRY.register()
    class OxfordPets(SplitDataset):
        dataset_dir = "oxford_pets"
        image_dir = "images"
        split_file = "split_zhou_OxfordPets.json"
        template = "a photo of a {}, a type of pet."

Few-shot runs take what the CoOp family draws for the same seed (see :mod:`datasets.fewshot`). A
split that has to be made first is drawn from yet another stream (see :mod:`datasets.make_split`),
whereas upstream's shots go on in the stream that made it, in that one run.
"""

from __future__ import annotations

import os

from datasets.classes import check_word, chosen_labels, halves_base, hold_out
from datasets.entry import (
    PARTS,
    find_all_files,
    find_files,
    listed_paths,
    make_data,
    make_entries,
    relabelled,
    same_prompts,
    similar_neighbour,
)
from datasets.fewshot import FewShotCache, checksum_of, count_labels, draw
from datasets.ldifs import check_word as check_split
from datasets.split_file import check_parts, read_split
from proxyfda.dassl import DatasetBase
from proxyfda.utils.errors import BadValue, NotFound
from proxyfda.utils.files import write_json
from proxyfda.utils.rules import Checked
from proxyfda.utils.templates import check_template


class SplitDataset(DatasetBase):
    """A dataset under ``cfg.DATASET.ROOT`` read from a split JSON.

    Class attributes:
        dataset_dir: folder under the root.
        image_dir: folder under ``dataset_dir`` to which the paths of the split file are relative;
            empty for ``dataset_dir`` itself.
        split_file: name of the split JSON in ``dataset_dir``.
        split_sha256: of the published split file, or empty; only ``datasets.check`` looks at it.
        template: hand-written prompt with one ``{}`` for the class name (zero-shot CLIP, anchors).
        vocabulary: words beyond the classes for regularisers that use some: a name or a file (see
            :func:`proxyfda.vocabulary.read_vocabulary`); empty for the package's nouns.
        hint: how to get the data, appended to the error when something is missing.
        expected: :class:`~datasets.entry.Counts` of the complete data, or ``None``;
            ``python -m datasets.check`` compares with them, reading does not.
        val_is_test: the test images serve as validation images, all of them.
        test_only: there are only test images; they also stand for the training images, and
            ``NUM_SHOTS`` and ``SUBSAMPLE_CLASSES`` are ignored, which a line says.
        from_listing: :meth:`parts` lists folders, so that no image has to be looked for again.

    Reads ``DATASET.ROOT``, ``DATASET.NUM_SHOTS`` (-1: all images), ``DATASET.SUBSAMPLE_CLASSES``
    (``all``, ``base``, ``new``, and parts of the base classes, see :mod:`datasets.classes`),
    ``DATASET.SPLIT`` (empty: the dataset's usual one; ``ldifs``: that of :mod:`datasets.ldifs`) and
    ``SEED``. With ``SEED`` below 0 the shots come from the global ``random`` stream and are not
    cached.

    On parts of the base classes settings are chosen, which may not look at test images: the
    validation images take their place, and where there are none (or they are the test images),
    training images are held out for it (:func:`datasets.classes.hold_out`).

    Shots are kept in ``<dataset_dir>/split_fewshot/shot_{K}-seed_{SEED}.json``, see
    :class:`~datasets.fewshot.FewShotCache`. Where it cannot be written the run goes on without.

    A listed image whose file has a differently spelled name (upper and lower case, ``.jpeg`` for
    ``.jpg``, another Unicode form) is taken, and a line counts these.

    Subclasses with other sources override :meth:`parts` or :meth:`build_split`.

    Attributes after construction: ``name``, ``template``, ``train_x``, ``val``, ``test`` (lists of
    ``Datum``), ``classnames``, ``lab2cname``, ``num_classes``, ``all_classnames`` (also of the half
    that was not asked for, so that words can be kept clear of them) and the absolute
    ``dataset_dir``, ``image_dir``, ``split_path``, ``split_fewshot_dir``.

    Raises:
        FileNotFoundError: root, dataset folder, split file, image folder or images missing.
        ValueError: malformed split file, invalid ``NUM_SHOTS``, ``SPLIT`` or ``SUBSAMPLE_CLASSES``,
            a split of LDIFS's that it has not, or a part of the base classes where there are too
            few, or nothing to choose settings on.
    """

    dataset_dir = ""
    image_dir = ""
    split_file = ""
    split_sha256 = ""
    template = "a photo of a {}."
    vocabulary = ""
    hint = "docs/DATASETS.md says how to get it, or check --root (DATASET.ROOT)"
    expected = None
    val_is_test = False
    test_only = False
    from_listing = False

    def __init__(self, cfg):
        shots, subsample = cfg.DATASET.NUM_SHOTS, cfg.DATASET.SUBSAMPLE_CLASSES
        split = getattr(cfg.DATASET, "SPLIT", "")
        if shots < 1 and shots != -1:
            raise BadValue(
                f"DATASET.NUM_SHOTS is {shots}; give 1 or more images per class, or -1 for all"
            )
        check_word(subsample)
        check_split(split)
        choosing = halves_base(subsample)
        if choosing and self.test_only:
            raise BadValue(
                f"{type(self).__name__} has only test images, on which no settings may be chosen; "
                "choose them on the dataset that is trained on"
            )
        self._locate_at(_data_root(cfg))
        val_is_test = self.val_is_test and not split
        cache = fingerprint = parts = None
        if shots >= 1 and cfg.SEED >= 0 and not self.test_only:
            held_out = choosing and val_is_test
            cache = FewShotCache(self.split_fewshot_dir, shots, cfg.SEED, held_out, split)
            fingerprint = "" if split else self.fingerprint()
            parts = self._unchanged_choice(cache, fingerprint)
        found_as = {}
        if parts is None:
            parts = self.ldifs_parts() if split else self.parts()
            source = self.dataset_dir if self.made or not self.split_file else self.split_path
            if not self.from_listing:
                found_as = find_all_files(parts, self.image_dir, source, self.hint)
            if self.made and not split:
                self._keep_split(parts)
            if choosing and (val_is_test or not parts["val"]):
                parts = hold_out(parts, self.name)
                cache = cache and FewShotCache(self.split_fewshot_dir, shots, cfg.SEED, True, split)
            if shots >= 1 and not self.test_only:
                parts = self._choose(parts, shots, cfg.SEED, cache, fingerprint)
        check_template(self.template, f"{self.name}: template")
        listed = {entry.label: entry.classname for part in PARTS for entry in parts[part]}
        self.all_classnames = [listed[label] for label in sorted(listed)]
        for first, second in same_prompts(self.all_classnames)[:1]:
            print(
                f"Warning: {self.name} has the classes {first!r} and {second!r}, whose prompts are "
                "the same, so that no text tells them apart"
            )
        if self.test_only:
            if shots != -1 or subsample != "all":
                print(
                    f"{self.name} is only for testing: all of its images and classes are used, "
                    f"whatever DATASET.NUM_SHOTS ({shots}) and SUBSAMPLE_CLASSES ({subsample}) say"
                )
            items = self.items(parts["test"], found_as)
            super().__init__(train_x=items, test=items)
            return
        train, val, test = self.subsample_classes(
            *(self.items(parts[part], found_as) for part in PARTS),
            subsample=subsample,
        )
        if choosing:
            if not val:
                raise BadValue(
                    f"{self.name} has no validation image of the classes {subsample}; add some, or "
                    "list none at all: then training images are held out"
                )
            test = val
        super().__init__(train_x=train, val=test if val_is_test else val, test=test)

    @classmethod
    def extend_cfg(cls, cfg):
        """Add the options of the readers to a config, with their defaults, where it lacks them."""
        if "SUBSAMPLE_CLASSES" not in cfg.DATASET:
            cfg.DATASET.SUBSAMPLE_CLASSES = "all"  # see datasets/classes.py
        if "SPLIT" not in cfg.DATASET:
            cfg.DATASET.SPLIT = ""  # see datasets/ldifs.py

    @classmethod
    def option_rules(cls):
        """What these options may be, by their dotted names."""
        return {
            "DATASET.SUBSAMPLE_CLASSES": Checked(check_word, "all, base or new"),
            "DATASET.SPLIT": Checked(check_split, "ldifs, or leave it empty"),
        }

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
            return read_split(self.split_path)
        split = dict(zip(PARTS, self.build_split()))
        self.made = True
        return check_parts(split, self._fault)

    def ldifs_parts(self):
        """:meth:`parts` as LDIFS splits them (:mod:`datasets.ldifs`), for datasets that it has."""
        raise BadValue(f"{self.name} has no split of LDIFS's; leave DATASET.SPLIT empty")

    def items(self, entries, found_as):
        """Entries as a list of ``Datum``; ``found_as`` as in :func:`~datasets.entry.make_data`."""
        return make_data(entries, self.image_dir, found_as)

    def build_split(self):
        """Make a split from something other than a split file: ``(train, val, test)``, lists of
        :class:`Entry`. Subclasses that can do so override it."""
        if not self.split_file:
            raise BadValue(f"{self.name} declares no split_file; name one or override parts()")
        raise self._not_found("split file", self.split_path)

    def require(self, what, path):
        """``path`` if it exists; FileNotFoundError saying what was looked for otherwise."""
        if not os.path.exists(path):
            raise self._not_found(what, path)
        return path

    def _not_found(self, what, path):
        near = similar_neighbour(path)
        return NotFound(
            f"{self.name}: the {what} {path} does not exist; "
            + (f"rename or link {near}, which is there, or " if near else "")
            + self.hint
        )

    def nearby(self):
        """A folder that might be the missing ``dataset_dir`` under another name, or ``""``."""
        return similar_neighbour(self.dataset_dir)

    def _fault(self, what):
        return BadValue(f"{self.name} in {self.dataset_dir} cannot be read ({what}); {self.hint}")

    def remarks(self, parts):
        """Sentences for the check about anything else that is worth knowing."""
        return []

    def images(self, parts):
        """The absolute paths of all listed images: ``(there, missing)``, without repetition."""
        paths = dict.fromkeys(listed_paths(parts, self.image_dir))
        found_as, missing = find_files(paths)
        gone = set(missing)
        return [found_as.get(path, path) for path in paths if path not in gone], missing

    def _keep_split(self, parts):
        """Save a split that was made, and print a line about it."""
        print(
            f"{self.name}: there is no {self.split_file}, so a split was made by this project's "
            "rule; it is not the published one, with which published numbers were obtained "
            "(docs/DATASETS.md says where to get that)"
        )
        try:
            write_json(self.split_path, parts, indent=4)
            print(f"Saved split to {self.split_path}")
        except OSError as error:
            print(f"Split not written ({error}); the same one is made every time")

    def fingerprint(self):
        """A text that changes whenever :meth:`parts` would give other training images, or ``""``
        where nothing cheaper than listing them can tell; for datasets with ``from_listing``."""
        return ""

    def parts_for_evaluation(self):
        """:meth:`parts` without the training images; datasets with a :meth:`fingerprint` have it.

        Their few-shot runs then do without the list of all training images.
        """
        raise NotImplementedError

    def _unchanged_choice(self, cache, fingerprint):
        """The parts of a few-shot run, taken from the cache without listing the training images;
        ``None`` where the cache may be out of date."""
        chosen = cache.load_unchanged(fingerprint)
        if chosen is None:
            return None
        # Some network file systems keep no times of folders: at least the files must be there.
        if not all(map(os.path.isfile, listed_paths({**chosen, "test": []}, self.image_dir))):
            return None
        parts = check_parts({**self.parts_for_evaluation(), **chosen}, self._fault)
        self._report_small_classes(parts, cache.shots)
        return parts

    def _choose(self, parts, shots, seed, cache, fingerprint):
        """``shots`` images per class of train and ``min(shots, 4)`` of val, kept in ``cache``."""
        self._report_small_classes(parts, shots)
        if cache is None:
            return draw(self, parts, shots, seed)
        checksum = checksum_of(parts)
        chosen = cache.load(parts, checksum, fingerprint)
        if chosen is None:
            chosen = draw(self, parts, shots, seed)
            cache.save(chosen, checksum, fingerprint)
        return {**chosen, "test": parts["test"]}

    def _report_small_classes(self, parts, shots):
        counts = count_labels(parts["train"])
        few = {e.classname: counts[e.label] for e in parts["train"] if counts[e.label] < shots}
        if few:
            classname, n = next(iter(few.items()))
            print(
                f"{self.name}: {len(few)} classes have fewer than {shots} training images, the "
                f"first is {classname!r} with {n}; all of theirs are used"
            )

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
        parts = read_split(filepath)
        found_as = find_all_files(parts, path_prefix, filepath, hint)
        return tuple(make_data(parts[part], path_prefix, found_as) for part in PARTS)

    @staticmethod
    def save_split(train, val, test, filepath, path_prefix):
        """Write lists of ``Datum`` as a split JSON with paths relative to ``path_prefix``."""
        parts = {"train": train, "val": val, "test": test}
        entries = {part: make_entries(items, path_prefix) for part, items in parts.items()}
        write_json(filepath, entries, indent=4)
        print(f"Saved split to {filepath}")

    @staticmethod
    def subsample_classes(*args, subsample="all"):
        """Keep a part of the classes, relabelled from 0.

        Args:
            args: lists of ``Datum``, the first one decides about the classes.
            subsample: ``all`` (lists returned as they are), ``base`` (the first ceil(n / 2) of the
                sorted labels), ``new`` (the rest), or a part of the base classes, see
                :mod:`datasets.classes`.

        Returns:
            As many lists as were given.

        Raises:
            ValueError: another word, or too few classes.
        """
        check_word(subsample)
        if subsample == "all":
            return args
        kept = chosen_labels(sorted({item.label for item in args[0]}), subsample)
        print(f"SUBSAMPLE {subsample.upper()} CLASSES!")
        renumbered = {old: new for new, old in enumerate(kept)}
        return [
            [relabelled(item, renumbered[item.label]) for item in items if item.label in renumbered]
            for items in args
        ]


def _data_root(cfg):
    if not cfg.DATASET.ROOT:
        raise BadValue("DATASET.ROOT is empty; name the folder of the datasets with --root")
    root = os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))
    if not os.path.isdir(root):
        raise NotFound(
            f"the data root {root} is not a folder; name the folder of the datasets with --root"
        )
    return root
