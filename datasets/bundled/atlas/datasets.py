"""The atlas's datasets: classes, media and habits. Few-shot learning and base-to-new, nine of them.

Base and new classes are halves of one list in chance order and are drawn in one medium, that of the
dataset: what a dataset asks to be learnt about its pictures holds for both halves. Pre-training
knew each medium alone; here up to two meet. What over-fits is that classes have habits, as things
in real datasets do: places where they are mostly seen, and a light and size of their own.
"""

from __future__ import annotations

import itertools
import random
import zlib
from dataclasses import dataclass, replace
from typing import Any

from ..render import PRETRAIN, Style
from ..specs import Halved
from ..world import BACKGROUNDS, COLOURS, SHAPES, TEXTURES
from .nouns import GENERA, NOUNS, Noun
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
class Plate(Halved):
    """One dataset of the atlas."""

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
    def vocabulary(self) -> str:
        """``words.txt`` beside this file."""
        return "atlas"

    @property
    def nouns(self) -> tuple[Noun, ...]:
        """The atlas's."""
        return NOUNS

    def style(self, label: int) -> Style:
        """The dataset's medium in the light and size that are the class's habit."""
        rng, wear, habits = self._chance_of(self.classes[label][1]), self.wear, self.habits
        red, green, blue = (c * (1 + rng.uniform(-habits.light, habits.light)) for c in wear.cast)
        size = 1 + rng.uniform(-habits.size, habits.size)
        least, most = wear.scale
        return replace(wear, cast=(red, green, blue), scale=(least * size, most * size))

    def scene(self, words: str, rng: random.Random) -> list[int]:
        """A row, mostly at the class's own place."""
        own = self._chance_of("place of " + words).randrange(len(BACKGROUNDS))
        return scene(words, rng, own if rng.random() < self.habits.place else None)

    def _chance_of(self, words: str) -> random.Random:
        """What draws a habit: from the names of dataset and class alone, so always the same."""
        return random.Random(zlib.crc32(f"habits/{self.name}/{words}".encode()))


# -- classes --------------------------------------------------------------------------------------

Classes = tuple[tuple[str, str], ...]
"""Class names, and the words that fix their scenes."""


def _sampled(names: list[str], count: int, seed: int, words: str = "{}") -> Classes:
    chosen = random.Random(seed).sample(names, count)
    return tuple((name, words.format(name)) for name in chosen)


def _of_family(family: str, seed: int) -> Classes:
    names = [n.name for n in NOUNS if n.family == family]
    return _sampled(names, len(names), seed)


def _scenes() -> Classes:
    names = [f"{s} on {b}" for s, b in itertools.product(SHAPES[:-1], BACKGROUNDS)]
    return _sampled(names, 96, 6)


def _fabrics() -> Classes:
    textures = [t for t in TEXTURES if t not in ("plain", "hollow")]
    names = [f"{c} {t}" for c, t in itertools.product(COLOURS, textures)]
    return _sampled(names, 96, 7, "fabric {}")


_GENERA = _sampled(list(GENERA), len(GENERA), 8)
_GROUNDS = _sampled([b for b in BACKGROUNDS if b not in ("fog", "paper")], 10, 9)

# -- media and habits -----------------------------------------------------------------------------

# Strengths were set so that the new accuracy of methods that are not ours, relative to zero-shot
# CLIP, comes near the published one (docs/ablation.md): the wear moves all of them, the habits CoOp
# the most.
STRENGTH = 0.55
"""How far the datasets' media go from pre-training's plain one to what is written below; that of
the grounds goes all the way."""

_HABITS = Habits(place=1.0, light=0.65, size=0.45)

Medium = dict[str, Any]
"""Fields of a :class:`Style`."""

_GRAIN: Medium = {"noise": 0.14}
_FADED: Medium = {"contrast": (0.4, 0.65), "desaturate": (0.1, 0.4)}
_FAR: Medium = {"scale": (0.4, 0.65), "shift": 0.3}
_WARM: Medium = {"cast": (1.0, 0.7, 0.42)}
_COLD: Medium = {"cast": (0.5, 0.75, 1.0)}
_MOSSY: Medium = {"cast": (0.58, 1.0, 0.58)}
_DIM: Medium = {"cast": (0.38, 0.38, 0.42), "noise": 0.05}
_CROWD: Medium = {"clutter": 3, "occlude": 0.35}
_SOFT: Medium = {"blur": (0.7, 1.0), "noise": 0.08, "scale": (0.5, 0.8)}
_POOR: Medium = {"noise": 0.2, "contrast": (0.35, 0.65), "angle": 0.6}
_GREYISH: Medium = {
    "cast": (0.75, 0.9, 1.0), "contrast": (0.4, 0.6), "desaturate": (0.5, 0.8), "noise": 0.1,
}  # fmt: skip
_PALE: Medium = {"contrast": (0.5, 0.75), "noise": 0.1}


def _between(a: Any, b: Any, share: float) -> Any:
    """What lies at a share of the way from a number, or a tuple of numbers, to another."""
    if isinstance(a, tuple):
        return tuple(_between(x, y, share) for x, y in zip(a, b))
    return a + (b - a) * share


def _wear(*media: Medium) -> Style:
    """Media in one, each at :data:`STRENGTH` of the way from the plain one of pre-training."""
    asked = {key: value for medium in media for key, value in medium.items()}
    mixed = {k: _between(getattr(PRETRAIN, k), v, STRENGTH) for k, v in asked.items()}
    if "clutter" in mixed:
        mixed["clutter"] = round(mixed["clutter"])  # a number of blobs
    return replace(PRETRAIN, **mixed)


PLATES: tuple[Plate, ...] = (
    Plate("banners", "a photo of a {}, a type of banner.", _of_family("banner", 5),
          _wear(_POOR), _HABITS),
    Plate("creatures", "a photo of a {}, a type of creature.", _of_family("creature", 1),
          _wear(_WARM, _GRAIN), _HABITS),
    Plate("fabrics", "a photo of a {} fabric.", _fabrics(), _wear(_MOSSY, _FADED), _HABITS),
    Plate("flowers", "a photo of a {}, a type of flower.", _of_family("flower", 3),
          _wear(_COLD, _FAR), _HABITS),
    Plate("fruits", "a photo of a {}, a type of fruit.", _of_family("fruit", 2),
          _wear(_MOSSY, _SOFT), _HABITS),
    # As in EuroSAT few classes, far from what pre-training saw: the medium whole, and no habits.
    Plate("grounds", "a photo on {}.", _GROUNDS, replace(PRETRAIN, **_GREYISH), Habits(), 100),
    Plate("scenes", "a photo of a {}.", _scenes(), _wear(_PALE), _HABITS),
    # Genera, each with all its species in its pictures.
    Plate("things", "a photo of a {}.", _GENERA, _wear(_WARM, _FAR), _HABITS),
    Plate("tools", "a photo of a {}, a type of tool.", _of_family("tool", 4),
          _wear(_DIM, _CROWD), _HABITS),
)  # fmt: skip
"""In the order of the alphabet."""
