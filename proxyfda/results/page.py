"""One self-contained HTML page of tables and figures; it loads nothing from anywhere."""

from __future__ import annotations

import base64
import io
from collections import Counter
from dataclasses import replace
from html import escape

from proxyfda.results.summary import AVERAGE, Summary, names_of
from proxyfda.results.tables import blocks

_STYLE = """
:root { color-scheme: light dark; --line: #d5d8dc; --soft: #f4f6f8; --text: #1b1f24; --back: #fff;
  --quiet: #57606a; --warn: #9a3412; }
@media (prefers-color-scheme: dark) { :root { --line: #3a414a; --soft: #1f252c; --text: #e6e9ed;
  --back: #14181d; --quiet: #a3adb8; --warn: #fdba74; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; background: var(--back);
  color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { margin-top: 2.5rem; font-size: 1.25rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left; }
thead th { border-bottom: 2px solid var(--line); }
tr.first td { border-top: 1px solid var(--line); }
tr.average { background: var(--soft); font-weight: 600; }
table.words td { white-space: normal; text-align: left; vertical-align: top; }
table.words th { text-align: left; }
figure { margin: 1.5rem 0; padding: .5rem; background: #fff; border: 1px solid var(--line);
  border-radius: 6px; overflow-x: auto; }
figure img { display: block; margin: 0 auto; height: auto; }
figcaption { padding: .3rem; color: #57606a; font-size: .85rem; }
.quiet { color: var(--quiet); font-size: .9rem; }
ul.notes { padding-left: 1.2rem; color: var(--warn); font-size: .9rem; overflow-wrap: anywhere; }
summary { cursor: pointer; padding: .4rem 0; }
@media (max-width: 40rem) { table { font-size: .78rem; } th, td { padding: .2rem .35rem; } }
@media (min-width: 60rem) { figure img { max-width: 100%; } }
"""
_NAMES = {
    "base_new": "Base against new accuracy; arrows lead from the plain trainer to the regularised.",
    "delta_new": "New accuracy relative to zero-shot CLIP.",
    "fewshot": "Accuracy on all classes against images per class.",
    "forgetting": "Accuracy on the tuned dataset against forgetting; above and right is better.",
    "strengths": "Accuracy and forgetting over λ on the validation split.",
    "wise_ft": "Accuracy and forgetting over α, from the pre-trained weights to the tuned ones.",
    "continual": "Accuracy after each task of a row.",
    "training": "Training: means over seeds, their range as a band.",
}


_PLACES = {
    "fewshot": "fewshot",
    "training": "training",
    "forgetting": "finetune",
    "strengths": "finetune",
    "wise_ft": "finetune",
    "continual": "continual",
}  # all others stand with base to new


def page(records, tables, comparisons=None, outputs=(), curves=True, runs=(), split="test"):
    """The page as a string.

    Args:
        records: what :func:`~proxyfda.results.collect` returns.
        tables: :class:`~proxyfda.results.Summary` by protocol.
        comparisons: what :func:`~proxyfda.results.compare` returns.
        outputs: the output folders, to be named.
        curves: whether to read the event files for training curves.
        runs: what :func:`~proxyfda.results.probes.read_probes` returns.
        split: of their probes.
    """
    base_new = tables.get("base2new", Summary([]))
    begun = [*records, *(_as_record(run) for run in runs if run.split == split)]
    body = [
        "<h1>Results</h1>",
        f'<p class="quiet">From {", ".join(escape(str(output)) for output in outputs)}. '
        f"{_counted(begun)}</p>",
    ]
    drawn = _figures(base_new, tables, records if curves else None, runs, split)
    for protocol, summary in tables.items():
        shown = comparisons if protocol == "base2new" else None
        for block in blocks(summary, shown):
            body.append(f"<h2>{escape(block.title)}</h2>")
            body.append(_table(block))
        body += drawn.pop(protocol, [])
    if drawn.get("training"):
        body.append("<h2>Training</h2>")
        body += drawn["training"]
    body += ["<h2>What was run</h2>", _run_table(begun), _missing(begun)]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Results</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(filter(None, body))
        + "\n</body>\n</html>\n"
    )


def _counted(records):
    runs = [r for r in records if r.protocol]
    done = sum(r.accuracy is not None for r in runs)
    return f"{done} of {len(runs)} runs that were begun are complete."


def _table(block):
    parts = []
    if block.lines:
        head = "".join(f"<th>{escape(cell)}</th>" for cell in block.heads)
        rows, average = [], False
        for line in block.lines:
            if line[0]:
                average = line[0].startswith(AVERAGE)
            kinds = ["first"] * bool(line[0]) + ["average"] * average
            cells = "".join(f"<td>{escape(cell)}</td>" for cell in line)
            rows.append(f'<tr class="{" ".join(kinds)}">{cells}</tr>')
        parts.append(
            f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{''.join(rows)}</tbody></table></div>"
            f'<p class="quiet">{escape(block.caption)}</p>'
        )
    if block.notes:
        notes = "".join(f"<li>{escape(note)}</li>" for note in block.notes)
        parts.append(f'<ul class="notes">{notes}</ul>')
    return "\n".join(parts)


def _as_record(run):
    """A probed run as the table of runs shows it."""
    after = "" if run.task is None else f" after task {run.task}"
    return replace(run.record, title=run.record.title + after)


def _figures(base_new, tables, records, runs, split):
    """Figures in HTML by protocol; those of training are folded."""
    from proxyfda.results.curves import read_curves
    from proxyfda.results.figures import figures

    curves = read_curves(records) if records is not None else None
    found = {}
    for name, figure in figures(base_new, tables, curves, runs, split):
        kind = next(kind for kind in _NAMES if name.startswith(kind))
        place = _PLACES.get(kind, "base2new")
        if isinstance(figure, str):
            html = f'<p class="quiet">Figure {escape(name)} is left out: {escape(figure)}.</p>'
        else:
            html = _figure(figure, f"{_NAMES[kind]}{_of(name, kind)}")
            if kind == "training":
                title = escape(name[len("training_") :])
                html = f"<details><summary>{title}</summary>\n{html}\n</details>"
        found.setdefault(place, []).append(html)
    return found


def _of(name, kind):
    tail = name[len(kind) + 1 :].replace("_", ", ")
    return f" {tail}." if tail and kind != "training" else ""


def _figure(figure, caption):
    import matplotlib

    # As an image, so that names inside one SVG do not meet those of the next; letters as outlines,
    # so that it looks the same without the fonts.
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "proxyfda"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    data = base64.b64encode(file.getvalue()).decode("ascii")
    width, height = (round(90 * inches) for inches in figure.get_size_inches())
    return (
        f'<figure><img width="{width}" height="{height}" alt="{escape(caption)}" '
        f'src="data:image/svg+xml;base64,{data}"><figcaption>{escape(caption)}</figcaption></figure>'
    )


def _run_table(records):
    """What each row was made with, and how long it took."""
    rows = {}
    for name, r in names_of(records):
        if r.accuracy is not None:
            rows.setdefault((r.protocol, name), []).append(r)
    heads = (
        "protocol",
        "trainer",
        "regulariser",
        "config",
        "shots",
        "seeds",
        "backbone",
        "versions",
        "time",
    )
    lines = []
    for (protocol, name), runs in rows.items():
        seconds = sum((r.details.get("time") or {}).get("run", 0.0) for r in runs)
        versions = [
            {
                **({"engine": r.details["engine"]} if "engine" in r.details else {}),
                **(r.details.get("versions") or {}),
            }
            for r in runs
        ]
        cells = (
            protocol,
            name,
            _several(_regulariser(r.details.get("regulariser")) for r in runs),
            _several(r.config for r in runs),
            _several(r.shots for r in runs if r.shots > 0),
            _several(r.seed for r in runs if r.seed is not None),
            _several((r.details.get("backbone") or ("",))[0] for r in runs),
            _several(" ".join(f"{key} {value}" for key, value in v.items()) for v in versions),
            f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min",
        )
        lines.append("".join(f"<td>{escape(cell)}</td>" for cell in cells))
    head = "".join(f"<th>{cell}</th>" for cell in heads)
    body = "".join(f'<tr class="first">{line}</tr>' for line in lines)
    return (
        f'<div class="wide"><table class="words"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
        '<p class="quiet">Time is the sum over runs of training and evaluation, without loading; '
        "logs of other codebases have none.</p>"
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


def _missing(records):
    items = [
        f"{name} on {r.title}{f' seed {r.seed}' if r.seed is not None else ''}, {r.part}: {r.fault}"
        for name, r in names_of(records)
        if r.accuracy is None
    ]
    items += [f"{r.folder}: in no known layout, so in no table" for r in records if not r.protocol]
    if not items:
        return '<p class="quiet">No run that was begun is incomplete.</p>'
    listed = "".join(f"<li>{escape(item)}</li>" for item in items)
    return f'<h3>Incomplete runs</h3><ul class="notes">{listed}</ul>'
