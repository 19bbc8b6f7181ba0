"""What attach costs over the sum that is written by hand.

    python scripts/bench_attach.py --batch 2 8 16 --rounds 5

A training step (forward, backward, AdamW) of a ViT-B/16 with random weights, its frozen forward
pass and a regulariser included, in two ways that take turns in one process on the same weights:
with the term in the loss, and with ``proxyfda.attach`` and a loss without it. Printed is the median
over the rounds, and of the differences within a round their mean and standard error. As the step of
a large model swings by more than what attach does, the same two ways are also timed around a module
that costs nothing and hands out features of that batch: that difference is attach itself.
"""

from __future__ import annotations

import argparse
import os.path as osp
import statistics
import sys
import time
from typing import Callable

sys.path.insert(0, osp.dirname(osp.dirname(osp.abspath(__file__))))

import torch
from counts import count
from tabulate import tabulate
from torch import nn
from torchvision.models import vit_b_16

from proxyfda import FrozenCopy, attach
from proxyfda.regularisers import FDA, create, find, names
from proxyfda.utils.errors import show_user_errors

DIM, CLASSES = 768, 100


class Features(nn.Module):
    """Costs nothing: hands out features that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(DIM))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features [N, d] as they are, with gradient."""
        return features * self.scale


class TwoWays:
    """A step by hand and one by attach, on the same weights."""

    def __init__(self, encoder: nn.Module, inputs: torch.Tensor, name: str) -> None:
        self.encoder, self.inputs, self.frozen = encoder, inputs, FrozenCopy(encoder)
        self.head = nn.Linear(DIM, CLASSES).to(inputs.device)
        self.labels = torch.arange(len(inputs), device=inputs.device) % CLASSES
        # Derived constants cost the same once they are settled.
        settled = {"constants": "given"} if issubclass(find(name), FDA) else {}
        self.regulariser = create(name, DIM, **settled).to(inputs.device)
        modules = (encoder, self.head, self.regulariser)
        self.optimiser = torch.optim.AdamW([p for m in modules for p in m.parameters()], lr=1e-5)

    def step(self, by_hand: bool) -> None:
        """One step of training."""
        self.optimiser.zero_grad()
        features = self.encoder(self.inputs)
        loss = nn.functional.cross_entropy(self.head(features), self.labels)
        if by_hand:
            loss = loss + self.regulariser(features, self.frozen(self.inputs))
        loss.backward()
        self.optimiser.step()

    def timed(self, by_hand: bool, clock: Callable[[], float], repeat: int = 1) -> float:
        """Milliseconds of a step."""
        handle = None
        if not by_hand:
            handle = attach(self.encoder, self.regulariser, 1.0, anchors=self.frozen)
        wait(self.inputs.device)
        start = clock()
        for _ in range(repeat):
            self.step(by_hand)
        wait(self.inputs.device)
        found = 1000 * (clock() - start) / repeat
        if handle is not None:
            handle.remove()
        return found

    def rounds(self, count: int, clock: Callable[[], float], repeat: int = 1) -> tuple[list, list]:
        """Times by hand and by attach, taking turns in who is first, after one round to warm up."""
        times: tuple[list[float], list[float]] = [], []
        for i in range(count + 1):
            for by_hand in (True, False) if i % 2 else (False, True):
                found = self.timed(by_hand, clock, repeat)
                if i:
                    times[not by_hand].append(found)
        return times


def wait(device: torch.device) -> None:
    """Until the device has done what it was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def difference(times: tuple[list, list]) -> tuple[float, float]:
    """Mean and standard error of attach minus by hand."""
    found = [attached - by_hand for by_hand, attached in zip(*times)]
    spread = statistics.stdev(found) / len(found) ** 0.5 if len(found) > 1 else float("nan")
    return statistics.mean(found), spread


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    kinds = [name for name in names() if find(name).kind != "weights"]
    add("--batch", type=count, nargs="+", default=[8, 16])
    add("--regulariser", default="proxy_fda", choices=kinds, metavar="NAME", help=", ".join(kinds))
    add("--rounds", type=count, default=5, help="measured steps of each, after one that warms up")
    add("--depth", type=count, default=12, help="blocks of the ViT")
    add("--size", type=count, default=224, help="side of the images")
    add("--threads", type=count, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # Wall-clock times swing with what else a machine does; a device's work is no processor time.
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    torch.manual_seed(0)
    encoder = vit_b_16(weights=None, image_size=args.size)
    encoder.heads, encoder.encoder.layers = nn.Identity(), encoder.encoder.layers[: args.depth]
    encoder.to(device)
    rows = []
    for batch in args.batch:
        images = torch.randn(batch, 3, args.size, args.size, device=device)
        times = TwoWays(encoder, images, args.regulariser).rounds(args.rounds, clock)
        features = torch.randn(batch, DIM, device=device)
        alone = TwoWays(Features().to(device), features, args.regulariser)
        own = statistics.median(
            attached - by_hand
            for by_hand, attached in zip(*alone.rounds(4 * args.rounds, clock, repeat=10))
        )
        step, (gap, error) = statistics.median(times[0]), difference(times)
        rows.append(
            [batch, step, statistics.median(times[1]), f"{100 * gap / step:+.2f} ± "
             f"{100 * error / step:.2f} %", own, f"{100 * own / step:+.3f} %"]
        )  # fmt: skip
    print(f"{args.regulariser}, {device.type}, {args.threads} threads, torch {torch.__version__}")
    head = ["batch", "by hand, ms", "attach, ms", "difference", "attach itself, ms", "of a step"]
    print(tabulate(rows, head, floatfmt=("", ".0f", ".0f", "", ".3f", "")))
    return 0


if __name__ == "__main__":
    show_user_errors()
    sys.exit(main())
