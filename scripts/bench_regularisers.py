"""What a regulariser costs as the number of classes grows, by itself, without any encoder.

    python scripts/bench_regularisers.py fda proxy_fda --classes 50 200 1000 4096 --batch 64

For each regulariser and number of classes C: time, peak memory and number of operations of one step
of the term in the spaces text (C class texts among each other) and cross (a batch of images and C
class texts), forward and backward, with what a training keeps from step to step already there.
Features are random. Operations are torch's, without views, as a GPU would launch them.
"""

from __future__ import annotations

import argparse
import os.path as osp
import statistics
import sys
import time

sys.path.insert(0, osp.dirname(osp.dirname(osp.abspath(__file__))))

import torch
from bench import peak_memory
from counts import count
from tabulate import tabulate
from torch.profiler import ProfilerActivity, profile

from proxyfda.regularisers import FDA, create, find, names
from proxyfda.utils.errors import show_user_errors

VIEWS = {
    "aten::" + name
    for name in (
        "_reshape_alias", "_unsafe_view", "alias", "as_strided", "chunk", "detach", "empty",
        "empty_like", "empty_strided", "expand", "expand_as", "flatten", "lift_fresh", "narrow",
        "permute", "reshape", "resize_", "select", "slice", "split", "split_with_sizes", "squeeze",
        "t", "to", "transpose", "unbind", "unflatten", "unsqueeze", "view", "view_as",
    )
}  # fmt: skip


def step_of(name: str, classes: int, batch: int, dim: int):
    """A function that runs one step of the term in text and cross."""
    torch.manual_seed(0)
    cone = torch.randn(1, dim)
    texts, images = torch.randn(classes, dim) + cone, torch.randn(batch, dim) + cone
    # Derived constants cost the same once they are settled.
    settled = {"constants": "given"} if issubclass(find(name), FDA) else {}
    regularisers = [create(name, dim, **settled) for _ in range(2)]
    own = [p for regulariser in regularisers for p in regulariser.parameters()]
    graph = regularisers[0].graph(texts)

    def step() -> None:
        tuned = (texts + 0.1 * texts.flip(0)).requires_grad_()
        losses = [
            *regularisers[0].terms(tuned, graph=graph).values(),
            *regularisers[1].terms(images, images, columns=tuned, column_anchors=texts).values(),
        ]
        torch.autograd.grad(losses, [tuned, *own], allow_unused=True)

    return step


def operations(step) -> int:
    """Number of torch's operations in a step that are no views."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        step()
    events = [event for event in found.events() if event.name.startswith("aten::")]
    outer = [e for e in events if not (e.cpu_parent and e.cpu_parent.name.startswith("aten::"))]
    return sum(event.name not in VIEWS for event in outer)


def main() -> int:
    """Print the table."""
    relational = [name for name in names() if find(name).kind == "relations"]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("regularisers", nargs="+", choices=relational, metavar="NAME", help=", ".join(relational))
    add("--classes", type=count, nargs="+", default=[50, 200, 1000, 4096])
    add("--batch", type=count, default=64, help="images")
    add("--dim", type=count, default=512, help="dimension of the features")
    add("--rounds", type=count, default=5, help="measured steps of each, after one that warms up")
    add("--threads", type=count, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for classes in args.classes:
        steps = {name: step_of(name, classes, args.batch, args.dim) for name in args.regularisers}
        times = {name: [] for name in steps}
        for name, step in steps.items():
            step()
            rows.append([classes, name, 0.0, peak_memory(step), operations(step)])
        for _ in range(args.rounds):  # in turns, so that the machine's moods hit all alike
            for name, step in steps.items():
                start = time.process_time()
                step()
                times[name].append(1000 * (time.process_time() - start))
        for row in rows[-len(steps) :]:
            row[2] = statistics.median(times[row[1]])
    print(f"batch {args.batch}, d {args.dim}, {args.threads} threads, torch {torch.__version__}")
    head = ["classes", "regulariser", "ms (processor)", "peak memory, MiB", "operations"]
    print(tabulate(rows, head, floatfmt=("", "", ".0f", ".0f", "")))
    return 0


if __name__ == "__main__":
    show_user_errors()
    sys.exit(main())
