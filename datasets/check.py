"""Look over the data before a run: ``python -m datasets.check check --root DATA [DATASET ...]``.

For every dataset: is it there, are all listed images there, do classes and images have the numbers
of the complete data, is the split file sound; with ``--deep`` every image is decoded as well, in
threads. Nothing is written but the report that ``--json`` asks for.

Datasets are found through the registry of :mod:`proxyfda.dassl`. Their readers are modules of the
project that is being run, imported by name (``--readers``, by default ``datasets``). A reader takes
part if its class has ``at(root)``, giving an object with

* ``name``, ``dataset_dir``, ``split_path``, ``split_file`` and ``split_sha256`` (of the published
  split file, or empty);
* ``parts()``: ``{"train", "val", "test"}`` with lists of ``(path, label, class name)``;
* ``images(parts)``: the absolute paths of these, as ``(there, missing)``;
* ``made``: whether ``parts()`` had to make a split for want of a split file;
* ``expected``: the numbers of the complete data with the fields ``classes``, ``train``, ``val``,
  ``test``, or ``None``;
* optionally ``remarks(parts)``: sentences about anything else;
* optionally ``nearby()``: a folder that might be the missing one under another name, or ``""``.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import io
import json
import os
import sys
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field

from tabulate import tabulate
from tqdm import tqdm

from proxyfda.dassl import DATASET_REGISTRY, ImageError
from proxyfda.engine.data import read_image
from proxyfda.utils.errors import BadValue, NotFound, sentence, show_user_errors

PARTS = ("train", "val", "test")
NAMED = 5  # files named below the table
BATCH = 512  # images handed to the threads at a time

COMPLETE, INCOMPLETE, NOT_FOUND = "complete", "incomplete", "not found"


@dataclass
class Report:
    """What was found of one dataset.

    Attributes:
        dataset: its name.
        folder: absolute path.
        found: whether the folder is there.
        nearby: a folder that might be meant where it is not.
        classes, train, val, test: numbers found, ``None`` where nothing could be read.
        expected: the same numbers of the complete data, or ``None``.
        split: ``published`` (byte for byte), ``file`` (another), ``none`` (one would be made), or
            empty for datasets without split file.
        missing: paths of listed images that are not there.
        unreadable: path -> sentence for images that cannot be decoded; ``None`` without ``deep``.
        faults: sentences saying what is wrong.
        remarks: sentences worth knowing.
    """

    dataset: str
    folder: str
    found: bool = False
    nearby: str = ""
    classes: int | None = None
    train: int | None = None
    val: int | None = None
    test: int | None = None
    expected: dict | None = None
    split: str = ""
    missing: list = field(default_factory=list)
    unreadable: dict | None = None
    faults: list = field(default_factory=list)
    remarks: list = field(default_factory=list)

    @property
    def verdict(self):
        """``complete``, ``incomplete`` or ``not found``."""
        if not self.found:
            return NOT_FOUND
        return INCOMPLETE if self.faults else COMPLETE


def checkable():
    """``{name: class}`` of the registered readers that can be checked."""
    readers = {}
    for name in DATASET_REGISTRY.registered_names():
        reader = DATASET_REGISTRY.get(name)
        if callable(getattr(reader, "at", None)):
            readers[name] = reader
    return readers


def resolve(word, readers):
    """The registered name that ``word`` means: itself, or its reader's module as config files are
    called (``oxford_pets``, ``dtd``, ``folder``), whatever the case.

    Raises:
        ValueError: no such dataset; the message lists what there is.
    """

    def plain(text):
        return text.replace("_", "").replace("-", "").lower()

    for name, reader in readers.items():
        if plain(word) in (plain(name), plain(reader.__module__.rpartition(".")[2])):
            return name
    raise BadValue(f"there is no dataset {word!r}; use one of {', '.join(sorted(readers))}")


def examine(reader, root, deep=False, workers=None):
    """Look over one dataset.

    Args:
        reader: a reader class, see the module.
        root: data root.
        deep: decode every image.
        workers: threads for that; by default as many as there are processors.

    Returns:
        A :class:`Report`.
    """
    data = reader.at(root)
    report = Report(dataset=data.name, folder=data.dataset_dir)
    if not os.path.isdir(data.dataset_dir):
        report.nearby = data.nearby() if hasattr(data, "nearby") else ""
        report.faults.append(_mistake(data.parts) or f"{data.dataset_dir} is no folder")
        return report
    report.found = True
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        fault = _mistake(lambda: setattr(data, "checked", data.parts()))
    if fault:
        report.faults.append(fault)
        return report
    parts = data.checked
    report.dataset = data.name  # own data may give their name in a file
    report.remarks += [
        line for line in said.getvalue().splitlines() if not line.startswith("Reading split")
    ]
    _look_at_split(report, data)
    _count(report, parts, data.expected)
    repeated = [path for path, n in Counter(e[0] for p in PARTS for e in parts[p]).items() if n > 1]
    if repeated:
        report.faults.append(f"{len(repeated)} images are listed twice: {_named(repeated)}")
    there, report.missing = data.images(parts)
    if report.missing:
        total = len(there) + len(report.missing)
        report.faults.append(
            f"{len(report.missing)} of {total} images are missing: {_named(report.missing)}"
        )
    if deep:
        report.unreadable = unreadable(there, workers, data.name)
        if report.unreadable:
            report.faults.append(
                f"{len(report.unreadable)} of {len(there)} images cannot be read: "
                + _named(list(report.unreadable.values()), "; ")
            )
    if hasattr(data, "remarks"):
        report.remarks += data.remarks(parts)
    return report


def _mistake(action):
    """What ``action`` finds wrong, in a sentence."""
    try:
        action()
    except (OSError, ValueError) as error:
        return sentence(error)
    return ""


def _look_at_split(report, data):
    where = "docs/DATASETS.md tells where to get that"
    if not data.split_file:
        return
    if data.made:
        report.split = "none"
        report.remarks.append(
            f"there is no {data.split_file}, so a split would be made, which is not the published "
            f"one; {where}"
        )
        return
    with open(data.split_path, "rb") as file:
        same = hashlib.sha256(file.read()).hexdigest() == data.split_sha256
    report.split = "published" if same else "file"
    if data.split_sha256 and not same:
        report.remarks.append(f"{data.split_file} is not the published file byte for byte; {where}")


def _count(report, parts, expected):
    report.classes = len({label for part in PARTS for _, label, _ in parts[part]})
    for part in PARTS:
        setattr(report, part, len(parts[part]))
    if expected is None:
        return
    report.expected = {name: getattr(expected, name) for name in ("classes", *PARTS)}
    odd = [
        f"{getattr(report, name):,} {name if name == 'classes' else name + ' images'} instead of "
        f"{number:,}"
        for name, number in report.expected.items()
        if getattr(report, name) != number
    ]
    if odd:
        report.faults.append(f"it has {', '.join(odd)}")


def _named(things, comma=", "):
    more = len(things) - NAMED
    end = f"{comma}and {more} more (--json FILE has all)" if more > 0 else ""
    return comma.join(things[:NAMED]) + end


def unreadable(paths, workers=None, name="images"):
    """Decode images, with a progress bar; returns ``{path: sentence about it}``."""
    faults = {}
    paths = list(paths)
    bar = tqdm(total=len(paths), desc=name, unit="image", disable=None)
    with bar, ThreadPoolExecutor(workers or os.cpu_count()) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata, which nothing here uses
        for start in range(0, len(paths), BATCH):
            batch = paths[start : start + BATCH]
            for path, why in zip(batch, pool.map(_why_unreadable, batch)):
                if why:
                    faults[path] = why
                    bar.set_postfix(unreadable=len(faults))
                bar.update()
    return faults


def _why_unreadable(path):
    try:
        read_image(path)
    except ImageError as error:
        return str(error)
    return ""


def table(reports):
    """The reports as a text table; in brackets the number of the complete data where it differs."""

    def cell(report, name):
        value = getattr(report, name)
        if value is None:
            return "-"
        wanted = (report.expected or {}).get(name, value)
        return f"{value:,}" if value == wanted else f"{value:,} ({wanted:,})"

    heads = ["dataset", "folder", "classes", *PARTS, "split", "missing", "unreadable", "verdict"]
    lines = []
    for report in reports:
        read = report.classes is not None
        lines.append(
            [
                report.dataset,
                os.path.basename(report.folder),
                *(cell(report, name) for name in ("classes", *PARTS)),
                report.split or "-",
                f"{len(report.missing):,}" if read else "-",
                "-" if report.unreadable is None else f"{len(report.unreadable):,}",
                report.verdict,
            ]
        )
    if all(report.unreadable is None for report in reports):
        heads.remove("unreadable")
        lines = [line[:-2] + line[-1:] for line in lines]
    left = ("dataset", "folder", "split", "verdict")
    align = ["left" if head in left else "right" for head in heads]
    return tabulate(lines, heads, "simple", disable_numparse=True, colalign=align)


def _import_readers(modules):
    for module in modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name not in (module, module.partition(".")[0]):
                raise
            raise BadValue(
                f"there is no module {module!r} with dataset readers in {os.getcwd()} or on "
                "PYTHONPATH; run this in the folder of the project that has them, or name it with "
                "--readers"
            ) from None
    readers = checkable()
    if not readers:
        raise BadValue(
            f"{', '.join(modules)} registers no dataset reader that can be checked (one with "
            "at(root), see the documentation of datasets.check); name another module with --readers"
        )
    return readers


def check(args):
    """The command ``check``; returns the exit code."""
    root = os.path.abspath(os.path.expanduser(args.root))
    if not os.path.isdir(root):
        raise NotFound(f"--root {root} is no folder; give the folder of the datasets")
    if args.json and not os.path.isdir(os.path.dirname(os.path.abspath(args.json))):
        raise NotFound(f"--json: the folder of {args.json} does not exist; make it first")
    if args.workers is not None and args.workers < 1:
        raise BadValue(f"--workers is {args.workers}; give 1 or more")
    readers = _import_readers(args.readers)
    # Own images have no folder of their own below the root: they are looked at only when named.
    names = [resolve(word, readers) for word in args.datasets] or [
        name for name, reader in readers.items() if reader.dataset_dir
    ]
    reports = []
    bar = tqdm(dict.fromkeys(names), unit="dataset", disable=None if not args.deep else True)
    for name in bar:
        bar.set_description(name)
        reports.append(examine(readers[name], root, args.deep, args.workers))
    print(table(reports))
    found = [report for report in reports if report.found]
    wanted = reports if args.datasets else found
    for report in reports if args.datasets else [r for r in reports if r.found or r.nearby]:
        for line in (*report.faults, *report.remarks):
            print(f"- {line if line.startswith(report.dataset) else f'{report.dataset}: {line}'}")
    if not found and not args.datasets:
        print(
            f"- none of these is in {root}: docs/DATASETS.md tells how to get them; class folders "
            "of your own are checked with the name ImageFolder after the root"
        )
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            content = [{**asdict(report), "verdict": report.verdict} for report in reports]
            json.dump(content, file, indent=2)
        print(f"Wrote {args.json}")
    return int(not found or any(report.verdict != COMPLETE for report in wanted))


def main(argv=None):
    """Command line; returns 0 if every dataset looked for is complete (without names: every one
    that was found, and there is one), else 1."""
    parser = argparse.ArgumentParser(prog="python -m datasets.check", description="Check data.")
    commands = parser.add_subparsers(required=True, metavar="check")
    one = commands.add_parser("check", help="look over datasets and print a table")
    one.add_argument("datasets", nargs="*", metavar="DATASET", help="names; all of them if none")
    one.add_argument("--root", required=True, help="folder of the datasets, or of your own images")
    one.add_argument("--deep", action="store_true", help="decode every image")
    one.add_argument("--workers", type=int, help="threads with --deep (default: processors)")
    one.add_argument("--json", metavar="FILE", help="write everything to FILE, all paths included")
    one.add_argument(
        "--readers", nargs="+", default=["datasets"], metavar="MODULE", help="modules with readers"
    )
    one.set_defaults(command=check)
    args = parser.parse_args(argv)
    return args.command(args)


if __name__ == "__main__":
    show_user_errors()
    sys.exit(main())
