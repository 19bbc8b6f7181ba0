"""A job: one call of an entry module, with an output folder of its own."""

from __future__ import annotations

import contextlib
import importlib
import os
import os.path as osp
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from proxyfda.experiments import layout, record
from proxyfda.experiments.lock import Busy, folder_lock
from proxyfda.utils.errors import NotFound, UserError, refused_write, sentence

DONE, FAILED, BUSY = "done", "failed", "busy"
UNTRAINED = "the training that it builds on failed"


class InThisProcess:
    """What runs here, so that nobody else prints into its output.

    Attributes:
        running: whether a job does.
        between: called after each job.
    """

    running = False
    between: list[Callable[[], None]] = []


@dataclass
class Job:
    """One call of an entry module.

    Attributes:
        name: what the progress display and messages call it.
        folder: its output folder.
        flags: command line of the entry module without ``--output-dir``.
        after: folder of the job whose checkpoint it evaluates or starts from, or empty.
        entry: module with ``parser()`` and ``main(args)``, and ``main_grid(list of args)`` where
            jobs have a grid. One whose options are not those of the config has ``check_options``
            and ``check_folder`` as well, which raise BadValue and AlreadyExists.
        grid: jobs of one chain with the same word here are run in one pass (trainings that differ
            in their settings alone, see :mod:`proxyfda.experiments.grid`); empty: by itself.
    """

    name: str
    folder: str
    flags: list[str] = field(default_factory=list)
    after: str = ""
    entry: str = ""
    grid: str = ""

    @property
    def result(self) -> dict:
        """The content of its ``result.json``; empty if it is missing or damaged."""
        try:
            return record.read(self.folder)
        except UserError:
            return {}

    @property
    def damage(self) -> str:
        """Why its ``result.json`` does not count; empty if it does, or if there is none."""
        try:
            record.read(self.folder)
        except NotFound:
            return ""
        except UserError as error:
            return sentence(error)
        return ""

    @property
    def complete(self) -> bool:
        """Whether the result is there (a folder alone says nothing)."""
        return bool(self.result)

    @property
    def argv(self) -> list[str]:
        """The command line of the entry module."""
        return ["--output-dir", self.folder, *self.flags]

    def flag(self, name: str) -> str:
        """The word that follows a flag; empty if it is not given."""
        return self.flags[self.flags.index(name) + 1] if name in self.flags else ""

    def parsed(self) -> Any:
        """The entry module's reading of the command line.

        Raises:
            SystemExit: as argparse ends on wrong flags.
        """
        return self.module().parser().parse_args(self.argv)

    def module(self) -> Any:
        """The entry module, imported."""
        return importlib.import_module(self.entry)


class Outcome(NamedTuple):
    """How a job ended: DONE, FAILED or BUSY (another process has it), and why in one sentence."""

    status: str
    why: str = ""


def run_chain(chain: list[Job], quiet: bool) -> list[Outcome]:
    """Run jobs in this process one after the other, a training before what evaluates it.

    Args:
        quiet: leave what the entry module prints to the run's ``log.txt``.

    Returns:
        One outcome per job. What builds on a job that failed, or that another process has, is not
        run and shares its fate.
    """
    outcomes: dict[str, Outcome] = {}
    for job in chain:
        for call in InThisProcess.between:
            call()
        before = outcomes.get(job.after, Outcome(DONE))
        if job.folder in outcomes:
            continue  # it was run in one pass with an earlier one
        if before.status == FAILED:
            outcomes[job.folder] = Outcome(FAILED, UNTRAINED)
        elif before.status == BUSY:
            outcomes[job.folder] = before
        elif job.grid:
            jobs = [other for other in chain if other.grid == job.grid]
            for other in jobs:
                print(f"== {other.name}", flush=True)
            outcomes.update(run_grid(jobs, quiet))
        else:
            print(f"== {job.name}", flush=True)
            outcomes[job.folder] = run_job(job, quiet)
    return [outcomes[job.folder] for job in chain]


def run_job(job: Job, quiet: bool) -> Outcome:
    """Run one job in this process. What nobody foresaw leaves its traceback in ``error.txt``."""

    def call(todo: list[Job]) -> list:
        return [one.module().main(one.parsed()) for one in todo]

    return _run([job], call, quiet)[job.folder]


def run_grid(jobs: list[Job], quiet: bool) -> dict[str, Outcome]:
    """Run jobs in one pass in this process, those that are not complete; outcomes by folder."""

    def call(todo: list[Job]) -> list:
        return todo[0].module().main_grid([job.parsed() for job in todo])

    return _run(jobs, call, quiet)


def _run(jobs: list[Job], call: Callable[[list[Job]], list], quiet: bool) -> dict[str, Outcome]:
    """Run jobs by one call; outcomes by folder.

    Args:
        call: given the jobs that are not complete; gives the result of each, or the error that it
            alone ended with.
    """
    found: dict[str, Any] = {}
    InThisProcess.running = True
    try:
        with contextlib.ExitStack() as stack:
            for job in jobs:
                stack.enter_context(folder_lock(job.folder))
            stack.enter_context(_own_streams(quiet))
            todo = [job for job in jobs if not job.complete]  # another sweep may have been faster
            if todo:
                found = dict(zip([job.folder for job in todo], call(todo)))
            for job in jobs:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(osp.join(job.folder, layout.ERROR))
    except Busy as error:
        return {job.folder: Outcome(BUSY, str(error)) for job in jobs}
    except SystemExit as error:
        why = f"wrong options for {jobs[0].entry} (exit code {error.code})"
        return {job.folder: Outcome(FAILED, why) for job in jobs}
    except UserError as error:
        return {job.folder: Outcome(FAILED, sentence(error)) for job in jobs}
    except Exception as error:
        told = refused_write(error) if isinstance(error, OSError) else None
        if told is not None:
            return {job.folder: Outcome(FAILED, sentence(told)) for job in jobs}
        first = (str(error).strip() or "no message").splitlines()[0]
        why = f"{type(error).__name__}: {first}"
        return {job.folder: Outcome(FAILED, why + _report(job)) for job in jobs}
    finally:
        InThisProcess.running = False
        _free_memory()
    return {job.folder: _outcome(job, found.get(job.folder)) for job in jobs}


def _report(job: Job) -> str:
    """Leave the traceback of the error at hand in the job's folder; where it is, in words."""
    path = osp.join(job.folder, layout.ERROR)
    try:
        with open(path, "w") as file:
            traceback.print_exc(file=file)
    except OSError:
        return ""
    return f" (see {path})"


def _outcome(job: Job, found: Any) -> Outcome:
    if isinstance(found, UserError):
        return Outcome(FAILED, sentence(found))
    if job.complete:
        return Outcome(DONE)
    return Outcome(FAILED, "it ended without a result.json (TEST.NO_TEST?)")


def _free_memory() -> None:
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def _own_streams(quiet: bool):
    # The logger of a run replaces sys.stdout: give the next job a fresh one.
    before = sys.stdout, sys.stderr
    try:
        if quiet:
            with open(os.devnull, "w") as nowhere:
                sys.stdout = sys.stderr = nowhere
                yield
        else:
            yield
    finally:
        sys.stdout, sys.stderr = before
