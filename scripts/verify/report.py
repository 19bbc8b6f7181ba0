"""The report: a row for each check, as Markdown and as JSON."""

from __future__ import annotations

import os.path as osp
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

from tabulate import tabulate

from proxyfda.utils.files import write_json, write_text

PASS, FAIL, NOT_APPLICABLE = VERDICTS = ("pass", "fail", "not applicable")


class NotApplicable(Exception):
    """A check that says nothing here; the message is why."""


class Finding(NamedTuple):
    """What a check found.

    Attributes:
        good: whether it is as expected; None where nothing is expected here.
        found: in words.
        why: where ``good`` is None, why nothing is expected.
    """

    good: bool | None
    found: str
    why: str = ""


class Check(NamedTuple):
    """One row to be: what is looked at, what is expected, and the function that finds out."""

    what: str
    expected: str
    find: Callable[[], Finding]


@dataclass
class Row:
    """One row of the report."""

    section: str
    what: str
    expected: str
    found: str
    verdict: str
    seconds: float = 0.0


@dataclass
class Report:
    """The rows so far, and where they were found.

    Attributes:
        machine: name -> value: card, versions, threads.
        ended: how the run ended; "" while it runs.
    """

    machine: dict[str, str]
    rows: list[Row] = field(default_factory=list)
    ended: str = ""
    started: float = field(default_factory=time.monotonic)

    @property
    def failed(self) -> bool:
        """Whether any check failed."""
        return any(row.verdict == FAIL for row in self.rows)

    def summary(self) -> str:
        """How many checks ended how, in words."""
        counts = Counter(row.verdict for row in self.rows)
        words = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS)
        seconds = time.monotonic() - self.started
        return f"{len(self.rows)} checks in {seconds:.0f} s: {words}" + (
            f" ({self.ended})" if self.ended else ""
        )

    def markdown(self) -> str:
        """The whole report; failures stand first."""
        lines = ["# What this machine does", "", self.summary() + ".", ""]
        lines += [f"- {name}: {value}" for name, value in self.machine.items()]
        bad = [row for row in self.rows if row.verdict == FAIL]
        if bad:
            lines += ["", "## Failed", "", *(f"- {r.section}, {r.what}: {r.found}" for r in bad)]
        for section in dict.fromkeys(row.section for row in self.rows):
            cells = [
                [_cell(text) for text in (row.what, row.expected, row.found, row.verdict)]
                for row in self.rows
                if row.section == section
            ]
            head = ["what", "expected", "found", "verdict"]
            lines += ["", f"## {section}", "", tabulate(cells, head, tablefmt="github")]
        return "\n".join(lines) + "\n"

    def write(self, path: str) -> None:
        """Write ``path``, and the same as JSON beside it."""
        write_text(path, self.markdown())
        content = {
            "machine": self.machine,
            "summary": self.summary(),
            "rows": [asdict(row) for row in self.rows],
        }
        write_json(json_path(path), content, indent=1)


def json_path(path: str) -> str:
    """Where the JSON of a report is."""
    return osp.splitext(path)[0] + ".json"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())
