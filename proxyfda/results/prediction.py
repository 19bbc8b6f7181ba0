"""How well choosing on base classes predicts: ``python -m proxyfda.results.prediction OUTPUT``.

Settings that have both runs on halves of the base classes (``scripts/select.sh``) and base-to-new
runs (its ``--evaluate-all``) are ranked by H of either kind, per trainer and dataset. Runs of the
two kinds belong together if dataset, shots, name and config of their folders are the same.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from proxyfda.benchmarks import TITLES, dataset_key
from proxyfda.names import split_run_name
from proxyfda.results.metrics import harmonic_mean
from proxyfda.results.names import known_first, trainer_order
from proxyfda.results.runs import Record, collect
from proxyfda.results.selection import Measured, average, read, rows_of
from proxyfda.results.summary import AVERAGE
from proxyfda.results.tables import Block, csv_of, render
from proxyfda.utils.errors import BadValue, show_user_errors
from proxyfda.utils.files import write_text

__all__ = ["PredictionRow", "predictions", "rank_correlation"]

_CAPTION = (
    "ρ is Spearman's rank correlation, over settings, of H on halves of the base classes with H of "
    "base-to-new on the {split} split; chosen, best and plain are the latter of the setting with "
    "the highest H on the halves, of the best of all settings, and of the plain trainer. Seconds "
    "are those of all trainings on halves, also in trainings of base-to-new (mean of one)."
)


@dataclass(frozen=True)
class PredictionRow:
    """One line of the table; H in percent, ``None`` where there is none.

    Attributes:
        trainer, dataset, shots: the host, and what it was run on; ``average``: H averaged over
            datasets, of the settings that all of them have.
        settings: how many were ranked.
        correlation: Spearman's, in [-1, 1]; ``None`` for fewer than 3 settings or constant H.
        chosen: name and config of the setting with the highest H on the halves.
        chosen_h, best_h, plain_h: H of base-to-new, see the module.
        seconds, ratio: the trainings on halves took, alone and over one training of base-to-new.
    """

    trainer: str
    dataset: str
    shots: int
    settings: int
    correlation: float | None
    chosen: str
    chosen_h: float
    best_h: float
    plain_h: float | None
    seconds: float
    ratio: float | None


@dataclass(frozen=True)
class _Pair:
    """A setting with its results of both kinds; ``final`` maps seeds to H."""

    halves: Measured
    final: dict
    seconds: list


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation; ``None`` for fewer than 3 pairs, or where all are equal.

    >>> rank_correlation([1, 2, 3], [30, 40, 50])
    1.0
    """
    if len(first) < 3 or len(set(first)) == 1 or len(set(second)) == 1:
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(first, second)[0])


def predictions(outputs: Sequence[str], split: str = "test") -> list[PredictionRow]:
    """The rows of all trainers, each dataset and, of several, their average.

    Args:
        outputs: folders with runs of either kind.
        split: on which base-to-new was evaluated.

    Raises:
        UserError: no base-to-new runs, or no setting with both kinds of runs.
    """
    pairs = _pairs(outputs, collect(*outputs, split=split))
    if not pairs:
        raise BadValue(
            f"no setting in {' and '.join(outputs)} has runs on halves of the base classes and of "
            "base-to-new; scripts/select.sh with --evaluate-all makes both"
        )
    rows = []
    groups: dict[tuple[str, int], dict[str, list[_Pair]]] = {}
    for (dataset, shots, name, _), pair in pairs.items():
        datasets = groups.setdefault((split_run_name(name)[0], shots), {})
        datasets.setdefault(dataset, []).append(pair)
    for host, shots in sorted(groups, key=lambda group: (trainer_order(group[0]), group[1])):
        datasets = groups[host, shots]
        for dataset in sorted(datasets, key=lambda name: known_first(TITLES, name)):
            rows.append(_row(host, dataset, shots, datasets[dataset]))
        together = _averaged(list(datasets.values())) if len(datasets) > 1 else []
        if together:
            rows.append(_row(host, AVERAGE, shots, together))
    return rows


def _pairs(outputs: Sequence[str], records: Sequence[Record]) -> dict[tuple, _Pair]:
    parts: dict[tuple, dict] = {}
    seconds: dict[tuple, list] = {}
    for r in records:
        if r.protocol != "base2new" or r.accuracy is None:
            continue
        place = (r.dataset, r.shots, r.trainer, r.config)
        parts.setdefault(place, {}).setdefault(r.seed, {})[r.part] = r.accuracy
        if r.part == "base":
            seconds.setdefault(place, []).append((r.details.get("time") or {}).get("run", 0.0))
    pairs = {}
    for output in outputs:
        for (dataset, *rest), measured in read(output).items():
            place = (dataset_key(dataset), *rest)
            final = {
                seed: harmonic_mean(found["base"], found["new"])
                for seed, found in parts.get(place, {}).items()
                if len(found) == 2
            }
            if final and measured.runs:
                pairs[place] = _Pair(measured, final, seconds.get(place, []))
    return pairs


def _averaged(datasets: list[list[_Pair]]) -> list[_Pair]:
    """The settings that all datasets have, averaged over these."""
    by_name = [{(p.halves.name, p.halves.config): p for p in pairs} for pairs in datasets]
    shared = [key for key in by_name[0] if all(key in found for found in by_name)]
    averaged = []
    for key in shared:
        own = [found[key] for found in by_name]
        seeds = set.intersection(*(set(pair.final) for pair in own))
        averaged.append(
            _Pair(
                average([pair.halves for pair in own]),
                {seed: statistics.fmean(pair.final[seed] for pair in own) for seed in seeds},
                [second for pair in own for second in pair.seconds],
            )
        )
    return [pair for pair in averaged if pair.final and pair.halves.runs]


def _row(host: str, dataset: str, shots: int, pairs: list[_Pair]) -> PredictionRow:
    # Settings are compared by the runs that all of them have.
    runs = set.intersection(*(set(pair.halves.runs) for pair in pairs))
    seeds = set.intersection(*(set(pair.final) for pair in pairs))
    if not runs or not seeds:
        raise BadValue(
            f"the settings of {host} on {dataset} have no split and seed in common; run the same "
            "command again to finish them"
        )
    # The plain trainer's config is what those of its other settings begin with.
    own = [pair for pair in pairs if pair.halves.name == host]
    plain = min(own, key=lambda pair: len(pair.halves.config), default=None)
    others = [pair for pair in pairs if pair is not plain]
    ordered = [*([plain] if plain else []), *others]
    final = [statistics.fmean(pair.final[seed] for seed in seeds) for pair in ordered]
    reference = plain.halves if plain else replace(ordered[0].halves, runs={})
    rows = rows_of(reference, [pair.halves for pair in others], runs)
    rows = rows if plain else rows[1:]
    chosen = next((place for place, row in enumerate(rows) if row.chosen), 0)
    seconds = sum(pair.halves.seconds for pair in pairs)
    one = [second for pair in pairs for second in pair.seconds if second]
    return PredictionRow(
        trainer=host,
        dataset=dataset,
        shots=shots,
        settings=len(rows),
        correlation=rank_correlation([row.h for row in rows], final),
        chosen=f"{rows[chosen].name} {rows[chosen].config}",
        chosen_h=final[chosen],
        best_h=max(final),
        plain_h=final[0] if plain else None,
        seconds=seconds,
        ratio=seconds / statistics.fmean(one) if one else None,
    )


def table(rows: Sequence[PredictionRow], split: str, form: str = "text") -> str:
    """The table as ``text``, ``markdown`` or ``latex``."""
    lines = [
        [
            row.trainer if not place or rows[place - 1].trainer != row.trainer else "",
            TITLES.get(row.dataset, row.dataset),
            str(row.settings),
            "-" if row.correlation is None else f"{row.correlation:+.2f}",
            *("-" if h is None else f"{h:.2f}" for h in (row.chosen_h, row.best_h, row.plain_h)),
            f"{row.seconds:.0f}",
            "-" if row.ratio is None else f"{row.ratio:.1f}",
        ]
        for place, row in enumerate(rows)
    ]
    of_final = ("H chosen", "H best", "H plain")
    heads = ("trainer", "dataset", "settings", "ρ", *of_final, "s", "trainings")
    title = "How well halves of the base classes predict base-to-new"
    return render(Block(title, heads, lines, _CAPTION.format(split=split)), form)


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m proxyfda.results.prediction",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("outputs", nargs="+", metavar="OUTPUT", help="output folder of the scripts")
    parser.add_argument(
        "--split", default="test", choices=("test", "val"), help="of the base-to-new runs"
    )
    parser.add_argument("--markdown", action="store_true", help="as Markdown")
    parser.add_argument("--csv", metavar="FILE", help="write the rows to FILE as well, unrounded")
    args = parser.parse_args(argv)
    rows = predictions(args.outputs, args.split)
    print(table(rows, args.split, "markdown" if args.markdown else "text"))
    if args.csv:
        write_text(args.csv, csv_of(rows))
        print(f"Wrote {args.csv}")
    return 0


if __name__ == "__main__":
    show_user_errors()
    sys.exit(main())
