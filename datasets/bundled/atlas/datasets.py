"""The atlas's datasets: classes, media and habits. Few-shot learning and base-to-new, nine of them.

Base and new classes are halves of one list in chance order and are drawn in one medium, that of the
dataset: what a dataset asks to be learnt about its pictures holds for both halves. Pre-training knew
each medium alone and mild; here two meet, and stronger. What over-fits is that classes have habits,
as things in real datasets do: places where they are mostly seen, and a light, size and sharpness of
their own.
"""

from __future__ import annotations

import itertools
import math
import random
import zlib
from dataclasses import dataclass, replace

from ..render import PRETRAIN, Style
from ..specs import Rendered
from ..world import BACKGROUNDS, COLOURS, SHAPES, TEXTURES
from .nouns import GENERA, NOUNS
from .scenes import scene

COUNTS = {"train": 20, "val": 10, "test": 20}
"""Pictures per class in each split."""


@dataclass(frozen=True)
class Habits:
    """How much the pictures of one class have in common beside what its name says.

    place: chance of a picture on the class's own background. light: largest departure of the
    class's light from the dataset's, per channel, as a factor. size: the same of its scale.
    """

    place: float = 0.0
    light: float = 0.0
    size: float = 0.0


@dataclass(frozen=True)
class Plate(Rendered):
    """One dataset of the atlas, base half first."""

    wear: Style
    habits: Habits
    test_count: int = COUNTS["test"]

    @property
    def folder(self) -> str:
        """Folder under the data root, for example ``atlas_creatures``."""
        return f"atlas_{self.name}"

    @property
    def counts(self) -> dict[str, int]:
        """See :data:`COUNTS`; datasets of few classes have more test pictures of each."""
        return {**COUNTS, "test": self.test_count}

    @property
    def groups(self) -> dict[str, range]:
        """The halves, ``base`` and ``new``."""
        n = len(self.classes)
        half = math.ceil(n / 2)
        return {"base": range(half), "new": range(half, n)}

    @property
    def vocabulary(self) -> str:
        """``words.txt`` beside this file."""
        return "atlas"

    @property
    def nouns(self) -> tuple:
        """The atlas's."""
        return NOUNS

    def _of_class(self, words: str) -> random.Random:
        return random.Random(zlib.crc32(f"habits/{self.name}/{words}".encode()))

    def style(self, label: int) -> Style:
        """The dataset's medium in the light and size that are the class's habit."""
        rng, wear, habits = self._of_class(self.classes[label][1]), self.wear, self.habits
        light = [rng.uniform(-habits.light, habits.light) for _ in range(3)]
        size = 1 + rng.uniform(-habits.size, habits.size)
        return replace(
            wear,
            cast=tuple(c * (1 + d) for c, d in zip(wear.cast, light)),
            scale=tuple(s * size for s in wear.scale),
        )

    def scene(self, words: str, rng: random.Random) -> list[int]:
        """A row, mostly at the class's own place."""
        own = self._of_class("place of " + words).randrange(len(BACKGROUNDS))
        return scene(words, rng, own if rng.random() < self.habits.place else -1)


def _shuffled(names: list[str], count: int, seed: int) -> list[str]:
    return random.Random(seed).sample(names, count)


def _named(names: list[str], words: str = "{}") -> tuple[tuple[str, str], ...]:
    return tuple((name, words.format(name)) for name in names)


def _of_family(family: str, seed: int) -> tuple[tuple[str, str], ...]:
    names = [n.name for n in NOUNS if n.family == family]
    return _named(_shuffled(names, len(names), seed))


def _scenes() -> tuple[tuple[str, str], ...]:
    names = [f"{s} on {b}" for s, b in itertools.product(SHAPES[:-1], BACKGROUNDS)]
    return _named(_shuffled(names, 96, 6))


def _fabrics() -> tuple[tuple[str, str], ...]:
    textures = [t for t in TEXTURES if t not in ("plain", "hollow")]
    names = [f"{c} {t}" for c, t in itertools.product(COLOURS, textures)]
    return _named(_shuffled(names, 96, 7), "fabric {}")


# Strengths were set so that the new accuracy of methods that are not ours, relative to zero-shot
# CLIP, is the published one (docs/ablation.md): the wear moves all of them, the habits CoOp the most.
STRENGTH = 0.55
"""How far the datasets' media go from pre-training's plain one to what is written below."""

_HABITS = Habits(place=1.0, light=0.65, size=0.45)
_GRAIN = {"noise": 0.14}
_FADED = {"contrast": (0.4, 0.65), "desaturate": (0.1, 0.4)}
_FAR = {"scale": (0.4, 0.65), "shift": 0.3}
_WARM = {"cast": (1.0, 0.7, 0.42)}
_COLD = {"cast": (0.5, 0.75, 1.0)}
_MOSSY = {"cast": (0.58, 1.0, 0.58)}
_DIM = {"cast": (0.38, 0.38, 0.42), "noise": 0.05}
_CROWD = {"clutter": 3, "occlude": 0.35}
_SOFT = {"blur": (0.7, 1.0), "noise": 0.08, "scale": (0.5, 0.8)}
_POOR = {"noise": 0.2, "contrast": (0.35, 0.65), "angle": 0.6}
_GREYISH = {
    "cast": (0.75, 0.9, 1.0), "contrast": (0.4, 0.6), "desaturate": (0.5, 0.8), "noise": 0.1,
}  # fmt: skip
_PALE = {"contrast": (0.5, 0.75), "noise": 0.1}


def _between(a, b, share: float):
    """What lies at a share of the way from a number, or a tuple of numbers, to another."""
    if isinstance(a, tuple):
        return tuple(_between(x, y, share) for x, y in zip(a, b))
    return a + (b - a) * share


def _wear(*media: dict) -> Style:
    """Media in one, each at :data:`STRENGTH` of the way from the plain one of pre-training."""
    asked = {key: value for medium in media for key, value in medium.items()}
    mixed = {k: _between(getattr(PRETRAIN, k), v, STRENGTH) for k, v in asked.items()}
    if "clutter" in mixed:
        mixed["clutter"] = round(mixed["clutter"])  # a number of blobs
    return replace(PRETRAIN, **mixed)


def _plate(name: str, template: str, classes, *media: dict) -> Plate:
    return Plate(name, template, classes, _wear(*media), _HABITS)


_KINDS = _named(_shuffled(list(GENERA), len(GENERA), 8))
_GROUNDS = _named(_shuffled([b for b in BACKGROUNDS if b not in ("fog", "paper")], 10, 9))

PLATES: tuple[Plate, ...] = (
    _plate("banners", "a photo of a {}, a type of banner.", _of_family("banner", 5), _POOR),
    _plate("creatures", "a photo of a {}, a type of creature.", _of_family("creature", 1),
           _WARM, _GRAIN),
    _plate("fabrics", "a photo of a {} fabric.", _fabrics(), _MOSSY, _FADED),
    _plate("flowers", "a photo of a {}, a type of flower.", _of_family("flower", 3), _COLD, _FAR),
    _plate("fruits", "a photo of a {}, a type of fruit.", _of_family("fruit", 2), _MOSSY, _SOFT),
    # As in EuroSAT few classes, far from what pre-training saw, and nothing in a picture but them.
    Plate("grounds", "a photo on {}.", _GROUNDS, replace(PRETRAIN, **_GREYISH), Habits(), 100),
    _plate("scenes", "a photo of a {}.", _scenes(), _PALE),
    # Genera, each with its species in its pictures.
    _plate("things", "a photo of a {}.", _KINDS, _WARM, _FAR),
    _plate("tools", "a photo of a {}, a type of tool.", _of_family("tool", 4), _DIM, _CROWD),
)  # fmt: skip
"""In the order of the alphabet."""
