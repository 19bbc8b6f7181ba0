"""Rows of tasks, each learned from the model that the last one left, as tables.

How numbers are made, from accuracies ``R[i][j]`` on task j after training on task i of T, of linear
probes of the encoder, or of tests of prompts:

* accuracy: mean over j of ``R[T][j]``.
* BWT, backward transfer: mean over j < T of ``R[T][j] - R[j][j]``. Negative is forgetting.
* FWT, forward transfer: mean over j > 1 of ``R[j-1][j] - R[0][j]``, where ``R[0]`` is of the
  backbone as it was pre-trained. The paper takes a model with random weights there, which would
  count all that the backbone knows as transfer.
* Δ held out, ΔZS held out: mean change of linear-probe and of zero-shot accuracy from pre-trained
  to after the last task, on the probed datasets that are no task.
* ± is the sample standard deviation over seeds (n - 1). A seed counts where all its tasks have all
  probes; missing ones are named below, and * marks what is not complete.
* Runs of several backbones, and probes and tests of prompts, are never in one table.

Definitions: Lopez-Paz & Ranzato, NeurIPS 2017, arXiv 1706.08840.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from proxyfda.benchmarks import TITLES
from proxyfda.results.cells import missing, numbers
from proxyfda.results.forgetting import changes
from proxyfda.results.metrics import average_accuracy, backward_transfer, forward_transfer
from proxyfda.results.names import learns_nothing
from proxyfda.results.probes import (
    LAMBDA,
    ProbedRun,
    backbone_title,
    by_backbone,
    cells_of,
    lacking,
    probed_datasets,
    reference_of,
)
from proxyfda.results.published_probes import published_block, published_for
from proxyfda.results.summary import Summary
from proxyfda.results.tables import MEAN, Block, cell, notes_of, seeds_cell

__all__ = ["ContinualRow", "rows_of_tasks", "summarise_continual"]

MAIN = "accuracy"
PARTS = ("accuracy", "backward", "forward", "held_out", "held_out_zero_shot")


@dataclass(frozen=True)
class ContinualRow:
    """One line of a table; numbers in percent and points, ``None`` where there is none.

    ``dataset`` is the row of tasks joined by ``+``, ``datasets`` has them one by one; ``tested`` is
    true of prompts, whose accuracies are tests and no linear probes. Numbers as the module says;
    other fields as in :class:`~proxyfda.results.forgetting.ForgettingRow`.
    """

    backbone: str
    split: str
    dataset: str
    title: str
    tested: bool
    name: str
    trainer: str
    config: str
    setting: str
    weight: float | None
    seeds: tuple
    accuracy: float | None = None
    accuracy_std: float | None = None
    backward: float | None = None
    backward_std: float | None = None
    forward: float | None = None
    forward_std: float | None = None
    held_out: float | None = None
    held_out_std: float | None = None
    held_out_zero_shot: float | None = None
    held_out_zero_shot_std: float | None = None
    complete: bool = True
    datasets: tuple = ()
    published_accuracy: float | None = None
    published_delta: float | None = None
    published_source: str | None = None


@dataclass(frozen=True)
class RowOfTasks:
    """All runs of one row of tasks with one backbone.

    Attributes:
        tasks: its datasets in order.
        datasets: all that are probed.
        runs: by the record of the last task begun, those after each task: ``{task: run}``.
        pretrained: complete runs of the backbone before the first task.
    """

    backbone: tuple | None
    tested: bool
    tasks: tuple
    datasets: tuple
    runs: list
    pretrained: list

    @property
    def held_out(self):
        """Probed datasets that are no task."""
        return tuple(d for d in self.datasets if d not in self.tasks)


def rows_of_tasks(runs: Sequence[ProbedRun], split: str = "test"):
    """Runs put together by row of tasks.

    Args:
        runs: what :func:`~proxyfda.results.probes.read_probes` returns.
        split: probes on it.

    Returns:
        List of :class:`RowOfTasks`, and sentences on runs of several backbones.
    """
    runs = [r for r in runs if r.split == split]
    everywhere = [r for r in runs if learns_nothing(r.record.trainer) and r.probes]
    learned = [r for r in runs if r.record.protocol == "continual"]
    backbones, notes = by_backbone(learned)
    found = []
    for backbone, of_backbone in backbones.items():
        for tested in (False, True):
            own = [r for r in of_backbone if r.tested == tested]
            for row in dict.fromkeys(r.record.dataset for r in own):
                here = [r for r in own if r.record.dataset == row]
                found.append(_row_of_tasks(backbone, tested, row, here, everywhere))
    return found, notes


def _row_of_tasks(backbone, tested, row, here, everywhere):
    alike = [r for r in everywhere if (r.backbone, r.tested) == (backbone, tested)]
    # The pre-trained backbone is the same whatever it was probed for.
    pretrained = [r for r in alike if r.record.dataset == row] or alike
    learned = [r for r in here if not learns_nothing(r.record.trainer)]
    together = {}
    for run in learned:
        record = run.record
        key = (record.label, record.trainer, record.config, record.seed)
        together.setdefault(key, {})[run.task] = run
    datasets = probed_datasets(learned or pretrained)
    tasks = tuple(row.split("+"))
    return RowOfTasks(backbone, tested, tasks, datasets, list(together.values()), pretrained)


def summarise_continual(runs: Sequence[ProbedRun], split: str = "test") -> Summary:
    """The tables of rows of tasks; arguments as for :func:`rows_of_tasks`.

    Returns:
        :class:`~proxyfda.results.Summary` of :class:`ContinualRow`, without rows if there are no
        runs.
    """
    found, notes = rows_of_tasks(runs, split)
    uniform = not notes
    rows = []
    for row in found:
        part = _summarise(row, split)
        rows += part.rows
        head = f"{_title(row)}, {backbone_title(row.backbone)}: " if len(found) > 1 else ""
        notes += [head + note for note in part.notes]
        uniform = uniform and part.uniform
    return Summary(rows, notes, uniform, _blocks)


def numbers_of(row: RowOfTasks, by_task: dict):
    """Numbers of one seed, and why there are none.

    Returns:
        Dict by :data:`PARTS`, without those that cannot be had, and the fault, empty if none.
    """
    wanted = dict.fromkeys([*row.datasets, *row.tasks])
    faults = []
    for task in range(1, len(row.tasks) + 1):
        fault = lacking(by_task[task], wanted) if task in by_task else "not run"
        if fault:
            faults.append(f"task {task} {fault}")
    if faults:
        return {}, ", ".join(faults)
    matrix = [
        [by_task[i].probes[task].linear_probe for task in row.tasks]
        for i in range(1, len(row.tasks) + 1)
    ]
    found = {MAIN: average_accuracy(matrix)}
    last = by_task[len(row.tasks)]
    reference = reference_of(last, row.pretrained)
    if len(matrix) > 1:
        found["backward"] = backward_transfer(matrix)
    if reference is not None:
        if len(matrix) > 1 and all(task in reference.probes for task in row.tasks):
            before = [reference.probes[task].linear_probe for task in row.tasks]
            found["forward"] = forward_transfer(matrix, before)
        change = changes(last.probes, reference.probes, row.held_out)
        found.update((name.replace("delta", "held_out"), value) for name, value in change.items())
    return found, ""


def _summarise(row, split):
    records, more, runs = [], [], []
    for by_task in row.runs:
        last = by_task[max(by_task)]
        runs.append(last)
        values, fault = numbers_of(row, by_task)
        record = replace(last.record, part=MAIN, accuracy=values.pop(MAIN, None), fault=fault)
        records.append(record)
        more += [replace(record, part=part, accuracy=value) for part, value in values.items()]
    cells = cells_of([*records, *more], runs)
    dataset = "+".join(row.tasks)
    common = {
        "backbone": backbone_title(row.backbone),
        "split": split,
        "dataset": dataset,
        "title": _title(row),
        "tested": row.tested,
        "datasets": row.tasks,
    }
    rows = []
    for run in row.pretrained[:1]:
        if all(task in run.probes for task in row.tasks):
            rows.append(
                ContinualRow(
                    **common,
                    name=run.record.trainer,
                    trainer=run.record.trainer,
                    config=run.record.config,
                    setting="",
                    weight=None,
                    seeds=(),
                    accuracy=statistics.fmean(run.probes[t].linear_probe for t in row.tasks),
                )
            )
    gaps, referenced = [], True
    for group in cells.groups:
        seeds = cells.complete(group, dataset, (MAIN,))
        gap = cells.gap(group, dataset, (MAIN,))
        if gap:
            gaps.append((cells.names[group], common["title"], gap))
        found = numbers(cells, group, [dataset], seeds, PARTS)
        wanted = ["forward"] * (len(row.tasks) > 1) + ["held_out"] * bool(row.held_out)
        whole = not seeds or all(name in found for name in wanted)
        referenced = referenced and whole
        settings = {
            (r.setting, r.weight) for r in runs if cells.group(r.record) == group and r.probes
        }
        setting, weight = next(iter(settings)) if len(settings) == 1 else ("", None)
        paper = published_for("continual", group.trainer, row.backbone, row.tasks)
        rows.append(
            ContinualRow(
                **common,
                name=cells.names[group],
                trainer=group.trainer,
                config=cells.config(group, dataset),
                setting=setting,
                weight=weight,
                seeds=tuple(seeds),
                complete=not gap and whole,
                published_accuracy=paper and paper.accuracy,
                published_delta=paper and paper.delta,
                published_source=paper and paper.source,
                **found,
            )
        )
    notes = missing(gaps)
    if not referenced:
        notes.append(
            f"No FWT and no Δ held out where the probes of {backbone_title(row.backbone)} as it "
            "was pre-trained are missing, or lack one of the datasets."
        )
    # An unfinished row of tasks ends with another task, whose settings are its own.
    general, uniform = cells.notes([r for r in records if r.accuracy is not None])
    return Summary(rows, notes + general, uniform)


def _title(row):
    return " → ".join(TITLES.get(task, task) for task in row.tasks)


# -- as text --------------------------------------------------------------------------------------

_CAPTION = (
    f"{MEAN}. Accuracy: mean over tasks after the last. BWT: change on earlier tasks since each "
    "was learned. FWT: change on later tasks before each is learned, from the pre-trained "
    "backbone. Held out: change on probed datasets that are no task"
)


def _blocks(summary):
    found = []
    parts = dict.fromkeys((row.backbone, row.tested) for row in summary.rows)
    for backbone, tested in parts:
        own = [r for r in summary.rows if (r.backbone, r.tested) == (backbone, tested)]
        what = "tests of prompts" if tested else "linear probes"
        title = f"Tasks in a row, {backbone}, {what}"
        found.append(_block(title + ", validation" * (own[0].split == "val"), own))
    if not found:
        return found
    found[-1].notes.extend(notes_of(summary))
    if any(row.published_source for row in summary.rows):
        return found
    published = published_block("continual")
    if published is None:
        found[-1].notes.append(
            "Of rows of tasks no published figure could be verified, so none stands beside these."
        )
    return [*found, *filter(None, [published])]


def _block(title, rows):
    papers = [row.published_source for row in rows if row.published_source]
    with_texts = any(row.held_out_zero_shot is not None for row in rows)
    lines, above = [], None
    for row in rows:
        line = [
            row.title if row.dataset != above else "",
            row.name,
            row.setting.replace(f"{LAMBDA} ", ""),
            cell(row.accuracy, row.accuracy_std),
            cell(row.backward, row.backward_std, "+"),
            cell(row.forward, row.forward_std, "+"),
            cell(row.held_out, row.held_out_std, "+"),
            cell(row.held_out_zero_shot, row.held_out_zero_shot_std, "+") if with_texts else "",
            "" if learns_nothing(row.trainer) else seeds_cell(row),
        ]
        if papers:
            line += [cell(row.published_accuracy), cell(row.published_delta, sign="+")]
        lines.append(line)
        above = row.dataset
    heads = (
        "tasks", "method", LAMBDA, "accuracy", "BWT", "FWT", "Δ held out", "ΔZS held out", "seeds",
    )  # fmt: skip
    caption = f"{_CAPTION}."
    if papers:
        heads += ("published accuracy", "published Δ")
        caption += f" Published: {', '.join(dict.fromkeys(papers))}."
    return Block(title, heads, lines, caption)
