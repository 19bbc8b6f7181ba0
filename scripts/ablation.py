"""The study behind docs/ablation.md: ``python scripts/ablation.py calibration|HOST ... --data DATA``.

``calibration`` runs methods that are not ours on the bundled benchmark and prints their new accuracy
relative to zero-shot CLIP beside what is published. A host trainer (CoOp, ...) compares the
families of ``configs/study.yaml``: every setting of a family is trained and tested on halves of the
base classes (validation images), the best of each by the rule of docs/selection.md is taken for all
datasets together, and what is taken is trained on all base classes and tested on base and new
classes (test images), beside the plain trainer with the same seeds.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os.path as osp
import statistics
import sys
from dataclasses import dataclass, replace

import yaml
from tabulate import tabulate

ROOT = osp.dirname(osp.dirname(osp.abspath(__file__)))
sys.path[:0] = [] if ROOT in sys.path else [ROOT]  # it is started from anywhere

from counts import count, seeds

from proxyfda.experiments import grid, layout
from proxyfda.experiments.candidates import Candidate, candidates, plain_candidate
from proxyfda.experiments.jobs import Job
from proxyfda.experiments.project import Project
from proxyfda.experiments.protocols import base2new_jobs, select_jobs
from proxyfda.experiments.sweep import run
from proxyfda.names import REFERENCE, split_run_name
from proxyfda.results import selection
from proxyfda.results.metrics import harmonic_mean
from proxyfda.utils.errors import BadValue, NotFound, show_user_errors

PROJECT = Project(ROOT, entry="train")
STUDY = osp.join(ROOT, "configs", "study.yaml")
CALIBRATION = "calibration"
SHOTS = 16

PUBLISHED = {"CoOp": -10.99, "CoCoOp": -2.53, "KgCoOp": -0.62, "MaPLe": 0.92, "PromptSRC": 1.88}
"""New accuracy minus zero-shot CLIP's (74.22), in points, average of the 11 benchmarks with
ViT-B/16 and 16 shots: Zhou et al., CVPR 2022; Yao et al., CVPR 2023; Khattak et al., CVPR and ICCV
2023, each from its table of base-to-new generalisation."""

KGCOOP = Candidate("KgCoOp", "CoOp+pointwise", (("TRAINER.PROXYFDA.WEIGHT", "8"),))
"""CoOp with the pull on class texts and the weight of KgCoOp (Yao et al., CVPR 2023)."""


# -- what is compared -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """Settings of which one is chosen."""

    name: str
    settings: tuple[Candidate, ...]


def families(host: str, path: str = STUDY) -> list[Family]:
    """The families of a host; those that have no settings for it are left out."""
    with open(path, encoding="utf-8") as file:
        content = yaml.safe_load(file)
    found = []
    for name, grids in content.items():
        settings: list[Candidate] = []
        for one in grids:
            if host not in one.get("hosts", [host]):
                continue
            tries = {k: list(map(str, v)) for k, v in one.items() if k.isupper()}
            settings += candidates(host, PROJECT, regularisers=[one["regulariser"]], tries=tries)
        if settings:
            found.append(Family(name, tuple(settings)))
    return found


class Runs:
    """Where the runs of settings are, and what they gave.

    Args:
        datasets, seeds: what every setting is run on.
        data, output: folders of the datasets and of the results.
    """

    def __init__(self, datasets: list[str], seeds: list[int], data: str, output: str) -> None:
        self.datasets, self.seeds = datasets, seeds
        self.output = output
        self.where = {"project": PROJECT, "data": data, "output": output}

    # -- on halves of the base classes ------------------------------------------------------------

    def halves(self, settings: list[Candidate], splits: int) -> list[Job]:
        """Trainings and tests of settings on halves of the base classes, with the first seed."""
        return [
            job
            for dataset, split in itertools.product(self.datasets, range(1, splits + 1))
            for job in select_jobs(
                settings, dataset, split, self.seeds[0], shots=SHOTS, **self._with_cfg(settings, dataset)
            )
        ]

    def _with_cfg(self, settings: list[Candidate], dataset: str) -> dict:
        host = split_run_name(settings[0].run)[0]
        name = self.where["project"].dataset_name(dataset)
        return {**self.where, "cfg": PROJECT.default_config(host, name, "base2new", SHOTS)}

    def chosen(self, plain: Candidate, settings: list[Candidate], splits: int) -> list:
        """The rows of :func:`selection.rows_of`, each setting the mean over the datasets."""
        found = selection.read(self.output)
        measured = []
        for one in (plain, *settings):
            each = []
            for dataset in self.datasets:
                job = select_jobs(
                    [one], dataset, 1, self.seeds[0], shots=SHOTS, **self._with_cfg([one], dataset)
                )[0]
                place = layout.parse(job.folder)
                key = (place.dataset, place.shots, place.name, place.config)
                each.append(found.get(key, selection.Measured(place.name, place.config)))
            measured.append(replace(selection.average(each), label=one.label))
        wanted = [(split, self.seeds[0]) for split in range(1, splits + 1)]
        return selection.rows_of(measured[0], measured[1:], wanted)

    # -- on base and new classes ------------------------------------------------------------------

    def base2new(self, one: Candidate, dataset: str, seed: int) -> list[Job]:
        """Training and tests of one setting; the last two are base and new."""
        variant = one if one.options else None
        return base2new_jobs(
            one.run, dataset, seed, shots=SHOTS, variant=variant, **self._with_cfg([one], dataset)
        )

    def all_base2new(self, settings: list[Candidate]) -> list[Job]:
        """The same for many, on all datasets with all seeds."""
        return [
            job
            for one in settings
            for dataset, seed in itertools.product(self.datasets, self.seeds)
            for job in self.base2new(one, dataset, seed)
        ]

    def measured(self, one: Candidate) -> dict[tuple[str, int], tuple[float, float]]:
        """(dataset, seed) -> (base, new) accuracy on test images, of what is complete."""
        found = {}
        for key in itertools.product(self.datasets, self.seeds):
            base, new = self.base2new(one, *key)[-2:]
            if base.complete and new.complete:
                found[key] = (base.result["accuracy"], new.result["accuracy"])
        return found


# -- tables ---------------------------------------------------------------------------------------


def difference(values: list[float]) -> tuple[float, float]:
    """Mean and standard error over runs; the error of one run is not a number."""
    if len(values) < 2:
        return statistics.fmean(values), math.nan
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))


def written(values: list[float]) -> str:
    """``+1.2 ± 0.3``, or the mean alone of one run."""
    mean, error = difference(values)
    return f"{mean:+.1f}" if math.isnan(error) else f"{mean:+.1f} ± {error:.1f}"


def gaps(found: dict, reference: dict, number) -> list[float]:
    """Run by run, how much more a setting has of ``number(base, new)`` than the reference."""
    return [number(*found[key]) - number(*reference[key]) for key in sorted(set(found) & set(reference))]


def base(base_accuracy: float, _: float) -> float:
    """Accuracy on base classes of a run."""
    return base_accuracy


def new(_: float, new_accuracy: float) -> float:
    """Accuracy on new classes of a run."""
    return new_accuracy


def averages(found: dict) -> list[str]:
    """Mean base and new accuracy and the mean of the runs' harmonic means."""
    values = [statistics.fmean(number(*pair) for pair in found.values()) for number in (base, new, harmonic_mean)]
    return [f"{value:.1f}" for value in values]


def table(rows: list[tuple[str, str, dict]], plain: dict, pointwise: dict) -> str:
    """Markdown of (family, setting, what it gave): averages, and differences run by run."""
    cells = []
    for name, setting, found in rows:
        if not set(found) & set(plain):
            cells.append([name, setting, *["missing"] * 7])
            continue
        note = "" if len(found) == len(plain) else f" ({len(found)} of {len(plain)} runs)"
        cells.append(
            [name + note, setting, *averages(found)]
            + [written(gaps(found, plain, number)) for number in (base, new, harmonic_mean)]
            + [written(gaps(found, pointwise, harmonic_mean)) if set(found) & set(pointwise) else ""]
        )
    headers = ["family", "chosen", "base", "new", "H", "base - plain", "new - plain", "H - plain",
               "H - pointwise"]  # fmt: skip
    return tabulate(cells, headers, tablefmt="github", disable_numparse=True)


def holds(found: dict, plain: dict, pointwise: dict) -> bool:
    """Whether a setting may be claimed to help: H above plain and above the point-wise pull by more
    than two standard errors, and base not below plain by more than one."""
    for reference in (plain, pointwise):
        mean, error = difference(gaps(found, reference, harmonic_mean))
        if not mean > 2 * error:
            return False
    mean, error = difference(gaps(found, plain, base))
    return mean >= -error


# -- the studies ----------------------------------------------------------------------------------


def calibrate(runs: Runs, workers: int, tables_only: bool) -> int:
    """Methods that are not ours, beside what is published of them."""
    methods = [Candidate(REFERENCE, REFERENCE), *map(plain_candidate, ("CoOp", "CoCoOp"))]
    methods += [KGCOOP, *map(plain_candidate, ("MaPLe", "PromptSRC"))]
    jobs = runs.all_base2new(methods)
    code = 0 if tables_only else run(jobs, workers=workers)
    zero = runs.measured(methods[0])
    cells = []
    for one in methods:
        name = one.run if one.label == "plain" else one.label
        found = runs.measured(one)
        if not found:
            cells.append([name, *["missing"] * 5])
            continue
        published = f"{PUBLISHED[name]:+.1f}" if name in PUBLISHED else ""
        lost = written(gaps(found, zero, new)) if name in PUBLISHED else ""
        cells.append([name, *averages(found), lost, published])
    headers = ["method", "base", "new", "H", "new - zero-shot", "published"]
    print(tabulate(cells, headers, tablefmt="github", disable_numparse=True))
    for one in methods[1:]:
        name = one.run if one.label == "plain" else one.label
        found = runs.measured(one)
        each = [
            f"{dataset} {written(gaps({k: v for k, v in found.items() if k[0] == dataset}, zero, new))}"
            for dataset in runs.datasets if any(k[0] == dataset for k in found)
        ]  # fmt: skip
        print(f"{name}: {', '.join(each)}")
    return code


def search(host: str, runs: Runs, args: argparse.Namespace) -> int:
    """Choose within each family, run what is chosen, and print both tables."""
    plain = plain_candidate(host)
    found = [f for f in families(host) if not args.families or f.name in args.families]
    settings = list(dict.fromkeys(one for family in found for one in family.settings))
    code = 0
    halves = Runs(args.choose_on or runs.datasets, runs.seeds, runs.where["data"], runs.output)
    if not args.tables_only:
        jobs = halves.halves([plain, *settings], args.splits)
        grid.join(jobs)
        code = run(jobs, workers=args.workers)
    rows = halves.chosen(plain, settings, args.splits)
    by_label = {row.label: row for row in rows}
    taken: list[tuple[str, Candidate]] = []
    for family in found:
        best = selection.choose([by_label[one.label] for one in family.settings])
        if best is not None:
            one = next(one for one in family.settings if one.label == best.label)
            taken.append((family.name, one))
    print(selection.table(rows, f"{host} on halves of the base classes", f"{args.splits} splits"))
    everything = [plain, *(settings if args.predict else [one for _, one in taken])]
    if not args.tables_only:
        jobs = runs.all_base2new([Candidate(REFERENCE, REFERENCE), *dict.fromkeys(everything)])
        grid.join(jobs)
        code |= run(jobs, workers=args.workers)
    reference = runs.measured(plain)
    pointwise = next((runs.measured(one) for name, one in taken if name == "pointwise"), {})
    lines = [("plain", "", reference)]
    lines += [(name, one.label, runs.measured(one)) for name, one in taken]
    print(f"\n{table(lines, reference, pointwise)}")
    for name, one in taken:
        if name != "pointwise" and holds(runs.measured(one), reference, pointwise):
            print(f"{host}: {name} holds ({one.label})")
    if args.predict:
        pairs = [
            (by_label[one.label].h, statistics.fmean(harmonic_mean(*v) for v in runs.measured(one).values()))
            for one in settings if by_label[one.label].h is not None and runs.measured(one)
        ]  # fmt: skip
        from scipy.stats import spearmanr

        print(f"rank correlation over {len(pairs)} settings: {spearmanr(pairs).statistic:+.2f}")
    return code


def main() -> int:
    """Run studies and print their tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("studies", nargs="+", choices=[CALIBRATION, *PROJECT.hosts], metavar="STUDY")
    add("--data", required=True, help="folder with the bundled datasets")
    add("--output", default="output/ablation", help="where the runs are kept")
    add("--datasets", default="", help="names joined by commas (default: atlas)")
    add("--choose-on", default="", help="datasets whose base classes choose (default: all)")
    add("--families", default="", help="names joined by commas (default: all of configs/study.yaml)")
    add("--seeds", type=seeds, default="1,2,3", help="joined by commas")
    add("--splits", type=count, default=2, help="of the base classes into halves")
    add("--predict", action="store_true", help="test every setting on the new classes as well")
    add("--workers", type=count, default=2, help="jobs at a time")
    add("--tables-only", action="store_true", help="print what is there, run nothing")
    args = parser.parse_args()
    args.choose_on = [name for name in args.choose_on.split(",") if name]
    args.families = [name for name in args.families.split(",") if name]
    if not osp.isdir(args.data):
        raise NotFound(
            f"--data: there is no folder {args.data}; python -m datasets.bundled --root "
            f"{args.data} makes it"
        )
    known = {family.name for host in PROJECT.hosts for family in families(host)}
    for name in args.families:
        if name not in known:
            raise BadValue(f"--families names {name!r}; configs/study.yaml has {', '.join(known)}")
    datasets = args.datasets.split(",") if args.datasets else PROJECT.bundled_datasets
    runs = Runs(datasets, args.seeds, osp.abspath(args.data), osp.abspath(args.output))
    code = 0
    for name in args.studies:
        if name == CALIBRATION:
            code |= calibrate(runs, args.workers, args.tables_only)
        else:
            code |= search(name, runs, args)
    return code


if __name__ == "__main__":
    show_user_errors()
    sys.exit(main())
