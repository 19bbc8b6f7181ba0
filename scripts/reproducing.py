"""The paper's base-to-new table: what scripts/run.py does for the protocol ``reproduce``.

Look over data and weights, choose the settings of every run with a regulariser (scripts/select.sh),
run everything with them, and print verdicts beside the published figures.
"""

from __future__ import annotations

import contextlib
import io
import os.path as osp
import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable

import torch
from bench import evaluation, random_weights, step, trainer_on_memory

from datasets.check import examine, registered_readers, resolve
from datasets.classes import held_out
from proxyfda.backbones.clip.architectures import architecture_name
from proxyfda.backbones.clip.loading import weights_file
from proxyfda.experiments import launchers, layout, protocols, sweep
from proxyfda.experiments.config import load_config
from proxyfda.experiments.estimate import Price, Size, estimate, works
from proxyfda.experiments.jobs import Job
from proxyfda.experiments.project import Project
from proxyfda.names import is_regularised, is_zero_shot
from proxyfda.results import verdicts
from proxyfda.utils.errors import NotFound

LABEL = "selected"  # folder of the runs with chosen settings, which differ by dataset
SELECT_SEED = "1"
PROBED = (10, 100)  # classes; two numbers make a line


def reproduce(
    args: Namespace,
    project: Project,
    prepare: Callable[[], dict],
    call: Callable[[list[str]], int],
    select_jobs: Callable[[list[str]], list[Job]],
) -> int:
    """Run the protocol; returns the exit code.

    Args:
        args: of scripts/run.py.
        prepare: makes what the datasets need, and gives the keyword arguments of ``sweep.run``.
        call: scripts/run.py with a command line.
        select_jobs: the jobs of a command line of the protocol select.

    Raises:
        UserError: data or weights are missing, or an option is wrong; before anything runs.
    """
    plan = Plan(args, project)
    if args.estimate:
        _show_estimate(args, plan, select_jobs)
        return 0
    if args.dry_run:
        code = 0
        for words in plan.selections():
            code |= call([*words, "--dry-run"])
        return code | sweep.run(plan.final_jobs(), dry_run=True)
    where = prepare()
    plan.check()
    code = 0
    for words in plan.selections():
        code |= call(words)
    # What has no choice is left out, and its cells are missing.
    code |= sweep.run(plan.final_jobs(only_chosen=True), **where)
    print(f"\n{verdicts.report(args.output, args.runs, plan.names)}")
    return code


class Plan:
    """What there is to run.

    Attributes:
        names: the datasets, as their folders in the output are called.
    """

    def __init__(self, args: Namespace, project: Project):
        self.args, self.project = args, project
        self.names = [project.dataset_name(dataset) for dataset in args.datasets]

    # -- choosing ---------------------------------------------------------------------------------

    def choice(self, run: str, dataset: str) -> str:
        """Path of the choice of a run on a dataset, which may not be there yet."""
        folder = layout.selection(self.project.dataset_name(dataset), self.args.shots[0], run)
        return osp.join(self.args.output, folder, layout.CHOICE)

    def selections(self) -> list[list[str]]:
        """Command lines of the protocol select, one for each run that lacks choices."""
        args = self.args
        if not args.select:
            return []
        found = []
        for run in filter(is_regularised, args.runs):
            lacking = [d for d in args.datasets if not osp.isfile(self.choice(run, d))]
            if lacking:
                words = ["select", run, ",".join(lacking), str(args.shots[0]), *args.opts]
                words += ["--no-final", "--seeds", SELECT_SEED]
                words += ["--data", args.data, "--output", args.output]
                found.append([*words, *_place(args)])
        return found

    # -- running ----------------------------------------------------------------------------------

    def final_jobs(self, only_chosen: bool = False) -> list[Job]:
        """All trainings and tests on base and new classes."""
        args = self.args
        jobs: dict[str, Job] = {}
        for seed in args.seeds:
            for run in args.runs:
                if is_zero_shot(run) and seed != args.seeds[0]:
                    continue
                for dataset in args.datasets:
                    more: dict[str, str] = {"overlay": args.overlay, "label": args.label}
                    if args.select and is_regularised(run):
                        path = self.choice(run, dataset)
                        there = osp.isfile(path)
                        if only_chosen and not there:
                            continue
                        more = {"overlay": path if there else "", "label": LABEL}
                    for job in self._jobs(run, dataset, seed, more):
                        jobs.setdefault(job.folder, job)
        return list(jobs.values())

    def _jobs(self, run: str, dataset: str, seed: int, more: dict) -> list[Job]:
        args = self.args
        return protocols.base2new_jobs(
            run,
            dataset,
            seed,
            shots=args.shots[0],
            project=self.project,
            data=args.data,
            output=args.output,
            cfg=args.cfg,
            opts=args.opts,
            **more,
        )

    # -- what it needs ----------------------------------------------------------------------------

    def check(self) -> None:
        """Refuse data and weights that are not there, before anything runs.

        Raises:
            NotFound: naming all datasets that are missing or lack images, or the weights.
        """
        faults = []
        for name in self._benchmarks():
            report = self._examined(name)
            if not report.found or report.classes is None or report.missing:
                faults.append(report.faults[0])
            else:
                for fault in report.faults:  # other numbers than those of the complete data
                    print(f"{report.dataset}: {fault}; it cannot reproduce the published figures")
        if faults:
            raise NotFound(
                f"{len(faults)} of {len(self.names)} datasets are not usable: {'; '.join(faults)}; "
                "docs/DATASETS.md says how to get them, python -m datasets.check shows all"
            )
        for backbone in {self._backbone(job) for job in self.final_jobs()}:
            name, weights = backbone
            weights_file(name, architecture_name(name), weights)

    def _benchmarks(self) -> list[str]:
        """Datasets that have a place below the data folder."""
        bundled = self.project.rendered_datasets
        own = self.project.dataset_has_root
        return [d for d in self.args.datasets if d not in bundled and not own(d)]

    def _reader(self, dataset: str):
        readers = registered_readers()
        return readers[resolve(self.project.dataset_name(dataset), readers)]

    def _examined(self, dataset: str):
        return examine(self._reader(dataset), self.args.data)

    @staticmethod
    def _backbone(job: Job) -> tuple[str, str]:
        backbone = load_config(job.parsed()).MODEL.BACKBONE
        return backbone.NAME, backbone.WEIGHTS

    def size(self, dataset: str) -> Size:
        """Numbers of a dataset: of what is there, otherwise of the complete data.

        Raises:
            NotFound: neither is known.
        """
        reader = self._reader(dataset)
        if self.args.data and osp.isdir(self.args.data):
            report = self._examined(dataset)
            if report.classes:
                return _size(report)
        if reader.expected is None:
            raise NotFound(f"{dataset} is not in {self.args.data}; give its folder to estimate it")
        return _size(reader.expected)


def _size(numbers) -> Size:
    # Where there are no validation images, training images stand in for them.
    of_a_class = numbers.train // numbers.classes
    val = numbers.val or numbers.classes * held_out(of_a_class)
    return Size(numbers.classes, numbers.train, val, numbers.test)


def _place(args: Namespace) -> list[str]:
    """Flags that say where jobs run."""
    words = ["--workers", str(args.workers), "--launcher", args.launcher]
    words += ["--devices", args.devices] if args.devices else []
    words += ["--cfg", args.cfg] if args.cfg else []
    return words + [word for pair in args.launcher_opt for word in ("--launcher-opt", pair)]


# -- the estimate ---------------------------------------------------------------------------------


def _show_estimate(args: Namespace, plan: Plan, select_jobs: Callable) -> None:
    sizes: dict[str, Size] = {}

    def size_of(config: str) -> Size:
        if config not in sizes:
            sizes[config] = plan.size(config)
        return sizes[config]

    # Trainers with FDA and Proxy-FDA are compared with one plain one.
    each = (job for words in plan.selections() for job in select_jobs(words))
    chosen = list({job.folder: job for job in each}.values())
    parts, example = {}, {}
    for part, jobs in (("choosing", chosen), ("final", plan.final_jobs())):
        todo = [job for job in jobs if not job.complete]
        found = works(todo, size_of)
        if found:
            parts[part] = found
        for job, work in zip(todo, found):
            if work.steps or is_zero_shot(work.run):
                example.setdefault(work.run, job)
    runs = dict.fromkeys(work.run for found in parts.values() for work in found)
    if not runs:
        print("everything is complete")
        return
    if args.seconds_per_step:
        prices = {run: _given(args.seconds_per_step, example[run]) for run in runs}
        print(f"{args.seconds_per_step:g} s a step, an image of a test as much as one of a step")
    else:
        with contextlib.redirect_stdout(io.StringIO()):
            prices = {run: probe(example[run]) for run in runs}
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "this CPU"
        print(f"measured on {device} with {' and '.join(map(str, PROBED))} classes; at 50 classes")
        for run, price in prices.items():
            step, image = (a + 50 * b for a, b in (price.step, price.image))
            print(
                f"  {run}: {step:.3f} s a step, {1000 * image:.2f} ms an image of a test, "
                f"{price.build:.0f} s to begin"
            )
    at_once = launchers.at_once(args.launcher, args.workers, args.devices)
    print(estimate(parts, prices, at_once))
    if not args.seconds_per_step:
        print(
            "Images were in memory: where reading them from disk cannot keep up, it takes longer. "
            "Tests of CoOp, CoCoOp and zero-shot CLIP encode an image once for all runs; that is "
            "left out, and they take less."
        )


def _given(seconds: float, job: Job) -> Price:
    cfg = load_config(job.parsed())
    return Price((seconds, 0.0), (seconds / cfg.DATALOADER.TRAIN_X.BATCH_SIZE, 0.0), 0.0)


def probe(job: Job, rounds: int = 3) -> Price:
    """Price of a run: steps and tests of its trainer with its own config, on images in memory.

    The weights are those of the config, or random ones of that size where they are not there.
    """
    cfg = load_config(job.parsed())
    cfg.defrost()
    backbone = cfg.MODEL.BACKBONE
    points, builds = [], []
    with tempfile.TemporaryDirectory() as folder:
        try:
            weights_file(backbone.NAME, architecture_name(backbone.NAME), backbone.WEIGHTS)
        except NotFound:
            backbone.WEIGHTS = random_weights(backbone.NAME, folder)
        for classes in PROBED:
            start = time.perf_counter()
            trainer = trainer_on_memory(cfg, classes)
            builds.append(time.perf_counter() - start)
            batch = next(iter(trainer.train_loader_x))
            images = torch.randn(
                cfg.DATALOADER.TEST.BATCH_SIZE, *batch["img"].shape[1:], device=trainer.device
            )
            steps = [0.0]
            if not is_zero_shot(cfg.TRAINER.NAME):
                steps = _seconds(lambda t=trainer, b=batch: step(t, b), rounds)
            trainer.set_model_mode("eval")
            tests = _seconds(lambda t=trainer, i=images: evaluation(t, i), rounds)
            found = statistics.median(steps), statistics.median(tests) / len(images)
            points.append((classes, *found))
    return Price.through(*points, statistics.median(builds))


def _seconds(job: Callable[[], None], rounds: int) -> list[float]:
    """Seconds of each round, after one that warms up."""
    found = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        job()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return found[1:]
