"""What the atlas's pictures show, in which medium, and how that is put in words."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import torch
from tqdm import tqdm

from .. import world
from ..render import PRETRAIN, SIZE, Style, render
from ..world import BACKGROUNDS, COLOURS, FIELDS, SHAPES, TEXTURES, scene_for
from .nouns import FAMILIES, NOUNS, nouns_called

MEDIA: dict[str, tuple[float, Style]] = {
    "": (0.4, PRETRAIN),
    "dim": (0.06, replace(PRETRAIN, cast=(0.6, 0.6, 0.65))),
    "warm": (0.06, replace(PRETRAIN, cast=(1.0, 0.78, 0.55))),
    "cold": (0.06, replace(PRETRAIN, cast=(0.6, 0.82, 1.0))),
    "mossy": (0.06, replace(PRETRAIN, cast=(0.68, 1.0, 0.68))),
    "grainy": (0.06, replace(PRETRAIN, noise=0.1)),
    "blurry": (0.06, replace(PRETRAIN, blur=(0.4, 0.8))),
    "faded": (0.06, replace(PRETRAIN, contrast=(0.45, 0.7), desaturate=(0.1, 0.4))),
    "negative": (0.06, replace(PRETRAIN, invert=1.0)),
    "cluttered": (0.06, replace(PRETRAIN, clutter=2, occlude=0.3)),
    "distant": (0.06, replace(PRETRAIN, scale=(0.4, 0.6), shift=0.35)),
}
"""Word for how a picture was taken -> (share in pre-training, how it is drawn)."""

_BACKGROUND = FIELDS.index("background")


def _row(index: int, rng: random.Random, background: int | None) -> list[int]:
    """A row (``world.FIELDS``) that shows the noun of that index."""
    noun = NOUNS[index]
    place = rng.randrange(len(BACKGROUNDS)) if background is None else background
    return [noun.shape, noun.colour, noun.texture, noun.colour2, place, index]


def scene(words: str, rng: random.Random, background: int | None = None) -> list[int]:
    """A row (``world.FIELDS``) that shows a noun, any species of a genus, or attributes.

    Args:
        words: name of a noun or of a genus, or words for attributes.
        rng: draws what the words leave open.
        background: index of one, which it is then unless ``words`` name another.

    Raises:
        BadValue: a word that the world does not know.
    """
    found = nouns_called(words)
    if found:
        # Not by choice() where there is no choice: that would take from rng as well.
        return _row(found[0] if len(found) == 1 else rng.choice(found), rng, background)
    row = scene_for(words, rng, nouns=())
    if background is not None and not set(words.split()) & set(BACKGROUNDS):
        row[_BACKGROUND] = background
    return row


def random_scene(rng: random.Random) -> list[int]:
    """A row for pre-training: a noun, a fabric, or a free combination of attributes."""
    kind = rng.random()
    if kind < 0.62:
        return _row(rng.randrange(len(NOUNS)), rng, None)
    return scene_for("fabric" if kind < 0.74 else "", rng)


class Captioner(world.Captioner):
    """Writes one of many captions for a row in a medium; ``rng`` is the only source of chance."""

    SHORT = (
        "a photo of a {}.", "a photo of a {}.", "a photo of the {}.", "a picture of a {}.",
        "an image of a {}.", "a {}.", "{}.", "{}", "a photo of {}.", "a close-up photo of a {}.",
        "this is a {}.", "a good photo of a {}.", "look at the {} here.",
    )  # fmt: skip
    LONG = (
        "there is a {} in the picture.", "we can see a {} in the middle.",
        "in the middle of this small picture there is a {}.",
        "if you look closely at the picture you will see one {}.",
        "the photo that was taken this morning shows, as always, a {}.",
    )  # fmt: skip
    MEDIUM = (
        "a {1} photo of a {0}.",
        "a {1} picture of the {0}.",
        "a {0}, {1}.",
        "{1} photo, {0}.",
    )

    def __call__(self, scene: tuple[list[int], str], long: bool = False) -> str:
        """A caption of a row and its medium that names some or all of what is seen, and the medium
        half of the time where it says no family.

        ``long`` puts the words late in the sentence, so that they are known at later positions too.
        """
        (row, medium), rng = scene, self.rng
        shape, _, texture, _, background, index = row
        place = rng.random() < 0.25 and SHAPES[shape] != "fabric"
        said = medium if rng.random() < 0.5 else ""
        if index >= 0 and rng.random() < 0.85:
            noun = NOUNS[index]
            words, kin = noun.name, noun.family
            if noun.genus != noun.name and rng.random() < 0.25:
                words = noun.genus
            elif noun.genus != noun.name and rng.random() < 0.2:
                kin = noun.genus
            if rng.random() < 0.25:
                return rng.choice(self.KIND).format(words, kin)
        elif SHAPES[shape] == "fabric" and rng.random() < 0.3:
            words = f"{self._colours(row)} {TEXTURES[texture]} texture".strip()
        else:
            words = self._describe(row)
        if place:
            words = f"{words} on {BACKGROUNDS[background]}"
        if said:
            return rng.choice(self.MEDIUM).format(words, said)
        return rng.choice(self.LONG if long else self.SHORT).format(words)


def vocabulary() -> list[str]:
    """Every word that a caption or a class name can hold, for keeping its token rows."""
    frames = (*Captioner.SHORT, *Captioner.LONG, *Captioner.MEDIUM, *Captioner.KIND)
    words = " ".join(frames).replace("{}", "").replace("{0}", "").replace("{1}", "")
    extra = "a photo of the type kind texture fabric and on with small large one this it is in ."
    return [words, extra, *MEDIA, *SHAPES, *COLOURS, *TEXTURES, *FAMILIES, *names()]


def names() -> list[str]:
    """What stands in ``words.txt``, the vocabulary beyond the classes of a dataset: all nouns and
    genera, and the outlines and backgrounds by their names."""
    nouns = sorted({n.name for n in NOUNS} | {n.genus for n in NOUNS})
    return [*nouns, *SHAPES[:-1], *BACKGROUNDS]


def draw_pool(
    size: int, seed: int, chunk: int = 1000
) -> tuple[list[tuple[list[int], str]], torch.Tensor]:
    """``size`` pairs of a row and its medium, and their pictures as uint8 [size, 3, 32, 32]."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    words, shares = list(MEDIA), [share for share, _ in MEDIA.values()]
    pairs: list[tuple[list[int], str]] = []
    images = torch.empty(size, 3, SIZE, SIZE, dtype=torch.uint8)
    for begin in tqdm(range(0, size, chunk), desc="drawing", unit="k"):
        count = min(chunk, size - begin)
        # In order of their media, since a call of the renderer draws in one.
        media = sorted(rng.choices(range(len(words)), shares, k=count))
        pairs += [(random_scene(rng), words[i]) for i in media]
        at = begin
        for medium, group in itertools.groupby(pairs[begin:], lambda pair: pair[1]):
            rows = torch.tensor([row for row, _ in group])
            drawn = render(rows, MEDIA[medium][1], generator)
            images[at : at + len(rows)] = (drawn * 255).round().to(torch.uint8)
            at += len(rows)
    return pairs, images
