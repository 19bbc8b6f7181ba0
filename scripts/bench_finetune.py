"""What a step of tuning end to end costs with each method, beside the step that protects nothing.

    python scripts/bench_finetune.py FDA Proxy-FDA LDIFS L2SP RKD --batch 32 --classes 100

For each method: a training step, in ratio to that of plain fine-tuning ("naive"), and to a naive
step with one frozen forward pass of the batch, which is what a method that compares features cannot
do without. The three take turns within a process, so that the machine's moods hit all alike; printed
are medians over the rounds, and of ratios the median of those within a round. A method that ends in
``:cached``, such as ``FDA:cached``, has its frozen features from a cache, as CACHE_ANCHORS does.

Beside it the peak memory of a step, on top of model, frozen copy and batch, in a process of its own,
and with ``--what terms`` the term by itself, forward and backward, on random features.
Weights are random, images in memory.
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
    number_of_child,
    peak_memory,
    random_weights,
    ratio,
    take_turns,
)
from tabulate import tabulate
from torch.nn import functional as F

from proxyfda.anchors import CachedFeatures
from proxyfda.backbones.loading import load_backbone
from proxyfda.names import METHODS, finetune_run, split_run_name
from proxyfda.regularisers import L2SP, create, find
from proxyfda.utils.errors import show_user_errors

NAIVE = "naive"
CACHED = ":cached"
WEIGHT = 1.0


class Tuning:
    """A backbone that is tuned by one method on one batch.

    Args:
        method: a name of :data:`proxyfda.names.METHODS`, with or without ``:cached``.
        args: the command line.
    """

    def __init__(self, method: str, args: argparse.Namespace) -> None:
        word, _, cached = method.partition(":")
        self.regulariser_name = split_run_name(finetune_run(word))[1]
        torch.manual_seed(0)
        self.student = self.backbone(args)
        size = self.student.image_size
        self.images = torch.randn(args.batch, 3, size, size)
        self.labels = torch.arange(args.batch) % args.classes
        self.head = torch.nn.Linear(self.student.output_dim, args.classes)
        self.frozen, self.regulariser = None, None
        parameters = [*self.student.image_tower.parameters(), *self.head.parameters()]
        if self.regulariser_name == "l2sp":
            self.regulariser = L2SP(self.student.image_tower)
        elif self.regulariser_name:
            self.regulariser = create(self.regulariser_name, self.student.output_dim)
            parameters += self.regulariser.parameters()
            self.frozen = self.backbone(args).requires_grad_(False).eval()
        if cached:
            self.frozen = CachedFeatures.of(self.frozen, [self.images])
        self.optimiser = torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.1)

    def backbone(self, args: argparse.Namespace):
        with contextlib.redirect_stdout(io.StringIO()):
            return load_backbone(args.backbone, args.weights)

    def step(self) -> None:
        """One training step."""
        self.optimiser.zero_grad()
        anchors, slices = None, self.regulariser_name == "ldifs"
        if self.frozen is not None:
            with torch.no_grad():
                anchors = (
                    self.frozen.with_layers(self.images)[1] if slices else self.frozen(self.images)
                )
        if slices:
            features, compared = self.student.with_layers(self.images)
        else:
            features = compared = self.student(self.images)
        loss = F.cross_entropy(self.head(F.normalize(features, dim=-1)), self.labels)
        if self.regulariser is not None:
            loss = loss + WEIGHT * self.regulariser(compared, anchors)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.image_tower.parameters(), 1.0)
        self.optimiser.step()

    def step_with_frozen_pass(self) -> None:
        """The same, and a forward pass without gradient, of which nothing is made."""
        self.student.encode(self.images)
        self.step()


# -- time -----------------------------------------------------------------------------------------


def time_steps(args: argparse.Namespace) -> list[list]:
    """Rows: method, its step in ms, in ratio to naive, and to naive with a frozen pass."""
    rows = []
    naive = Tuning(NAIVE, args)
    for method in args.methods:
        tuned = Tuning(method, args)
        jobs = {
            "naive": naive.step,
            "with pass": naive.step_with_frozen_pass,
            "method": tuned.step,
        }
        times = take_turns(jobs, args)
        step = times["method"]
        rows.append(
            [
                method,
                1000 * statistics.median(step),
                ratio(step, times["naive"]),
                ratio(step, times["with pass"]),
            ]
        )
    return rows


def time_terms(args: argparse.Namespace) -> list[list]:
    """Rows: method, and ms of its term by itself, forward and backward, for each batch."""
    naive = Tuning(NAIVE, args)
    shapes = [tuple(x.shape[1:]) for x in naive.student.with_layers(naive.images[:1])[1]]
    rows = []
    for method in args.methods:
        name = split_run_name(finetune_run(method.partition(":")[0]))[1]
        if not name or find(name).kind == "weights":
            continue
        regulariser = create(name, naive.student.output_dim)
        own = list(regulariser.parameters())
        jobs = {}
        for batch in args.term_batch:
            wanted = shapes if name == "ldifs" else [(naive.student.output_dim,)]
            anchors = [torch.randn(batch, *shape) for shape in wanted]
            tuned = [(x + 0.1 * torch.randn_like(x)).requires_grad_() for x in anchors]
            jobs[batch] = functools.partial(term, regulariser, tuned, anchors, own)
        times = take_turns(jobs, args)
        rows.append(
            [method, *(1000 * statistics.median(times[batch]) for batch in args.term_batch)]
        )
    return rows


def term(regulariser, tuned: list, anchors: list, own: list) -> None:
    """A regulariser's value and gradients."""
    one = len(tuned) == 1
    loss = regulariser(tuned[0], anchors[0]) if one else regulariser(tuned, anchors)
    torch.autograd.grad(loss, [*tuned, *own], allow_unused=True)


# -- memory ---------------------------------------------------------------------------------------


def two_steps(tuning: Tuning) -> None:
    """The optimiser's state is there from the first on."""
    for _ in range(2):
        tuning.step()


def memory_in_child(method: str, args: argparse.Namespace) -> float | None:
    """MiB of two steps at their peak, on top of what is there before, in a process of its own."""
    words = [method, "--memory-of-one"]
    for flag in ("backbone", "weights", "classes", "batch", "threads"):
        words += [f"--{flag}", str(getattr(args, flag))]
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
        help=f"one of {', '.join(METHODS)}, or a regulariser",
    )
    add("--what", default="step,memory", help="any of step, memory, terms")
    add("--backbone", default="ViT-B/32", help=f"the encoder; {BUNDLED}: the bundled CLIP")
    add("--weights", default="", help="file for the backbone, in place of random weights")
    add("--classes", type=int, default=100)
    add("--batch", type=int, default=32, help="images in a step")
    add("--term-batch", type=int, nargs="+", default=[32, 64, 320], help="images, for terms")
    add("--rounds", type=int, default=5, help="measured runs of each, after one that warms up")
    add("--threads", type=int, default=1)
    add("--memory-of-one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.what = args.what.split(",")
    unknown = set(args.what) - {"step", "memory", "terms"}
    if unknown:
        parser.error(f"--what {','.join(sorted(unknown))}: use any of step, memory, terms")
    # Wall-clock times swing with what else a machine does; a device's work is no processor time.
    args.cpu_time = not torch.cuda.is_available()
    return args


def main() -> int:
    """Print the tables."""
    args = arguments()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        args.weights = args.weights or random_weights(args.backbone, folder)
        if args.memory_of_one:
            print(peak_memory(functools.partial(two_steps, Tuning(args.methods[0], args))))
            return 0
        clock = "processor time" if args.cpu_time else "wall-clock time"
        print(
            f"{args.backbone}, batch {args.batch}, {args.classes} classes, {args.threads} threads, "
            f"{args.rounds} rounds, {clock}, torch {torch.__version__}"
        )
        if "step" in args.what:
            head = ["step", "ms", "/ naive", "/ naive with a frozen pass"]
            print("\n" + tabulate(time_steps(args), head, floatfmt=("", ".1f", ".3f", ".3f")))
        if "terms" in args.what:
            head = ["term alone, ms", *(f"batch {batch}" for batch in args.term_batch)]
            print("\n" + tabulate(time_terms(args), head, floatfmt=".2f"))
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
