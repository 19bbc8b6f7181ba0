"""What a step of tuning end to end costs with each method, beside the step that protects nothing.

    python scripts/bench_finetune.py FDA Proxy-FDA LDIFS L2SP RKD --batch 32 --classes 100
    python scripts/bench_finetune.py naive FDA FDA:cached --backbone ViT-Bundled --batch 64

For each method: the trainer's training step, in ratio to that of plain fine-tuning ("naive"), and
to a naive step with one frozen forward pass of the batch, which nothing that compares features can
do without. The three take turns within a process, so that the machine's moods hit all alike;
printed are medians over the rounds, and for ratios the median of those within a round. What the
term itself takes, forward and backward on features of that size, stands beside it, since it is
smaller than those moods. A method that ends in ``:cached`` has its frozen features from
CACHE_ANCHORS of TRAINER.FINETUNE.

Peak memory is what two steps take on top of model, frozen copy and batch, in a process of its own.
Weights are random and images in memory.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import os.path as osp
import statistics
import sys
import tempfile

sys.path.insert(0, osp.dirname(osp.dirname(osp.abspath(__file__))))

import torch
from bench import (
    BUNDLED,
    image_size,
    number_of_child,
    on_memory,
    peak_memory,
    random_weights,
    ratio,
    ready,
    step,
    take_turns,
)
from counts import count
from tabulate import tabulate

import train
from proxyfda.dassl import TRAINER_REGISTRY
from proxyfda.experiments.config import load_config
from proxyfda.names import METHODS, finetune_run, trainer_and_regulariser
from proxyfda.utils.errors import show_user_errors

NAIVE = "naive"
CACHED = ":cached"


def trainer_of(method: str, args: argparse.Namespace):
    """The trainer of a method on images in memory, in the middle of an epoch."""
    name, regulariser = trainer_and_regulariser(finetune_run(method.removesuffix(CACHED)))
    options = {
        "DATASET.NAME": "ImageFolder",
        "INPUT.SIZE": f"({args.side},{args.side})",
        "INPUT.TRANSFORMS": ["normalize"],
        "MODEL.BACKBONE.NAME": args.backbone,
        "MODEL.BACKBONE.WEIGHTS": args.weights,
        "DATALOADER.TRAIN_X.BATCH_SIZE": args.batch,
        "OPTIM.NAME": "adamw",
        "OPTIM.LR": 1e-5,
        "OPTIM.MAX_EPOCH": 1000,
        "TRAINER.FINETUNE.HEAD": "random",
        "TRAINER.FINETUNE.PREC": args.prec,
        "TRAINER.FINETUNE.CACHE_ANCHORS": method.endswith(CACHED),
        "USE_CUDA": torch.cuda.is_available(),
    }
    words = ["--trainer", name, "--regulariser", regulariser, "--output-dir", args.folder]
    words += [str(word) for option in options.items() for word in option]
    words += ["TRAINER.PROXYFDA.CONSTANTS", "given"]  # derived ones cost the same once settled
    words += [word for pair in args.opts for word in pair]
    cfg = load_config(train.parser().parse_args(words))
    base = on_memory(
        TRAINER_REGISTRY.get(cfg.TRAINER.NAME), args.classes, max(1, args.batch // args.classes)
    )

    class OnMemory(base):
        def build_data_loader(self):
            self.backbone = self._load_backbone()
            super().build_data_loader()

    torch.manual_seed(0)  # all get the same images
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = ready(OnMemory(cfg))
        trainer.before_train()
    return trainer


def step_with_frozen_pass(trainer, batch: dict) -> None:
    """One training step, and a forward pass without gradient of which nothing is made."""
    with trainer.autocast():
        trainer.backbone.encode(batch["img"].to(trainer.device))
    step(trainer, batch)


def term_of(trainer, batch: dict):
    """The value and the gradients of a trainer's term, on features of a batch, as a function.

    None where it needs no features.
    """
    if trainer.term is None or not trainer.term.takes_anchors:
        return None
    with torch.no_grad():
        _, compared = trainer.term.encode(trainer.backbone, batch["img"].to(trainer.device))
    one = isinstance(compared, torch.Tensor)
    anchors = [compared] if one else compared
    tuned = [(x + 0.1 * x.std() * torch.randn_like(x)).requires_grad_() for x in anchors]
    regulariser = trainer.term.regulariser
    wanted = [*tuned, *regulariser.parameters()]

    def term() -> None:
        given = (tuned[0], anchors[0]) if one else (tuned, anchors)
        torch.autograd.grad(regulariser(*given), wanted, allow_unused=True)

    return term


def time_steps(args: argparse.Namespace) -> list[list]:
    """Rows: method; its step in ms, in ratio to naive, and to naive with a frozen pass; its term
    by itself in ms, and in per cent of the step."""
    rows = []
    naive = trainer_of(NAIVE, args)
    batch = next(iter(naive.train_loader_x))
    for method in args.methods:
        tuned = trainer_of(method, args)
        jobs = {
            NAIVE: functools.partial(step, naive, batch),
            "method": functools.partial(step, tuned, batch),
            "pass": functools.partial(step_with_frozen_pass, naive, batch),
        }
        term = term_of(tuned, batch)
        if term is not None:
            jobs["term"] = term
        times = take_turns(jobs, args)
        found = times["method"]
        row = [method, 1000 * statistics.median(found)]
        row += [ratio(found, times[NAIVE]), ratio(found, times["pass"])]
        if term is not None:
            row += [1000 * statistics.median(times["term"]), 100 * ratio(times["term"], found)]
        rows.append(row)
        del tuned, jobs, term  # the memory of one at a time
    return rows


def two_steps(trainer, batch: dict) -> None:
    """The state of the optimiser is there from the first one on."""
    for _ in range(2):
        step(trainer, batch)


def memory_in_child(method: str, args: argparse.Namespace) -> float | None:
    """MiB of two steps at their peak, on top of what is there before, in a process of its own."""
    words = [method, "--memory-of-one"]
    for flag in ("backbone", "weights", "classes", "batch", "prec", "threads"):
        words += [f"--{flag}", str(getattr(args, flag))]
    words += [word for pair in args.opts for word in ("--opt", *pair)]
    return number_of_child(__file__, words, f"memory of {method}")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "methods",
        nargs="+",
        metavar="METHOD",
        help=f"{', '.join(METHODS)}, or FineTune+<regulariser>",
    )
    add("--what", default="step,memory", help="step, memory or both (default)")
    add("--backbone", default="ViT-B/32", help=f"the encoder; {BUNDLED}: the bundled CLIP")
    add("--weights", default="", help="file for the backbone, in place of random weights")
    add("--classes", type=count, default=100)
    add("--batch", type=count, default=32, help="images in a step")
    add("--rounds", type=count, default=5, help="measured runs of each, after one that warms up")
    add("--prec", default="fp32", choices=["fp32", "amp", "bf16"])
    add("--threads", type=count, default=1, help="CPU threads")
    add("--opt", dest="opts", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"),
        help="option of the config, for all methods; may be repeated")  # fmt: skip
    add("--memory-of-one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.what = args.what.split(",")
    unknown = set(args.what) - {"step", "memory"}
    if unknown:
        parser.error(f"--what {','.join(sorted(unknown))}: use any of step, memory")
    # Wall-clock times swing with what else a machine does; a device's work is no processor time.
    args.cpu_time = not torch.cuda.is_available()
    return args


def main() -> int:
    """Print the tables."""
    args = arguments()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as args.folder:
        args.weights = args.weights or random_weights(args.backbone, args.folder)
        args.side = image_size(args.backbone, args.weights)
        if args.memory_of_one:
            trainer = trainer_of(args.methods[0], args)
            batch = next(iter(trainer.train_loader_x))
            trainer.backbone.encode(batch["img"].to(trainer.device))  # libraries are loaded by it
            print(peak_memory(functools.partial(two_steps, trainer, batch)))
            return 0
        clock = "processor time" if args.cpu_time else "wall-clock time"
        print(
            f"{args.backbone}, batch {args.batch}, {args.classes} classes, {args.prec}, "
            f"{args.threads} threads, {args.rounds} rounds, {clock}, torch {torch.__version__}"
        )
        if "step" in args.what:
            head = ["step", "ms", "/ naive", "/ naive with a frozen pass", "term, ms", "%"]
            floats = ("", ".1f", ".3f", ".3f", ".2f", ".2f")
            print("\n" + tabulate(time_steps(args), head, floatfmt=floats))
        if "memory" in args.what:
            base = memory_in_child(NAIVE, args)
            rows = [[NAIVE, base, 1.0 if base else None]]
            for method in args.methods:
                peak = memory_in_child(method, args)
                rows.append([method, peak, peak / base if peak and base else None])
            head = ["peak memory of a step", "MiB", "/ naive"]
            print("\n" + tabulate(rows, head, floatfmt=("", ".0f", ".3f")))
    return 0


if __name__ == "__main__":
    show_user_errors()
    sys.exit(main())
