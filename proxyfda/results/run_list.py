"""What was run, as a page tells it: settings and times of each row, and what is not complete."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from proxyfda.names import PRETRAINED
from proxyfda.results import markup
from proxyfda.results.cells import names_of
from proxyfda.results.image_to_text import SpokenRun
from proxyfda.results.names import PROTOCOL_TITLES, trainer_order
from proxyfda.results.probes import ProbedRun
from proxyfda.results.runs import Record

__all__ = ["begun", "counted", "incomplete", "settings"]

_HEADS = (
    "protocol", "trainer", "regulariser", "config", "shots", "seeds", "backbone", "runs", "seconds",
)  # fmt: skip
_VERSIONS = "versions"
_CAPTION = (
    "Seconds are the sum over runs of training and evaluation, without loading; logs of other "
    "codebases have none."
)
_SHOWN = 20  # incomplete runs, before the rest is folded


def begun(
    records: Sequence[Record],
    runs: Iterable[ProbedRun],
    split: str,
    spoken: Iterable[SpokenRun] = (),
) -> list[Record]:
    """All runs that were begun as records, probed ones and those that speak among them."""
    probed = [_as_record(run) for run in runs if run.split == split]
    return [*records, *probed, *(run.record for run in spoken)]


def _as_record(run):
    after = "" if run.task is None else f" after task {run.task}"
    return replace(run.record, title=run.record.title + after)


def counted(records: Sequence[Record]) -> str:
    """How many of the runs are complete, as a sentence."""
    runs = [r for r in records if r.protocol]
    done = sum(r.accuracy is not None for r in runs)
    return f"{done:,} of {len(runs):,} runs that were begun are complete."


def settings(records: Sequence[Record]) -> str:
    """What each row was made with, and how long it took, in HTML."""
    rows: dict[tuple, list[Record]] = {}
    for name, r in sorted(names_of(records), key=lambda pair: _place(pair[1])):
        if r.accuracy is not None:
            rows.setdefault((r.protocol, name), []).append(r)
    lines = [_line(protocol, name, runs) for (protocol, name), runs in rows.items()]
    versions = [_several(map(_versions, runs)) for runs in rows.values()]
    heads, caption = _HEADS, _CAPTION
    different = set(versions) - {""}
    if len(different) == 1:
        caption += f" Run with {different.pop()}."
    elif different:
        heads = (*heads, _VERSIONS)
        lines = [(*line, found) for line, found in zip(lines, versions)]
    table = markup.words_table("What was run", heads, lines, ("runs", "seconds"))
    return table + markup.paragraph(caption)


def _place(record):
    known = [*PROTOCOL_TITLES]
    where = known.index(record.protocol) if record.protocol in known else len(known)
    return where, record.protocol, trainer_order(record.trainer)


def _versions(record):
    found = {**(record.details.get("versions") or {})}
    if "engine" in record.details:
        found["engine"] = record.details["engine"]
    return ", ".join(f"{name} {version}" for name, version in found.items())


def _line(protocol, name, runs):
    seconds = [(r.details.get("time") or {}).get("run") for r in runs]
    known = [value for value in seconds if type(value) in (int, float)]
    return (
        PROTOCOL_TITLES.get(protocol, protocol),
        name,
        _several(_regulariser(r.details.get("regulariser")) for r in runs),
        _several(r.config for r in runs),
        _several(r.shots for r in runs if r.shots > 0),
        _several(r.seed for r in runs if r.seed is not None and r.trainer != PRETRAINED),
        _several((r.details.get("backbone") or ("",))[0] for r in runs),
        f"{len(runs):,}",
        f"{sum(known):,.0f}" if sum(known) else "",
    )


def _regulariser(found):
    """A regulariser with its weight and options, in words; empty if there is none."""
    if not found:
        return ""
    weight = {"λ": found["weight"]} if "weight" in found else {}
    words = [f"{key} {value}" for key, value in {**weight, **(found.get("options") or {})}.items()]
    return f"{found['name']} ({', '.join(words)})" if words else found["name"]


def _several(values):
    """Distinct values, those of most runs first."""
    return ", ".join(str(value) for value, _ in Counter(values).most_common() if value != "")


def incomplete(records: Sequence[Record]) -> str:
    """Every run without a sound result, and why, in HTML."""
    items = [
        f"{name} on {r.title}{f' seed {r.seed}' if r.seed is not None else ''}, {r.part}: {r.fault}"
        for name, r in names_of(records)
        if r.accuracy is None
    ]
    items += [f"{r.folder}: in no known layout, so in no table" for r in records if not r.protocol]
    if not items:
        return markup.paragraph("No run that was begun is incomplete.")
    rest = items[_SHOWN:]
    more = markup.folded(f"{len(rest):,} more", markup.notes(rest)) if rest else ""
    return markup.notes(items[:_SHOWN]) + more
