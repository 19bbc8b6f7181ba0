"""Lists of names: where they are found, which of them mean a class, and which a step takes.

A vocabulary is a text file with one name per line; blank lines and what follows a ``#`` count for
nothing. ``nouns`` is the one that comes with the package, drawn from WordNet (its head says how and
under which licence).
"""

from __future__ import annotations

import os
import random
import re
import unicodedata
from typing import Dict, Iterable, List, Sequence, Set, Tuple

from proxyfda.utils.errors import BadValue, NotFound
from proxyfda.utils.suggest import did_you_mean

__all__ = [
    "VOCABULARIES",
    "draw_names",
    "names_without",
    "read_vocabulary",
    "register_vocabulary",
]

_HERE = os.path.dirname(os.path.abspath(__file__))
_PROJECT = os.path.dirname(os.path.dirname(_HERE))

VOCABULARIES: Dict[str, str] = {"nouns": os.path.join(_HERE, "nouns.txt")}
"""Files of the vocabularies that have a name; :func:`register_vocabulary` adds one."""

# Plurals whose singular no rule of :func:`_stem` gives.
_IRREGULAR = {
    "children": "child",
    "dice": "die",
    "feet": "foot",
    "geese": "goose",
    "mice": "mouse",
    "oxen": "ox",
    "people": "person",
    "teeth": "tooth",
}


def register_vocabulary(name: str, path: str) -> None:
    """Let a vocabulary be asked for by a name.

    Raises:
        BadValue: the name belongs to another file.
    """
    path = os.path.abspath(path)
    if VOCABULARIES.get(name, path) != path:
        raise BadValue(
            f"the vocabulary {name!r} is {VOCABULARIES[name]} already; give {path} another name."
        )
    VOCABULARIES[name] = path


def read_vocabulary(source: str) -> List[str]:
    """The names of a vocabulary in the order of its file, without repetitions.

    Args:
        source: a name in ``VOCABULARIES``, or the path of a file, as it is or below the folder
            that holds the package.

    Raises:
        NotFound: neither a name nor a file.
        BadValue: no text in UTF-8.
    """
    path = VOCABULARIES.get(source, os.path.expanduser(source))
    if not os.path.isfile(path):
        path = os.path.join(_PROJECT, path)
    if not os.path.isfile(path):
        raise NotFound(
            f"the vocabulary {source!r} is neither a file nor one of {', '.join(VOCABULARIES)}"
            f"{did_you_mean(source, VOCABULARIES)}; give a text file with one name per line."
        )
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except UnicodeDecodeError:
        raise BadValue(
            f"the vocabulary {path} is no text in UTF-8; give a text file with one name per line."
        ) from None
    found: Dict[str, str] = {}
    for line in lines:
        name = " ".join(line.partition("#")[0].replace("_", " ").split())
        if name:
            found.setdefault(name.casefold(), name)
    return list(found.values())


def names_without(names: Sequence[str], classes: Iterable[str]) -> List[str]:
    """Those of ``names`` that do not mean, or contain, one of ``classes``.

    Case, accents, underscores, hyphens, spaces and plurals make no difference: of the classes
    ``sea_lion`` and ``Forest``, ``Sea Lions``, ``sealion`` and ``forest fire`` go, ``lion`` stays.
    The rule for plurals takes a few unlike names for one (``pin`` goes with ``pine``): one name too
    few does no harm.

    >>> names = ["Sea Lions", "forest fire", "knife", "lion"]
    >>> names_without(names, ["sea_lion", "Forest", "knives"])
    ['lion']
    """
    taken = {"".join(_stems(name)) for name in classes} - {""}
    return [name for name in names if not _runs(_stems(name)) & taken]


def _runs(stems: Tuple[str, ...]) -> Set[str]:
    """Every run of neighbouring words, in one piece."""
    numbers = range(len(stems))
    return {"".join(stems[first : last + 1]) for first in numbers for last in numbers[first:]}


def _stems(name: str) -> Tuple[str, ...]:
    plain = unicodedata.normalize("NFKD", name.casefold().replace("_", " "))
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    return tuple(_stem(word) for word in re.findall(r"\w+", re.sub(r"['’]", "", plain)))


def _stem(word: str) -> str:
    """What singular and plural of a word have in common."""
    word = _IRREGULAR.get(word, word)
    while len(word) > 3 and word.endswith(("s", "e")) and not word.endswith("ss"):
        word = word[:-1]
    if word.endswith("men"):
        return word[:-3] + "man"
    return word[:-1] + {"y": "i", "v": "f", "u": "i"}.get(word[-1], word[-1])


def draw_names(names: Sequence[str], count: int, *step: int) -> List[int]:
    """Positions of ``count`` different names, the same for the same numbers ``step``.

    Raises:
        ValueError: there are fewer names.

    >>> draw_names(["a", "b", "c", "d"], 2, 1, 0) == draw_names(["a", "b", "c", "d"], 2, 1, 0)
    True
    """
    # A stream of its own: nothing else draws from it, and no state has to be kept.
    return random.Random(" ".join(map(str, step))).sample(range(len(names)), count)
