"""The command line of ``python -m proxyfda.results``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from proxyfda.results.published import compare
from proxyfda.results.runs import collect
from proxyfda.results.summary import TABLES, Summary, summarise, summarise_accuracy
from proxyfda.results.tables import FORMS, table
from proxyfda.utils.errors import BadValue, NotFound

_SUFFIXES = {".md": "markdown", ".csv": "csv", ".tex": "latex"}


def sections(records, only=None):
    """The tables of some runs.

    Args:
        records: what :func:`~proxyfda.results.collect` returns.
        only: one of :data:`~proxyfda.results.summary.TABLES`, or ``None`` for all that there are
            runs of; zero-shot results then have a table of their own where no other one shows them.

    Returns:
        Dict of :class:`~proxyfda.results.Summary` by protocol.

    Raises:
        ValueError: there are no runs of the protocol.
    """
    tables = summarise_accuracy(records)
    base_new = summarise(records)
    if base_new.rows:
        tables = {"base2new": base_new, **tables}
    if only:
        if only not in tables:
            raise BadValue(f"there are no results of {only}, but of {', '.join(tables)}")
        return {only: tables[only]}
    others = {row.dataset for name in tables if name not in ("base2new", "zeroshot")
              for row in tables[name].rows}  # fmt: skip
    if "zeroshot" in tables and {row.dataset for row in tables["zeroshot"].rows} <= others:
        del tables["zeroshot"]
    return tables


def outside_of_layouts(records):
    """A sentence on results in folders that no layout knows; empty if there are none."""
    folders = [r.folder for r in records if not r.protocol]
    if not folders:
        return ""
    return (
        f"{len(folders)} folders with results follow no known layout and are in no table, such as "
        f"{folders[0]}."
    )


def main(argv=None):
    """Command line; returns 0, or 1 with ``--strict`` where something is missing or mixed.

    Raises:
        FileNotFoundError, ValueError: see :func:`~proxyfda.results.collect`; several tables where
            one is wanted.
    """
    args = _parser().parse_args(argv)
    records = collect(*args.outputs, split=args.split)
    tables = sections(records, args.protocol)
    form = args.form or _SUFFIXES.get(os.path.splitext(args.output or "")[1].lower(), "text")
    if form == "csv" and len(tables) > 1:
        raise BadValue(
            f"a CSV holds one table and there are {', '.join(tables)}; choose by --protocol"
        )
    for path in (args.output, args.html):
        folder = os.path.dirname(path or "")
        if folder and not os.path.isdir(folder):
            flag = "--output" if path == args.output else "--html"
            raise NotFound(f"{flag}: the folder {folder} does not exist; make it first")
    comparisons = None
    if args.compare:
        comparisons = compare(tables.get("base2new", Summary([])), records)
    texts = [
        table(summary, form, comparisons if name == "base2new" else None)
        for name, summary in tables.items()
    ]
    outside = outside_of_layouts(records)
    if outside and form != "csv":
        texts.append(f"% {outside}\n" if form == "latex" else f"{outside}\n")
    elif outside:
        print(outside, file=sys.stderr)
    text = "\n".join(texts)
    if args.output:
        Path(args.output).write_text(text, encoding="utf-8")
        print(f"Wrote {args.output}")
    else:
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")  # a terminal may not know the Δ
        sys.stdout.write(text)
    if args.html:
        from proxyfda.results.page import page

        html = page(records, tables, comparisons, outputs=args.outputs, curves=args.curves)
        Path(args.html).write_text(html, encoding="utf-8")
        print(f"Wrote {args.html}", file=sys.stderr)
    sound = all(s.uniform and all(row.complete for row in s.rows) for s in tables.values())
    return int(args.strict and not sound)


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m proxyfda.results", description="Tables of results."
    )
    add = parser.add_argument
    add(
        "outputs",
        nargs="+",
        metavar="[LABEL=]OUTPUT",
        help="output folder of the scripts, or of another codebase on Dassl (its log.txt files)",
    )
    form = parser.add_mutually_exclusive_group()
    for name in FORMS:
        form.add_argument(f"--{name}", dest="form", action="store_const", const=name)
    add(
        "--compare", choices=("published",), help="differences to the published base-to-new figures"
    )
    add("--protocol", choices=TABLES, help="this table alone")
    add("--output", metavar="FILE", help="write to FILE, by its suffix .md, .csv or .tex")
    add("--html", metavar="FILE", help="write a page with tables and figures as well")
    add("--no-curves", dest="curves", action="store_false", help="no training curves on that page")
    add("--split", default="test", choices=("test", "val"), help="results on it")
    add("--strict", action="store_true", help="exit code 1 if a run is missing or a row is mixed")
    return parser
