"""A plain PyTorch loop: the term by hand, the term attached, and what was forgotten.

    python examples/plain_loop.py

Runs on the CPU within half a minute, without any download; try ``--weight``, ``--epochs``, ``--lr``
and ``--regularisers``. On this toy the paper's loss (``fda``, ``proxy_fda``) and relations held
near the frozen ones (``rkd``) keep more than plain tuning.
"""

from __future__ import annotations

import argparse

import _toy
import torch
from torch import nn
from torch.nn import functional as F

from proxyfda import FrozenCopy, attach
from proxyfda.regularisers import create, names


def by_hand(toy, batches, regulariser, weight, lr):
    """Write the sum into the loss; returns the model and its losses step by step."""
    encoder, head = _toy.image_tower(), new_head(toy)
    losses = []
    # --8<-- [start:by_hand]
    frozen = FrozenCopy(encoder)  # the anchors: the encoder as it is now
    parameters = [*encoder.parameters(), *head.parameters(), *regulariser.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=lr)

    for images, labels in batches:
        features = encoder(images)
        task = F.cross_entropy(head(features), labels)
        term = regulariser(features, frozen(images))
        optimiser.zero_grad()
        (task + weight * term).backward()
        optimiser.step()
        # --8<-- [end:by_hand]
        losses.append({"task": task.item(), "term": term.item()})
    return nn.Sequential(encoder, head), losses


def attached(toy, batches, regulariser, weight, lr):
    """Leave the loop alone; with no regulariser this is plain tuning."""
    encoder, head = _toy.image_tower(), new_head(toy)
    losses = []
    own = [] if regulariser is None else [*regulariser.parameters()]
    handle = None
    if regulariser is not None:
        # --8<-- [start:attach]
        handle = attach(encoder, regulariser, weight)
        # --8<-- [end:attach]
    # --8<-- [start:loop]
    optimiser = torch.optim.AdamW([*encoder.parameters(), *head.parameters(), *own], lr=lr)

    for images, labels in batches:
        loss = F.cross_entropy(head(encoder(images)), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        # --8<-- [end:loop]
        term = 0.0 if handle is None else sum(handle.terms.values()).item()
        losses.append({"task": loss.item(), "term": term})
    if handle is not None:
        # --8<-- [start:remove]
        handle.remove()
        # --8<-- [end:remove]
    return nn.Sequential(encoder, head), losses


def new_head(toy):
    """A linear classifier, the same in every run."""
    torch.manual_seed(0)
    return nn.Linear(128, toy.classes)


def main() -> None:
    """Print the curves, then a row without and one with each regulariser."""
    known = [name for name in names() if name != "l2sp"]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--regularisers", nargs="+", default=["proxy_fda", "fda", "rkd"], choices=known,
        metavar="NAME",
    )  # fmt: skip
    parser.add_argument("--weight", type=float, default=1.0, help="λ")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1e-3)
    args = parser.parse_args()

    toy = _toy.load_toy()
    batches = toy.batches(args.epochs, 64)
    make = {name: lambda name=name: create(name, dim=128) for name in args.regularisers}

    print(f"{args.regularisers[0]}, λ = {args.weight:g}")
    torch.manual_seed(1)
    _, first = by_hand(toy, batches, make[args.regularisers[0]](), args.weight, args.lr)
    models = {}
    for name in ("none", *args.regularisers):
        torch.manual_seed(1)
        regulariser = None if name == "none" else make[name]()
        models[name], losses = attached(toy, batches, regulariser, args.weight, args.lr)
        if name == args.regularisers[0]:
            _toy.curves(first, losses)

    frozen = _toy.image_tower()
    rows = [("before tuning", None, _toy.look(toy, frozen, frozen))]
    for name, model in models.items():
        title = "plain tuning" if name == "none" else f"with {name}"
        rows.append((title, _toy.accuracy(model, toy.val), _toy.look(toy, model[0], frozen)))
    _toy.table(rows)


if __name__ == "__main__":
    main()
