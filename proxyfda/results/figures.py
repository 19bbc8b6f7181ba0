"""Figures of results: ``python -m proxyfda.results.figures OUTPUT --out DIR``.

* ``base_new``: base against new accuracy per dataset and on average, with arrows from the plain
  trainer to the same trainer with FDA, Proxy-FDA and other regularisers.
* ``delta_new``: new accuracy relative to zero-shot CLIP as bars.
* ``seen_unseen``: settings to choose from, on halves of the base classes (``scripts/select.sh``
  writes it beside its choice).
* ``fewshot``: accuracy on all classes against the number of images per class.
* ``training``: loss, its terms and the training accuracy from the event files, per dataset.
* of probes (:mod:`proxyfda.results.probe_figures`): ``forgetting``, accuracy against forgetting;
  ``strengths``, both over λ on the validation split; ``wise_ft``, both over α; ``continual``,
  accuracy over a row of tasks.
* ``captioning``, ``vqa``: the score on the tuned family against its change on the others.

All as PNG and SVG; markers, hatches and line styles tell the trainers apart without colour. The
numbers are those of :mod:`proxyfda.results`, the whiskers its standard deviations.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from proxyfda.experiments.layout import IMAGE_TO_TEXT
from proxyfda.names import is_zero_shot, split_run_name
from proxyfda.results.curves import read_curves
from proxyfda.results.drawing import drawn, save_figure
from proxyfda.results.image_to_text import read_image_to_text, summarise_image_to_text
from proxyfda.results.image_to_text_figures import image_to_text_figures
from proxyfda.results.probe_figures import probe_figures
from proxyfda.results.probes import read_runs
from proxyfda.results.prompt_figures import (
    base_new_figure,
    delta_new_figure,
    fewshot_figure,
    training_figure,
)
from proxyfda.results.summary import summarise, summarise_accuracy
from proxyfda.results.targets import check_folder
from proxyfda.utils.errors import show_user_errors
from proxyfda.utils.files import writing


def figures(summary, tables=None, curves=None, runs=(), split="test"):
    """All figures of some results.

    Args:
        summary: base-to-new :class:`proxyfda.results.Summary`.
        tables: what :func:`proxyfda.results.summarise_accuracy` returns.
        curves: what :func:`proxyfda.results.curves.read_curves` returns.
        runs: what :func:`proxyfda.results.probes.read_probes` returns.
        split: of their probes, but for ``strengths``.

    Yields:
        (name, figure), or (name, sentence) for one that there are no numbers for. The host trainer
        and the number of shots are appended to names where there are several.
    """
    shots = list(dict.fromkeys(row.shots for row in summary.rows))
    for k in shots:
        for host, rows in _by_host([row for row in summary.rows if row.shots == k]):
            tail = host + f"_{k}shots" * (len(shots) > 1)
            for name, draw in (("base_new", base_new_figure), ("delta_new", delta_new_figure)):
                yield name + tail, drawn(draw, rows)
    fewshot = (tables or {}).get("fewshot")
    if fewshot is not None:
        for host, rows in _by_host(fewshot.rows):
            yield f"fewshot{host}", drawn(fewshot_figure, rows)
    yield from probe_figures(runs, split)
    yield from image_to_text_figures(tables or {})
    for dataset, found in (curves or {}).items():
        yield f"training_{dataset}", drawn(training_figure, found, f"Training on {dataset}")


def _by_host(rows):
    """Pairs of a tail for names and the rows of a host trainer with zero-shot CLIP's."""
    trainers = dict.fromkeys(row.trainer for row in rows if not is_zero_shot(row.trainer))
    regularisers = {}
    for host, regulariser in map(split_run_name, trainers):
        regularisers.setdefault(host, set()).add(regulariser)
    own = [host for host, found in regularisers.items() if found != {""}]
    # Hosts that nothing was added to stand in one figure.
    plain = [host for host in regularisers if host not in own]
    parts = [[host] for host in own] + [plain] * bool(plain) or [[]]
    for hosts in parts:
        tail = f"_{hosts[0]}" if len(hosts) == 1 else "_others"
        yield tail * (len(parts) > 1), [row for row in rows if _belongs(row, hosts)]


def save_figures(summary, folder, tables=None, curves=None, runs=(), split="test"):
    """Save what :func:`figures` yields in a folder, made if missing.

    A figure for which there are no numbers is left out with a line that says so.

    Returns:
        Paths of the files.
    """
    folder = Path(folder)
    with writing(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
    saved = []
    for name, figure in figures(summary, tables, curves, runs, split):
        if isinstance(figure, str):
            print(f"Left out {name}: {figure}")
        else:
            stem = folder / re.sub(r"[^\w.+-]+", "_", name)
            saved += save_figure(figure, stem)
    return saved


def _belongs(row, hosts):
    return is_zero_shot(row.trainer) or split_run_name(row.trainer)[0] in hosts


def main(argv=None):
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m proxyfda.results.figures", description="Figures of results."
    )
    parser.add_argument(
        "outputs", nargs="+", metavar="[LABEL=]OUTPUT", help="output folder of the scripts"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the figures")
    parser.add_argument("--split", default="test", choices=("test", "val"), help="results on it")
    parser.add_argument(
        "--curves", action="store_true", help="training curves too (reads all event files)"
    )
    args = parser.parse_args(argv)
    check_folder("--out", args.out)
    spoken = read_image_to_text(*args.outputs)
    records, runs = read_runs(args.outputs, args.split, required=not spoken)
    curves = read_curves(records) if args.curves else None
    tables = summarise_accuracy(records)
    tables.update((name, summarise_image_to_text(spoken, name)) for name in IMAGE_TO_TEXT)
    for path in save_figures(summarise(records), args.out, tables, curves, runs, args.split):
        print(f"Saved {path}")
    return 0


if __name__ == "__main__":
    show_user_errors()
    sys.exit(main())
