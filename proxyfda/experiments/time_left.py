"""What is left of a list of jobs, from the seconds that complete ones took.

Trainings, evaluations and probes are measured apart: an evaluation takes a small part of what a
training takes, so a mean over both would say too much of the one and too little of the other.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from datetime import timedelta

from tabulate import tabulate

from proxyfda.experiments.jobs import Job
from proxyfda.names import is_zero_shot

__all__ = ["MeasuredTimes", "clock", "kind_of", "seconds_of"]

TRAININGS, EVALUATIONS, PROBES = KINDS = ("trainings", "evaluations", "probes")


def kind_of(job: Job) -> str:
    """One of :data:`KINDS`; what has nothing to train is an evaluation."""
    if "--probe" in job.flags:
        return PROBES
    evaluates = "--eval-only" in job.flags or is_zero_shot(job.flag("--trainer"))
    return EVALUATIONS if evaluates else TRAININGS


def seconds_of(result: dict) -> float:
    """What a job took, by its ``result.json``."""
    return sum((result.get("time") or {}).values())


def clock(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> clock(3661.4)
    '1:01:01'
    """
    return str(timedelta(seconds=round(seconds)))


class MeasuredTimes:
    """The seconds of complete jobs, by kind and run.

    An open job is expected to take what those of the same run and kind took on average; where there
    are none, what those of the same kind took; and otherwise nobody knows.
    """

    def __init__(self) -> None:
        self._times: dict[tuple, list[float]] = {}

    def add(self, job: Job, seconds: float) -> None:
        """Note what a job took."""
        for key in self._keys(job):
            self._times.setdefault(key, []).append(seconds)

    def expected(self, job: Job) -> float | None:
        """Seconds that a job will take; ``None`` where none of its kind is complete."""
        found = (self._times[key] for key in self._keys(job) if key in self._times)
        times = next(found, None)
        return None if times is None else statistics.fmean(times)

    def left(self, jobs: Iterable[Job]) -> dict[str, float | None]:
        """Kind -> seconds of work that open jobs of it are; ``None`` for one not measured yet."""
        found: dict[str, float | None] = {}
        for job in sorted(jobs, key=lambda job: KINDS.index(kind_of(job))):
            kind, seconds = kind_of(job), self.expected(job)
            before = found.get(kind, 0.0)
            found[kind] = None if seconds is None or before is None else before + seconds
        return found

    def sentence(self, jobs: Iterable[Job], pace: float) -> str:
        """The time left in words, at so many seconds of work in a second; empty if unknown."""
        left = self.left(jobs)
        known = {kind: work / pace for kind, work in left.items() if work is not None}
        unknown = [kind for kind in left if kind not in known]
        if not known:
            return ""
        parts = [f"{kind} {clock(seconds)}" for kind, seconds in known.items()]
        if len(left) > 1:
            parts += [f"{kind} not measured yet" for kind in unknown]
            return f"about {clock(sum(known.values()))} left ({', '.join(parts)})"
        return f"about {clock(sum(known.values()))} left"

    @staticmethod
    def _keys(job: Job) -> list[tuple]:
        kind = kind_of(job)
        return [(job.flag("--trainer"), job.flag("--regulariser"), kind), (kind,)]


def table(jobs: Iterable[Job], at_once: int = 1) -> str:
    """What is complete and what is left of a list of jobs, for each kind, as text.

    Args:
        at_once: jobs that run at a time, of which each is taken to be as fast as it was.
    """
    measured, opened, done = MeasuredTimes(), [], []
    for job in jobs:
        result = job.result
        if not result:
            opened.append(job)
            continue
        done.append((job, seconds_of(result)))
        measured.add(*done[-1])
    left = measured.left(opened)
    rows = []
    for kind in KINDS:
        took = [seconds for job, seconds in done if kind_of(job) == kind]
        waiting = sum(kind_of(job) == kind for job in opened)
        if not took and not waiting:
            continue
        each = clock(statistics.fmean(took)) if took else "not measured yet"
        work = left.get(kind, 0.0)
        rows.append([kind, len(took), waiting, each, "?" if work is None else clock(work)])
    text = tabulate(rows, ["kind", "complete", "open", "each took", "left"], disable_numparse=True)
    known = sum(work for work in left.values() if work is not None)
    if at_once > 1 and known:
        text += f"\nwith {at_once} jobs at a time about {clock(known / at_once)}"
    if None in left.values():
        text += "\nA kind is measured once a job of it is complete."
    return text
