"""Look over the data before a run: ``python -m datasets.check --root DATA [DATASET ...]``.

For every dataset: is it there, are all listed images there, do classes and images have the numbers
of the complete data, is the split file sound; with ``--deep`` every image is decoded as well, in
threads. Nothing is written but the report that ``--json`` asks for.

The datasets are the registered :class:`~datasets.split.SplitDataset` readers.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import os
import sys
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field

from tabulate import tabulate
from tqdm import tqdm

from datasets.entry import PARTS
from datasets.split import SplitDataset
from proxyfda.dassl import DATASET_REGISTRY, ImageError, read_image
from proxyfda.utils.errors import BadValue, NotFound, sentence, show_user_errors
from proxyfda.utils.files import write_json
from proxyfda.utils.suggest import did_you_mean

SHOWN = 5  # files named below the table
CHUNK = 512  # images handed to the threads at a time

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
        unreadable: path -> sentence for images that cannot be decoded; ``None`` if not looked for.
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


def registered_readers():
    """``{name: class}`` of the registered readers that can be checked."""
    readers = {name: DATASET_REGISTRY.get(name) for name in DATASET_REGISTRY.registered_names()}
    return {name: reader for name, reader in readers.items() if issubclass(reader, SplitDataset)}


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
    raise BadValue(
        f"there is no dataset {word!r}{did_you_mean(word, readers)}; use one of "
        f"{', '.join(sorted(readers))}"
    )


def examine(reader, root, deep=False, workers=None):
    """Look over one dataset.

    Args:
        reader: a subclass of :class:`~datasets.split.SplitDataset`.
        root: data root.
        deep: decode every image.
        workers: threads for that; by default as many as there are processors.

    Returns:
        A :class:`Report`.
    """
    data = reader.at(root)
    report = Report(dataset=data.name, folder=data.dataset_dir)
    if not os.path.isdir(data.dataset_dir):
        report.nearby = data.nearby()
        _, fault = _try_to_read(data)
        report.faults.append(fault or f"{data.dataset_dir} is not a folder")
        return report
    report.found = True
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        parts, fault = _try_to_read(data)
    if fault:
        report.faults.append(fault)
        return report
    report.dataset = data.name  # own data may give their name in a file
    report.remarks += [
        line for line in printed.getvalue().splitlines() if not line.startswith("Reading split")
    ]
    _examine_split_file(report, data)
    _count(report, parts, data.expected)
    repeated = [path for path, n in Counter(e[0] for p in PARTS for e in parts[p]).items() if n > 1]
    if repeated:
        report.faults.append(f"{len(repeated)} images are listed twice: {_first_few(repeated)}")
    there, report.missing = data.images(parts)
    if report.missing:
        total = len(there) + len(report.missing)
        report.faults.append(
            f"{len(report.missing)} of {total} images are missing: {_first_few(report.missing)}"
        )
    if deep:
        report.unreadable = find_unreadable(there, workers, data.name)
        if report.unreadable:
            report.faults.append(
                f"{len(report.unreadable)} of {len(there)} images cannot be read: "
                + _first_few(list(report.unreadable.values()), "; ")
            )
    report.remarks += data.remarks(parts)
    return report


def _try_to_read(data):
    """What the dataset lists, or ``None``, and a sentence on what is wrong, or ``""``."""
    try:
        return data.parts(), ""
    except (OSError, ValueError) as error:
        return None, sentence(error)


def _examine_split_file(report, data):
    where = "docs/DATASETS.md says where to get that"
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


def _first_few(things, comma=", "):
    more = len(things) - SHOWN
    end = f"{comma}and {more} more (--json FILE has all)" if more > 0 else ""
    return comma.join(things[:SHOWN]) + end


def find_unreadable(paths, workers=None, name="images"):
    """Decode images, with a progress bar; returns ``{path: sentence about it}``."""
    faults = {}
    paths = list(paths)
    bar = tqdm(total=len(paths), desc=name, unit="image", disable=None)
    with bar, ThreadPoolExecutor(workers or os.cpu_count()) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata, which nothing here uses
        for start in range(0, len(paths), CHUNK):
            batch = paths[start : start + CHUNK]
            for path, error in zip(batch, pool.map(_reading_error, batch)):
                if error:
                    faults[path] = error
                    bar.set_postfix(unreadable=len(faults))
                bar.update()
    return faults


def _reading_error(path):
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


def check(args):
    """Look over the datasets that the command line names; returns the exit code."""
    root = os.path.abspath(os.path.expanduser(args.root))
    if not os.path.isdir(root):
        raise NotFound(f"--root {root} is not a folder; give the folder of the datasets")
    if args.json and not os.path.isdir(os.path.dirname(os.path.abspath(args.json))):
        raise NotFound(f"--json: the folder of {args.json} does not exist; make it first")
    if args.workers is not None and args.workers < 1:
        raise BadValue(f"--workers is {args.workers}; give 1 or more")
    readers = registered_readers()
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
            f"- none of these is in {root}: docs/DATASETS.md says how to get them; class folders "
            "of your own are checked with the name ImageFolder after the root"
        )
    if args.json:
        content = [{**asdict(report), "verdict": report.verdict} for report in reports]
        write_json(args.json, content, indent=2)
        print(f"Wrote {args.json}")
    return int(not found or any(report.verdict != COMPLETE for report in wanted))


def main(argv=None):
    """Command line; returns 0 if every dataset looked for is complete (without names: every one
    that was found, and there is one), else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m datasets.check", description="Look over datasets and print a table."
    )
    parser.add_argument("datasets", nargs="*", metavar="DATASET", help="names; all of them if none")
    parser.add_argument(
        "--root", required=True, help="folder of the datasets, or of your own images"
    )
    parser.add_argument("--deep", action="store_true", help="decode every image")
    parser.add_argument("--workers", type=int, help="threads with --deep (default: processors)")
    parser.add_argument(
        "--json", metavar="FILE", help="write everything to FILE, all paths included"
    )
    return check(parser.parse_args(argv))


if __name__ == "__main__":
    show_user_errors()
    sys.exit(main())
