"""The command line of ``python -m proxyfda.results``."""

from __future__ import annotations

import argparse
import os
import sys

from proxyfda.experiments import layout
from proxyfda.experiments.layout import IMAGE_TO_TEXT
from proxyfda.results.continual import summarise_continual
from proxyfda.results.forgetting import summarise_forgetting
from proxyfda.results.image_to_text import read_image_to_text, summarise_image_to_text
from proxyfda.results.matrix import summarise_matrix
from proxyfda.results.probes import read_runs
from proxyfda.results.published import compare
from proxyfda.results.runs import labelled_folders
from proxyfda.results.summary import TABLES as TABLES_OF_TESTS
from proxyfda.results.summary import Summary, summarise, summarise_accuracy
from proxyfda.results.tables import FORMS, table
from proxyfda.results.targets import check_file
from proxyfda.utils.errors import BadValue
from proxyfda.utils.files import write_text
from proxyfda.utils.suggest import did_you_mean

TABLES = (
    *TABLES_OF_TESTS, "finetune", "finetune_matrix", "continual", "continual_matrix",
    *IMAGE_TO_TEXT,
)  # fmt: skip
"""The tables that there are; the four before those of captions and answers are of probes."""
_ON_REQUEST = ("finetune_matrix",)  # as large as the number of datasets squared
_SUFFIXES = {".md": "markdown", ".csv": "csv", ".tex": "latex", ".txt": "text"}


def sections(records, only=None, runs=(), split="test", spoken=()):
    """The tables of some runs.

    Args:
        records: what :func:`~proxyfda.results.collect` returns.
        only: one of :data:`TABLES`, or ``None`` for all that there are runs of; zero-shot results
            then have a table of their own where no other one shows them.
        runs: what :func:`~proxyfda.results.probes.read_probes` returns.
        split: of the probes.
        spoken: what :func:`~proxyfda.results.image_to_text.read_image_to_text` returns.

    Returns:
        Dict of :class:`~proxyfda.results.Summary` by protocol; with ``continual`` there is its
        matrix.

    Raises:
        ValueError: there are no runs of the protocol.
    """
    tables = summarise_accuracy(records)
    base_new = summarise(records)
    if base_new.rows:
        tables = {"base2new": base_new, **tables}
    probed = {
        "finetune": summarise_forgetting(runs, split),
        "finetune_matrix": summarise_matrix(runs, "finetune", split),
        "continual": summarise_continual(runs, split),
        "continual_matrix": summarise_matrix(runs, "continual", split),
        **{name: summarise_image_to_text(spoken, name) for name in IMAGE_TO_TEXT},
    }
    tables.update((name, summary) for name, summary in probed.items() if summary.rows)
    if only:
        if only not in tables:
            raise BadValue(f"there are no results of {only}, but of {', '.join(tables)}")
        own = {only, *{f"{only}_matrix"}.difference(_ON_REQUEST)}
        return {name: summary for name, summary in tables.items() if name in own}
    tables = {name: summary for name, summary in tables.items() if name not in _ON_REQUEST}
    others = {row.dataset for name in ("fewshot", "cross_dataset", "domain_generalization")
              if name in tables for row in tables[name].rows}  # fmt: skip
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
            one is wanted, or an ending of ``--output`` that says no form.
        CannotWrite: a file that cannot be written.
    """
    args = _parser().parse_args(argv)
    form = _form(args)
    diagnoses, spoken = _diagnoses(args), read_image_to_text(*args.outputs)
    required = not spoken and not _only_diagnoses(diagnoses, args)
    records, runs = read_runs(args.outputs, args.split, required)
    tables = sections(records, args.protocol, runs, args.split, spoken)
    if form == "csv" and args.protocol:
        tables = {args.protocol: tables[args.protocol]}
    if form == "csv" and len(tables) > 1:
        raise BadValue(
            f"a CSV holds one table and there are {', '.join(tables)}; choose by --protocol"
        )
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
        write_text(args.output, text)
        print(f"Wrote {args.output}")
    else:
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")  # a terminal may not know the Δ
        sys.stdout.write(text)
    if args.html:
        from proxyfda.results.page import page

        html = page(
            records,
            tables,
            comparisons,
            args.outputs,
            args.curves,
            runs,
            args.split,
            diagnoses,
            spoken,
        )
        write_text(args.html, html)
        print(f"Wrote {args.html}", file=sys.stderr)
    sound = all(s.uniform and all(row.complete for row in s.rows) for s in tables.values())
    return int(args.strict and not sound)


def _form(args):
    """The form of the tables; files that cannot be written are refused here, before any work.

    Raises:
        BadValue: the ending of ``--output`` says no form, it is the page's file, or the page has
            the ending of a table.
        UserError: see :func:`~proxyfda.results.targets.check_file`.
    """
    for flag, path in (("--output", args.output), ("--html", args.html)):
        if path is not None:
            check_file(flag, path)
    if args.html and args.output and os.path.abspath(args.html) == os.path.abspath(args.output):
        raise BadValue(f"--output and --html are both {args.output}; give each a file of its own")
    if args.html and os.path.splitext(args.html)[1].lower() in _SUFFIXES:
        raise BadValue(
            f"--html is {args.html}, but writes a page; name it .html, or use --output for tables"
        )
    if args.output is None:
        return args.form or "text"
    ending = os.path.splitext(args.output)[1].lower()
    if args.form is None and ending not in _SUFFIXES:
        raise BadValue(
            f"the ending of --output {args.output} says no form{did_you_mean(ending, _SUFFIXES)}; "
            f"use {', '.join(_SUFFIXES)}, or say the form by {', '.join(f'--{f}' for f in FORMS)}"
            + (" (a page is written by --html)" if ending in (".html", ".htm") else "")
        )
    return args.form or _SUFFIXES[ending]


def _diagnoses(args):
    """What ``python -m proxyfda.diagnose`` left in the outputs; only a page shows it."""
    if not args.html:
        return []
    from proxyfda.results.diagnosed import find

    return find(folder for folder, _ in labelled_folders(args.outputs))


def _only_diagnoses(diagnoses, args):
    """Whether the outputs hold diagnoses and no runs at all, which is enough for a page."""
    folders = [str(folder) for folder, _ in labelled_folders(args.outputs)]
    return bool(diagnoses) and not any(any(layout.run_folders(folder)) for folder in folders)


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
    add(
        "--protocol", choices=TABLES, help="this table alone (and finetune_matrix on request alone)"
    )
    add("--output", metavar="FILE", help=f"write to FILE, whose ending is {', '.join(_SUFFIXES)}")
    add(
        "--html",
        metavar="FILE",
        help="write a page with tables, figures, classes and diagnoses as well",
    )
    add("--no-curves", dest="curves", action="store_false", help="no training curves on that page")
    add("--split", default="test", choices=("test", "val"), help="results on it")
    add("--strict", action="store_true", help="exit code 1 if a run is missing or a row is mixed")
    return parser
