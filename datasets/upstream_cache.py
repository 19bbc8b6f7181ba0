"""Few-shot caches of the CoOp family: pickles of Dassl's ``Datum``, read without running them.

Unpickling calls whatever a pickle names, so a cache from elsewhere must never see ``pickle.load``.
The reader here knows one name, ``Datum``, and puts a record without behaviour in its place;
numbers, texts, lists, tuples and dicts need no name. Anything else is refused before it is looked
up.
"""

from __future__ import annotations

import pickle

from proxyfda.utils.errors import BadValue


class _Record:
    """What a pickled ``Datum`` holds."""

    __slots__ = ("state",)

    def __setstate__(self, state):
        self.state = state


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        # Wherever it comes from: Dassl is vendored under several names. Nothing is imported.
        if name == "Datum":
            return _Record
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_upstream_cache(path, parts):
    """The choice in a pickle of upstream's.

    Args:
        path: ``shot_{K}-seed_{SEED}.pkl``: ``{"train": [Datum], "val": [Datum]}`` with absolute
            paths of the machine that wrote it (``val`` is absent for ImageNet).
        parts: the split as lists of entries; its images are recognised by the end of their path.

    Returns:
        ``{"train", "val", "test"}``, lists of the entries of ``parts``; test is not sampled.

    Raises:
        OSError: it cannot be opened.
        ValueError: it asks for anything but ``Datum``, is damaged, or is of another split.
    """
    try:
        with open(path, "rb") as file:
            content = _Unpickler(file).load()
    except OSError:
        raise
    except Exception as error:  # damaged pickles raise nearly anything
        reason = " ".join(str(error).split())
        raise BadValue(f"not a pickle of images: {reason}") from None
    if not isinstance(content, dict):
        raise BadValue("not a pickle of images: it holds no dict")
    chosen = {"test": parts["test"]}
    for part in ("train", "val"):
        listed = content.get(part, [] if not parts[part] else None)
        if not isinstance(listed, list):
            raise BadValue(f"it has no list {part!r}")
        chosen[part] = _entries([_fields(item) for item in listed], parts[part], part)
    return chosen


def _fields(item):
    state = item.state if isinstance(item, _Record) and hasattr(item, "state") else None
    if isinstance(state, dict):
        fields = state.get("_impath"), state.get("_label"), state.get("_classname")
        if [type(field) for field in fields] == [str, int, str]:
            return fields
    raise BadValue("it lists something that is not an image with label and class name")


def _entries(listed, known, part):
    """The entries of ``known`` that ``listed`` means, whatever folder its paths start with."""
    by_path = {entry.path: entry for entry in known}
    old_root, found = None, []
    for impath, label, classname in listed:
        path = impath.replace("\\", "/")
        if old_root is None:
            steps = [i + 1 for i, letter in enumerate(path) if letter == "/"]
            old_root = next((path[:i] for i in [0, *steps] if path[i:] in by_path), "")
        entry = by_path.get(path[len(old_root) :]) if path.startswith(old_root) else None
        if entry is None:
            raise BadValue(f"its {part} list has {impath}, which the split does not have")
        if (entry.label, entry.classname) != (label, classname):
            raise BadValue(
                f"it has {entry.path} as {label} {classname!r}, the split as {entry.label} "
                f"{entry.classname!r}"
            )
        found.append(entry)
    return found
