"""One run: tune a model that captions images or answers questions on one family, and ask it about
all families. What it knew before is a run of its own, of the method ``Pretrained``."""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import platform
import shlex
import time

import torch

import proxyfda
from proxyfda.dassl import log_to, open_log, set_random_seed
from proxyfda.experiments import folders, record
from proxyfda.experiments.lock import folder_lock
from proxyfda.names import PRETRAINED, split_run_name
from proxyfda.utils.errors import BadValue, show_user_errors
from proxyfda.utils.files import writing
from trainers.image_to_text.data import BUNDLED, CAPTIONING, VQA, source_of
from trainers.image_to_text.loading import the_library

__all__ = ["check_folder", "check_options", "main", "parser"]

_FREE = ("output_dir", "data", "device", "loader_workers")
"""What may differ between two calls for one run."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="trainers.image_to_text", description=__doc__, exit_on_error=False
    )
    add = parser.add_argument
    add("--output-dir", required=True, help="where the run is written")
    add("--protocol", required=True, choices=(CAPTIONING, VQA))
    add("--method", required=True, metavar="RUN", help="such as FineTune, FDAFineTune, Pretrained")
    add("--model", default=BUNDLED, help="bundled, or a folder of transformers or hub name")
    add("--data", default=BUNDLED, help="bundled, or a folder in the layout of COCO or VQAv2")
    add("--tune-on", default="", help="family")
    add("--evaluate-on", required=True, help="families joined by commas, the tuned one among them")
    add("--weight", type=float, default=0.0, help="λ of the method's regulariser")
    add("--seed", type=int, default=1)
    add("--epochs", type=int, default=3)
    add("--batch-size", type=int, default=64)
    add("--accumulate", type=int, default=1, help="batches of one step")
    add("--lr", type=float, default=2e-4)
    add("--precision", default="fp32", choices=("fp32", "bf16"))
    add("--device", default="auto", choices=("auto", "cpu"))
    add("--loader-workers", type=int, default=0, help="processes that read what is tuned on")
    add("--train-split", default="", help="train2017, train2014, karpathy_train, ...")
    add("--test-split", default="", help="val2017, karpathy_test, ...; of rendered: val")
    add("--kinds", default="", help="of VQAv2's files: answer_type or question_type, as families")
    add("--limit", type=int, help="examples of a family (bundled: pictures of a class) at most")
    return parser


def main(args: argparse.Namespace) -> dict:
    """Run it.

    Args:
        args: what :func:`parser` makes of a command line.

    Returns:
        The content of its ``result.json``.

    Raises:
        UserError: a wrong option, folder or file.
        Busy: another process works in the output folder.
        CannotWrite: the disk is full or read-only.
    """
    check_options(args)
    check_folder(args)
    source = source_of(args)
    asked = [family for family in args.evaluate_on.split(",") if family]
    folder = args.output_dir
    with writing(within=folder), folder_lock(folder), folders.left_as_it_was(folder):
        started = time.perf_counter()
        folders.claim(folder, _identity(args), lambda: _compared(args))
        set_random_seed(args.seed)
        log_to(open_log(folder))
        print(shlex.join(f"{key}={value}" for key, value in sorted(vars(args).items())))
        model = load_model(args, tuned=False)
        if args.method != PRETRAINED:
            _tuned(args, model, source)
            model = load_model(args, tuned=True)
        tuned = time.perf_counter()
        return record.write(folder, {**_asked(args, model, source, asked), "time": {
            "run": round(tuned - started, 3), "evaluate": round(time.perf_counter() - tuned, 3),
        }})  # fmt: skip


def load_model(args, tuned: bool):
    """The model before, or as the run left it, on its device."""
    the_library().logging.disable_progress_bar()
    from trainers.image_to_text import tuning
    from trainers.image_to_text.models import ImageToText

    place = args.model
    if tuned:
        place = os.path.join(args.output_dir, tuning.MODEL)
    elif place == BUNDLED:
        from datasets.bundled.git_model import FOLDER

        place = FOLDER
    device = "cuda" if args.device == "auto" and torch.cuda.is_available() else "cpu"
    return ImageToText.load(place, device)


def _tuned(args, model, source) -> None:
    """Tune, unless that is done."""
    from trainers.image_to_text.tuning import MODEL, tune

    if os.path.isdir(os.path.join(args.output_dir, MODEL)):
        print(f"{MODEL} is complete")
        return
    tune(
        model,
        source.part(args.tune_on, "train"),
        args.output_dir,
        regulariser=split_run_name(args.method)[1],
        weight=args.weight,
        **{key: getattr(args, key) for key in
           ("epochs", "batch_size", "lr", "seed", "accumulate", "precision", "device",
            "loader_workers")},
    )  # fmt: skip


def _asked(args, model, source, families) -> dict:
    """The result but for the time."""
    from trainers.image_to_text.evaluation import probe, scores

    parts = {family: source.part(family, "test") for family in families}
    said, probes = {}, {}
    for family, part in parts.items():
        images = part.pixels(range(len(part.examples)))
        said[family] = model.answers(part.examples, images, batch_size=256)
        train = source.labelled(family, "train")
        if train is not None:
            probes[family] = probe(model, train, source.labelled(family, "test"))
    found = scores(said, parts, args.protocol)
    for family in families:
        probed = f", linear probe {probes[family]['linear_probe']:.2f} %" if probes else ""
        print(f"{family}: {found[family]['score']:.2f}{probed}", flush=True)
    return {**_described(args), "scores": found, **({"probes": probes} if probes else {}),
            "accuracy": found[args.tune_on or families[0]]["exact"]}  # fmt: skip


def _described(args) -> dict:
    import transformers

    regulariser = split_run_name(args.method)[1]
    return {
        "split": "val" if args.test_split == "val" else "test",
        "protocol": args.protocol,
        "dataset": args.tune_on or "pretrained",
        "source": args.tune_on or None,
        "target": args.tune_on or "pretrained",
        "name": args.method,
        "trainer": split_run_name(args.method)[0],
        "regulariser": {"name": regulariser, "weight": args.weight} if regulariser else None,
        "backbone": {"name": os.path.basename(os.path.normpath(args.model)), "weights": args.model},
        "config": os.path.basename(os.path.dirname(os.path.abspath(args.output_dir))),
        "shots": -1,
        "seed": args.seed,
        "subsample": "all",
        "epoch": args.epochs if regulariser or args.tune_on else None,
        "engine": "transformers",
        "versions": {
            "proxyfda": proxyfda.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "cfg": _identity(args),
    }


def _identity(args) -> dict:
    return {key: value for key, value in vars(args).items() if key not in _FREE}


def _compared(args) -> folders.Compared:
    theirs, ours = folders.read_config(args.output_dir), _identity(args)
    changed = [key for key in sorted({*ours, *theirs}) if ours.get(key) != theirs.get(key)]
    return changed if theirs else [], theirs, ours


def check_options(args: argparse.Namespace) -> None:
    """Refuse options that cannot be.

    Raises:
        BadValue: naming the option.
    """
    for name in ("epochs", "batch_size", "accumulate"):
        if getattr(args, name) < 1:
            raise BadValue(f"--{name.replace('_', '-')} is {getattr(args, name)}; use at least 1")
    if args.loader_workers < 0:
        raise BadValue(f"--loader-workers is {args.loader_workers}; use at least 0")
    if args.loader_workers and multiprocessing.get_start_method() != "fork":
        raise BadValue(
            f"--loader-workers is {args.loader_workers}, and processes do not fork on this system; "
            "leave it out"
        )
    if not 0 < args.lr < math.inf:
        raise BadValue(f"--lr is {args.lr:g}; use a finite number above 0")


def check_folder(args: argparse.Namespace) -> None:
    """Refuse an output folder that holds a run with other options.

    Raises:
        AlreadyExists, BadValue: see :func:`proxyfda.experiments.folders.refuse_another`.
    """
    folders.refuse_another(args.output_dir, lambda: _compared(args))


if __name__ == "__main__":
    show_user_errors()
    try:
        main(parser().parse_args())
    except argparse.ArgumentError as error:
        raise BadValue(f"{error}; see --help") from None
