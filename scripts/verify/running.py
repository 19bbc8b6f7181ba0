"""Running checks: a budget for each section, and a check that breaks is a row of its own."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from verify.report import FAIL, NOT_APPLICABLE, PASS, Check, NotApplicable, Report, Row

LEAST = 20.0
"""Seconds that a check may take that began within its section's budget."""


class Section(NamedTuple):
    """A part of the report.

    Attributes:
        budget: seconds.
        checks: gives its checks, one after the other.
    """

    name: str
    budget: float
    checks: Callable[[], Iterable[Check]]


class TooSlow(BaseException):
    """A check was stopped; no error, or what it was in would take it for one of its own."""


def run(sections: list[Section], report: Report, write: Callable[[], None]) -> None:
    """Run all checks; the report is written after every section, and when Ctrl-C ends it.

    What a section's budget leaves no time for is a row that says so.

    Raises:
        KeyboardInterrupt: after the report was written.
    """
    try:
        for section in sections:
            print(f"== {section.name} (at most {section.budget:.0f} s)", flush=True)
            _run_section(section, report)
            write()
    except KeyboardInterrupt:
        report.ended = "interrupted"
        write()
        raise


def _run_section(section: Section, report: Report) -> None:
    end = time.monotonic() + section.budget
    for check in section.checks():
        left = end - time.monotonic()
        started = time.monotonic()
        if left <= 0:
            verdict = NOT_APPLICABLE
            found = f"left out: the section's {section.budget:.0f} s were used up"
        else:
            verdict, found = _outcome(check, max(left, LEAST))
        seconds = round(time.monotonic() - started, 2)
        report.rows.append(Row(section.name, check.what, check.expected, found, verdict, seconds))
        if left > 0:
            print(f"{verdict}: {check.what}: {found}", flush=True)


def _outcome(check: Check, seconds: float) -> tuple[str, str]:
    try:
        with _at_most(seconds), _quiet():
            finding = check.find()
    except NotApplicable as error:
        return NOT_APPLICABLE, str(error)
    except TooSlow:
        # A busy machine is no fault of what was checked.
        return NOT_APPLICABLE, f"did not end within {seconds:.0f} s"
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        first = (str(error).strip() or "no message").splitlines()[0]
        return FAIL, f"{type(error).__name__}: {first} ({place.name}, line {place.lineno})"
    if finding.good is None:
        return NOT_APPLICABLE, f"{finding.found}; {finding.why}"
    return (PASS if finding.good else FAIL), finding.found


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    def stop(*_) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # A run's logger replaces sys.stdout; what trainers print is no part of the report.
    streams = sys.stdout, sys.stderr
    nowhere = io.StringIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sys.stdout = sys.stderr = nowhere
            yield
    finally:
        sys.stdout, sys.stderr = streams
