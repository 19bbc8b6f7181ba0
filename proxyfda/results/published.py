"""Published base-to-new accuracies, and the difference of a table's rows to them.

``published.csv`` has base and new accuracy per method and dataset and on average, in percent, with
the paper that they are from: CLIP, CoOp and CoCoOp from CoCoOp's (Zhou et al., CVPR 2022), MaPLe's
and PromptSRC's (Khattak et al., CVPR and ICCV 2023), and Proxy-FDA's (Huang et al., ICML 2025),
which has the averages alone. All are of ViT-B/16 and 16 shots with 3 seeds.
"""

from __future__ import annotations

import csv
import statistics
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from proxyfda.benchmarks import BENCHMARKS, TITLES, dataset_key
from proxyfda.names import REFERENCE, split_run_name
from proxyfda.results.metrics import harmonic_mean
from proxyfda.results.summary import AVERAGE, Row

BACKBONE, SHOTS, PUBLISHED_SEEDS = "ViT-B/16", 16, 3


@dataclass(frozen=True)
class Comparison:
    """A row beside the published figures; ``base``, ``new`` and ``h`` are the published ones."""

    row: Row
    method: str
    base: float
    new: float
    h: float
    source: str


@lru_cache(maxsize=None)  # noqa: UP033  (Python 3.8)
def published():
    """Dict of (base, new, source) by method and dataset (its title, or ``average``)."""
    with open(Path(__file__).with_name("published.csv"), newline="", encoding="utf-8") as file:
        return {
            (line["method"], line["dataset"]): (
                float(line["base"]),
                float(line["new"]),
                line["source"],
            )
            for line in csv.DictReader(file)
        }


def method_of(trainer):
    """Name of a run's trainer among the published methods, or ``None``."""
    methods = {method.lower(): method for method, _ in published()}
    if trainer == REFERENCE:
        return methods["clip"]
    host, regulariser = split_run_name(trainer)
    names = {"": host, "proxy_fda": f"{host}+Proxy-FDA"}
    return methods.get(names.get(regulariser, "").lower()) if host.lower() != "clip" else None


def compare(summary, records):
    """Rows of a base-to-new table beside the published figures.

    Args:
        summary: :class:`~proxyfda.results.Summary` of base-to-new rows.
        records: the runs it was made of, for their backbones and readers.

    Returns:
        List of :class:`Comparison` in the order of the rows, and list of sentences on what is not
        compared and why. The average is compared with the published one where it is over the
        eleven benchmarks, otherwise with that of the published figures of the same datasets.
    """
    found, left_out = [], {}

    def skip(row, why):
        left_out.setdefault(why, []).append(row)

    own = {r.dataset for r in records if _is_other_dataset(r)}
    backbones = {}
    for r in records:
        name = (r.details.get("backbone") or ("",))[0]
        if name and r.protocol == "base2new":
            backbones.setdefault((r.trainer, r.config, r.dataset), set()).add(name)
    for row in summary.rows:
        method = method_of(row.trainer)
        used = set().union(
            *(backbones.get((row.trainer, row.config, d), set()) for d in row.datasets)
        )
        unpublished = [d for d in row.datasets if d not in BENCHMARKS or d in own]
        if row.base is None and row.new is None:
            continue
        if unpublished:
            if row.dataset != AVERAGE:
                skip(row, "dataset")
            elif len(unpublished) < len(row.datasets):
                skip(row, "other average")
        elif method is None:
            skip(row, "method")
        elif row.shots != SHOTS and row.trainer != REFERENCE:
            skip(row, "shots")
        elif used - {BACKBONE}:
            skip(row, f"the published figures are of {BACKBONE} and this is of {_and(used)}")
        elif (figures := _figures(method, row)) is None:
            skip(row, "average alone")
        else:
            base, new, source = figures
            found.append(Comparison(row, method, base, new, harmonic_mean(base, new), source))
    return found, [_left_out(why, rows) for why, rows in left_out.items()]


def _is_other_dataset(record):
    # A folder of own images may bear the name of a benchmark.
    name = (record.details.get("cfg") or {}).get("DATASET.NAME")
    return bool(name) and dataset_key(name) != record.dataset


def _figures(method, row):
    titles = [TITLES[dataset] for dataset in row.datasets]
    if row.dataset == AVERAGE and set(row.datasets) == set(BENCHMARKS):
        titles = [AVERAGE]
    figures = [published().get((method, title)) for title in titles]
    if None in figures:
        return None
    return (*(statistics.fmean(f[i] for f in figures) for i in (0, 1)), figures[0][2])


def _left_out(why, rows):
    names = _and(row.name for row in rows)
    if why == "dataset":
        return f"There are no published figures for {_and(row.title for row in rows)}."
    if why == "method":
        return f"There are no published figures for {names}."
    if why == "shots":
        shots = _and(str(row.shots) for row in rows)
        return f"The published figures are of {SHOTS} shots, {shots} shots have none beside them."
    if why == "other average":
        return "The average takes in datasets without published figures, so it is not compared."
    if why == "average alone":
        return f"Of {names} the average over the eleven benchmarks alone is published."
    return f"{names} is not compared: {why}."


def _and(names):
    return ", ".join(dict.fromkeys(names))
