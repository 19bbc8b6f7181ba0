"""Run a list of jobs with a launcher: skip what is complete, show progress, tell failures."""

from __future__ import annotations

import contextlib
import shlex
import sys
import threading
import time
from collections.abc import Callable

from proxyfda.experiments import launchers, layout
from proxyfda.experiments.jobs import BUSY, DONE, FAILED, UNTRAINED, InThisProcess, Job, Outcome
from proxyfda.experiments.lock import clear, holder
from proxyfda.experiments.time_left import MeasuredTimes, clock, seconds_of
from proxyfda.utils.errors import AlreadyExists, BadValue, sentence

RETRY = 5.0  # seconds between looks at what another sweep is running


def run(
    jobs: list[Job],
    *,
    workers: int = 1,
    dry_run: bool = False,
    strict: bool = False,
    launch: Callable[[list[launchers.Chain]], launchers.Ended] | None = None,
) -> int:
    """Run jobs; returns the exit code, 1 if any failed.

    Args:
        workers: without ``launch``, processes on the CPU; 1 runs the jobs in this process, which
            prints what they print.
        strict: end before anything runs where a folder holds a run with another config; for jobs
            that are to be compared with each other. Otherwise the others run.
        launch: where to run chains of jobs, see :mod:`proxyfda.experiments.launchers`.

    Raises:
        UserError: an option that the entry module does not know, before anything runs.
        AlreadyExists: with ``strict``, naming the first such folder.
    """
    failed: dict[str, str] = {}
    for job in jobs:
        why = UNTRAINED if job.after in failed else _mismatch(job, strict)
        if why:
            failed[job.folder] = why
    for job in jobs:
        if job.damage:
            print(f"{job.damage}; {job.name} is not complete and runs again", flush=True)
    if dry_run:
        _say_what_would_run(jobs, failed)
        return 1 if failed else 0
    for job in jobs:
        if job.complete:
            clear(job.folder)
    todo = [job for job in jobs if not job.complete and job.folder not in failed]
    if launch is None:
        launch = launchers.on_devices([launchers.CPU], workers, quiet=False)
    progress = _Progress(jobs)
    progress.start(len(todo))
    printed: set[str] = set()
    try:
        while todo:
            todo, reasons = _round(todo, launch, failed)
            for why in sorted(reasons - printed):
                print(f"waiting: {why}", flush=True)
            printed |= reasons
            if reasons:
                time.sleep(RETRY)
    finally:
        progress.stop()
    for job in jobs:
        if job.folder in failed:
            print(f"error: {job.name}: {failed[job.folder]}", file=sys.stderr)
    if failed:
        print(
            f"error: {len(failed)} of {len(jobs)} jobs failed; the same command runs them again",
            file=sys.stderr,
        )
    return 1 if failed else 0


def _round(todo: list[Job], launch: Callable, failed: dict[str, str]) -> tuple[list[Job], set[str]]:
    """Run jobs and note failures; gives the jobs of the next round, and what they wait for."""
    again: list[Job] = []
    reasons: set[str] = set()
    with contextlib.closing(launch(_chains(todo))) as ended:
        for chain, outcomes in ended:
            if isinstance(outcomes, str):
                outcomes = _of_dead_process(chain, outcomes)
            for job, outcome in zip(chain, outcomes):
                if outcome.status == FAILED:
                    failed[job.folder] = outcome.why
                elif outcome.status == BUSY:
                    again.append(job)
                    reasons.add(outcome.why)
    return again, reasons - {""}


def _of_dead_process(chain: list[Job], why: str) -> list[Outcome]:
    """The first job that is not complete is what the process died in, and those of its grid with
    it; later ones get a new one."""
    outcomes: list[Outcome] = []
    culprits: list[str] = []
    grid = ""
    for job in chain:
        if job.complete:
            outcomes.append(Outcome(DONE))
        elif not culprits or (grid and job.grid == grid):
            culprits.append(job.folder)
            grid = job.grid
            outcomes.append(Outcome(FAILED, why))
        elif job.after in culprits:
            outcomes.append(Outcome(FAILED, UNTRAINED))
        else:
            outcomes.append(Outcome(BUSY))
    return outcomes


def _chains(todo: list[Job]) -> list[launchers.Chain]:
    """Jobs in order, those of one grid together, and those that evaluate a training of the list
    together with it."""
    chains: dict[str, launchers.Chain] = {}
    chain_of: dict[str, str] = {}  # folder -> name of its chain
    for job in todo:
        name = chain_of.get(job.after) or (f"grid {job.grid}" if job.grid else job.folder)
        chain_of[job.folder] = name
        chains.setdefault(name, []).append(job)
    return list(chains.values())


def _mismatch(job: Job, strict: bool) -> str:
    """Why a job cannot be what its folder holds; empty if it can."""
    check = _folder_check(job)
    try:
        check()
    except (AlreadyExists, BadValue) as error:
        if strict:
            raise
        return sentence(error)
    return ""


def _folder_check(job: Job) -> Callable[[], None]:
    """What refuses the folder of a job where it holds another run.

    Raises:
        UserError: a wrong option, which is every job's: it ends the sweep before it begins.
    """
    from proxyfda.experiments import probing
    from proxyfda.experiments.config import load_config
    from proxyfda.experiments.run import check_output

    args, module = job.parsed(), job.module()
    if hasattr(module, "check_folder"):  # an entry module that has no config files
        module.check_options(args)
        return lambda: module.check_folder(args)
    cfg = load_config(args)
    if not args.probe:
        return lambda: check_output(args, cfg)
    if not layout.has_any(job.folder, (layout.CONFIG,)) or _is_gone(args.model_dir):
        return lambda: None  # what it probes says the rest of its config; it is to come, or gone
    return lambda: check_output(args, probing.completed(args, cfg))


def _is_gone(folder: str) -> bool:
    return bool(folder) and not layout.has_any(folder, (layout.CONFIG,))


def _say_what_would_run(jobs: list[Job], failed: dict[str, str]) -> None:
    for job in jobs:
        state = "complete" if job.complete else "to run"
        if job.folder in failed:
            state = f"refused, {failed[job.folder]}"
        elif holder(job.folder):
            state = f"in use by {holder(job.folder)}"
        print(f"{state}: {job.name}")
        print(f"    {shlex.join(['python', job.module().__file__, *job.argv])}")
    print(f"{sum(job.complete for job in jobs)} of {len(jobs)} jobs are complete")


class _Progress:
    """A line for each job that becomes complete, with the time left.

    It watches the result files, wherever the jobs run; while one runs in this process it waits for
    its end, as the line would stand in the middle of what that prints. What an open job takes is
    told by complete ones of its kind (:mod:`proxyfda.experiments.time_left`), and as many jobs are
    expected to run at a time as have done since the start.
    """

    def __init__(self, jobs: list[Job]):
        self._open, self._total = list(jobs), len(jobs)
        self._times = MeasuredTimes()
        self._started, self._worked = time.monotonic(), 0.0
        self._out = sys.stdout  # a run's logger replaces it
        self._stopped, self._lock = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self, to_run: int) -> None:
        self._look(quiet=True)
        self._worked = 0.0
        complete = self._total - len(self._open)
        if complete:
            self._say(f"{complete} of {self._total} jobs are complete already")
        if to_run:
            InThisProcess.between.append(self._look)
            self._thread.start()

    def stop(self) -> None:
        with contextlib.suppress(ValueError):
            InThisProcess.between.remove(self._look)
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._stopped.wait(1.0):
            if not InThisProcess.running:
                self._look()

    def _look(self, quiet: bool = False) -> None:
        with self._lock:
            self._tell(quiet)

    def _tell(self, quiet: bool) -> None:
        for job in list(self._open):
            result = job.result
            if not result:
                continue
            self._open.remove(job)
            seconds = seconds_of(result)
            self._worked += seconds
            self._times.add(job, seconds)
            if not quiet:
                self._say(
                    f"[{self._total - len(self._open)} of {self._total}] {job.name}: "
                    f"{result['accuracy']:.2f} % ({clock(seconds)}{self._left()})"
                )

    def _left(self) -> str:
        if not self._open or not self._worked:
            return ""
        left = self._times.sentence(self._open, self._worked / (time.monotonic() - self._started))
        return left and f"; {left}"

    def _say(self, line: str) -> None:
        print(line, file=self._out, flush=True)
