"""Every probe: which dataset gained and which lost by tuning on which, or after which task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from proxyfda.benchmarks import TITLES
from proxyfda.results.cells import numbers
from proxyfda.results.continual import rows_of_tasks
from proxyfda.results.names import known_first, learns_nothing
from proxyfda.results.probes import (
    ProbedRun,
    backbone_title,
    by_backbone,
    cells_of,
    probed_datasets,
    reference_of,
    settings_of,
)
from proxyfda.results.summary import Summary
from proxyfda.results.tables import Block, cell

__all__ = ["MatrixRow", "summarise_matrix"]

_QUANTITIES = ("linear_probe", "zero_shot", "change", "change_zero_shot")


@dataclass(frozen=True)
class MatrixRow:
    """One cell of a matrix; accuracies in percent, changes in points, ``None`` where there is none.

    ``dataset`` is what was tuned on, or the row of tasks up to ``task``; ``probed`` is what the
    numbers are of. Changes are from the backbone as it was pre-trained.
    """

    protocol: str
    backbone: str
    split: str
    dataset: str
    title: str
    task: int | None
    tested: bool
    name: str
    trainer: str
    config: str
    setting: str
    probed: str
    seeds: tuple
    linear_probe: float | None = None
    linear_probe_std: float | None = None
    zero_shot: float | None = None
    zero_shot_std: float | None = None
    change: float | None = None
    change_std: float | None = None
    change_zero_shot: float | None = None
    change_zero_shot_std: float | None = None
    complete: bool = True


def summarise_matrix(runs: Sequence[ProbedRun], protocol: str, split: str = "test") -> Summary:
    """All probes, tuned by probed.

    Args:
        runs: what :func:`~proxyfda.results.probes.read_probes` returns.
        protocol: ``finetune``, where lines are tuned datasets, or ``continual``, where they are
            tasks in their order, the first line with none yet.
        split: probes on it.

    Returns:
        :class:`~proxyfda.results.Summary` of :class:`MatrixRow`, without rows if there are no runs.
    """
    rows = []
    if protocol == "finetune":
        own = [r for r in runs if r.record.protocol == protocol and r.split == split]
        for backbone, of_backbone in by_backbone(own)[0].items():
            learned = [r for r in of_backbone if not learns_nothing(r.record.trainer)]
            pretrained = [r for r in of_backbone if learns_nothing(r.record.trainer) and r.probes]
            datasets = probed_datasets(learned or pretrained)
            rows += _rows(protocol, backbone, split, False, learned, pretrained, datasets)
    else:
        for row in rows_of_tasks(runs, split)[0]:
            learned = [run for by_task in row.runs for run in by_task.values()]
            datasets = (*row.tasks, *row.held_out)
            rows += _rows(
                protocol, row.backbone, split, row.tested, learned, row.pretrained[:1], datasets
            )
    return Summary(rows, blocks=_blocks)


def _rows(protocol, backbone, split, tested, learned, pretrained, datasets):
    records = []
    for run in learned:
        if not run.probes:
            continue
        reference = reference_of(run, pretrained)
        where = run.record.dataset + (f"@{run.task}" if run.task is not None else "")
        for dataset, values in _values(run.probes, reference).items():
            # A cell of the table is a dataset and what is probed of it.
            records += [
                replace(run.record, dataset=where, part=f"{quantity}@{dataset}", accuracy=value)
                for quantity, value in values.items()
            ]
    cells, settings = cells_of(records, learned), settings_of(learned)
    common = {
        "protocol": protocol,
        "backbone": backbone_title(backbone),
        "split": split,
        "tested": tested,
    }
    rows = [
        MatrixRow(
            **common,
            dataset="",
            title="",
            task=0 if protocol == "continual" else None,
            name=run.record.trainer,
            trainer=run.record.trainer,
            config=run.record.config,
            setting="",
            probed=dataset,
            seeds=(),
            linear_probe=run.probes[dataset].linear_probe,
            zero_shot=run.probes[dataset].zero_shot,
        )
        for run in pretrained[:1]
        for dataset in datasets
        if dataset in run.probes
    ]
    places = sorted(cells.datasets, key=lambda d: (_task_of(d) or 0, known_first(TITLES, d)))
    for group in cells.groups:
        for place in places:
            for dataset in datasets:
                part = f"linear_probe@{dataset}"
                seeds = cells.complete(group, place, (part,))
                if not seeds:
                    continue
                found = numbers(
                    cells, group, [place], seeds, [f"{q}@{dataset}" for q in _QUANTITIES]
                )
                own = settings.get((group.trainer, cells.config(group, place)), set())
                rows.append(
                    MatrixRow(
                        **common,
                        dataset=place.partition("@")[0],
                        title=cells.titles[place].partition("@")[0],
                        task=_task_of(place),
                        name=cells.names[group],
                        trainer=group.trainer,
                        config=cells.config(group, place),
                        setting=next(iter(own))[0] if len(own) == 1 else "",
                        probed=dataset,
                        seeds=tuple(seeds),
                        complete=len(seeds) == len(cells.expected(group)),
                        **{key.replace(f"@{dataset}", ""): v for key, v in found.items()},
                    )
                )
    return rows


def _task_of(place):
    _, _, task = place.partition("@")
    return int(task) if task else None


def _values(probes, reference):
    found = {}
    for dataset, probe in probes.items():
        values = {"linear_probe": probe.linear_probe, "zero_shot": probe.zero_shot}
        before = reference.probes.get(dataset) if reference else None
        if before:
            values["change"] = probe.linear_probe - before.linear_probe
            if probe.zero_shot is not None and before.zero_shot is not None:
                values["change_zero_shot"] = probe.zero_shot - before.zero_shot
        found[dataset] = {name: value for name, value in values.items() if value is not None}
    return found


# -- as text --------------------------------------------------------------------------------------


def _blocks(summary):
    found = []
    rows = summary.rows
    for backbone, tested in dict.fromkeys((row.backbone, row.tested) for row in rows):
        own = [r for r in rows if (r.backbone, r.tested) == (backbone, tested)]
        learned = dict.fromkeys(r.dataset for r in own if r.dataset)
        for dataset in learned if own[0].protocol == "continual" else [None]:
            here = [r for r in own if dataset is None or r.dataset in ("", dataset)]
            found.append(_block(here, backbone, dataset))
    return found


def _block(rows, backbone, dataset):
    continual = dataset is not None
    tasks = dataset.split("+") if continual else []
    probed = list(dict.fromkeys([*tasks, *(row.probed for row in rows)]))
    by_line = {}
    for row in rows:
        by_line.setdefault((row.name, row.dataset, row.task), {})[row.probed] = row
    lines, above = [], None
    for (name, tuned, task), by_probed in by_line.items():
        first = next(iter(by_probed.values()))
        if continual:
            where = f"{task} {_title(tasks[task - 1])}" if task else "before"
        else:
            where = first.title
        line = [name if name != above else "", where]
        for column in probed:
            row = by_probed.get(column)
            if row is None:
                line.append("-")
            elif continual or not tuned:
                line.append(cell(row.linear_probe, row.linear_probe_std))
            else:
                line.append(cell(row.change, row.change_std, "+"))
        lines.append(line)
        above = name
    heads = ("method", "after task" if continual else "tuned on", *map(_title, probed))
    what = f"{backbone}, validation" if rows[0].split == "val" else backbone
    if continual:
        of = "tests of prompts" if rows[0].tested else "linear probes"
        title = f"{' → '.join(map(_title, tasks))}, {what}: accuracy after each task"
        caption = f"Accuracy in % of {of}, mean ± sample standard deviation over seeds."
    else:
        title = f"Change per probed dataset, {what}"
        caption = (
            "First line: linear-probe accuracy in % of the pre-trained backbone. Below: its change "
            "by tuning in points, mean ± sample standard deviation over seeds."
        )
    return Block(title, heads, lines, caption)


def _title(dataset):
    return TITLES.get(dataset, dataset)
