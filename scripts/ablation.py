"""The studies behind docs/ablation.md: ``python scripts/ablation.py STUDY ... --data DATA``.

``calibration`` runs methods that are not ours on the atlas and prints their new accuracy relative
to zero-shot CLIP beside what is published. A host trainer, such as ``CoOp``, compares the families
of ``configs/study.yaml``: every setting is trained and tested on halves of the base classes
(validation images); of each family that with the highest mean H over the datasets is taken; and
what is taken is trained on all base classes and tested on base and new ones (test images), beside
the plain trainer with the same seeds.

What is complete is skipped; after Ctrl-C the same command goes on.
"""

from __future__ import annotations

import argparse
import itertools
import os.path as osp
import re
import signal
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tabulate import tabulate

ROOT = osp.dirname(osp.dirname(osp.abspath(__file__)))
sys.path[:0] = [] if ROOT in sys.path else [ROOT]  # it is started from anywhere

from counts import count, seeds

from proxyfda.benchmarks import BUNDLED
from proxyfda.experiments import grid, layout
from proxyfda.experiments.candidates import PLAIN, Candidate, plain_candidate, read_families
from proxyfda.experiments.config import load_config
from proxyfda.experiments.jobs import Job
from proxyfda.experiments.project import Project
from proxyfda.experiments.protocols import base2new_jobs, select_jobs
from proxyfda.experiments.sweep import run
from proxyfda.integrations.dassl import describe_regulariser
from proxyfda.names import REFERENCE, is_zero_shot, split_run_name
from proxyfda.results import selection
from proxyfda.results.metrics import harmonic_mean
from proxyfda.results.paired import (
    Found,
    averages,
    base,
    failing,
    gaps,
    new,
    tells_apart_text,
    written,
)
from proxyfda.results.prediction import rank_correlation
from proxyfda.results.tables import csv_of
from proxyfda.utils.errors import BadValue, NotFound, UserError, sentence, show_user_errors
from proxyfda.utils.files import write_text
from proxyfda.utils.suggest import did_you_mean
from proxyfda.utils.words import listed

PROJECT = Project(ROOT, entry="train")
STUDY = osp.join(ROOT, "configs", "study.yaml")
CALIBRATION = "calibration"
POINTWISE = "pointwise"  # the family that others have to beat
SHOTS = 16

PUBLISHED = {"CoOp": -10.99, "CoCoOp": -2.53, "KgCoOp": -0.62, "MaPLe": 0.92, "PromptSRC": 1.88}
"""New accuracy minus zero-shot CLIP's (74.22), in points, average of the 11 benchmarks with
ViT-B/16 and 16 shots: Zhou et al., CVPR 2022; Yao et al., CVPR 2023; Khattak et al., CVPR and ICCV
2023, each from its table of base-to-new generalisation."""

ZERO_SHOT = Candidate(REFERENCE, REFERENCE)
KGCOOP = Candidate("KgCoOp", "CoOp+pointwise", (("TRAINER.PROXYFDA.WEIGHT", "8"),))
"""CoOp with the pull on class texts and the weight of KgCoOp (Yao et al., CVPR 2023)."""

METHODS = {
    REFERENCE: ZERO_SHOT,
    **{name: KGCOOP if name == KGCOOP.label else plain_candidate(name) for name in PUBLISHED},
}
"""What the calibration runs."""

Families = dict[str, list[Candidate]]
Halves = dict[tuple[str, int, str, str], selection.Measured]  # what selection.read gives


@dataclass(frozen=True)
class RunRow:
    """A line of ``--csv``: a run's accuracies on test images and their harmonic mean, in percent.

    ``family`` and ``setting`` are those of ``configs/study.yaml``; the calibration's methods and
    the plain trainer are families without settings.
    """

    study: str
    family: str
    setting: str
    dataset: str
    seed: int
    base: float
    new: float
    H: float


# -- runs -----------------------------------------------------------------------------------------


class Runs:
    """Where the runs of settings are, and what they gave.

    Args:
        datasets, seeds: what every setting is run on.
        data, output: folders of the datasets and of the results.
    """

    def __init__(
        self, datasets: Sequence[str], seeds: Sequence[int], data: str, output: str
    ) -> None:
        self.datasets, self.seeds = list(dict.fromkeys(datasets)), list(dict.fromkeys(seeds))
        self.keys = list(itertools.product(self.datasets, self.seeds))
        self.output = output
        self._where = {"project": PROJECT, "data": data, "output": output}

    def _of(self, one: Candidate, dataset: str) -> dict[str, Any]:
        """What all runs of a setting on a dataset take; the config is that of the plain host, so
        that settings differ in nothing else."""
        host, name = split_run_name(one.run)[0], PROJECT.dataset_name(dataset)
        return {**self._where, "cfg": PROJECT.default_config(host, name, "base2new", SHOTS)}

    def halves(
        self, settings: Sequence[Candidate], splits: int, datasets: Sequence[str]
    ) -> list[Job]:
        """Trainings and tests of a host's settings on halves of the base classes, with the first
        seed."""
        return [
            job
            for dataset, split in itertools.product(datasets, range(1, splits + 1))
            for job in self._on_half(settings, dataset, split)
        ]

    def _on_half(self, settings: Sequence[Candidate], dataset: str, split: int = 1) -> list[Job]:
        where = self._of(settings[0], dataset)
        return select_jobs(settings, dataset, split, self.seeds[0], shots=SHOTS, **where)

    def rows(
        self, settings: Sequence[Candidate], splits: int, found: Halves, datasets: Sequence[str]
    ) -> list[selection.SettingRow]:
        """What settings gave on halves, the first of them the reference; means over datasets.

        Args:
            found: what :func:`selection.read` gives for the output.
        """
        measured = []
        for one in settings:
            each = [self._measured_on_halves(one, dataset, found) for dataset in datasets]
            measured.append(replace(selection.average(each), label=one.label))
        wanted = [(split, self.seeds[0]) for split in range(1, splits + 1)]
        return selection.rows_of(measured[0], measured[1:], wanted)

    def _measured_on_halves(
        self, one: Candidate, dataset: str, found: Halves
    ) -> selection.Measured:
        place = layout.parse(self._on_half([one], dataset)[0].folder)
        assert place is not None  # the folder is of our making
        key = (place.dataset, SHOTS, place.name, place.config)
        return found.get(key, selection.Measured(place.name, place.config))

    def base2new(self, one: Candidate, dataset: str, seed: int) -> list[Job]:
        """Training and tests of one setting; the last two are of base and of new classes.

        What learns nothing has runs with the first seed alone, which stand for those of all.
        """
        seed = self.seeds[0] if is_zero_shot(one.run) else seed
        where = self._of(one, dataset)
        return base2new_jobs(one.run, dataset, seed, shots=SHOTS, variant=one, **where)

    def all_base2new(self, settings: Iterable[Candidate]) -> list[Job]:
        """The same for many, on all datasets with all seeds; each folder once."""
        jobs = {
            job.folder: job
            for one in settings
            for key in self.keys
            for job in self.base2new(one, *key)
        }
        return list(jobs.values())

    def measured(self, one: Candidate) -> Found:
        """(dataset, seed) -> accuracy on base and on new classes, test images, of what is
        complete."""
        found = {}
        for key in self.keys:
            results = [job.result for job in self.base2new(one, *key)[-2:]]
            if all(results):
                found[key] = (results[0]["accuracy"], results[1]["accuracy"])
        return found


def csv_rows(study: str, family: str, setting: str, found: Found) -> list[RunRow]:
    """What a setting gave (:meth:`Runs.measured`), one line per run."""
    return [
        RunRow(study, family, setting, dataset, seed, *pair, harmonic_mean(*pair))
        for (dataset, seed), pair in found.items()
    ]


# -- the calibration ------------------------------------------------------------------------------


def calibrate(runs: Runs, args: argparse.Namespace) -> tuple[int, list[RunRow]]:
    """Run methods that are not ours and print what they gave beside what is published; gives the
    exit code and the lines of ``--csv``."""
    code = 0
    if not args.tables_only:
        code = run(runs.all_base2new(METHODS.values()), workers=args.workers, strict=True)
    found = {name: runs.measured(one) for name, one in METHODS.items()}
    print(calibration_table(found, len(runs.keys)))
    for name in PUBLISHED:
        each = [f"{dataset} {gap}" for dataset, gap in gaps_by_dataset(found, name).items()]
        print(f"{name}, new - zero-shot: {', '.join(each) or 'missing'}")
    print(tells_apart_text(found))
    return code, [row for name in found for row in csv_rows(CALIBRATION, name, "", found[name])]


def calibration_table(found: dict[str, Found], runs: int) -> str:
    """Markdown: averages of methods, and what they gain on new classes beside what is published.

    Args:
        found: method -> what it gave; zero-shot CLIP is among them.
        runs: that a complete method has.
    """
    cells = []
    for name, one in found.items():
        if not one:
            cells.append([name, *["missing"] * 4, published(name)])
            continue
        gained = written(gaps(one, found[REFERENCE], new)) if name in PUBLISHED else ""
        cells.append([_counted(name, one, runs), *averages(one), gained, published(name)])
    return _markdown(cells, ["method", "base", "new", "H", "new - zero-shot", "published"])


def published(name: str) -> str:
    """The published figure of a method as a cell."""
    return f"{PUBLISHED[name]:+.1f}" if name in PUBLISHED else ""


def gaps_by_dataset(found: dict[str, Found], name: str) -> dict[str, str]:
    """What a method gains on new classes over zero-shot CLIP, as a cell for each dataset."""
    by_dataset: dict[str, dict[tuple[str, int], tuple[float, float]]] = {}
    for key, pair in found[name].items():
        by_dataset.setdefault(key[0], {})[key] = pair
    return {
        dataset: written(gaps(one, found[REFERENCE], new)) for dataset, one in by_dataset.items()
    }


def _counted(name: str, found: Found, runs: int) -> str:
    return name if len(found) == runs else f"{name} ({len(found)} of {runs} runs)"


def _markdown(cells: list[list[str]], headers: list[str]) -> str:
    return tabulate(cells, headers, tablefmt="github", disable_numparse=True)


# -- the search of a host -------------------------------------------------------------------------


def search(
    host: str, families: Families, runs: Runs, args: argparse.Namespace
) -> tuple[int, list[RunRow]]:
    """Choose within each family, run what is chosen, and print tables and verdicts; gives the exit
    code and the lines of ``--csv``."""
    plain = plain_candidate(host)
    settings = list(dict.fromkeys(one for family in families.values() for one in family))
    choosing = args.choose_on or runs.datasets
    code = 0
    if not args.tables_only:
        check_settings(families, runs)
        jobs = runs.halves([plain, *settings], args.splits, choosing)
        code = _run_together(jobs, args.workers)
    halves = selection.read(runs.output)
    rows = runs.rows([plain, *settings], args.splits, halves, choosing)
    print(_halves_table(host, rows, args.splits, choosing))
    taken = choose(families, rows)
    tested = settings if args.predict else [one for one in taken.values() if one is not None]
    if not args.tables_only:
        jobs = runs.all_base2new([ZERO_SHOT, plain, *tested])
        code |= _run_together(jobs, args.workers)
    found = {one.label: runs.measured(one) for one in [ZERO_SHOT, plain, *settings]}
    print(f"\n{report(host, taken, found, len(runs.keys))}")
    by_dataset = {
        dataset: runs.rows([plain, *settings], args.splits, halves, [dataset])
        for dataset in choosing
    }
    print(f"{host}: {prediction_text(rows, by_dataset, found, runs.keys)}")
    lines = csv_rows(host, plain.label, "", found[plain.label])
    for name, family in families.items():
        lines += [
            row for one in family for row in csv_rows(host, name, one.label, found[one.label])
        ]
    return code, lines


def check_settings(families: Families, runs: Runs) -> None:
    """Refuse settings that no run could have, before any runs.

    Raises:
        BadValue: names the file, the family and the setting.
    """
    for name, family in families.items():
        for one in family:
            job = runs.base2new(one, *runs.keys[0])[0]
            job.module()  # registers trainers and datasets
            try:
                describe_regulariser(load_config(job.parsed()))
            except UserError as error:
                where = f"{STUDY}: family {name!r}, {one.label}"
                raise BadValue(f"{where}: {sentence(error)}") from None


def _run_together(jobs: list[Job], workers: int) -> int:
    grid.join(jobs)
    return run(jobs, workers=workers, strict=True)


def _halves_table(
    host: str, rows: list[selection.SettingRow], splits: int, datasets: list[str]
) -> str:
    over = f"{splits} splits, each the mean over {', '.join(datasets)}"
    return selection.table(rows, f"{host} on halves of the base classes", over)


def choose(families: Families, rows: list[selection.SettingRow]) -> dict[str, Candidate | None]:
    """The best setting of each family on halves (:func:`selection.choose`); ``None`` where no
    setting has all its runs."""
    by_name = {row.label: row for row in rows}
    taken: dict[str, Candidate | None] = {}
    for name, family in families.items():
        best = selection.choose([by_name[one.label] for one in family])
        taken[name] = next((one for one in family if best and one.label == best.label), None)
    return taken


def report(
    host: str, taken: dict[str, Candidate | None], found: dict[str, Found], runs: int
) -> str:
    """What families chose and gave: the table, a verdict on each, and what the runs tell apart.

    Args:
        taken: family -> what it chose.
        found: label of a setting, of the plain trainer and of zero-shot CLIP -> what it gave.
        runs: that each of them has when it is complete.
    """
    plain = found[PLAIN]
    labels = {name: one.label if one else "" for name, one in taken.items()}
    chosen = {name: found[label] if label else {} for name, label in labels.items()}
    lines = [families_table(chosen, labels, plain, found[REFERENCE], runs), ""]
    lines += [f"{host}: {verdict(name, labels[name], chosen, plain, runs)}" for name in taken]
    # Two families may have chosen one setting, which is one method.
    methods = {label: found[label] for label in (PLAIN, *filter(None, labels.values()))}
    return "\n".join([*lines, f"{host}: {tells_apart_text(methods)}"])


def families_table(
    chosen: dict[str, Found], labels: dict[str, str], plain: Found, zero_shot: Found, runs: int
) -> str:
    """Markdown: what was chosen of each family, averages and differences run by run.

    Args:
        chosen, labels: family -> what its setting gave, and what that is called.
        plain, zero_shot: what these gave.
        runs: that each of them has when it is complete.
    """
    pointwise = chosen.get(POINTWISE, {})
    cells = []
    for name, found in {"zero-shot": zero_shot, PLAIN: plain, **chosen}.items():
        if not found:
            cells.append([name, labels.get(name, ""), *["missing"] * 7])
            continue
        against = [(plain, number) for number in (base, new, harmonic_mean)]
        against.append((pointwise, harmonic_mean))
        # A method's differences to itself are no measurement.
        differences = ["" if one is found else written(gaps(found, one, n)) for one, n in against]
        cells.append(
            [_counted(name, found, runs), labels.get(name, ""), *averages(found), *differences]
        )
    heads = [f"{number} - {PLAIN}" for number in ("base", "new", "H")]
    heads = ["family", "chosen", "base", "new", "H", *heads, f"H - {POINTWISE}"]
    return _markdown(cells, heads)


def verdict(name: str, label: str, chosen: dict[str, Found], plain: Found, runs: int) -> str:
    """Whether what a family chose may be claimed to help, or why not
    (:func:`proxyfda.results.paired.failing`); it has to beat the plain trainer and the point-wise
    pull."""
    if not label:
        return f"{name} does not hold: no setting of it has all runs on halves of the base classes"
    references = {PLAIN: plain, POINTWISE: chosen.get(POINTWISE, {})}
    references.pop(name, None)  # the point-wise pull need not beat itself
    against = failing(chosen[name], plain, references, runs)
    if against:
        return f"{name} does not hold ({label}): {'; '.join(against)}"
    return f"{name} holds ({label})"


def prediction_text(
    rows: list[selection.SettingRow],
    by_dataset: dict[str, list[selection.SettingRow]],
    found: dict[str, Found],
    keys: list[tuple[str, int]],
) -> str:
    """How well H on halves ranks settings as H of base-to-new does, together and by dataset.

    Args:
        rows, by_dataset: settings on halves, over all datasets that choose and on each.
        found: label of a setting -> what it gave on base and new classes.
        keys: the runs of a setting that counts.
    """
    settings = [row.label for row in rows if not row.reference]
    whole = [
        row.label
        for row in rows
        if row.complete and not row.reference and len(found[row.label]) == len(keys)
    ]

    def correlation(halves: list[selection.SettingRow], runs: list[tuple[str, int]]) -> str:
        on_halves = {row.label: row.h for row in halves if row.h is not None}
        final = [
            statistics.fmean(harmonic_mean(*found[label][key]) for key in runs) for label in whole
        ]
        value = rank_correlation([on_halves[label] for label in whole], final)
        return "-" if value is None else f"{value:+.2f}"

    each = [
        f"{dataset} {correlation(halves, [key for key in keys if key[0] == dataset])}"
        for dataset, halves in by_dataset.items()
    ]
    return (
        "rank correlation of H on halves with H of base-to-new over "
        f"{len(whole)} of {len(settings)} settings: {correlation(rows, keys)} ({', '.join(each)})"
    )


# -- the command line -----------------------------------------------------------------------------


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    studies = f"{CALIBRATION}, or a host trainer: {', '.join(PROJECT.hosts)}"
    add("studies", nargs="+", metavar="STUDY", help=studies)
    add("--data", required=True, help="folder with the bundled datasets")
    add(
        "--output", default="output/ablation", help="where the runs are kept (default: %(default)s)"
    )
    add("--datasets", default="", help="names joined by commas (default: those of the atlas)")
    add("--choose-on", default="", help="those of them whose base classes choose (default: all)")
    add(
        "--families", default="", help="names joined by commas (default: all of configs/study.yaml)"
    )
    add("--seeds", type=seeds, default="1,2,3", help="joined by commas (default: %(default)s)")
    add("--splits", type=count, default=2, help="of the base classes into halves (default: 2)")
    add("--predict", action="store_true", help="test every setting on the new classes as well, and "
        "tell how well halves rank settings")  # fmt: skip
    add("--workers", type=count, default=2, help="jobs at a time (default: 2)")
    add("--tables-only", action="store_true", help="print what is there, run nothing")
    add("--csv", metavar="FILE", default="", help="write base, new and H of every run to FILE")
    args = parser.parse_args(argv)
    args.datasets = listed(args.datasets) or list(BUNDLED)
    args.choose_on = list(dict.fromkeys(listed(args.choose_on)))
    return args


def families_of(hosts: Sequence[str], text: str, path: str) -> dict[str, Families]:
    """The families of each host, of which ``text`` names some, joined by commas (empty: all).

    Raises:
        UserError: a faulty file, a name that it does not have, or a host without families.
    """
    all_of = {host: read_families(path, host, PROJECT.hosts) for host in PROJECT.hosts}
    known = list(dict.fromkeys(name for families in all_of.values() for name in families))
    names = names_of(text, known)
    found = {}
    for host in hosts:
        own = {name: one for name, one in all_of[host].items() if not names or name in names}
        if not own:
            has = ", ".join(map(repr, all_of[host])) or "none"
            raise BadValue(
                f"{host} has no settings in the families that are asked for; of {path} it has {has}"
            )
        found[host] = own
    return found


def names_of(text: str, known: Sequence[str]) -> list[str]:
    """The families that a word of the command line names, joined by commas.

    A comma with a blank may be part of a name.

    Raises:
        BadValue: an unknown one.

    >>> names_of("b,a, far", ["a", "a, far", "b"])
    ['b', 'a, far']
    """
    names: list[str] = []
    if text and not listed(text):
        raise BadValue(f"--families is {text!r}; name some of {', '.join(map(repr, known))}")
    for piece in filter(None, re.split(r",(?! )", text)):
        names += [piece] if piece in known else filter(None, map(str.strip, piece.split(",")))
    for name in names:
        if name not in known:
            raise BadValue(
                f"--families names {name!r}{did_you_mean(name, known)}; configs/study.yaml has "
                f"{', '.join(map(repr, known))}"
            )
    return names


def check_names(args: argparse.Namespace) -> None:
    """Refuse studies, datasets and folders that are not there.

    Raises:
        UserError: the first of them.
    """
    known = [CALIBRATION, *PROJECT.hosts]
    for name in args.studies:
        if name not in known:
            raise BadValue(
                f"there is no study {name!r}{did_you_mean(name, known)}; use {', '.join(known)}"
            )
    for name in args.datasets:
        PROJECT.dataset_config(name)
    for name in args.choose_on:
        if name not in args.datasets:
            raise BadValue(
                f"--choose-on names {name!r}{did_you_mean(name, args.datasets)}; use some of the "
                f"datasets: {', '.join(args.datasets)}"
            )
    if args.tables_only:
        return
    rendered = [name for name in args.datasets if name in PROJECT.rendered_datasets]
    for folder in (args.data, *(osp.join(args.data, name) for name in rendered)):
        if not osp.isdir(folder):
            raise NotFound(
                f"--data: there is no folder {folder}; python -m datasets.bundled --root "
                f"{args.data} makes it"
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Run studies and print their tables; returns the exit code, 1 if a run failed."""
    args = arguments(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what runs ends with us
    check_names(args)
    hosts = [name for name in args.studies if name != CALIBRATION]
    families = families_of(hosts, args.families, STUDY)
    runs = Runs(args.datasets, args.seeds, osp.abspath(args.data), osp.abspath(args.output))
    code, lines = 0, []
    for name in dict.fromkeys(args.studies):
        if name == CALIBRATION:
            failed, rows = calibrate(runs, args)
        else:
            failed, rows = search(name, families[name], runs, args)
        code |= failed
        lines += rows
    if args.csv:
        write_csv(args.csv, lines, runs.output)
    return code


def write_csv(path: str, lines: list[RunRow], output: str) -> None:
    """Write the runs of all studies, unrounded.

    Raises:
        NotFound: there are none.
        CannotWrite: the file cannot be written.
    """
    if not lines:
        raise NotFound(f"--csv {path}: {output} has no complete runs; leave --tables-only out")
    write_text(path, csv_of(lines))
    print(f"Wrote {path}")


if __name__ == "__main__":
    show_user_errors()
    sys.exit(main())
