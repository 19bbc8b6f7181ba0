"""Forgetting of encoders that were tuned end to end, as tables.

How numbers are made, from the probes of a run that was tuned on X:

* A_LP: accuracy of a linear probe of the tuned encoder on X.
* Δ_LP: mean over the other probed datasets of the change of linear-probe accuracy, tuned minus
  pre-trained, with the same backbone and weights. Negative is forgetting.
* ΔZS: the same of zero-shot accuracy, where the backbone has texts.
* A line of the table is the mean over tuned datasets seed by seed, then over seeds; ± is the sample
  standard deviation over seeds (n - 1). It takes only tuned datasets on which every method has
  probes, and of each method only seeds that are complete on all of these; what is missing is named
  below, and * marks what is not complete.
* Runs of several backbones, or of several weights of one, are never in one table.
* Configs of a method that nowhere meet make one row, as where λ is chosen for each dataset; of
  those that meet each has its own.

The measure of forgetting is that of Mukhoti et al., TMLR 2024, arXiv 2308.13320.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from proxyfda.benchmarks import TITLES
from proxyfda.experiments import layout
from proxyfda.names import PRETRAINED
from proxyfda.results.cells import left_out, missing, numbers, without
from proxyfda.results.names import learns_nothing
from proxyfda.results.probes import (
    LAMBDA,
    ProbedRun,
    backbone_title,
    by_backbone,
    cells_of,
    lacking,
    other_counts,
    probed_datasets,
    reference_of,
)
from proxyfda.results.published_probes import published_block, published_for
from proxyfda.results.summary import AVERAGE, Summary
from proxyfda.results.tables import MEAN, Block, cell, notes_of, seeds_cell

__all__ = ["ForgettingRow", "changes", "summarise_forgetting"]

MAIN, PARTS = "accuracy", ("accuracy", "delta", "delta_zero_shot")
PER_DATASET = "per dataset"


@dataclass(frozen=True)
class ForgettingRow:
    """One line of a table; numbers in percent and points, ``None`` where there is none.

    ``dataset`` was tuned on, or is ``average`` for the mean over ``datasets``. ``accuracy`` is
    A_LP, ``delta`` Δ_LP, ``delta_zero_shot`` ΔZS. ``setting`` is λ or α as shown, ``weight`` its
    number where all runs have the same. ``seeds`` are those that the numbers are made of;
    ``complete`` is false where some are missing, or the probes of the pre-trained backbone. The
    last three are of the paper, where it has the same backbone and datasets.
    """

    backbone: str
    split: str
    dataset: str
    title: str
    name: str
    trainer: str
    config: str
    setting: str
    weight: float | None
    seeds: tuple
    accuracy: float | None = None
    accuracy_std: float | None = None
    delta: float | None = None
    delta_std: float | None = None
    delta_zero_shot: float | None = None
    delta_zero_shot_std: float | None = None
    n_datasets: int = 1
    complete: bool = True
    datasets: tuple = ()
    published_accuracy: float | None = None
    published_delta: float | None = None
    published_source: str | None = None


def changes(probes: dict, reference: dict, datasets: Sequence[str]) -> dict:
    """Mean changes over datasets from one set of probes to another.

    Args:
        probes, reference: dataset -> :class:`~proxyfda.results.probes.Probe`.
        datasets: those to average over.

    Returns:
        ``delta`` of the linear probes and ``delta_zero_shot``; what cannot be had is left out.
    """
    pairs = [(probes[d], reference[d]) for d in datasets if d in probes and d in reference]
    if not datasets or len(pairs) < len(datasets):
        return {}
    found = {"delta": statistics.fmean(new.linear_probe - old.linear_probe for new, old in pairs)}
    if all(probe.zero_shot is not None for pair in pairs for probe in pair):
        found["delta_zero_shot"] = statistics.fmean(
            new.zero_shot - old.zero_shot for new, old in pairs
        )
    return found


def summarise_forgetting(
    runs: Sequence[ProbedRun], split: str = "test", apart: bool = False
) -> Summary:
    """The tables of runs that were tuned end to end.

    Args:
        runs: what :func:`~proxyfda.results.probes.read_probes` returns.
        split: probes on it.
        apart: every config has a row of its own, as for curves over λ.

    Returns:
        :class:`~proxyfda.results.Summary` of :class:`ForgettingRow`, one backbone after the other,
        each with the tuned datasets first and then the average. Without rows if there are no runs.
    """
    runs = [r for r in runs if r.record.protocol == "finetune" and r.split == split]
    backbones, notes = by_backbone(runs)
    uniform = not notes
    parts = [_of_backbone(backbone, own, split, apart) for backbone, own in backbones.items()]
    for backbone, part in zip(backbones, parts):
        head = f"{backbone_title(backbone)}: " if len(parts) > 1 else ""
        notes += [head + note for note in part.notes]
    return Summary(
        [row for part in parts for row in part.rows],
        notes,
        uniform and all(part.uniform for part in parts),
        _blocks,
    )


class _Tuned:
    """The runs of one backbone, as numbers per run."""

    def __init__(self, runs, apart):
        self.pretrained = [r for r in runs if learns_nothing(r.record.trainer) and r.probes]
        self.unfinished = [r for r in runs if learns_nothing(r.record.trainer) and not r.probes]
        self.runs = [r for r in runs if not learns_nothing(r.record.trainer)]
        self.datasets = probed_datasets(self.runs or self.pretrained)
        self.unreferenced, self.lacking, self.uneven = [], set(), set()
        self.records, more = [], []
        for run in self.runs:
            record = replace(run.record, part=MAIN)
            fault = lacking(run, dict.fromkeys([*self.datasets, record.dataset]))
            values = {} if fault else self._numbers(run)
            self.records.append(replace(record, accuracy=values.pop(MAIN, None), fault=fault))
            more += [replace(record, part=part, accuracy=value) for part, value in values.items()]
        self.cells = cells_of([*self.records, *more], self.runs, apart)
        self.settings = {}
        for run in self.runs:
            if run.probes:
                place = self.cells.group(run.record), run.record.dataset
                self.settings.setdefault(place, set()).add((run.setting, run.weight))

    def _numbers(self, run):
        own = run.record.dataset
        found = {MAIN: run.probes[own].linear_probe}
        reference = reference_of(run, self.pretrained)
        others = [d for d in self.datasets if d != own]
        if reference is None:
            self.unreferenced.append(run)
            return found
        self.lacking.update(d for d in others if d not in reference.probes)
        self.uneven.update(d for d in other_counts(run, reference) if d in others)
        return {**found, **changes(run.probes, reference.probes, others)}

    def setting(self, group, datasets):
        """λ or α as shown, and its number where it is the same on all of the datasets."""
        found = {one for d in datasets for one in self.settings.get((group, d), ())}
        if len(found) > 1:
            return PER_DATASET, None
        return next(iter(found), ("", None))

    def notes(self, backbone, split):
        notes = []
        if self.unreferenced and not self.pretrained:
            faults = [f"{r.record.folder}: {r.record.fault}" for r in self.unfinished]
            part = layout.PROBES[split]
            notes.append(
                f"There is no Δ without the probes of {backbone_title(backbone)} as it was "
                f"pre-trained, finetune/{part}/pretrained"
                + (f" ({'; '.join(faults)})." if faults else ", which were not run.")
            )
        elif self.unreferenced:
            names = [self.cells.names[self.cells.group(run.record)] for run in self.unreferenced]
            notes.append(
                f"No Δ for {', '.join(dict.fromkeys(names))}: there are several probes of the "
                "pre-trained backbone, of which none has the row's config."
            )
        if self.lacking:
            notes.append(
                f"No Δ where the probes of the pre-trained backbone lack {_titles(self.lacking)}."
            )
        if self.uneven:
            notes.append(
                f"The probes of {_titles(self.uneven)} are not of the same classes and images "
                "before and after tuning, so that Δ is not forgetting alone."
            )
        return notes


def _titles(datasets):
    return ", ".join(TITLES.get(name, name) for name in sorted(datasets))


def _of_backbone(backbone, runs, split, apart):
    tuned = _Tuned(runs, apart)
    cells = tuned.cells
    common = {"backbone": backbone_title(backbone), "split": split}
    rows, gaps = [], []

    def add(group, chosen, seeds, complete, **more):
        found = numbers(cells, group, chosen, seeds, PARTS)
        setting, weight = tuned.setting(group, chosen)
        configs = {cells.config(group, d) for d in chosen}
        paper = None
        if more["dataset"] == AVERAGE:
            paper = published_for("finetune", group.trainer, backbone, chosen)
        rows.append(
            ForgettingRow(
                **common,
                **more,
                name=cells.names[group],
                trainer=group.trainer,
                config=configs.pop() if len(configs) == 1 else group.config,
                setting=setting,
                weight=weight,
                seeds=tuple(seeds),
                n_datasets=len(chosen),
                datasets=tuple(chosen),
                complete=complete and (len(tuned.datasets) < 2 or "delta" in found),
                published_accuracy=paper and paper.accuracy,
                published_delta=paper and paper.delta,
                published_source=paper and paper.source,
                **found,
            )
        )

    def add_pretrained(chosen, **more):
        for run in tuned.pretrained:
            if all(d in run.probes for d in chosen):
                accuracy = statistics.fmean(run.probes[d].linear_probe for d in chosen)
                same = [r for r in rows if (r.trainer, r.dataset) == (PRETRAINED, more["dataset"])]
                if accuracy in [r.accuracy for r in same]:
                    continue  # probed in several folders, with one result
                rows.append(
                    ForgettingRow(
                        **common,
                        **more,
                        name=PRETRAINED + f" ({run.record.config})" * bool(same),
                        trainer=PRETRAINED,
                        config=run.record.config,
                        setting="",
                        weight=None,
                        seeds=(),
                        accuracy=accuracy,
                        n_datasets=len(chosen),
                        datasets=tuple(chosen),
                    )
                )

    datasets = cells.datasets if tuned.runs else list(tuned.datasets)
    for dataset in datasets:
        named = {"dataset": dataset, "title": cells.titles.get(dataset, _titles([dataset]))}
        add_pretrained([dataset], **named)
        for group in cells.groups:
            gap = cells.gap(group, dataset, (MAIN,))
            if gap:
                gaps.append((cells.names[group], named["title"], gap))
            add(group, [dataset], cells.complete(group, dataset, (MAIN,)), not gap, **named)

    notes = missing(gaps)
    if len(datasets) > 1:
        named = {"dataset": AVERAGE, "title": AVERAGE}
        begun = [g for g in cells.groups if any(cells.complete(g, d, (MAIN,)) for d in datasets)]
        shared = [d for d in datasets if all(cells.complete(g, d, (MAIN,)) for g in begun)]
        over = left_out(shared, datasets, cells.titles, "with probes")
        notes += over
        dropped = {}
        if shared:
            add_pretrained(shared, **named)
        for group in begun if shared else []:
            expected = cells.expected(group)
            seeds = [s for s in expected
                     if all(s in cells.complete(group, d, (MAIN,)) for d in shared)]  # fmt: skip
            lacking_seeds = tuple(seed for seed in expected if seed not in seeds)
            if lacking_seeds:
                dropped[cells.names[group]] = lacking_seeds
            add(group, shared, seeds, not over and not lacking_seeds, **named)
        notes += without(dropped)
    notes += tuned.notes(backbone, split)
    general, uniform = cells.notes(tuned.records)
    return Summary(rows, notes + general, uniform and not tuned.uneven)


# -- as text --------------------------------------------------------------------------------------

_CAPTION = (
    f"{MEAN}. A_LP: linear probe on the tuned dataset. Δ_LP, ΔZS: change of linear-probe and of "
    "zero-shot accuracy on the other probed datasets, tuned minus pre-trained"
)


def _blocks(summary):
    found = []
    for backbone in dict.fromkeys(row.backbone for row in summary.rows):
        own = [row for row in summary.rows if row.backbone == backbone]
        what = f"{backbone}, validation" if own[0].split == "val" else backbone
        average = [row for row in own if row.dataset == AVERAGE]
        if average:
            tuned = len({row.dataset for row in own}) - 1
            used = average[0].n_datasets
            count = (
                f"{used} tuned datasets" if used == tuned else f"{used} of {tuned} tuned datasets"
            )
            found.append(_block(f"Forgetting, {what}: mean over {count}", average))
        each = [row for row in own if row.dataset != AVERAGE]
        found.append(_block(f"Forgetting, {what}: per tuned dataset", each))
    if found:
        found[-1].notes.extend(notes_of(summary))
    if not any(row.published_source for row in summary.rows):
        found += filter(None, [published_block("finetune")])
    return found


def _block(title, rows):
    with_texts = any(row.delta_zero_shot is not None for row in rows)
    papers = [row.published_source for row in rows if row.published_source]
    lines, above = [], None
    for row in rows:
        line = [
            row.title if row.dataset != above else "",
            row.name,
            row.setting.replace(f"{LAMBDA} ", ""),
            cell(row.accuracy, row.accuracy_std),
            cell(row.delta, row.delta_std, "+"),
            cell(row.delta_zero_shot, row.delta_zero_shot_std, "+") if with_texts else "",
            "" if row.trainer == PRETRAINED else seeds_cell(row),
        ]
        if papers:
            line += [cell(row.published_accuracy), cell(row.published_delta, sign="+")]
        lines.append(line)
        above = row.dataset
    heads = ("tuned on", "method", LAMBDA, "A_LP", "Δ_LP", "ΔZS", "seeds")
    caption = f"{_CAPTION}."
    if papers:
        heads += ("published A_LP", "published Δ_LP")
        caption += f" Published: {', '.join(dict.fromkeys(papers))}."
    return Block(title, heads, lines, caption)
