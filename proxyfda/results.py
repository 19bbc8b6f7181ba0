"""Tables of base-to-new results: ``python -m proxyfda.results OUTPUT``.

Reads the ``result.json`` of every run below ``OUTPUT/base2new/{train_base,test_new}/<dataset>/
shots_<K>/<trainer>/<config>/seed<S>``: base accuracy from ``train_base``, new from ``test_new``. A
run without a valid ``result.json`` is incomplete, whatever else its folder holds.

How numbers are made:

* base, new: mean over the seeds that have both; ± is the sample standard deviation over seeds
  (n - 1 in the denominator; ``parse_test_res.py`` of Dassl prints the population's, which is
  smaller by a factor of 0.82 for three seeds). A single seed, and zero-shot CLIP, which does not
  depend on the seed, have none.
* H: harmonic mean of the two means, as published tables have it; its ± is over the H of each seed.
* Δnew: new minus the new accuracy of ``ZeroshotCLIP`` on the same dataset.
* average: mean over datasets seed by seed, then as above, so its H is that of the averages and its
  ± is over the per-seed averages. It takes only datasets on which every row has results, and for
  each row only seeds complete on all of these; what is left out is named below the table.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import re
import statistics
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path

from proxyfda.errors import tell_mistakes
from proxyfda.metrics import harmonic_mean

PARTS = {"base": "train_base", "new": "test_new"}
AVERAGE = "average"
REFERENCE = "ZeroshotCLIP"
PREFIXES = ("", "FDA", "ProxyFDA")
_HOSTS = ("CoOp", "CoCoOp", "MaPLe", "PromptSRC")
_DATASETS = (
    "ImageNet", "Caltech101", "OxfordPets", "StanfordCars", "OxfordFlowers", "Food101",
    "FGVCAircraft", "SUN397", "DescribableTextures", "EuroSAT", "UCF101",
)  # fmt: skip
CAPTION = (
    "Accuracy in %, mean ± sample standard deviation (n - 1) over seeds; H is the harmonic mean of "
    "the means; Δnew is relative to zero-shot CLIP's new accuracy."
)


@dataclass(frozen=True)
class Record:
    """One run: the base or the new accuracy of a trainer on a dataset with a seed.

    Attributes:
        part: ``base`` or ``new``.
        dataset, trainer, config, shots, seed: from the folder names.
        accuracy: in percent, unrounded; ``None`` if the run is incomplete.
        fault: why it is incomplete, otherwise empty.
        title: the dataset's name according to ``result.json``, else its folder's.
        folder: where the run lies.
    """

    part: str
    dataset: str
    trainer: str
    config: str
    shots: int
    seed: int
    accuracy: float | None = None
    fault: str = ""
    title: str = ""
    folder: str = ""


@dataclass(frozen=True)
class Row:
    """One line of the table; numbers in percent, ``None`` where there is none.

    ``dataset`` is ``average`` for the mean over datasets, of which there are ``n_datasets``.
    ``name`` is the trainer, with the config where a trainer has several. ``seeds`` are those that
    the numbers are made of; ``complete`` is false where seeds (or datasets) are missing.
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


@dataclass(frozen=True)
class Summary:
    """Rows of the table in order, and what has to be said below it, one sentence each."""

    rows: list
    notes: list = field(default_factory=list)


def is_zero_shot(trainer):
    """Whether a trainer learns nothing, so that its result does not depend on the seed."""
    return trainer.startswith(REFERENCE)


def plain_trainer(trainer):
    """``("ProxyFDA", "CoOp")`` for ``ProxyFDACoOp``, ``("", "CoOp")`` for ``CoOp``."""
    for prefix in sorted(PREFIXES, key=len, reverse=True):
        if prefix and trainer.startswith(prefix) and trainer != prefix:
            return prefix, trainer[len(prefix) :]
    return "", trainer


def collect(*outputs, split="test"):
    """All runs below one or several output folders, complete or not.

    Args:
        outputs: folders given as ``OUTPUT`` to the scripts, or their ``base2new``.
        split: take results on this split (``test`` or ``val``) and no others.

    Returns:
        List of :class:`Record`. Of a trainer's config that has results only on another split
        there are none.

    Raises:
        FileNotFoundError: an output folder does not exist or holds no base-to-new runs.
        ValueError: no complete run, or the same run in two of the folders.
    """
    found, elsewhere = {}, {}
    for output in outputs:
        for record, its_split in _runs(output):
            key = (*_group(record), record.shots, record.dataset, record.seed, record.part)
            if key in found or key in elsewhere:
                other = found.get(key) or elsewhere[key][0]
                raise ValueError(
                    f"{record.folder} and {other.folder} are the same run; give one of the folders"
                )
            if its_split in ("", split):
                found[key] = record
            else:
                elsewhere[key] = (record, its_split)
    where = " and ".join(str(output) for output in outputs)
    if not any(record.accuracy is not None for record in found.values()):
        if elsewhere:
            other = sorted({its_split for _, its_split in elsewhere.values()})[0]
            raise ValueError(
                f"{where} has no result on split {split!r}, but {len(elsewhere)} on others; give "
                f"--split {other}"
            )
        raise ValueError(
            f"none of the {len(found)} runs in {where} has a valid result.json; run the same "
            "command again to finish them"
        )
    shown = {_group(record) for record in found.values() if record.accuracy is not None}
    for key, (record, its_split) in elsewhere.items():
        if _group(record) in shown:
            fault = f"its result is on split {its_split}"
            found[key] = Record(**{**vars(record), "accuracy": None, "fault": fault})
    return [found[key] for key in sorted(found)]


def summarise(records):
    """The table of a list of :class:`Record`, see the module's text for how numbers are made.

    Returns:
        :class:`Summary`. Different numbers of shots are summarised separately, one after the
        other; zero-shot rows stand in each.
    """
    learned = sorted({r.shots for r in records if not is_zero_shot(r.trainer)})
    rows, notes = [], []
    for shots in learned or sorted({r.shots for r in records}):
        part = _summarise(
            [r for r in records if r.shots == shots or is_zero_shot(r.trainer)], shots
        )
        rows += part.rows
        notes += [f"{shots} shots: {note}" if len(learned) > 1 else note for note in part.notes]
    return Summary(rows, notes)


def _group(record):
    """What makes one row: zero-shot results are the same for any number of shots."""
    shots = 0 if is_zero_shot(record.trainer) else record.shots
    return record.trainer, record.config, shots


def _runs(output):
    """Pairs of a record and the split of its result (empty if unknown)."""
    output = Path(output)
    if not output.is_dir():
        raise FileNotFoundError(f"{output} is no folder; give the output folder of base2new.sh")
    for root in (output / "base2new", output):
        if any((root / folder).is_dir() for folder in PARTS.values()):
            break
    else:
        raise FileNotFoundError(
            f"{output} has no base2new/train_base or base2new/test_new; give the output folder of "
            "base2new.sh"
        )
    for part, folder in PARTS.items():
        for path in sorted((root / folder).glob("*/shots_*/*/*/seed*")):
            dataset, shots, trainer, config, seed = path.relative_to(root / folder).parts
            shots = re.fullmatch(r"shots_(-?\d+)", shots)
            seed = re.fullmatch(r"seed(-?\d+)", seed)
            if shots and seed and path.is_dir():
                key = {"part": part, "dataset": dataset, "trainer": trainer, "config": config}
                key.update(shots=int(shots[1]), seed=int(seed[1]), folder=str(path))
                yield _read_run(path / "result.json", key)


def _read_run(path, key):
    def incomplete(fault):
        return Record(**key, fault=fault, title=key["dataset"]), ""

    if not path.is_file():
        return incomplete("not finished")
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        accuracy = float(result["accuracy"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return incomplete(f"{path} is unreadable")
    if not 0 <= accuracy <= 100:
        return incomplete(f"{path} has accuracy {accuracy}")
    # A copied folder, or base results twice: the file has to be of the run that its place says.
    told = {"subsample": key["part"], **{k: key[k] for k in ("trainer", "seed", "shots")}}
    for name, value in told.items():
        if result.get(name, value) != value:
            return incomplete(f"{path} is of another run, its {name} is {result[name]}")
    title = str(result.get("dataset") or key["dataset"])
    return Record(**key, accuracy=accuracy, title=title), str(result.get("split") or "")


class _Cells:
    """Accuracies by row group, dataset, seed and part.

    Zero-shot runs of all seeds are put together under one seed called ``None``.
    """

    def __init__(self, records):
        runs, self.faults = {}, {}
        for r in records:
            place = (_group(r), r.dataset, None if is_zero_shot(r.trainer) else r.seed, r.part)
            if r.accuracy is None:
                self.faults[place] = r.fault
            else:
                runs.setdefault(place, []).append(r.accuracy)
        self.values = {place: statistics.fmean(found) for place, found in runs.items()}
        self.uneven = [place for place, found in runs.items() if max(found) - min(found) > 1e-6]
        self.groups = sorted({_group(r) for r in records}, key=_row_order)
        self._seeds = sorted({r.seed for r in records if not is_zero_shot(r.trainer)})

    def expected(self, group):
        """The seeds that a row should have: all that any row has."""
        return [None] if is_zero_shot(group[0]) else self._seeds

    def complete(self, group, dataset, parts=tuple(PARTS)):
        """Seeds of which all ``parts`` are there."""
        return [
            seed
            for seed in self.expected(group)
            if all((group, dataset, seed, part) in self.values for part in parts)
        ]

    def means(self, group, datasets, seeds, part):
        """Mean over ``datasets`` for each of ``seeds``; ``None`` if one is missing."""
        places = [[(group, dataset, seed, part) for dataset in datasets] for seed in seeds]
        if not places or any(place not in self.values for row in places for place in row):
            return None
        return [statistics.fmean(self.values[place] for place in row) for row in places]

    def gap(self, group, dataset):
        """What is missing of a row on a dataset, in words; empty if nothing is."""
        missing = []
        for seed in self.expected(group):
            places = [(group, dataset, seed, part) for part in PARTS]
            lacking = {p[-1]: self.faults.get(p, "not run") for p in places if p not in self.values}
            whole = len(lacking) == len(PARTS) and len(set(lacking.values())) == 1
            for part, fault in list(lacking.items())[: 1 if whole else None]:
                words = ["" if seed is None else f"seed {seed}", "" if whole else part]
                missing.append((" ".join(filter(None, words)), fault))
        places = {place[:2] for place in (*self.values, *self.faults)}
        if missing and (group, dataset) not in places:
            return "not run"
        return "; ".join(f"{what} ({fault})" if what else fault for what, fault in missing)

    def zero_shot(self, config, datasets):
        """New accuracy of zero-shot CLIP over ``datasets``, for rows with ``config``."""
        found = []
        for dataset in datasets:
            by_config = {
                group[1]: self.values[group, dataset, None, "new"]
                for group in self.groups
                if group[0] == REFERENCE and (group, dataset, None, "new") in self.values
            }
            values = [by_config[config]] if config in by_config else list(by_config.values())
            if not values or max(values) - min(values) > 1e-6:
                return None
            found.append(values[0])
        return statistics.fmean(found)


def _summarise(records, shots):
    cells = _Cells(records)
    titles = _titles(records)
    datasets = sorted(titles, key=lambda dataset: _known_first(_DATASETS, titles[dataset]))
    names = _names(cells.groups)
    rows, notes, unpaired = [], [], []

    def add(group, chosen, seeds, **more):
        base, new = (cells.means(group, chosen, seeds, part) for part in PARTS)
        learned = not is_zero_shot(group[0])
        reference = cells.zero_shot(group[1], chosen) if learned else None
        if learned and new and reference is None and names[group] not in unpaired:
            unpaired.append(names[group])
        rows.append(
            Row(
                name=names[group],
                trainer=group[0],
                config=group[1],
                shots=shots,
                seeds=tuple(seed for seed in seeds if seed is not None),
                **_numbers(base, new, reference),
                **more,
            )
        )

    for dataset in datasets:
        for group in cells.groups:
            gap = cells.gap(group, dataset)
            if gap:
                notes.append(f"Missing: {names[group]} on {titles[dataset]}: {gap}.")
            ways = (("base", "new"), ("base",), ("new",))
            seeds = next(filter(None, (cells.complete(group, dataset, way) for way in ways)), [])
            title = titles[dataset]
            add(group, [dataset], seeds, dataset=dataset, title=title, complete=not gap)

    if len(datasets) > 1:
        # A row that has nothing yet shall not take the average from the others.
        begun = [g for g in cells.groups if any(cells.complete(g, d) for d in datasets)]
        shared = [d for d in datasets if begun and all(cells.complete(g, d) for g in begun)]
        left_out = [titles[dataset] for dataset in datasets if dataset not in shared]
        if left_out:
            notes.append(
                f"The average is over {len(shared)} of {len(datasets)} datasets, without "
                f"{', '.join(left_out)}, where a row has no seed with both base and new."
            )
        for group in begun if shared else []:
            seeds = [
                seed
                for seed in cells.expected(group)
                if all(seed in cells.complete(group, dataset) for dataset in shared)
            ]
            dropped = [str(seed) for seed in cells.expected(group) if seed not in seeds]
            if dropped:
                notes.append(
                    f"The average of {names[group]} is without seed {', '.join(dropped)}, which "
                    "is not complete on each of its datasets."
                )
            more = {"dataset": AVERAGE, "title": AVERAGE, "n_datasets": len(shared)}
            add(group, shared, seeds, complete=not left_out and not dropped, **more)

    if not any(group[0] == REFERENCE for group in cells.groups):
        notes.append(f"There is no Δnew without {REFERENCE} in the same output.")
    elif unpaired:
        notes.append(
            f"No Δnew for {', '.join(unpaired)} where {REFERENCE} is missing, or has other results "
            "with other configs of which none is the row's."
        )
    for group, dataset, _, part in cells.uneven:
        notes.append(
            f"{names[group]} on {titles[dataset]} has different {part} results for different "
            "seeds, although nothing is learned; their mean is shown."
        )
    return Summary(rows, notes)


def _numbers(base, new, reference):
    """The numeric fields of a row from accuracies per seed (``None``: not there)."""
    numbers = {}

    def put(name, value, spread):
        numbers[name] = value
        numbers[f"{name}_std"] = statistics.stdev(spread) if len(spread) > 1 else None

    if base:
        put("base", statistics.fmean(base), base)
    if new:
        put("new", statistics.fmean(new), new)
    if base and new:
        put("h", harmonic_mean(numbers["base"], numbers["new"]), harmonic_mean(base, new))
    if new and reference is not None:
        put("delta_new", numbers["new"] - reference, new)
    return numbers


def _titles(records):
    """Name to show by dataset folder: that of the results, unless two folders share it."""
    titles = {}
    for r in records:
        if r.accuracy is not None or r.dataset not in titles:
            titles[r.dataset] = r.title
    shown = list(titles.values())
    return {d: title if shown.count(title) == 1 else d for d, title in titles.items()}


def _names(groups):
    trainers = [group[0] for group in groups]
    return {g: g[0] if trainers.count(g[0]) == 1 else f"{g[0]} ({g[1]})" for g in groups}


def _known_first(known, name):
    return (known.index(name), "") if name in known else (len(known), name)


def _row_order(group):
    trainer, config, _ = group
    prefix, host = plain_trainer(trainer)
    return (
        not is_zero_shot(trainer),
        _known_first(_HOSTS, host),
        PREFIXES.index(prefix),
        config,
    )


def table(summary, form="text"):
    """The table as a string.

    Args:
        summary: :class:`Summary`.
        form: ``text`` or ``markdown`` (two decimals, with caption and notes), or ``csv`` (all
            fields of :class:`Row`, unrounded, without notes).

    Raises:
        ValueError: another form.
    """
    if form == "csv":
        return _csv(summary.rows)
    if form not in ("text", "markdown"):
        raise ValueError(f"the form of a table is {form!r}; use text, markdown or csv")
    from tabulate import tabulate

    blocks = []
    for shots in dict.fromkeys(row.shots for row in summary.rows):
        rows = [row for row in summary.rows if row.shots == shots]
        total = len({row.dataset for row in rows} - {AVERAGE})
        lines, above = [], None
        for row in rows:
            partial = row.dataset == AVERAGE and row.n_datasets < total
            title = f"{AVERAGE} ({row.n_datasets} of {total})" if partial else row.title
            lines.append([title if title != above else "", row.name, *_cells(row)])
            above = title
        heads = ("dataset", "trainer", "base", "new", "H", "Δnew", "seeds")
        style = {"text": "simple", "markdown": "github"}[form]
        align = ("left", "left", "right", "right", "right", "right", "right")
        body = tabulate(lines, heads, style, disable_numparse=True, colalign=align)
        blocks.append(f"{_shots(shots)}\n\n{body}")
    marks = ["* not complete, see below."] if any(not row.complete for row in summary.rows) else []
    foot = [CAPTION, *marks, *summary.notes]
    if form == "markdown":
        foot = [
            foot[0].replace("*", r"\*"),
            *(f"- {line}".replace("*", r"\*") for line in foot[1:]),
        ]
        foot.insert(1, "")
    return "\n\n".join([*blocks, "\n".join(foot)]) + "\n"


def _shots(shots):
    return f"Base-to-new, {shots} shots" if shots > 0 else "Base-to-new, all training images"


def _cells(row):
    def cell(value, std, sign=""):
        if value is None:
            return "-"
        return f"{value:{sign}.2f}" + ("" if std is None else f" ± {std:.2f}")

    return (
        cell(row.base, row.base_std),
        cell(row.new, row.new_std),
        cell(row.h, row.h_std),
        cell(row.delta_new, row.delta_new_std, "+"),
        (str(len(row.seeds)) if not is_zero_shot(row.trainer) else "") + "*" * (not row.complete),
    )


def _csv(rows):
    text = io.StringIO()
    names = [f.name for f in fields(Row)]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        values = {**vars(row), "seeds": " ".join(map(str, row.seeds))}
        writer.writerow(["" if values[name] is None else values[name] for name in names])
    return text.getvalue()


def main(argv=None):
    """Command line; returns 0, or 1 with ``--strict`` where something is missing."""
    parser = argparse.ArgumentParser(
        prog="python -m proxyfda.results", description="Tables of base-to-new results."
    )
    parser.add_argument("outputs", nargs="+", metavar="OUTPUT", help="output folder of base2new.sh")
    form = parser.add_mutually_exclusive_group()
    for name in ("markdown", "csv"):
        form.add_argument(f"--{name}", dest="form", action="store_const", const=name)
    parser.add_argument("--output", metavar="FILE", help="write to FILE, by its suffix .md or .csv")
    parser.add_argument("--split", default="test", choices=("test", "val"), help="results on it")
    parser.add_argument("--strict", action="store_true", help="exit code 1 if a run is missing")
    args = parser.parse_args(argv)
    summary = summarise(collect(*args.outputs, split=args.split))
    by_suffix = {".md": "markdown", ".csv": "csv"}
    suffix = os.path.splitext(args.output or "")[1].lower()
    text = table(summary, args.form or by_suffix.get(suffix, "text"))
    if args.output:
        folder = os.path.dirname(args.output)
        if folder and not os.path.isdir(folder):
            raise FileNotFoundError(f"--output: the folder {folder} does not exist; make it first")
        Path(args.output).write_text(text, encoding="utf-8")
        print(f"Wrote {args.output}")
    else:
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")  # a terminal may not know the Δ
        sys.stdout.write(text)
    return int(args.strict and not all(row.complete for row in summary.rows))


if __name__ == "__main__":
    tell_mistakes()
    sys.exit(main())
