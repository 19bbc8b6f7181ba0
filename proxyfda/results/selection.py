"""What settings gave on halves of the base classes, and which one is chosen.

Of every run, that is of every split of the base classes and seed, there is the accuracy on the
seen half, on the unseen half, which plays the new classes, and their harmonic mean H. A setting's
numbers are means over its runs, its H the mean of theirs; ± is the standard error over the runs;
differences to the plain trainer are taken run by run. The setting with the highest H is chosen,
with the smaller λ where two are equal. Over several datasets a run is the mean over them with one
split and seed.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from proxyfda.experiments import layout, record
from proxyfda.results.metrics import harmonic_mean
from proxyfda.results.paired import mean_and_error
from proxyfda.results.tables import Block, csv_of, render
from proxyfda.utils.errors import UserError

__all__ = [
    "Measured",
    "SettingRow",
    "average",
    "choose",
    "overlay_text",
    "read",
    "rows_of",
    "table",
    "training_seconds",
    "verdict",
]

_TIE = 1e-9  # points of H below which two settings are equal: means in another order differ by less
CAPTION = (
    "Accuracy in % on validation images of base classes, mean ± standard error over {runs}. H is "
    "the mean of the runs' harmonic means, differences are paired run by run. > is what was chosen."
)


@dataclass(frozen=True)
class Measured:
    """What a setting gave.

    Attributes:
        name, config: the run's name and config, as its folders are called.
        runs: (split, seed) -> accuracy on the seen classes, on the unseen ones, H; in percent.
        seconds: that its trainings took, all together.
        weight: λ; 0 where no term acts.
        label: what tables call it.
    """

    name: str
    config: str
    runs: dict = field(default_factory=dict)
    seconds: float = 0.0
    weight: float = 0.0
    label: str = ""


@dataclass(frozen=True)
class SettingRow:
    """One line of the table; accuracies in percent, ``None`` where there is none.

    ``number`` is its place, 0 for the plain trainer; ``gain``, ``gain_seen`` and ``gain_unseen``
    are differences to that in H and in either accuracy; ``*_error`` are standard errors. ``runs``
    counts splits times seeds, ``complete`` says whether all are there, ``reference`` whether it is
    the plain trainer, which is not chosen. ``seconds`` are those of its trainings.
    """

    number: int
    label: str
    name: str
    config: str
    weight: float
    runs: int = 0
    complete: bool = False
    reference: bool = False
    chosen: bool = False
    seen: float | None = None
    seen_error: float | None = None
    unseen: float | None = None
    unseen_error: float | None = None
    h: float | None = None
    h_error: float | None = None
    gain_seen: float | None = None
    gain_seen_error: float | None = None
    gain_unseen: float | None = None
    gain_unseen_error: float | None = None
    gain: float | None = None
    gain_error: float | None = None
    seconds: float = 0.0


# -- reading --------------------------------------------------------------------------------------


def read(output: str) -> dict[tuple[str, int, str, str], Measured]:
    """All runs on halves of the base classes below an output folder.

    Returns:
        By dataset, shots, name and config of the run's folders; runs without both halves are left
        out.
    """
    accuracies: dict = {}
    seconds: dict = {}
    weights: dict = {}
    for folder in layout.run_folders(os.path.join(output, "select")):
        place = layout.parse(folder)
        if place is None or place.protocol != "select":
            continue
        try:
            result = record.read(folder)
        except UserError:
            continue  # not finished: its table says that it is missing
        key = (place.dataset, place.shots, place.name, place.config)
        weights[key] = (result.get("regulariser") or {}).get("weight", 0.0)
        if place.part == layout.TRAIN:
            seconds[key] = seconds.get(key, 0.0) + training_seconds(result)
        elif result.get("subsample") == place.classes:
            runs = accuracies.setdefault(key, {})
            runs.setdefault((place.split, place.seed), {})[place.part] = result["accuracy"]
    found = {}
    for key, runs in accuracies.items():
        pairs = {
            run: (parts[layout.SEEN], parts[layout.UNSEEN])
            for run, parts in runs.items()
            if len(parts) == 2
        }
        values = {run: (*pair, harmonic_mean(*pair)) for run, pair in pairs.items()}
        found[key] = Measured(key[2], key[3], values, seconds.get(key, 0.0), weights[key])
    return found


def training_seconds(result: dict) -> float:
    """Seconds that a training took, with the evaluation at its end."""
    return float((result.get("time") or {}).get("run", 0.0))


def average(settings: Sequence[Measured]) -> Measured:
    """One setting over several datasets: means of the runs that all datasets have."""
    shared = set.intersection(*(set(one.runs) for one in settings))
    first = settings[0]
    runs = {
        run: tuple(statistics.fmean(column) for column in zip(*(one.runs[run] for one in settings)))
        for run in sorted(shared)
    }
    seconds = sum(one.seconds for one in settings)
    return replace(first, runs=runs, seconds=seconds)


# -- choosing -------------------------------------------------------------------------------------


def rows_of(
    plain: Measured, settings: Sequence[Measured], runs: Iterable[tuple[int, int]]
) -> list[SettingRow]:
    """The table's rows, the plain trainer's first, with what is chosen marked.

    Args:
        runs: the pairs of split and seed that count.
    """
    wanted = list(runs)
    rows = [_row(n, one, plain, wanted) for n, one in enumerate((plain, *settings))]
    best = choose(rows)
    return [replace(row, chosen=row is best) for row in rows]


def choose(rows: Sequence[SettingRow]) -> SettingRow | None:
    """The row with the highest H, of equal ones that with the smallest λ, then the first.

    References and what lacks runs take no part; ``None`` if nothing is left.
    """
    able = [row for row in rows if row.complete and not row.reference]
    if not able:
        return None
    highest = max(row.h for row in able)
    return min((row for row in able if row.h >= highest - _TIE), key=lambda row: row.weight)


def _row(number: int, one: Measured, plain: Measured, wanted: list) -> SettingRow:
    here = [run for run in wanted if run in one.runs]
    paired = [run for run in here if run in plain.runs]
    numbers: dict[str, float | None] = {}
    for name, place in (("seen", 0), ("unseen", 1), ("h", 2)):
        values = [one.runs[run][place] for run in here]
        numbers[name], numbers[f"{name}_error"] = mean_and_error(values)
    if one is not plain:
        for name, place in (("gain_seen", 0), ("gain_unseen", 1), ("gain", 2)):
            values = [one.runs[run][place] - plain.runs[run][place] for run in paired]
            numbers[name], numbers[f"{name}_error"] = mean_and_error(values)
    return SettingRow(
        number,
        one.label,
        one.name,
        one.config,
        one.weight,
        runs=len(here),
        complete=len(here) == len(wanted),
        reference=one is plain,
        seconds=one.seconds,
        **numbers,
    )


# -- showing --------------------------------------------------------------------------------------


def table(rows: Sequence[SettingRow], title: str, runs: str, form: str = "text") -> str:
    """The table as a string.

    Args:
        title: what it is of, such as ``CoOp on dtd, 16 shots``.
        runs: what the runs are, such as ``2 splits x 3 seeds``.
        form: ``text``, ``markdown`` or ``latex``, or ``csv`` (all fields, unrounded).
    """
    if form == "csv":
        return csv_of(rows)
    lines, notes = [], []
    for row in rows:
        lines.append(
            [
                f"{row.number}{'>' if row.chosen else ''}{'' if row.complete else '*'}",
                row.label,
                _cell(row.seen, row.seen_error),
                _cell(row.unseen, row.unseen_error),
                _cell(row.h, row.h_error),
                _cell(row.gain_seen, row.gain_seen_error, "+"),
                _cell(row.gain_unseen, row.gain_unseen_error, "+"),
                _cell(row.gain, row.gain_error, "+"),
            ]
        )
    if any(not row.complete for row in rows):
        notes.append("* runs are missing, so it cannot be chosen.")
    notes.append(verdict(rows))
    names = ("seen", "unseen", "H")
    heads = ("", "setting", *names, *(f"{name} - plain" for name in names))
    return render(Block(title, heads, lines, CAPTION.format(runs=runs), notes), form)


def verdict(rows: Sequence[SettingRow]) -> str:
    """One sentence: what is chosen, and how it stands to the plain trainer."""
    best = next((row for row in rows if row.chosen), None)
    if best is None:
        return "Nothing can be chosen: no setting has all its runs."
    words = f"Chosen: {best.label}, with {best.name}"
    if best.gain is None:
        return f"{words}; the plain trainer has no runs to compare with."
    words += f"; H over the plain trainer {_cell(best.gain, best.gain_error, '+')}"
    return words + ("." if best.gain > 0 else ", so no setting pays here.")


def _cell(value: float | None, error: float | None, sign: str = "") -> str:
    if value is None:
        return "-"
    return f"{value:{sign}.2f}" + ("" if error is None else f" ± {error:.2f}")


def overlay_text(options: dict[str, Any], comment: Sequence[str]) -> str:
    """Options as a YAML file that goes on top of a trainer's config.

    Args:
        options: dotted key -> value.
        comment: lines that say how they were chosen.
    """
    tree: dict = {}
    for key, value in options.items():
        *nodes, last = key.split(".")
        here = tree
        for node in nodes:
            here = here.setdefault(node, {})
        here[last] = list(value) if isinstance(value, tuple) else value
    head = "".join(f"# {line}\n" for line in comment)
    return head + yaml.safe_dump(tree, sort_keys=False, default_flow_style=None)
