"""The command line of ``python -m proxyfda.diagnose``."""

from __future__ import annotations

import argparse
import csv
import importlib
import io
import os
import os.path as osp
import sys
from collections.abc import Sequence

import torch
from tabulate import tabulate

from proxyfda.diagnose import figures
from proxyfda.diagnose.comparison import MEASURES, Comparison, compare
from proxyfda.diagnose.correlation import Correlation, correlate, stronger
from proxyfda.diagnose.encoders import encode, load_encoder, pretrained_of
from proxyfda.diagnose.samples import SPLITS, Encoded, Sample, read_sample
from proxyfda.diagnose.sweep import SWEPT, measure_runs
from proxyfda.experiments import layout
from proxyfda.experiments.project import Project
from proxyfda.names import method_title
from proxyfda.results.drawing import save_figure
from proxyfda.results.names import title_of
from proxyfda.utils.errors import BadValue, NotFound
from proxyfda.utils.files import write_text

CORRELATE = "correlate"
_FEW = 8
_EPILOG = f"""
Measures are on features of length 1 of images that are drawn by --seed: the share of the K nearest
neighbours that are kept, debiased linear CKA, the mean distance to where features were, and OTDD
between the frozen features of one half of the images and the tuned ones of the other (in brackets:
frozen ones on both sides). The linear probe is fitted on the one half and tested on the other.

`python -m proxyfda.diagnose {CORRELATE} OUTPUT` correlates each measure with what was forgotten,
over the runs of a sweep.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == [CORRELATE]:
        return _correlate(_correlate_parser().parse_args(words[1:]))
    return _compare(_parser().parse_args(words))


# -- two models -----------------------------------------------------------------------------------


def _compare(args: argparse.Namespace) -> int:
    project = _project(args)
    names = _names(args.models)
    paths = [project.dataset_config(word) for word in _split(args.datasets)]
    if not paths:
        raise BadValue(f"--datasets is {args.datasets!r}; name datasets or config files")
    device = _device()
    frozen_model, tuned_models = _load(args, names, device)
    os.makedirs(args.out, exist_ok=True)
    rows, per_class, text, notes = [], [], [], {}
    for path in paths:
        sample = _sample(args, path)
        print(f"{sample.name}: {len(sample.labels)} images", flush=True)
        frozen = encode(frozen_model, sample, layers=True)
        tuned = {name: encode(model, sample, layers=True) for name, model in tuned_models.items()}
        found = {
            name: compare(sample.name, frozen, made, sample.labels, k=args.k, seed=args.seed)
            for name, made in tuned.items()
        }
        notes.update({name: one.note for name, one in tuned.items() if one.note})
        rows += [_row(sample, name, one) for name, one in found.items()]
        text += [_shown(sample, name, one) for name, one in found.items()]
        per_class += [row for name, one in found.items() for row in _class_rows(sample, name, one)]
        _write_csv(osp.join(args.out, "diagnose.csv"), rows)
        _write_csv(osp.join(args.out, "classes.csv"), per_class)
        if args.figures:
            _draw(args, sample, frozen, tuned, found)
    print(tabulate(text, headers=_HEADERS, disable_numparse=True))
    print(
        f"{args.split} images, at most {args.images} of a dataset, K = {args.k}, seed {args.seed}"
    )
    for name, note in notes.items():
        print(f"{name}: {note}")
    print(f"wrote {args.out}")
    return 0


def _load(args: argparse.Namespace, names: dict[str, str], device: str):
    """The frozen model, and the tuned ones by name."""
    first = next(iter(names.values()))
    tuned = {name: load_encoder(model, device) for name, model in names.items()}
    if not args.frozen and not osp.isdir(first):
        raise BadValue(
            f"--frozen is not given, and {first} does not say what it was tuned from; give --frozen"
        )
    frozen = load_encoder(args.frozen, device) if args.frozen else pretrained_of(first, device)
    for name, model in tuned.items():
        if model.output_dim != frozen.output_dim:
            raise BadValue(
                f"the frozen model has features of {frozen.output_dim} dimensions and {name} of "
                f"{model.output_dim}; compare a model with the one that it was tuned from"
            )
    return frozen, tuned


def _names(models: Sequence[str]) -> dict[str, str]:
    """Models by the shortest names that tell them apart, of what their folders say."""
    if len(set(models)) < len(models):
        twice = next(model for model in models if models.count(model) > 1)
        raise BadValue(f"the model {twice} is given twice; give each one once")
    for more in range(4):
        names = [_name(model, more) for model in models]
        if len(set(names)) == len(models):
            break
    return dict(zip(names, models))


def _name(model: str, more: int) -> str:
    """The name of a model; ``more``: from 0, the method alone, to 3, the whole path."""
    place = layout.parse(model) if osp.isdir(model) else None
    if more == 3:
        return model
    if not place:
        head, _, path = model.rpartition("=")
        return f"{head} {osp.basename(path)}" if head else osp.basename(osp.normpath(path))
    title, seed = title_of(place.name), f"seed {place.seed}"
    said = [], [place.dataset, seed], [place.dataset, place.config, seed]
    return f"{title} ({', '.join(said[more])})" if more else title


_HEADERS = [
    "dataset", "model", "images", *MEASURES.values(), "linear probe (%)", "zero-shot (%)",
]  # fmt: skip
_CHANGES = ("linear_probe", "zero_shot")


def _row(sample: Sample, name: str, found: Comparison) -> dict:
    more = ["otdd_before", *(f"{what}{end}" for what in _CHANGES for end in ("_before", ""))]
    return {
        "dataset": sample.name,
        "model": name,
        "images": len(sample.labels),
        "of": sample.total,
        **{measure: getattr(found, measure) for measure in [*MEASURES, *more]},
    }


def _shown(sample: Sample, name: str, found: Comparison) -> list[str]:
    cells = [f"{getattr(found, measure):.3f}" for measure in MEASURES]
    cells[-1] += f" ({found.otdd_before:.3f})"
    for what in _CHANGES:
        before, after = getattr(found, f"{what}_before"), getattr(found, what)
        none = before is None or after is None
        cells.append("-" if none else f"{before:.1f} {after - before:+.1f}")
    return [sample.name, name, f"{len(sample.labels)} of {sample.total}", *cells]


def _class_rows(sample: Sample, name: str, found: Comparison) -> list[dict]:
    rows = []
    for label in sample.labels.unique().tolist():
        own = sample.labels == label
        rows.append(
            {
                "dataset": sample.name,
                "model": name,
                "class": sample.classnames[label],
                "images": int(own.sum()),
                "overlap": found.kept[own].mean().item(),
                "l2_drift": found.moved[own].mean().item(),
            }
        )
    return rows


def _draw(
    args: argparse.Namespace,
    sample: Sample,
    frozen: Encoded,
    tuned: dict[str, Encoded],
    found: dict[str, Comparison],
) -> None:
    stem = osp.join(args.out, sample.name)
    if any(one.layers for one in found.values()):
        save_figure(figures.layer_figure(sample.name, found), f"{stem}_layers")
    made = figures.map_figure(sample, frozen, tuned, args.map, args.seed)
    save_figure(made, f"{stem}_{args.map}")
    save_figure(figures.class_figure(sample, found), f"{stem}_classes")
    for place, (name, encoded) in enumerate(tuned.items(), 1):
        end = f"_neighbours{place if len(tuned) > 1 else ''}"
        title = f"{sample.name}, {name}: images that lost most neighbours"
        drawn = figures.neighbour_figure(sample, frozen, encoded, found[name], title)
        save_figure(drawn, stem + end)


# -- a sweep --------------------------------------------------------------------------------------


def _correlate(args: argparse.Namespace) -> int:
    project = _project(args)
    out = args.out or osp.join(args.output, layout.DIAGNOSIS)
    points = measure_runs(
        args.output,
        lambda dataset: _sample(args, project.dataset_config(dataset)),
        split=args.split,
        datasets=_split(args.datasets),
        tuned=_split(args.tuned),
        k=args.k,
        seed=args.seed,
        device=_device(),
    )
    os.makedirs(out, exist_ok=True)
    _write_csv(osp.join(out, "runs.csv"), points)
    rows, notes, count = _correlations(points, args.seed)
    print(tabulate(rows, headers=_CORRELATED, disable_numparse=True))
    print(
        f"{len(points)} runs, of which the bootstrap draws {count} groups (method and tuned "
        f"dataset); 95 % intervals of 2000 draws, seed {args.seed}; {args.split} images, at most "
        f"{args.images} of a dataset, K = {args.k}"
    )
    if count < _FEW:
        print(f"With fewer than {_FEW} groups the intervals say little")
    keys = ["measure", "pearson", "spearman", "pearson_beyond_l2", "spearman_beyond_l2"]
    _write_csv(osp.join(out, "correlations.csv"), [dict(zip(keys, row)) for row in rows])
    names = {one["name"]: method_title(one["name"]) for one in points}
    save_figure(figures.scatter_figure(points, SWEPT, names, notes), osp.join(out, "scatter"))
    print(f"wrote {out}")
    return 0


_BASE = "l2_drift"
_CORRELATED = [
    "measure", "Pearson with Δ_LP", "Spearman with Δ_LP",
    f"|r| beyond that of {SWEPT[_BASE]}", f"|ρ| beyond that of {SWEPT[_BASE]}",
]  # fmt: skip


def _correlations(points: Sequence[dict], seed: int) -> tuple[list[list[str]], dict[str, str], int]:
    """Rows of the table, what stands above each panel of the figure, and how many groups there
    are."""
    delta = [one["delta"] for one in points]
    # Seeds of one method on one dataset are alike, and are drawn together.
    groups: list[object] = [(one["dataset"], one["name"]) for one in points]
    if len(set(groups)) < 3:
        groups = list(range(len(points)))
    base = [one[_BASE] for one in points]
    rows, notes = [], {}
    for measure, title in SWEPT.items():
        values = [one[measure] for one in points]
        try:
            cells = _cells(correlate(values, delta, groups, seed=seed))
            more = ["", ""]
            if measure != _BASE:
                more = _cells(stronger(values, base, delta, groups, seed=seed))
        except BadValue as error:
            raise BadValue(f"{title} against Δ_LP of {len(points)} runs: {error}") from None
        rows.append([title, *cells, *more])
        notes[measure] = f"r {cells[0]}\nρ {cells[1]}"
    return rows, notes, len(set(groups))


def _cells(found: Correlation) -> list[str]:
    pairs = (found.pearson, found.pearson_interval), (found.spearman, found.spearman_interval)
    return [f"{value:+.2f} [{low:+.2f}, {high:+.2f}]" for value, (low, high) in pairs]


# -- both -----------------------------------------------------------------------------------------


def _sample(args: argparse.Namespace, path: str) -> Sample:
    return read_sample(path, args.root, split=args.split, most=args.images, seed=args.seed)


def _project(args: argparse.Namespace) -> Project:
    """The repository at hand, whose readers are registered by importing its entry module."""
    folder = os.getcwd()
    if not osp.isfile(osp.join(folder, f"{args.entry}.py")):
        raise NotFound(
            f"there is no {args.entry}.py in {folder}, which registers the datasets; run this in "
            "the folder of the repository, or name another module by --entry"
        )
    if folder not in sys.path:
        sys.path.insert(0, folder)
    importlib.import_module(args.entry)
    return Project(folder, args.entry)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _split(words: str) -> list[str]:
    return [word for word in map(str.strip, words.split(",")) if word]


def _write_csv(path: str, rows: Sequence[dict]) -> None:
    lines = io.StringIO()
    writer = csv.DictWriter(lines, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, lines.getvalue())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m proxyfda.diagnose",
        description="What tuning did to an encoder, on any datasets.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "models",
        nargs="+",
        metavar="MODEL",
        help="tuned: output folder of a run that tuned end to end or learned prompts, ours or "
        "upstream's, or NAME=WEIGHTS of a backbone",
    )
    add("--frozen", default="", metavar="MODEL", help="(default: what the first was tuned from)")
    add("--datasets", required=True, help="names or config files, joined by commas")
    add(
        "--out", default="diagnose", metavar="DIR", help="of tables and figures (default: diagnose)"
    )
    add("--map", default="pca", choices=figures.MAPS, help="figure of the features")
    add("--no-figures", dest="figures", action="store_false", help="tables alone")
    _add_common(parser, images=2000, splits=tuple(SPLITS))
    return parser


def _correlate_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m proxyfda.diagnose {CORRELATE}",
        description="Each measure against forgetting (Δ_LP), over the runs of a sweep.",
    )
    add = parser.add_argument
    add("output", metavar="OUTPUT", help="folder that has finetune/train and the probes")
    add("--datasets", default="", help="to measure on (default: all that were probed)")
    add("--tuned", default="", help="only runs that were tuned on these (default: all)")
    add("--out", default="", metavar="DIR", help="(default: OUTPUT/diagnose)")
    _add_common(parser, images=500, splits=tuple(layout.PROBES))
    return parser


def _add_common(parser: argparse.ArgumentParser, images: int, splits: Sequence[str]) -> None:
    add = parser.add_argument
    add("--root", default="", help="folder of the datasets")
    add("--split", default="test", choices=splits, help="images of it (default: test)")
    add("--images", type=int, default=images, help=f"of each dataset, at most (default: {images})")
    add("--k", type=int, default=8, help="neighbours (default: 8)")
    add("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    add("--entry", default="train", help="module that registers the datasets (default: train)")
