"""Whether our base-to-new figures are the published ones: a verdict per cell.

    python -m proxyfda.results.verdicts OUTPUT

The rule. A published figure is the mean over three seeds, whose spread was not published; we take
it to be the spread of ours. The difference of two such means has the standard error
s · sqrt(1/n + 1/3), with the sample standard deviation s over our n seeds. A cell is

* ``reproduced``: the difference is at most twice that, or at most half a point, which other
  versions, hardware and preprocessing may make;
* ``above by`` or ``below by`` so many points otherwise;
* ``missing``: we have no complete result;
* ``-``: nothing comparable is published.

With one seed nothing is known of the spread, which is then taken to be one point. Zero-shot CLIP
has none. A gain is the difference of two rows, and its s that of both in quadrature.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple

from tabulate import tabulate

from proxyfda.benchmarks import TITLES
from proxyfda.names import is_zero_shot, run_name, split_run_name
from proxyfda.results.metrics import harmonic_mean
from proxyfda.results.published import PUBLISHED_SEEDS, Comparison, compare, method_of, published
from proxyfda.results.runs import collect
from proxyfda.results.summary import AVERAGE, Row, summarise
from proxyfda.utils.errors import show_user_errors

__all__ = ["REPRODUCED", "Cell", "Line", "judge", "lines_of", "report", "verdict_table"]

REPRODUCED, MISSING, NOTHING = "reproduced", "missing", "-"
FLOOR = 0.5
"""Points that a difference may have whatever the spread is."""
UNKNOWN_SPREAD = 1.0
"""Spread over seeds where one alone was run."""
NUMBERS = ("base", "new", "h")


@dataclass(frozen=True)
class Cell:
    """One number: ours and the published one in percent (``None``: none), and the verdict."""

    ours: Optional[float]
    published: Optional[float]
    verdict: str


@dataclass(frozen=True)
class Line:
    """One line of the table: its name, the dataset's title, and the cells of :data:`NUMBERS`."""

    name: str
    title: str
    cells: Tuple[Cell, ...]


def tolerance(spread: float, seeds: int) -> float:
    """Points that a mean over so many seeds may differ from the published one.

    >>> tolerance(0.0, 3), round(tolerance(1.5, 3), 3)
    (0.5, 2.449)
    """
    return max(FLOOR, 2 * spread * math.sqrt(1 / max(seeds, 1) + 1 / PUBLISHED_SEEDS))


def judge(ours: Optional[float], theirs: Optional[float], spread: float, seeds: int) -> Cell:
    """A cell with its verdict, by the rule of the module.

    Args:
        ours, theirs: the figures in percent.
        spread: sample standard deviation over seeds, in points.
        seeds: number of seeds that ours is the mean over.

    >>> judge(84.0, 82.69, 0.3, 3).verdict, judge(82.9, 82.69, 0.3, 3).verdict
    ('above by 1.3', 'reproduced')
    >>> judge(None, 82.69, 0.3, 3).verdict
    'missing'
    """
    if ours is None:
        return Cell(None, theirs, MISSING)
    if theirs is None:
        return Cell(ours, None, NOTHING)
    gap = ours - theirs
    if abs(gap) <= tolerance(spread, seeds):
        return Cell(ours, theirs, REPRODUCED)
    return Cell(ours, theirs, f"{'above' if gap > 0 else 'below'} by {abs(gap):.1f}")


def _spread(row: Row, number: str) -> float:
    if is_zero_shot(row.trainer):
        return 0.0
    found = getattr(row, f"{number}_std")
    return UNKNOWN_SPREAD if found is None else float(found)


def _figures(trainer: str, title: str) -> Tuple[Optional[float], ...]:
    """What is published of a run on a dataset, or on average: base, new and H."""
    found = published().get((method_of(trainer), title))
    if found is None:
        return (None, None, None)
    base, new = found[:2]
    return (base, new, harmonic_mean(base, new))


def lines_of(
    rows: Sequence[Row],
    comparisons: Sequence[Comparison],
    runs: Sequence[str],
    datasets: Sequence[str],
) -> List[Line]:
    """Lines on average, the gains over the plain trainers, and lines per dataset.

    Args:
        rows: of the base-to-new table.
        comparisons: those of the rows that may be compared, see
            :func:`~proxyfda.results.published.compare`.
        runs: the runs that there should be, in order.
        datasets: the datasets that there should be, named as their configs.
    """
    theirs = {(c.row.name, c.row.dataset): (c.base, c.new, c.h) for c in comparisons}

    def line(run: str, dataset: str, title: str) -> List[Tuple[Line, Optional[Row]]]:
        whole = [r for r in rows if r.trainer == run and r.dataset == dataset]
        if dataset == AVERAGE:
            # An average over fewer datasets is another number.
            whole = [r for r in whole if set(r.datasets) == set(datasets)]
        if not whole:
            missing = (judge(None, figure, 0.0, 1) for figure in _figures(run, title))
            return [(Line(run, title, tuple(missing)), None)]
        found = []
        for row in whole:
            figures = theirs.get((row.name, row.dataset), (None, None, None))
            cells = (
                judge(getattr(row, number), figure, _spread(row, number), len(row.seeds))
                for number, figure in zip(NUMBERS, figures)
            )
            found.append((Line(row.name, row.title, tuple(cells)), row))
        return found

    averages = [pair for run in runs for pair in line(run, AVERAGE, AVERAGE)]
    if len(datasets) < 2:
        averages = []
    each = [
        pair
        for name in datasets
        for run in runs
        for pair in line(run, name, TITLES.get(name, name))
    ]
    return [
        *(made for made, _ in averages),
        *_gains(averages),
        *(made for made, _ in each),
    ]


def _gains(averages: Sequence[Tuple[Line, Optional[Row]]]) -> List[Line]:
    """What the regularisers add to their plain trainers, on average."""
    plain: Dict[str, Tuple[Line, Row]] = {}
    for made, row in averages:
        if row is not None and split_run_name(row.trainer)[1] == "":
            plain.setdefault(row.trainer, (made, row))
    found = []
    for made, row in averages:
        host, regulariser = split_run_name(row.trainer if row else "")
        if row is None or not regulariser or host not in plain:
            continue
        base, base_row = plain[host]
        cells = []
        for number, with_it, without in zip(NUMBERS, made.cells, base.cells):
            figures = [(c.ours, c.published) for c in (with_it, without)]
            ours, theirs = (
                None if None in pair else pair[0] - pair[1]  # type: ignore[operator]
                for pair in zip(*figures)
            )
            spread = math.hypot(_spread(row, number), _spread(base_row, number))
            seeds = min(len(row.seeds), len(base_row.seeds))
            cells.append(judge(ours, theirs, spread, seeds))
        found.append(Line(f"{made.name} - {base.name}", AVERAGE, tuple(cells)))
    return found


def verdict_table(lines: Sequence[Line], form: str = "simple") -> str:
    """The lines as text; ``form`` is one of tabulate's."""
    heads = ["dataset", "trainer"]
    for name in ("base", "new", "H"):
        heads += [name, "published", "verdict"]
    above, body = "", []
    for line in lines:
        sign = "+" if " - " in line.name else ""
        cells = [
            word
            for cell in line.cells
            for word in (_number(cell.ours, sign), _number(cell.published, sign), cell.verdict)
        ]
        body.append(["" if line.title == above else line.title, line.name, *cells])
        above = line.title
    return tabulate(body, heads, form, disable_numparse=True)


def _number(value: Optional[float], sign: str) -> str:
    return NOTHING if value is None else f"{value:{sign}.2f}"


def report(
    output: str, runs: Sequence[str] = (), datasets: Sequence[str] = (), form: str = "simple"
) -> str:
    """The table of an output folder, what is not compared and why, and the rule.

    Args:
        runs, datasets: those that there should be; by default those that there are.
        form: of the table, one of tabulate's.
    """
    records = collect(output)
    summary = summarise(records)
    compared, left_out = compare(summary, records)
    here = [row for row in summary.rows if row.dataset != AVERAGE]
    runs = [run_name(*_parts(run)) for run in runs] or list(dict.fromkeys(r.trainer for r in here))
    datasets = list(datasets) or list(dict.fromkeys(row.dataset for row in here))
    lines = lines_of(summary.rows, compared, runs, datasets)
    verdicts = [cell.verdict for line in lines for cell in line.cells]
    counts = [
        f"{sum(v.startswith(word) for v in verdicts)} {word}"
        for word in (REPRODUCED, "above", "below", MISSING)
    ]
    notes = [*summary.notes, *left_out]
    rule = (
        f"reproduced: within two standard errors of the difference, s · sqrt(1/n + "
        f"1/{PUBLISHED_SEEDS}) with our spread s over n seeds, or within {FLOOR} points."
    )
    head = [verdict_table(lines, form), "", f"Cells: {', '.join(counts)}.", rule]
    return "\n".join([*head, *(f"- {note}" for note in notes)])


def _parts(run: str) -> Tuple[str, str]:
    trainer, _, regulariser = run.partition("+")
    return trainer, regulariser


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m proxyfda.results.verdicts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("output", help="output folder of the scripts")
    parser.add_argument("--markdown", action="store_true", help="the table as Markdown")
    args = parser.parse_args(argv)
    print(report(args.output, form="github" if args.markdown else "simple"))
    return 0


if __name__ == "__main__":
    show_user_errors()
    sys.exit(main())
