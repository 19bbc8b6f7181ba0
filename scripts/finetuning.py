"""Tuning end to end: what scripts/run.py does for ``finetune``, ``forgetting`` and ``continual``.

Look over the data, tune and probe on validation images to choose λ and α, write the choice, and
probe what was chosen on test images (:mod:`proxyfda.experiments.finetuning`; the rule is in
:mod:`proxyfda.experiments.strengths`). Tasks in a row take one λ, without a choice.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import os.path as osp
from argparse import Namespace
from collections.abc import Callable

from datasets.check import examine, registered_readers
from proxyfda.benchmarks import FINETUNE
from proxyfda.dassl import build_dataset
from proxyfda.experiments import finetuning, layout, sweep
from proxyfda.experiments.config import load_config
from proxyfda.experiments.jobs import Job
from proxyfda.experiments.project import Project
from proxyfda.experiments.strengths import (
    ALPHA,
    MARGIN,
    WEIGHT,
    Strengths,
    Tried,
    check_values,
    choose,
    kind_of,
    measure,
    strengths_of,
)
from proxyfda.integrations.dassl_options import NODE
from proxyfda.names import METHODS, finetune_run, method_title, split_run_name
from proxyfda.regularisers import find
from proxyfda.results.selection import overlay_text
from proxyfda.utils.errors import BadValue, NotFound
from proxyfda.utils.files import write_text
from proxyfda.utils.words import listed

PAPER = ("naive", "LP-FT", "WiSE-FT", "L2SP", "LDIFS", "RKD", "FDA", "Proxy-FDA")
"""Methods of the paper's first table, and what it names besides."""
TUNED = ("bundled_shapes", "bundled_fabrics", "bundled_grounds")
"""What is tuned on where the bundled datasets are asked for."""
PROBED = (
    *TUNED, "bundled_colours", "bundled_textures", "bundled_toys",
    "bundled_fruits", "bundled_creatures",
)  # fmt: skip
"""What is probed then. A quarter of an hour on two cores is not enough for more of either."""
GRID, DEFAULT = "grid", "default"


# -- the command line -----------------------------------------------------------------------------


def take(args: Namespace, project: Project) -> None:
    """Sort out the words of the command line: runs, datasets, what to probe and what to choose.

    Raises:
        UserError: one of them makes no sense.
    """
    if args.regulariser:
        raise BadValue(
            f"--regulariser {args.regulariser} is for trainers; name the method "
            f"FineTune+{args.regulariser}"
        )
    args.runs = _runs(args, project)
    args.datasets = _datasets(args.row or args.datasets or ",".join(FINETUNE), project)
    names = [project.dataset_name(dataset) for dataset in args.datasets]
    rendered = set(names) <= set(project.rendered_datasets)
    if args.row:
        finetuning.check_row(args.datasets, project)
    asked = [
        PROBED if word == "bundled" else [word]
        for word in listed(args.probes or ("bundled" if rendered else ",".join(FINETUNE)))
    ]
    args.probes = _once([dataset for group in asked for dataset in group], project)
    if not args.row:
        for dataset in args.datasets:
            finetuning.probed_datasets(dataset, args.probes, project)
    if args.anchor and args.protocol != "continual":
        raise BadValue("--anchor is for continual; leave it out")
    if not args.workers and rendered and not args.devices and args.launcher in ("", "local"):
        args.workers = str(min(2, os.cpu_count() or 1))
    if f"{NODE}.WEIGHT" in args.opts[::2]:
        raise BadValue(f"{NODE}.WEIGHT is said by LAMBDAS (--lambdas); give it there")
    for kind, words in ((WEIGHT, args.lambdas), (ALPHA, args.alphas)):
        if words not in (GRID, DEFAULT):
            check_values(kind, listed(words))
    for run in args.runs:
        _strengths(args, project, run)


def _runs(args: Namespace, project: Project) -> list[str]:
    words = listed(args.method or args.methods or "all")
    if args.methods and args.protocol != "forgetting":
        raise BadValue(f"--methods is for forgetting; {args.protocol} is given METHOD")
    runs: list[str] = []
    for word in words:
        if word == "all":
            runs += [METHODS[title] for title in PAPER]
        elif finetuning.is_prompt_run(word, project):
            if args.protocol != "continual":
                raise BadValue(f"{word} learns prompts; run it over a row of tasks by continual.sh")
            runs.append(word)
        else:
            runs.append(finetune_run(word))
    for run in runs:
        if kind_of(run) == WEIGHT:
            find(split_run_name(run)[1])
    return list(dict.fromkeys(runs))


def _datasets(words: str, project: Project) -> list[str]:
    each = [TUNED if word == "bundled" else [word] for word in listed(words)]
    return [dataset for group in each for dataset in group]


def _once(datasets: list[str], project: Project) -> list[str]:
    """Each dataset once, however it is spelled."""
    return list({project.dataset_name(dataset): dataset for dataset in datasets}.values())


def _strengths(args: Namespace, project: Project, run: str) -> Strengths | None:
    """What can be set of a run, with one value where there is no choice."""
    kind = kind_of(run)
    words = (args.alphas if kind == ALPHA else args.lambdas) if kind else ""
    if finetuning.is_prompt_run(run, project):
        # Prompts are given a λ by their config, which the choice of another protocol may be.
        if len(listed(words)) > 1:
            raise BadValue(f"LAMBDAS is {words!r}; {run} over a row of tasks takes one")
        return None
    words = words or (GRID if args.protocol == "forgetting" else DEFAULT)
    given = [] if words in (GRID, DEFAULT) else listed(words)
    found = strengths_of(run, project, given)
    if found and words == DEFAULT:
        found = Strengths(kind, found.default, (found.default,))
    if found and args.protocol == "continual" and len(found.values) > 1:
        name = "ALPHAS" if kind == ALPHA else "LAMBDAS"
        raise BadValue(f"{name} is {words!r}; continual takes one value for the whole row")
    return found


# -- running --------------------------------------------------------------------------------------


def finetune(
    args: Namespace,
    project: Project,
    prepare: Callable[[], dict],
    show: Callable[[list[Job]], None],
) -> int:
    """Run the protocol; returns the exit code.

    Args:
        args: of scripts/run.py.
        prepare: makes what the datasets need, and gives the keyword arguments of ``sweep.run``.
        show: prints the tables of the results.

    Raises:
        UserError: data are missing, or an option is wrong; before anything runs.
    """
    plan = Row(args, project) if args.row else Plan(args, project)
    if args.dry_run:
        code = sweep.run(plan.known_jobs(), dry_run=True)
        if plan.choosing:
            print("then: the choice of λ and α, and what was chosen on test images")
        return code
    where = prepare()
    plan.check_data()
    code = sweep.run(plan.known_jobs(), **where)
    jobs = plan.known_jobs()
    if plan.choosing:
        final, undecided = plan.choose()
        code |= undecided
        code |= sweep.run(final, **where) if final else 0
        jobs += final
    show(jobs)
    return int(code)


class _Work:
    """What there is to run on the datasets of a command line."""

    choosing: dict = {}

    def __init__(self, args: Namespace, project: Project):
        self.args, self.project = args, project
        keys = ("data", "output", "cfg", "overlay", "label", "opts")
        self.where = {"project": project, **{key: getattr(args, key) for key in keys}}
        shots = {"shots": args.shots[0]} if args.shots else {}
        self.where.update(shots)

    def known_jobs(self) -> list[Job]:
        """All jobs that do not depend on a choice."""
        raise NotImplementedError

    def check_data(self) -> None:
        """Refuse datasets that are not there or have no validation images, before anything runs.

        Raises:
            NotFound: naming all that are missing or lack images.
            BadValue: a dataset to tune on has no validation images.
        """
        if all(job.complete for job in self.known_jobs()):
            return
        missing = self._missing()
        if missing:
            told = "; ".join(missing.values())
            count = f"{len(missing)} of {len(self._used())} datasets are not usable: {told}"
            tuned = [d for d in self.args.datasets if self.project.dataset_name(d) in missing]
            if not self.args.skip_missing or (self.args.row and tuned):
                raise NotFound(
                    f"{count}; docs/DATASETS.md says how to get them, --skip-missing goes on "
                    "without them (but for tasks of a row)"
                )
            print(f"{count}; going on without them", flush=True)
            self._leave_out(set(missing))
        for dataset in self.args.datasets:
            self._check_validation(dataset)

    def _used(self) -> list[str]:
        return _once([*self.args.datasets, *self.args.probes], self.project)

    def _missing(self) -> dict[str, str]:
        """Name of a dataset -> what is wrong with it."""
        found = {}
        readers = registered_readers()
        for dataset in self._used():
            name = self.project.dataset_name(dataset)
            if name in self.project.rendered_datasets or self.project.dataset_has_root(dataset):
                continue
            reader = readers[self.project.dataset_reader(dataset)]
            report = examine(reader, self.args.data)
            if not report.found or report.classes is None or report.missing:
                found[name] = report.faults[0]
        return found

    def _leave_out(self, names: set[str]) -> None:
        for key in ("datasets", "probes"):
            left = [d for d in getattr(self.args, key) if self.project.dataset_name(d) not in names]
            if not left:
                raise NotFound(f"none of the {key} is there; see docs/DATASETS.md")
            setattr(self.args, key, left)
        if not self.args.row:
            for dataset in self.args.datasets:
                finetuning.probed_datasets(dataset, self.args.probes, self.project)

    def _check_validation(self, dataset: str) -> None:
        where = {**self.where, "probes": self._used()}
        training, _ = finetuning.finetune_jobs(finetuning.NAIVE, dataset, 1, **where)
        training.module()  # registers the datasets
        with contextlib.redirect_stdout(io.StringIO()):
            built = build_dataset(load_config(training.parsed()))
        if not built.val:
            raise BadValue(
                f"{self.project.dataset_name(dataset)} has no validation images, by which "
                "trainings are judged; add a validation split (docs/DATASETS.md)"
            )


class Row(_Work):
    """Tasks in a row, for every method and seed."""

    def known_jobs(self) -> list[Job]:
        """See :meth:`_Work.known_jobs`."""
        args, jobs = self.args, {}
        for seed in args.seeds:
            for run in args.runs:
                more = {"probes": args.probes, **self.where}
                if finetuning.is_prompt_run(run, self.project):
                    if args.anchor:
                        raise BadValue(f"--anchor is for tuning end to end; leave it out for {run}")
                    make, strength = finetuning.prompt_row_jobs, args.lambdas
                else:
                    make, more["anchor"] = finetuning.continual_jobs, args.anchor
                    found = _strengths(args, self.project, run)
                    strength = found.values[0] if found else ""
                for job in make(run, args.datasets, seed, strength=strength, **more):
                    jobs.setdefault(job.folder, job)
        return list(jobs.values())


class Plan(_Work):
    """Every method on every dataset with every seed, with a choice where there are several values.

    Attributes:
        choosing: the runs with a choice and what they have to choose from.
    """

    def __init__(self, args: Namespace, project: Project):
        super().__init__(args, project)
        self.strengths = {run: _strengths(args, project, run) for run in args.runs}
        self.choosing = {
            run: found for run, found in self.strengths.items() if found and len(found.values) > 1
        }

    def _jobs(self, run: str, dataset: str, seed: int, **more) -> list[Job]:
        return finetuning.finetune_jobs(
            run, dataset, seed, probes=self.args.probes, **self.where, **more
        )

    def _pretrained(self, dataset: str, split: str) -> Job:
        where = {key: value for key, value in self.where.items() if key != "shots"}
        return finetuning.pretrained_job(dataset, self.args.probes, split=split, **where)

    def known_jobs(self) -> list[Job]:
        """See :meth:`_Work.known_jobs`: those to choose by, and those without a choice."""
        args = self.args
        jobs: dict[str, Job] = {}

        def add(*more: Job) -> None:
            for job in more:
                jobs.setdefault(job.folder, job)

        for split in (*(["val"] if self.choosing else []), "test"):
            add(*(self._pretrained(dataset, split) for dataset in args.datasets))
        for dataset in args.datasets:
            for seed in args.select_seeds if self.choosing else ():
                add(*self._jobs(finetuning.NAIVE, dataset, seed, split="val"))
                for run, found in self.choosing.items():
                    for value in found.values:
                        add(*self._jobs(run, dataset, seed, split="val", strength=value))
            for seed in args.seeds:
                for run in args.runs:
                    if run not in self.choosing:
                        found = self.strengths[run]
                        value = found.values[0] if found else ""
                        add(*self._jobs(run, dataset, seed, strength=value))
        return list(jobs.values())

    # -- the choice -------------------------------------------------------------------------------

    def choose(self) -> tuple[list[Job], bool]:
        """Print and write what is chosen; gives the jobs with it, and whether a choice failed."""
        jobs: dict[str, Job] = {}
        failed = False
        for dataset in self.args.datasets:
            for run, found in self.choosing.items():
                tried = self._tried(run, found, dataset)
                if not tried:
                    print(
                        f"{method_title(run)} on {self.project.dataset_name(dataset)}: no choice, "
                        "since runs of it failed",
                        flush=True,
                    )
                    failed = True
                    continue
                best = choose(tried[1:], tried[0].accuracy)
                final = [
                    job
                    for seed in self.args.seeds
                    for job in self._jobs(run, dataset, seed, strength=best.value, chosen=True)
                ]
                self._write(run, dataset, found, tried, best, final[1])
                for job in final:
                    jobs.setdefault(job.folder, job)
        return list(jobs.values()), failed

    def _tried(self, run: str, found: Strengths, dataset: str) -> list[Tried]:
        """The plain fine-tuning and every value on validation images; empty if some are missing."""
        before = self._pretrained(dataset, "val").result.get("probes")
        name = self.project.dataset_name(dataset)
        tried = []
        for method, value in [(finetuning.NAIVE, ""), *((run, value) for value in found.values)]:
            each = [
                self._jobs(method, dataset, seed, split="val", strength=value)[1].result
                for seed in self.args.select_seeds
            ]
            if not before or not all(each):
                return []
            tried.append(measure(value, name, [one["probes"] for one in each], before))
        return tried

    def _write(
        self, run: str, dataset: str, found: Strengths, tried: list[Tried], best: Tried, job: Job
    ) -> None:
        name, naive = self.project.dataset_name(dataset), tried[0]
        seeds = ", ".join(map(str, self.args.select_seeds))
        said = f"accuracy {best.accuracy:.2f} and Δ_LP {best.delta:+.2f}"
        plain = f"naive {naive.accuracy:.2f} and {naive.delta:+.2f}"
        print(
            f"{method_title(run)} on {name}: {found.symbol} {best.value} of "
            f"{', '.join(found.values)} ({said}; {plain}; validation)",
            flush=True,
        )
        place = layout.parse(job.folder)
        folder = osp.join(self.args.output, layout.finetune_choice(name, place.name, place.config))
        comment = [
            f"Chosen by scripts/{self.args.protocol}.sh for {method_title(run)} on {name}: "
            f"{found.symbol} {best.value} of {', '.join(found.values)}.",
            f"Of those within {MARGIN:g} point of naive's probe, the one that forgets least; "
            "if there is none,",
            f"the most accurate. On validation images, over seeds {seeds}: {said}; {plain}.",
        ]
        options = {}
        if found.kind == WEIGHT:
            regulariser = split_run_name(run)[1]
            options = {f"{NODE}.REGULARISER": regulariser, f"{NODE}.WEIGHT": float(best.value)}
            comment.append("It goes on top of the config: --overlay of the scripts.")
        else:
            comment.append(f"In train.py it is --alpha {best.value}, in the scripts ALPHAS.")
        write_text(osp.join(folder, layout.CHOICE), overlay_text(options, comment))
        lines = io.StringIO()
        table = csv.writer(lines, lineterminator="\n")
        table.writerow(["method", found.kind, "accuracy", "delta", "chosen"])
        for one in tried:
            title = method_title(run) if one.value else "naive"
            table.writerow([title, one.value, one.accuracy, one.delta, one is best])
        write_text(osp.join(folder, "table.csv"), lines.getvalue())
