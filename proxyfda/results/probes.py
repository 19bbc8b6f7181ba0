"""Find and read probes: of encoders that were tuned end to end, and of rows of tasks.

A probed run has the accuracy of a linear probe on each of several datasets, and its zero-shot
accuracy there where the backbone has texts. Where it lies says what it is of
(:mod:`proxyfda.experiments.layout`); what it was trained with is read from the training beside it.
Prompts over a row of tasks have no probes, but the accuracy of a test on each dataset, which takes
their place.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from proxyfda.benchmarks import TITLES, dataset_key
from proxyfda.experiments import layout
from proxyfda.experiments import record as results_file
from proxyfda.names import NONE, WISE_FT, split_run_name
from proxyfda.results.cells import Cells
from proxyfda.results.names import known_first, title_of
from proxyfda.results.runs import (
    Record,
    collect,
    details_of,
    labelled_folders,
    mismatch,
    same_run,
)
from proxyfda.utils.errors import BadValue, NotFound, UserError

__all__ = [
    "Probe",
    "ProbedRun",
    "backbone_title",
    "by_backbone",
    "cells_of",
    "lacking",
    "other_counts",
    "probed_datasets",
    "read_probes",
    "read_runs",
    "reference_of",
    "settings_of",
]

LAMBDA, ALPHA = "λ", "α"
_WEIGHT = "TRAINER.PROXYFDA.WEIGHT"  # λ in a config


class Probe(NamedTuple):
    """An encoder on a dataset: accuracies in percent, zero-shot ``None`` without texts.

    ``counts`` are the classes and the images that it was tested on, as far as known. Of prompts
    ``linear_probe`` is the accuracy of their test.
    """

    linear_probe: float
    zero_shot: float | None = None
    counts: tuple = (None, None)


@dataclass(frozen=True)
class ProbedRun:
    """A run with its probes.

    Attributes:
        record: the run; its accuracy is ``None`` and its fault says why if there are no probes.
        split: that they are on, ``test`` or ``val``.
        task: number of the task in a row of tasks after which it was probed, 0 for none yet;
            ``None`` outside of one.
        probes: dataset (its config's name) -> :class:`Probe`.
        faults: why there is no probe of a dataset, as far as that is known of one alone.
        tested: whether they are tests of prompts.
        symbol, weight: ``λ`` of a regulariser, or ``α`` between the pre-trained weights (0) and the
            tuned ones (1), and its value; empty and ``None`` where there is neither.
    """

    record: Record
    split: str
    task: int | None = None
    probes: dict = field(default_factory=dict, compare=False, repr=False)
    faults: dict = field(default_factory=dict, compare=False, repr=False)
    tested: bool = False
    symbol: str = ""
    weight: float | None = None

    @property
    def backbone(self):
        """Name and weights of the backbone, and bytes of a file of weights; ``None``: unknown."""
        return self.record.details.get("backbone")

    @property
    def training(self):
        """Folder of the training that was probed, whether it is there or not."""
        return layout.training_of(self.record.folder, _weight(self.record.details))

    @property
    def setting(self):
        """``λ 3`` and the like; empty where there is neither λ nor α."""
        return f"{self.symbol} {self.weight:g}" if self.symbol else ""


def read_probes(*outputs) -> list[ProbedRun]:
    """All probed runs below one or several output folders, of both splits, complete or not.

    Args:
        outputs: folders, or ``LABEL=FOLDER``, as for :func:`proxyfda.results.collect`.

    Raises:
        FileNotFoundError: an output folder does not exist.
        ValueError: the same run in two of the folders.
    """
    found = {}
    for folder, label in labelled_folders(outputs):
        for run in _runs(str(folder), label):
            place = (*run.record.place, run.split, -1 if run.task is None else run.task)
            if place not in found:
                found[place] = run
            elif run.tested and not run.probes.keys() & found[place].probes.keys():
                found[place] = _together(found[place], run)
            else:
                raise same_run(run.record, found[place].record)
    return [found[place] for place in sorted(found)]


def _runs(output, label):
    splits = {part: split for split, part in layout.PROBES.items()}
    for folder in layout.run_folders(output):
        place = layout.parse(folder)
        if place is None or place.protocol not in ("finetune", "continual"):
            continue
        if place.part not in (*splits, layout.TEST):
            continue
        datasets = [dataset_key(name) for name in place.dataset.split("+")]
        record = Record(
            part="all",
            dataset="+".join(datasets),
            trainer=place.name,
            config=place.config,
            shots=-1,
            seed=place.seed,
            title=" → ".join(TITLES.get(name, name) for name in datasets),
            folder=folder,
            protocol=place.protocol,
            label=label,
        )
        split = splits.get(place.part, "test")
        run = _read(ProbedRun(record, split, place.task), dataset_key(place.target))
        yield run


def _together(first, second):
    """Two tests of one set of prompts, on different datasets."""
    whole = first if first.record.accuracy is not None else second
    return replace(
        whole,
        probes={**first.probes, **second.probes},
        faults={**first.faults, **second.faults},
    )


def _read(run, target=""):
    """The run with what its folder has; ``target``: what prompts are tested on."""
    run = _with_result(run, target)
    if not target:
        return run
    return replace(run, tested=True, faults={target: run.record.fault} if not run.probes else {})


def _with_result(run, target):
    record = run.record
    path = os.path.join(record.folder, layout.RESULT)
    if not os.path.isfile(path):
        return replace(run, record=replace(record, fault="not finished"))
    try:
        result = results_file.read(record.folder)
        probes = {target: Probe(result["accuracy"])} if target else _probes_of(result, path)
    except (BadValue, NotFound) as error:
        return replace(run, record=replace(record, fault=str(error)))
    said = {name: result.get(name) for name in ("protocol", "subsample", "seed")}
    said["trainer"] = result.get("name") or result.get("trainer")
    fault = mismatch(record, said)
    if target and result.get("split") in layout.PROBES:
        run = replace(run, split=result["split"])
    if not fault and result.get("split") not in (run.split, None):
        fault = f"is of the split {result['split']} in the folder of {run.split}"
    if fault:
        return replace(run, record=replace(record, fault=f"{path} {fault}"))
    details = details_of(result)
    trained = _training(record.folder, _weight(details))
    times = [found.get("time") or {} for found in (details, trained)]
    details = {**details, **trained, "backbone": details["backbone"]}
    details["time"] = {"run": sum(time.get("run", 0.0) for time in times)}
    symbol, weight = _setting(record.trainer, result.get("alpha"), details)
    shots = result.get("shots")
    record = replace(
        record,
        accuracy=float(result["accuracy"]),
        shots=shots if isinstance(shots, int) else -1,
        details=details,
    )
    return replace(run, record=record, probes=probes, symbol=symbol, weight=weight)


def _probes_of(result, path):
    if "probes" not in result:
        raise BadValue(f"{path} has no probes")
    return {
        dataset_key(dataset): Probe(
            found["linear_probe"], found.get("zero_shot"), (found["classes"], found["images"])
        )
        for dataset, found in result["probes"].items()
    }


def _training(folder, weight):
    """What the training says that was probed; nothing where there is none beside the probes."""
    try:
        return details_of(results_file.read(layout.training_of(folder, weight)))
    except UserError:
        return {}


def _setting(name, alpha, details):
    """What holds a run back: its symbol and its value."""
    if name == WISE_FT and type(alpha) in (int, float):
        return ALPHA, float(alpha)
    weight = None if split_run_name(name)[1] in ("", NONE) else _weight(details)
    return ("", None) if weight is None else (LAMBDA, weight)


def _weight(details):
    """λ of a run, as its probes say it as well; ``None`` where it is not known."""
    cfg = details.get("cfg") or {}
    weight = (details.get("regulariser") or {}).get("weight", cfg.get(_WEIGHT))
    try:
        return float(weight)
    except (TypeError, ValueError):
        return None


def read_runs(outputs, split="test", required=True):
    """All runs of some outputs, each kind as far as there are any.

    ``required``: whether there have to be some.

    Returns:
        What :func:`~proxyfda.results.collect` returns for the split, and what :func:`read_probes`
        returns.

    Raises:
        FileNotFoundError, ValueError: as these two; no run has a result.
    """
    runs = read_probes(*outputs)
    probed = [run for run in runs if run.record.accuracy is not None]
    here = [run for run in probed if run.split == split]
    some = required and not runs and not _tuned(outputs)
    records = collect(*outputs, split=split, required=some)
    if not required or here or any(record.accuracy is not None for record in records):
        return records, runs
    where = " and ".join(map(str, outputs))
    if probed:
        raise BadValue(
            f"{where} has no probes on split {split!r}, but {len(probed)} on others; give --split "
            f"{probed[0].split}"
        )
    if runs:
        first = runs[0].record
        raise BadValue(
            f"none of the {len(runs)} probed runs in {where} has a valid result.json "
            f"({first.folder}: {first.fault}); run the same command again to finish them"
        )
    raise NotFound(
        f"{where} has encoders that were tuned end to end, and no probes of them; run the same "
        "command again to make them"
    )


def _tuned(outputs):
    """Whether there are trainings that probes can be of."""
    places = (
        layout.parse(folder)
        for output, _ in labelled_folders(outputs)
        for folder in layout.run_folders(str(output))
    )
    return any(place and place.protocol in ("finetune", "continual") for place in places)


# -- putting them together ------------------------------------------------------------------------


def backbone_title(backbone) -> str:
    """A backbone in words."""
    if not backbone:
        return "a backbone that the runs do not tell"
    return f"{backbone[0]} ({', '.join(backbone[1:])})" if backbone[1:] else backbone[0]


def by_backbone(runs: Sequence[ProbedRun]) -> tuple[dict, list[str]]:
    """Runs by backbone, in the order of their names, and sentences on rows that are of several.

    Incomplete runs do not tell theirs: it is taken to be that of the runs with the same method and
    config, else of those of the same output.
    """
    known = Counter()
    for run in runs:
        if run.record.accuracy is not None:
            for key in _keys(run):
                known[key, run.backbone] += 1
    found: dict = {}
    for run in runs:
        backbone = run.backbone
        if run.record.accuracy is None:
            backbone = next(filter(None, (_most(known, key) for key in _keys(run))), None)
        found.setdefault(backbone, []).append(run)
    notes = []
    for key in sorted({key for key, _ in known if len(key) == 3}):
        several = {backbone: count for (own, backbone), count in known.items() if own == key}
        if len(several) > 1:
            words = " and ".join(
                f"{count} of {backbone_title(backbone)}" for backbone, count in several.items()
            )
            notes.append(
                f"{title_of(key[1])} with the config {key[2]} has runs of several backbones, "
                f"{words}; each backbone has tables of its own."
            )
    return {key: found[key] for key in sorted(found, key=lambda b: b or ())}, notes


def _keys(run):
    record = run.record
    return (record.label, record.trainer, record.config), (record.label, record.config), ()


def _most(known, key):
    counts = {backbone: count for (own, backbone), count in known.items() if own == key}
    return max(counts, key=counts.get) if counts else None


def probed_datasets(runs: Iterable[ProbedRun]) -> tuple:
    """The datasets that a run should have probed: those that most runs have, in order.

    Of two sets that equally many have it is the larger one.
    """
    counts = Counter(
        tuple(sorted(run.probes, key=lambda name: known_first(TITLES, name)))
        for run in runs
        if run.probes
    )
    return max(counts, key=lambda names: (counts[names], len(names)), default=())


def lacking(run: ProbedRun, datasets: Iterable[str]) -> str:
    """Why a run has not the probes that it should have; empty if it has."""
    if run.record.accuracy is None:
        return run.record.fault
    missing = [
        TITLES.get(name, name) + (f" ({run.faults[name]})" if name in run.faults else "")
        for name in datasets
        if name not in run.probes
    ]
    what = "tests" if run.tested else "probes"
    return f"its {what} lack {', '.join(missing)}" if missing else ""


def reference_of(run: ProbedRun, pretrained: Sequence[ProbedRun]) -> ProbedRun | None:
    """The probes of the pre-trained backbone that a run is compared with.

    Of several it is that of the same output and of the config that the run's is made of, otherwise
    the one whose probes all others have; ``None`` if there is none.

    Args:
        pretrained: complete runs of the same backbone and split, and of the same row of tasks.
    """
    own = [p for p in pretrained if p.record.label == run.record.label] or list(pretrained)
    config = _free_of_shots(run)
    alike = [p for p in own if f"{config}-".startswith(f"{_free_of_shots(p)}-")]
    if alike:
        return max(alike, key=lambda p: len(p.record.config))
    return own[0] if own and all(p.probes == own[0].probes for p in own) else None


def _free_of_shots(run):
    return re.sub(r"_-?\d+shots$", "", run.record.config)


def other_counts(run: ProbedRun, reference: ProbedRun) -> list[str]:
    """Datasets that the two were probed on with another number of classes or of images."""
    both = run.probes.keys() & reference.probes.keys()
    return sorted(d for d in both if run.probes[d].counts != reference.probes[d].counts)


def settings_of(runs: Iterable[ProbedRun]) -> dict:
    """λ or α of runs: a set of (as shown, number) by (name of the run, config)."""
    found: dict = {}
    for run in runs:
        if run.probes:
            place = run.record.trainer, run.record.config
            found.setdefault(place, set()).add((run.setting, run.weight))
    return found


def cells_of(records, runs: Sequence[ProbedRun], apart: bool = False) -> Cells:
    """Cells whose rows are named by method, and by λ where a method has several rows.

    Args:
        records: a record per number, whose part says which number it is.
        runs: what they are of.
        apart: as for :class:`~proxyfda.results.summary.Cells`.
    """
    settings = settings_of(runs)

    def own(group):
        return settings.get((group.trainer, group.config), set())

    def names(groups):
        found = {}
        for group in groups:
            like = [g for g in groups if (g.trainer, g.label) == (group.trainer, group.label)]
            others = [own(g) for g in like if g != group]
            shown = {text for text, _ in own(group)}
            told = len(shown) == 1 and shown != {""} and own(group) not in others
            more = [group.label] if group.label else []
            more += [next(iter(shown)) if told else group.config] if others else []
            found[group] = title_of(group.trainer) + (f" ({', '.join(more)})" if more else "")
        return found

    def rank(group):
        return min((weight or 0.0 for _, weight in own(group)), default=0.0)

    return Cells(records, lambda r: r.part, names, apart, rank)
