"""From runs to the rows of tables; see :mod:`proxyfda.results` for how numbers are made."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from proxyfda.benchmarks import BENCHMARKS, SHIFTED
from proxyfda.names import REFERENCE, is_zero_shot
from proxyfda.results.cells import Cells, family_of, left_out, missing, put, row_order, without
from proxyfda.results.metrics import harmonic_mean
from proxyfda.results.names import shots_title

TABLES = ("base2new", "fewshot", "cross_dataset", "domain_generalization", "zeroshot")
"""The tables that there are; runs of the protocol ``transfer`` make two of them."""

AVERAGE = "average"
BASE_NEW = ("base", "new")


@dataclass(frozen=True)
class Row:
    """One line of the base-to-new table; numbers in percent, ``None`` where there is none.

    ``dataset`` is ``average`` for the mean over datasets, of which there are ``n_datasets``.
    ``name`` is the trainer, with what tells it from others of that name in brackets. ``seeds`` are
    those that the numbers are made of; ``complete`` is false where seeds (or datasets) are missing;
    ``rounded`` is true where the numbers were read from logs. ``datasets`` are those it is over.
    """

    dataset: str
    title: str
    name: str
    trainer: str
    config: str
    shots: int
    seeds: tuple
    base: float | None = None
    base_std: float | None = None
    new: float | None = None
    new_std: float | None = None
    h: float | None = None
    h_std: float | None = None
    delta_new: float | None = None
    delta_new_std: float | None = None
    n_datasets: int = 1
    complete: bool = True
    rounded: bool = False
    datasets: tuple = ()


@dataclass(frozen=True)
class AccuracyRow:
    """One line of a table of accuracies on all classes; fields as in :class:`Row`.

    ``delta`` is the difference to zero-shot CLIP on the same dataset. ``shots`` is 0 for zero-shot.
    ``source`` is true on the dataset that was trained on in order to be tested on others.
    """

    protocol: str
    dataset: str
    title: str
    name: str
    trainer: str
    config: str
    shots: int
    seeds: tuple
    accuracy: float | None = None
    accuracy_std: float | None = None
    delta: float | None = None
    delta_std: float | None = None
    n_datasets: int = 1
    complete: bool = True
    rounded: bool = False
    datasets: tuple = ()
    source: bool = False


@dataclass(frozen=True)
class Summary:
    """Rows of one table in order, and what has to be said below it, one sentence each.

    ``uniform`` is false where runs of one row have different settings. ``blocks`` makes the tables
    of it where the rows are of a kind that :mod:`proxyfda.results.tables` does not know.
    """

    rows: list
    notes: list = field(default_factory=list)
    uniform: bool = True
    blocks: Callable[[Summary], list] | None = field(default=None, compare=False, repr=False)


def summarise(records):
    """The base-to-new table of a list of :class:`~proxyfda.results.Record`.

    Returns:
        :class:`Summary` of :class:`Row`. Different numbers of shots are summarised separately, one
        after the other; zero-shot rows stand in each.
    """
    records = [r for r in records if r.protocol == "base2new"]
    learned = sorted({r.shots for r in records if not is_zero_shot(r.trainer)})
    parts = []
    for shots in learned or sorted({r.shots for r in records}):
        chosen = [r for r in records if r.shots == shots or is_zero_shot(r.trainer)]
        part = _base_to_new(chosen, shots)
        if len(learned) > 1:
            part = replace(part, notes=[f"{shots_title(shots)}: {note}" for note in part.notes])
        parts.append(part)
    return Summary(
        [row for part in parts for row in part.rows],
        list(dict.fromkeys(note for part in parts for note in part.notes)),
        all(part.uniform for part in parts),
    )


def summarise_accuracy(records):
    """The tables of accuracies on all classes.

    Returns:
        Dict of :class:`Summary` of :class:`AccuracyRow` by protocol: ``fewshot``,
        ``cross_dataset``, ``domain_generalization`` and ``zeroshot``, as far as there are runs.
        The average of the two transfer tables is that of the targets, without the source.
    """
    zero = [r for r in records if r.protocol == "zeroshot"]
    fewshot = [r for r in records if r.protocol == "fewshot"]
    transfer = [r for r in records if r.protocol == "transfer"]
    # Training on the source is an ordinary few-shot run; the evaluations go by the same names.
    # Other codebases know ImageNet alone as a source, so theirs may leave it unsaid.
    evaluated = {
        (_setting(r), r.details.get("source") or ("imagenet" if r.log else "")) for r in transfer
    }
    sources = [r for r in fewshot if (_setting(r), r.dataset) in evaluated]
    # What was trained as a source alone makes no few-shot table.
    tried = {
        (*family_of(r), r.config) for r in fewshot if (_setting(r), r.dataset) not in evaluated
    }
    fewshot = [r for r in fewshot if (*family_of(r), r.config) in tried]
    tables = {}
    if any(r.accuracy is not None for r in fewshot):
        tables["fewshot"] = _accuracies("fewshot", fewshot, zero)
    for protocol, shifted in (("cross_dataset", False), ("domain_generalization", True)):
        targets = [r for r in transfer if (r.dataset in SHIFTED) == shifted]
        if any(r.accuracy is not None for r in targets):
            tables[protocol] = _accuracies(protocol, targets, zero, sources)
    if any(r.accuracy is not None for r in zero):
        tables["zeroshot"] = _accuracies("zeroshot", [], zero)
    return tables


def _setting(record):
    return record.trainer, record.config, record.shots, record.label, record.log


def _base_to_new(records, shots):
    cells = Cells(records, lambda r: r.part)
    titles, names, datasets = cells.titles, cells.names, cells.datasets
    rows, gaps, unpaired = [], [], {}

    def add(group, chosen, seeds, **more):
        base, new = (cells.means(group, chosen, seeds, part) for part in BASE_NEW)
        learned = not is_zero_shot(group.trainer)
        reference = cells.zero_shot(group, chosen, "new") if learned else None
        if learned and new and reference is None:
            unpaired[group] = True
        configs = {cells.config(group, dataset) for dataset in chosen}
        rows.append(
            Row(
                name=names[group],
                trainer=group.trainer,
                config=configs.pop() if len(configs) == 1 else group.config,
                shots=shots,
                seeds=tuple(seed for seed in seeds if seed is not None),
                datasets=tuple(chosen),
                n_datasets=len(chosen),
                rounded=group.log,
                **_base_new_numbers(base, new, reference),
                **more,
            )
        )

    for dataset in datasets:
        for group in cells.groups:
            gap = cells.gap(group, dataset, BASE_NEW)
            if gap:
                gaps.append((names[group], titles[dataset], gap))
            ways = (BASE_NEW, ("base",), ("new",))
            seeds = next(filter(None, (cells.complete(group, dataset, way) for way in ways)), [])
            title = titles[dataset]
            add(group, [dataset], seeds, dataset=dataset, title=title, complete=not gap)

    notes = missing(gaps)
    if len(datasets) > 1:

        def complete(group, dataset):
            return cells.complete(group, dataset, BASE_NEW)

        # A row without any result does not restrict the average of the others.
        begun = [g for g in cells.groups if any(complete(g, d) for d in datasets)]
        shared = [d for d in datasets if begun and all(complete(g, d) for g in begun)]
        apart = left_out(shared, datasets, titles, "with both base and new")
        notes += apart
        dropped = {}
        for group in begun if shared else []:
            expected = cells.expected(group)
            seeds = [seed for seed in expected if all(seed in complete(group, d) for d in shared)]
            lacking = tuple(seed for seed in expected if seed not in seeds)
            if lacking:
                dropped[names[group]] = lacking
            more = {"dataset": AVERAGE, "title": AVERAGE}
            add(group, shared, seeds, complete=not apart and not lacking, **more)
        notes += without(dropped)

    if unpaired or not any(group.trainer == REFERENCE for group in cells.groups):
        notes += cells.without_reference(unpaired, "Δnew")
    general, uniform = cells.notes(records)
    return Summary(rows, notes + general, uniform)


def _base_new_numbers(base, new, reference):
    """The numeric fields of a :class:`Row` from accuracies per seed (``None``: not there)."""
    numbers = {}
    if base:
        put(numbers, "base", statistics.fmean(base), base)
    if new:
        put(numbers, "new", statistics.fmean(new), new)
    if base and new:
        h = harmonic_mean(numbers["base"], numbers["new"])
        put(numbers, "h", h, harmonic_mean(base, new))
    if new and reference is not None:
        put(numbers, "delta_new", numbers["new"] - reference, new)
    return numbers


def _accuracies(protocol, records, zero, sources=()):
    """A table on all classes.

    Args:
        records: few-shot runs, or evaluations on targets.
        zero: zero-shot runs; those on datasets of the table stand in it.
        sources: few-shot runs on the source of the targets.
    """
    targets = {r.dataset for r in records}
    settings = {_setting(r) for r in records}
    sources = [r for r in sources if _setting(r) in settings]
    here = {r.dataset for r in (*records, *sources)}
    learned = [*sources, *records]
    chosen = learned + [r for r in zero if not learned or r.dataset in here]
    cells = Cells(chosen, lambda r: r.shots)
    titles, names = cells.titles, cells.names
    trained_on = {r.dataset for r in sources} - targets
    order = sorted(cells.datasets, key=lambda d: d not in trained_on)
    notes, gaps, rows, unpaired = [], [], [], {}

    def add(group, shots, chosen, seeds, **more):
        accuracies = cells.means(group, chosen, seeds, shots)
        numbers = {}
        if accuracies:
            put(numbers, "accuracy", statistics.fmean(accuracies), accuracies)
            reference = None if is_zero_shot(group.trainer) else cells.zero_shot(group, chosen, 0)
            if reference is not None:
                put(numbers, "delta", numbers["accuracy"] - reference, accuracies)
            elif not is_zero_shot(group.trainer):
                unpaired[group] = True
        configs = {cells.config(group, dataset) for dataset in chosen}
        rows.append(
            AccuracyRow(
                protocol=protocol,
                name=names[group],
                trainer=group.trainer,
                config=configs.pop() if len(configs) == 1 else group.config,
                shots=shots,
                seeds=tuple(seed for seed in seeds if seed is not None),
                datasets=tuple(chosen),
                n_datasets=len(chosen),
                rounded=group.log,
                **numbers,
                **more,
            )
        )

    for dataset in order:
        for group in cells.groups:
            gap = cells.gap(group, dataset, cells.parts[group], shots_title)
            if gap:
                gaps.append((names[group], titles[dataset], gap))
            for shots in cells.parts[group]:
                seeds = cells.complete(group, dataset, [shots])
                whole = len(seeds) == len(cells.expected(group))
                more = {"dataset": dataset, "title": titles[dataset], "complete": whole}
                more["source"] = dataset in trained_on
                add(group, shots, [dataset], seeds, **more)
    notes += missing(gaps)

    averaged = [d for d in order if d in targets] if targets else order
    if protocol == "zeroshot":
        # Over the eleven benchmarks alone where they are there: variants of ImageNet are extra.
        averaged = [d for d in order if d in BENCHMARKS] or order
    if len(averaged) > 1:

        def whole(group, dataset):
            return all(cells.complete(group, dataset, [k]) for k in cells.parts[group])

        # Zero-shot results are there for comparison and do not restrict it either.
        groups = [g for g in cells.groups if not learned or not is_zero_shot(g.trainer)]
        begun = [g for g in groups if any(whole(g, d) for d in averaged)]
        shared = [d for d in averaged if begun and all(whole(g, d) for g in begun)]
        begun += [g for g in cells.groups if g not in groups and all(whole(g, d) for d in shared)]
        begun.sort(key=row_order)
        apart = left_out(shared, averaged, titles, "for every number of shots")
        notes += apart
        dropped = {}
        for group in begun if shared else []:
            for shots in cells.parts[group]:
                expected = cells.expected(group)
                seeds = [
                    seed
                    for seed in expected
                    if all(seed in cells.complete(group, d, [shots]) for d in shared)
                ]
                lacking = tuple(seed for seed in expected if seed not in seeds)
                if lacking:
                    what = f" at {shots_title(shots)}" if len(cells.parts[group]) > 1 else ""
                    dropped[names[group] + what] = lacking
                more = {"dataset": AVERAGE, "title": AVERAGE}
                add(group, shots, shared, seeds, complete=not apart and not lacking, **more)
        notes += without(dropped)
    if unpaired and any(group.trainer == REFERENCE for group in cells.groups):
        notes += cells.without_reference(unpaired, "Δ")
    general, uniform = cells.notes(chosen)
    return Summary(rows, notes + general, uniform)
