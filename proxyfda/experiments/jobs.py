"""A job: one call of an entry module, with an output folder of its own."""

from __future__ import annotations

import contextlib
import importlib
import os
import os.path as osp
import sys
import traceback
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from proxyfda.experiments import layout, record
from proxyfda.experiments.lock import Busy, folder_lock
from proxyfda.utils.errors import UserError, sentence

DONE, FAILED, BUSY = "done", "failed", "busy"
UNTRAINED = "the training that it evaluates failed"


@dataclass
class Job:
    """One call of an entry module.

    Attributes:
        name: what the progress display and messages call it.
        folder: its output folder.
        flags: command line of the entry module without ``--output-dir``.
        after: folder of the job whose checkpoint it evaluates, or empty.
        entry: module with ``parser()`` and ``main(args)``.
    """

    name: str
    folder: str
    flags: list[str] = field(default_factory=list)
    after: str = ""
    entry: str = ""

    @property
    def result(self) -> dict:
        """The content of its ``result.json``; empty if it is missing or damaged."""
        try:
            return record.read(self.folder)
        except UserError:
            return {}

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
        before = outcomes.get(job.after, Outcome(DONE))
        if before.status == FAILED:
            outcomes[job.folder] = Outcome(FAILED, UNTRAINED)
        elif before.status == BUSY:
            outcomes[job.folder] = before
        else:
            print(f"== {job.name}", flush=True)
            outcomes[job.folder] = run_job(job, quiet)
    return list(outcomes.values())


def run_job(job: Job, quiet: bool) -> Outcome:
    """Run one job in this process. What nobody foresaw leaves its traceback in ``error.txt``."""
    report = osp.join(job.folder, layout.ERROR)
    try:
        with folder_lock(job.folder), _own_streams(quiet):
            if not job.complete:  # another sweep may have been faster
                job.module().main(job.parsed())
            with contextlib.suppress(FileNotFoundError):
                os.unlink(report)
    except Busy as error:
        return Outcome(BUSY, str(error))
    except SystemExit as error:
        return Outcome(FAILED, f"wrong options for {job.entry} (exit code {error.code})")
    except Exception as error:
        if isinstance(error, UserError):
            return Outcome(FAILED, sentence(error))
        first = (str(error).strip() or "no message").splitlines()[0]
        why = f"{type(error).__name__}: {first}"
        with contextlib.suppress(OSError), open(report, "w") as file:
            traceback.print_exc(file=file)
            why += f" (see {report})"
        return Outcome(FAILED, why)
    finally:
        _free_memory()
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
