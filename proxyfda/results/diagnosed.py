"""What ``python -m proxyfda.diagnose`` left in an output: its tables and figures, for the page.

Its folders are known by the tables in them, wherever they lie; see
:mod:`proxyfda.diagnose.command` for what it writes.
"""

from __future__ import annotations

import csv
import os
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from proxyfda.results import markup
from proxyfda.results.drawing import DPI
from proxyfda.results.markup import Section
from proxyfda.results.tables import Block

__all__ = ["Diagnosis", "find", "section"]

TITLE = "Diagnostics"
_ABOUT = (
    "What tuning did to an encoder, from the features of the same images before and after. "
    "Overlap is the share of an image's nearest neighbours that are still its nearest, CKA how "
    "alike two sets of features are (1: the same but for rotation and scale), L2 drift how far "
    "features moved, OTDD a distance between sets of labelled images."
)
_COMPARED, _CLASSES = "diagnose.csv", "classes.csv"
_CORRELATED, _RUNS = "correlations.csv", "runs.csv"
_KNOWN_BY = (_COMPARED, _CORRELATED)
_WORST = 5  # classes of a model on a dataset
_CAPTIONS = {
    "layers": "How far each layer's output moved.",
    "pca": "Frozen and tuned features side by side, in two dimensions (PCA).",
    "tsne": "Frozen and tuned features side by side, in two dimensions (t-SNE).",
    "classes": "Neighbours kept, and how far features moved, by class.",
    "neighbours": "Images that lost most neighbours, with those before and after.",
    "scatter": "Each measure of a run against what it forgot.",
}
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Diagnosis:
    """One folder of the command: tables by file name, paths of figures, what cannot be read.

    ``title`` is its path from the output on, whose own name comes first.
    """

    folder: str
    title: str
    tables: dict[str, list[dict]]
    figures: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def find(outputs: Iterable[str]) -> list[Diagnosis]:
    """Every diagnosis below some folders, in the order of their paths."""
    titles: dict[str, str] = {}
    for output in map(os.path.abspath, outputs):
        for folder in _folders(output):
            titles.setdefault(folder, os.path.relpath(folder, os.path.dirname(output)))
    return [_read(folder, title) for folder, title in titles.items()]


def _folders(top: str) -> Iterator[str]:
    seen = set()
    for folder, below, files in os.walk(top, followlinks=True):
        below[:] = sorted(name for name in below if not re.fullmatch(r"seed-?\d+", name))
        if os.path.realpath(folder) in seen:
            below.clear()
            continue
        seen.add(os.path.realpath(folder))
        if set(_KNOWN_BY) & set(files):
            yield folder


def _read(folder: str, title: str) -> Diagnosis:
    found = Diagnosis(folder, title, {})
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        try:
            if name in (*_KNOWN_BY, _CLASSES, _RUNS):
                found.tables[name] = _read_csv(path)
            elif name.endswith(".png"):
                found.figures.append(path)
        except (OSError, ValueError, csv.Error) as error:
            found.faults.append(f"{path} cannot be read: {error}.")
    found.figures.sort(key=lambda path: [*_CAPTIONS, ""].index(_kind(path)))
    return found


def _read_csv(path: str) -> list[dict]:
    with open(path, encoding="utf-8", newline="") as file:
        # A row that is too long has the rest under None, one that is too short has None for it.
        rows = [{k: v or "" for k, v in row.items() if k} for row in csv.DictReader(file)]
    if not rows:
        raise ValueError("it has no rows")
    return rows


def section(diagnoses: Sequence[Diagnosis]) -> Section:
    """The diagnoses as a section of the page."""
    parts = [markup.paragraph(_ABOUT)]
    parts += [
        markup.titled(TITLE, found.title, "\n".join(filter(None, _parts(found.title, found))))
        for found in diagnoses
    ]
    return Section(TITLE, parts, [found.title for found in diagnoses])


def _parts(title: str, found: Diagnosis) -> Iterator[str]:
    tables = found.tables
    if _COMPARED in tables:
        yield markup.table(_block(f"Measures, {title}", tables[_COMPARED]))
    if _CORRELATED in tables:
        caption = (
            "Correlation of each measure with Δ_LP, the change of linear-probe accuracy, over the "
            "runs of a sweep; in brackets the 95 % interval."
        )
        yield markup.table(_block(f"Correlations, {title}", tables[_CORRELATED], caption))
    faults = list(found.faults)
    for path in found.figures:
        try:
            yield _figure(path)
        except (OSError, ValueError) as error:
            faults.append(f"{path} cannot be shown: {error}.")
    if _CLASSES in tables:
        block = _block(f"Classes, {title}", _worst(tables[_CLASSES]))
        yield markup.folded(
            f"The {_WORST} classes of each model and dataset that kept fewest neighbours",
            markup.table(block),
        )
    if _RUNS in tables:
        block = _block(f"Runs, {title}", tables[_RUNS])
        yield markup.folded(f"The {len(tables[_RUNS]):,} runs", markup.table(block))
    yield markup.notes(faults)


def _block(title: str, rows: list[dict], caption: str = "") -> Block:
    """A table of a CSV; columns without any value are left out."""
    names = [name for name in rows[0] if any(row.get(name) for row in rows)]
    lines, above = [], None
    for row in rows:
        first, *rest = (_cell(row.get(name, "")) for name in names)
        lines.append([first if first != above else "", *rest])
        above = first
    return Block(title, tuple(_head(name) for name in names), lines, caption)


def _head(name: str) -> str:
    words = name.replace("_", " ")
    return re.sub(r"\b(otdd|cka|l2)\b", lambda match: match[1].upper(), words)


def _cell(text: str) -> str:
    """Numbers with three decimals, all else as it is."""
    return f"{float(text):.3f}" if re.fullmatch(r"-?\d+\.\d+(e-?\d+)?", text) else text


def _worst(rows: list[dict]) -> list[dict]:
    together: dict[tuple, list[dict]] = {}
    for row in rows:
        together.setdefault((row.get("dataset"), row.get("model")), []).append(row)
    return [row for own in together.values() for row in sorted(own, key=_kept)[:_WORST]]


def _kept(row: dict) -> float:
    try:
        return float(row.get("overlap") or "inf")
    except ValueError:
        return float("inf")


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def _kind(path: str) -> str:
    """What a figure is of, one of the captions; empty if it is not known."""
    stem = _stem(path)
    return next((kind for kind in _CAPTIONS if re.search(rf"(^|_){kind}\d*$", stem)), "")


def _figure(path: str) -> str:
    with open(path, "rb") as file:
        data = file.read()
    if not data.startswith(_SIGNATURE) or len(data) < 24:
        raise ValueError("it is no PNG image")
    sides = struct.unpack(">II", data[16:24])
    width, height = (round(markup.PIXELS_PER_INCH / DPI * side) for side in sides)
    kind, stem = _kind(path), _stem(path)
    caption = f"{stem}: {_CAPTIONS[kind]}" if kind else stem
    return markup.image(data, "png", (width, height), caption)
