"""Proxy-FDA in a plain PyTorch loop, and what was forgotten with and without it.

    python examples/plain_loop.py

An image encoder (the bundled CLIP's, a small vision transformer) is tuned end to end on rendered
creatures, with a linear head. What it forgets is looked at on pictures of fruits: how many of their
frozen neighbours are still neighbours. Runs on the CPU within a minute, without any download.

On this toy the paper's loss with λ = 1 keeps no more than tuning without it, and rkd does; try
``--weight``, ``--regularisers`` and ``--epochs``.
"""

from __future__ import annotations

import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch
from torch.nn import functional as F

from datasets.bundled.specs import SPECS
from proxyfda import FrozenCopy
from proxyfda.backbones.clip import ImageEncoder, load_clip
from proxyfda.diagnostics import neighbour_overlap
from proxyfda.regularisers import create, names


def pictures(dataset: str, part: str, per_class: int):
    """Images [n, 3, 32, 32], normalised for CLIP, and labels [n] of a rendered dataset."""
    spec = next(spec for spec in SPECS if spec.name == dataset)
    images, labels = spec.draw(part, per_class)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    return (images / 255.0 - mean) / std, torch.tensor(labels)


def tune(regulariser_name: str, weight: float, epochs: int) -> tuple[float, float]:
    """Tune the encoder; returns accuracy on the tuned task and overlap of neighbours elsewhere."""
    torch.manual_seed(0)
    images, labels = pictures("creatures", "train", 8)
    test_images, test_labels = pictures("creatures", "val", 5)
    other_images, _ = pictures("fruits", "val", 5)

    encoder = ImageEncoder(load_clip("ViT-Bundled", "bundled")).visual.requires_grad_(True)
    head = torch.nn.Linear(128, int(labels.max()) + 1)
    frozen = FrozenCopy(encoder)
    regulariser = None if regulariser_name == "none" else create(regulariser_name, dim=128)
    own = [] if regulariser is None else list(regulariser.parameters())
    optimiser = torch.optim.AdamW([*encoder.parameters(), *head.parameters(), *own], lr=3e-4)

    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            features = encoder(images[batch])
            loss = F.cross_entropy(head(features), labels[batch])
            if regulariser is not None:
                loss = loss + weight * regulariser(features, frozen(images[batch]))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    with torch.no_grad():
        accuracy = (head(encoder(test_images)).argmax(1) == test_labels).float().mean().item()
        overlap = neighbour_overlap(frozen(other_images), encoder(other_images), k=8)
    return 100 * accuracy, 100 * overlap


def main() -> None:
    """Print a line without and one with each regulariser."""
    known = [name for name in names() if name != "l2sp"]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--regularisers", nargs="+", default=["proxy_fda", "rkd"], choices=known, metavar="NAME"
    )
    parser.add_argument("--weight", type=float, default=1.0, help="λ")
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("regulariser    accuracy on the tuned task   neighbours kept on other images")
    for name in ("none", *args.regularisers):
        accuracy, overlap = tune(name, args.weight, args.epochs)
        print(f"{name:13s}  {accuracy:25.1f} %   {overlap:29.1f} %", flush=True)


if __name__ == "__main__":
    main()
