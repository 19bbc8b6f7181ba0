"""Files that say which images are in which part of a dataset, in the format of the CoOp family.

A split file is a JSON object with ``train``, ``val`` and ``test``, each a list of
``[path, label, classname]`` with the path relative to the image folder and labels from 0.
"""

from __future__ import annotations

import json

from datasets.entry import PARTS, Entry, leaves_folder
from proxyfda.utils.errors import BadValue
from proxyfda.utils.rules import shown

__all__ = ["check_parts", "read_split"]


def read_split(filepath):
    """The split file as a dict of lists of :class:`Entry`, checked.

    Raises:
        BadValue: it is no split file, or one that cannot be.
    """

    print(f"Reading split from {filepath}")

    def fault(what):
        return BadValue(f"{filepath} is not a valid split file ({what}); fetch or make it again")

    try:
        with open(filepath, encoding="utf-8") as file:
            raw = json.load(file)
    except (ValueError, RecursionError) as error:
        raise fault(f"not JSON: {error}") from error
    split = {}
    for part in PARTS:
        if not isinstance(raw, dict) or not isinstance(raw.get(part), list):
            raise fault(f"no list {part!r}")
        split[part] = []
        for number, entry in enumerate(raw[part]):
            sound = _entry(entry)
            if sound is None:
                raise fault(
                    f"entry {number} of {part!r} is {shown(entry)}, not [path, label, class name]"
                )
            if leaves_folder(sound.path):
                raise fault(
                    f"entry {number} of {part!r} has the path {shown(sound.path)}, which is not "
                    "below the image folder"
                )
            split[part].append(sound)
    return check_parts(split, fault)


def _entry(entry):
    """An entry of a split file, or ``None`` if it is none."""
    try:
        path, label, classname = entry
    except (TypeError, ValueError):
        return None
    whole = isinstance(label, int) and not isinstance(label, bool)
    if isinstance(label, float) and label.is_integer():  # as some programs write whole numbers
        label, whole = int(label), True
    if isinstance(label, str) and label.isascii() and label.isdigit() and len(label) < 10:
        label, whole = int(label), True
    named = isinstance(path, str) and isinstance(classname, str) and bool(classname.strip())
    return Entry(path, label, classname) if whole and label >= 0 and named else None


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
