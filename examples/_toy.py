"""What the examples share: a small pretrained encoder, pictures to tune it on, and what it forgets.

Everything comes with the repository and runs on a CPU. The encoder is the image tower of the
bundled CLIP. It is tuned on the classes of the first rendered dataset, a few pictures of each, with
a new linear head; what it forgets is looked at on the classes of the others.
"""

from __future__ import annotations

import argparse
import copy
import functools
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Sequence

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn

from datasets.bundled.specs import SPECS
from proxyfda.backbones.clip import ImageEncoder, load_clip
from proxyfda.diagnostics import knn_accuracy, neighbour_overlap

# The repository's folder "datasets" would pass for Hugging Face's library of that name.
sys.path.remove(str(ROOT))
for _name in [name for name in sys.modules if name.split(".")[0] == "datasets"]:
    del sys.modules[_name]

torch.set_num_threads(1)

TOLERANCE = 1e-5
"""What two loss curves may differ by."""

Pictures = tuple[Tensor, Tensor]
"""Images [n, 3, 32, 32], normalised for CLIP, and labels [n]."""


@dataclass
class Toy:
    """Pictures of classes to tune on, and of other classes on which to look for what is forgotten.

    Attributes:
        train, val: of the classes to tune on.
        held_out: for each of the other datasets, pictures with known labels and pictures to ask.
    """

    train: Pictures
    val: Pictures
    held_out: list[tuple[Pictures, Pictures]]

    @property
    def classes(self) -> int:
        """How many classes there are to tune on."""
        return int(self.train[1].max()) + 1

    def batches(self, epochs: int, size: int, seed: int = 0) -> list[Pictures]:
        """The training pictures in random order, epoch after epoch."""
        images, labels = self.train
        generator = torch.Generator().manual_seed(seed)
        orders = [torch.randperm(len(images), generator=generator) for _ in range(epochs)]
        return [(images[i], labels[i]) for order in orders for i in order.split(size)]


def load_toy(shots: int = 8, questions: int = 4) -> Toy:
    """Draw the pictures: ``shots`` of each class with labels, ``questions`` to ask."""
    first, *others = [
        (pictures(spec, "train", shots), pictures(spec, "val", questions)) for spec in SPECS
    ]
    return Toy(*first, others)


def pictures(spec, part: str, count: int) -> Pictures:
    """``count`` pictures of each class of a rendered dataset."""
    drawn, labels = spec.draw(part, count)
    mean = torch.tensor(_encoder().image_mean).view(3, 1, 1)
    std = torch.tensor(_encoder().image_std).view(3, 1, 1)
    return (drawn / 255.0 - mean) / std, torch.tensor(labels)


@functools.cache
def _encoder() -> ImageEncoder:
    return ImageEncoder(load_clip("ViT-Bundled", "bundled"))


def image_tower() -> nn.Module:
    """The bundled CLIP's image tower as it comes, all of it to be tuned; features [n, 128]."""
    return copy.deepcopy(_encoder().visual).requires_grad_(True)


def in_pieces(encode: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """What ``encode`` gives, without gradient and a few images at a time."""
    with torch.no_grad():
        return torch.cat([encode(piece) for piece in images.split(128)])


@dataclass
class Lost:
    """What an encoder knows of the held-out classes.

    Attributes:
        knn: accuracy by the five nearest labelled pictures, in percent, mean over the datasets.
        kept: share of the eight nearest frozen neighbours that are still the nearest, in percent.
    """

    knn: float
    kept: float


def look(toy: Toy, encode: Callable[[Tensor], Tensor], frozen: Callable[[Tensor], Tensor]) -> Lost:
    """What is left in the features of ``encode`` of those of ``frozen``."""
    knn, kept = [], []
    for (images, labels), (questions, answers) in toy.held_out:
        found = in_pieces(encode, questions)
        knn.append(knn_accuracy(in_pieces(encode, images), labels, found, answers))
        kept.append(neighbour_overlap(in_pieces(frozen, questions), found))
    return Lost(100 * sum(knn) / len(knn), 100 * sum(kept) / len(kept))


def accuracy(predict: Callable[[Tensor], Tensor], pictures: Pictures) -> float:
    """Percentage of pictures whose class gets the largest logit."""
    images, labels = pictures
    return 100 * (in_pieces(predict, images).argmax(1) == labels).double().mean().item()


def options(about: str) -> argparse.Namespace:
    """The command line of an example: ``regulariser``, ``weight``, ``epochs``, ``lr``."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--regulariser", default="proxy_rkd", metavar="NAME")
    parser.add_argument("--weight", type=float, default=5.0, help="λ")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1e-3)
    return parser.parse_args()


def table(rows: Sequence[tuple[str, float | None, Lost]]) -> None:
    """Print what was forgotten: name, accuracy on the tuned task (None before tuning), the rest."""
    print("\nWhat was forgotten, in percent")
    print(f"{'':24s}  tuned task   held-out classes (kNN)   neighbours kept")
    for name, tuned, lost in rows:
        shown = "-" if tuned is None else f"{tuned:.1f}"
        print(f"{name:24s}  {shown:>10s}   {lost.knn:22.1f}   {lost.kept:15.1f}")


def curves(by_hand: Sequence[dict[str, float]], attached: Sequence[dict[str, float]]) -> None:
    """Print two loss curves side by side; end the program where they differ.

    Args:
        by_hand, attached: for each step, the losses by name, the same names in both.
    """
    names = list(by_hand[0])
    print("Losses, written by hand | attached")
    print("step  " + "  ".join(f"{name:>23s}" for name in names))
    for step, (first, second) in enumerate(zip(by_hand, attached), 1):
        pairs = "  ".join(f"{first[name]:10.6f} | {second[name]:10.6f}" for name in names)
        print(f"{step:4d}  {pairs}")
    largest = max(
        abs(first[name] - second[name])
        for first, second in zip(by_hand, attached)
        for name in names
    )
    print(f"largest difference {largest:.1e}", flush=True)
    if len(by_hand) != len(attached) or not largest <= TOLERANCE:
        sys.exit(f"error: the curves differ by more than {TOLERANCE}")
