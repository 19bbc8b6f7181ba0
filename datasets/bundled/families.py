"""Families of rendered pictures with captions, and with questions and answers.

A model that speaks is tuned on one family and asked about the others, where forgetting shows. The
wear is none that changes what is seen so far that its words would be wrong: no negatives.
"""

from __future__ import annotations

import functools
import random
import zlib
from dataclasses import dataclass, replace

import torch

from datasets.image_text import Example
from proxyfda.utils.errors import BadValue
from proxyfda.utils.suggest import did_you_mean

from . import texts
from .render import STRIPED_HALF_HEIGHTS, Style
from .specs import SPECS, TASKS, Task
from .world import scene_for

FAMILY_COUNTS = {"train": 16, "val": 4, "test": 10}
"""Pictures per class in each split."""
ASKED = 2
"""Questions about each picture of val and test; of train all are asked."""


@dataclass(frozen=True)
class Family(Task):
    """Pictures of one kind, drawn with one style; classes are told apart by linear probes."""

    @property
    def counts(self) -> dict[str, int]:
        """See :data:`FAMILY_COUNTS`."""
        return FAMILY_COUNTS

    def scene(self, words: str, rng: random.Random) -> list[int]:
        """A row; words that end with a number of stripes have it behind the row."""
        *rest, last = words.split()
        if last in texts.NUMBERS:
            return [*scene_for(" ".join(rest), rng), texts.NUMBERS.index(last)]
        return scene_for(words, rng)


def _classes(name: str) -> tuple[tuple[str, str], ...]:
    return next(spec.classes for spec in (*SPECS, *TASKS) if spec.name == name)


def _striped() -> tuple[tuple[str, str], ...]:
    return tuple(
        (f"{shape} with {number} stripes", f"striped {shape} {number}")
        for shape in STRIPED_HALF_HEIGHTS
        for number in texts.NUMBERS[1:]
    )


_TAKEN = Style(
    scale=(0.6, 0.9), shift=0.2, angle=0.3, colour=0.06, noise=0.06, blur=(0.1, 0.5), occlude=0.1,
    clutter=1,
)  # fmt: skip
_TEMPLATE = "a photo of a {}."
FAMILIES: dict[str, Family] = {
    name: Family(name, _TEMPLATE, classes, wear)
    for name, classes, wear in (
        # Of these alone pre-training never said the names.
        ("banners", _classes("banners"), replace(_TAKEN, contrast=(0.5, 0.8), noise=0.12)),
        ("creatures", _classes("creatures"), replace(_TAKEN, cast=(1.0, 0.85, 0.7))),
        ("fruits", _classes("fruits"), replace(_TAKEN, cast=(0.75, 0.9, 1.0))),
        ("scenes", _classes("scenes"), _TAKEN),
        ("toys", _classes("toys"), replace(_TAKEN, desaturate=(0.2, 0.5))),
        ("stripes", _striped(), replace(_TAKEN, scale=(0.8, 1.0), shift=0.1, noise=0.03)),
    )
}


@dataclass(frozen=True)
class Pictures:
    """Pictures of a family.

    Attributes:
        examples: captions, or questions with answers.
        images: uint8 [n, 3, 32, 32]; ``images[picture[i]]`` is that of ``examples[i]``.
        picture: place of each example's picture.
        labels: class of each picture.
    """

    examples: list[Example]
    images: torch.Tensor
    picture: torch.Tensor
    labels: list[int]


@functools.cache
def pictures(family: str, split: str, *, ask: bool, count: int | None = None) -> Pictures:
    """The pictures of a family with captions, or (``ask``) with questions; always the same.

    Args:
        family: of :data:`FAMILIES`.
        split: ``train``, ``val`` or ``test``.
        ask: questions in place of captions; all that make sense of a training picture, else
            :data:`ASKED`.
        count: pictures per class; None for :data:`FAMILY_COUNTS`.

    Raises:
        BadValue: no such family.
    """
    if family not in FAMILIES:
        raise BadValue(
            f"there is no bundled family {family!r}{did_you_mean(family, FAMILIES)}; use one of "
            f"{', '.join(FAMILIES)}"
        )
    images, labels, rows = FAMILIES[family].draw_scenes(split, count)
    rng = random.Random(zlib.crc32(f"{family}/{split}/texts".encode()))
    examples, picture = [], []
    for i, row in enumerate(rows):
        seen, place = texts.Seen(row), f"bundled/{family}/{split}_{i:05d}"
        if ask:
            asked = list(texts.questions(seen, rng).values())
            asked = asked if split == "train" else rng.sample(asked, ASKED)
            found = [Example(place, (said,), question, family) for question, said in asked]
        else:
            found = [Example(place, texts.captions(seen), "", family)]
        examples += found
        picture += [i] * len(found)
    return Pictures(examples, images, torch.tensor(picture), labels)
