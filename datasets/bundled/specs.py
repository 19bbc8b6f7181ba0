"""The bundled few-shot datasets: their classes, and the shift under which they are drawn."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
import zlib
from dataclasses import asdict, dataclass, replace

import torch

from .render import Style, render
from .world import NOUNS, family, scene_for

COUNTS = {"train": 24, "val": 30, "test": 60}
"""Pictures per class in each split."""


@dataclass(frozen=True)
class Spec:
    """One dataset: ``classes`` are (class name, words that fix its scenes), base half first.

    Each half is drawn with a style of its own, so that what helps on the base half misleads on the
    new one: these datasets are made to show forgetting.
    """

    name: str
    template: str
    classes: tuple[tuple[str, str], ...]
    base_style: Style
    new_style: Style

    @property
    def folder(self) -> str:
        """Folder under the data root, for example ``bundled_creatures``."""
        return f"bundled_{self.name}"

    def fingerprint(self) -> str:
        """Changes when anything changes that decides how the dataset looks."""
        nouns = [asdict(n) for n in NOUNS]
        text = json.dumps([asdict(self), COUNTS, nouns, 1], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def draw(self, split: str, count: int | None = None) -> tuple[torch.Tensor, list[int]]:
        """Pictures (uint8 [n, 3, 32, 32]) and labels of a split, class by class.

        ``count`` pictures per class (default: :data:`COUNTS`); ``split`` may be any word then. Each
        class has a seed of its own, so the same call gives the same pictures in any process.
        """
        images, labels = [], []
        half = math.ceil(len(self.classes) / 2)
        for label, (classname, words) in enumerate(self.classes):
            seed = zlib.crc32(f"{self.name}/{split}/{classname}".encode())
            rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
            n = COUNTS[split] if count is None else count
            style = self.base_style if label < half else self.new_style
            rows = torch.tensor([scene_for(words, rng) for _ in range(n)])
            images.append((render(rows, style, generator) * 255).round().to(torch.uint8))
            labels += [label] * n
        return torch.cat(images), labels


def _nouns(name: str) -> tuple[tuple[str, str], ...]:
    return tuple((NOUNS[i].name, NOUNS[i].name) for i in family(name))


def _scenes() -> tuple[tuple[str, str], ...]:
    halves = (
        ("star cross arrow", "sand sea grass night"),
        ("ring dome heart", "brick snow wood stone"),
    )
    names = [
        f"{shape} on {ground}"
        for shapes, grounds in halves
        for shape, ground in itertools.product(shapes.split(), grounds.split())
    ]
    return tuple((name, name) for name in names)


_TAKEN = Style(
    scale=(0.5, 0.9), shift=0.2, angle=0.4, colour=0.06, noise=0.08, blur=(0.2, 0.7), occlude=0.2,
    clutter=1,
)  # fmt: skip
# Light of four colours; strong enough to mislead about colours, weak enough to leave most classes
# recognisable. The strengths were set on the validation splits with zero-shot CLIP and plain CoOp.
_LAMP = replace(_TAKEN, cast=(1.0, 0.65, 0.4), clutter=2)
_DAYLIGHT = replace(_TAKEN, cast=(0.5, 0.75, 1.0), contrast=(0.6, 0.9))
_GREEN = replace(_TAKEN, cast=(0.6, 1.0, 0.6))
_MAGENTA = replace(_TAKEN, cast=(1.0, 0.6, 0.95))
# Half of the pictures as negatives, against worn prints.
_NEGATIVE = replace(_TAKEN, invert=0.5, noise=0.1)
_PRINT = replace(
    _TAKEN, colour=0.09, noise=0.17, blur=(0.4, 0.9), occlude=0.4, contrast=(0.43, 0.73), clutter=2
)

SPECS: tuple[Spec, ...] = (
    Spec("creatures", "a photo of a {}, a type of creature.", _nouns("creature"), _LAMP, _DAYLIGHT),
    Spec("fruits", "a photo of a {}, a type of fruit.", _nouns("fruit"), _GREEN, _MAGENTA),
    Spec("banners", "a photo of a {}, a type of banner.", _nouns("banner"), _NEGATIVE, _PRINT),
    Spec("scenes", "a photo of a {}.", _scenes(), _GREEN, _MAGENTA),
)
