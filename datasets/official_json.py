"""Reading the JSON files that datasets of images with texts are published as."""

from __future__ import annotations

import json
import os

from datasets.entry import find_files, similar_neighbour
from proxyfda.utils.errors import BadValue, NotFound
from proxyfda.utils.suggest import did_you_mean

__all__ = ["check_key", "first_folder", "images_found", "records", "the_file", "the_folder"]

HINT = "docs/captioning.md says what belongs where"


def the_folder(path):
    """The folder of a dataset, with ``~`` replaced.

    Raises:
        NotFound: it is not there.
    """
    path = os.path.expanduser(path)
    if not os.path.isdir(path):
        raise NotFound(f"the folder of the data {path} does not exist; name the one that has them")
    return path


def the_file(places, what):
    """The first of several paths that is a file.

    Raises:
        NotFound: none is; the message names the first of them.
    """
    for path in places:
        if os.path.isfile(path):
            return path
    near = next(filter(None, map(similar_neighbour, places)), "")
    remedy = f"rename or link {near}, which is there" if near else f"put it there: {HINT}"
    raise NotFound(f"the {what} {places[0]} does not exist; {remedy}")


def first_folder(places, what):
    """The first of several paths that is a folder.

    Raises:
        NotFound: none is.
    """
    for path in places:
        if os.path.isdir(path):
            return path
    raise NotFound(f"the {what} {places[0]} does not exist; put it there: {HINT}")


def records(path, key, **fields):
    """The list ``key`` of the object in a JSON file, each entry with what is needed of it.

    Args:
        path: the file.
        key: of the list.
        fields: name -> type or tuple of types of what every entry has to have.

    Raises:
        BadValue: no JSON, no such list, or an entry that lacks something.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except ValueError as error:
        raise BadValue(f"{path} is no JSON ({error}); fetch it again") from error
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, list):
        raise BadValue(f"{path} has no list {key!r}; fetch the official file again")
    for number, entry in enumerate(found):
        for name, kind in fields.items():
            value = entry.get(name) if isinstance(entry, dict) else None
            if not isinstance(value, kind) or isinstance(value, bool):
                raise BadValue(
                    f"entry {number} of {key!r} in {path} has no {name} of the kind it should "
                    f"have ({name} is {_short(value)}); mend or fetch it again"
                )
    return found


def check_key(key, entry, path):
    """Refuse a key for families that the entries of a file have no text for."""
    if not isinstance(entry.get(key), str):
        there = [name for name, value in entry.items() if isinstance(value, str)]
        raise BadValue(
            f"the entries of {path} have no text {key!r}{did_you_mean(key, there)}; families can "
            f"be made of {', '.join(there) or 'nothing in it'}"
        )


def images_found(paths, source):
    """Paths of image files as they are on disk, in order (see
    :func:`~datasets.entry.find_files`).

    Args:
        paths: as listed.
        source: the file that lists them, for the error.

    Raises:
        NotFound: images are missing; the message names the first and the number.
    """
    unique = dict.fromkeys(paths)
    found_as, missing = find_files(unique)
    if missing:
        raise NotFound(
            f"{len(missing)} of {len(unique)} images listed in {source} are missing, the first is "
            f"{missing[0]}; complete the images"
        )
    return [found_as.get(path, path) for path in paths]


def _short(value):
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
