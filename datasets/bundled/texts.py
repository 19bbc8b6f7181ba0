"""Captions of rendered pictures, and questions with their answers, for image-to-text models.

Unlike those of :class:`~datasets.bundled.world.Captioner`, which pre-train the CLIP, captions say
all that is seen. A row is as :data:`~datasets.bundled.world.FIELDS`, with the number of stripes
behind it where they are counted.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Optional

from .world import BACKGROUNDS, COLOURS, FAMILIES, FIELDS, NOUNS, SHAPES, TEXTURES

NUMBERS = ("no", "one", "two", "three", "four")
FRAMES = (
    "a photo of a {}", "a picture of a {}", "there is a {}", "we can see a {}", "this is a {}",
)  # fmt: skip
"""What captions begin with; each picture has a caption in each of them."""
_COLOURS = list(COLOURS)


class Seen:
    """A row in words.

    Attributes:
        shape, colour, texture, second, ground: words; ``second`` is empty where there is one colour
            and ``ground`` where the picture is all fabric.
        noun, kin: the noun and its family, such as otter and creature, or empty.
        stripes: their number, or 0 where they are not counted.
    """

    def __init__(self, row: list[int], known: tuple[str, ...] = FAMILIES):
        """``known``: families whose nouns are used; a thing of another one is but a shape."""
        shape, colour, texture, second, ground, noun = row[: len(FIELDS)]
        self.shape, self.colour, self.texture = SHAPES[shape], _COLOURS[colour], TEXTURES[texture]
        self.second = "" if self.texture in ("plain", "hollow") else _COLOURS[second]
        self.ground = "" if self.shape == "fabric" else BACKGROUNDS[ground]
        known_noun = noun >= 0 and NOUNS[noun].family in known
        self.noun, self.kin = (NOUNS[noun].name, NOUNS[noun].family) if known_noun else ("", "")
        self.stripes = row[len(FIELDS)] if len(row) > len(FIELDS) else 0

    @property
    def thing(self) -> str:
        """The noun, or the shape."""
        return self.noun or self.shape

    def described(self) -> str:
        """All that is seen."""
        place = f" on {self.ground}" if self.ground else ""
        if self.stripes:
            many = "stripe" if self.stripes == 1 else "stripes"
            how = f"with {NUMBERS[self.stripes]} {self.second} {many}"
            return f"{self.colour} {self.thing} {how}{place}"
        colours = f"{self.colour} and {self.second}" if self.second else self.colour
        return f"{colours} {self.texture} {self.thing}{place}"


def captions(seen: Seen) -> tuple[str, ...]:
    """All captions of a picture, one for each of :data:`FRAMES`."""
    return tuple(frame.format(seen.described()) for frame in FRAMES)


Asked = Optional[tuple[str, str]]


def _thing(seen: Seen, rng: random.Random) -> str:
    """What a question calls it: mostly by a word that does not give its looks away."""
    return rng.choice((seen.noun, seen.kin, seen.kin)) if seen.noun else seen.shape


def _colour(seen: Seen, rng: random.Random) -> Asked:
    return f"what colour is the {_thing(seen, rng)}?", seen.colour


def _second(seen: Seen, rng: random.Random) -> Asked:
    if not seen.second:
        return None
    return f"what is the second colour of the {_thing(seen, rng)}?", seen.second


def _pattern(seen: Seen, rng: random.Random) -> Asked:
    return f"what is the pattern of the {_thing(seen, rng)}?", seen.texture


def _shape(seen: Seen, rng: random.Random) -> Asked:
    return f"what shape is the {seen.kin or 'thing'}?", seen.shape


def _kind(seen: Seen, rng: random.Random) -> Asked:
    return (f"what {seen.kin} is this?", seen.noun) if seen.noun else None


def _place(seen: Seen, rng: random.Random) -> Asked:
    return (f"where is the {_thing(seen, rng)}?", seen.ground) if seen.ground else None


def _is_on(seen: Seen, rng: random.Random) -> Asked:
    if not seen.ground:
        return None
    if rng.random() < 0.5:
        return f"is it on {seen.ground}?", "yes"
    other = rng.choice([ground for ground in BACKGROUNDS if ground != seen.ground])
    return f"is it on {other}?", "no"


def _colours(seen: Seen, rng: random.Random) -> Asked:
    count = NUMBERS[2 if seen.second else 1]
    return f"how many colours does the {_thing(seen, rng)} have?", count


def _stripes(seen: Seen, rng: random.Random) -> Asked:
    if not seen.stripes:
        return None
    return f"how many stripes does the {_thing(seen, rng)} have?", NUMBERS[seen.stripes]


QUESTIONS: dict[str, Callable[[Seen, random.Random], Asked]] = {
    "colour": _colour, "second colour": _second, "pattern": _pattern, "shape": _shape,
    "kind": _kind, "place": _place, "on": _is_on, "colours": _colours, "stripes": _stripes,
}  # fmt: skip
"""Kind of a question -> what asks it: question and answer, or None where it makes no sense."""


def questions(seen: Seen, rng: random.Random) -> dict[str, tuple[str, str]]:
    """Every question that makes sense of a picture: kind -> question and answer.

    Args:
        rng: decides between wordings, and between yes and no.
    """
    asked = {kind: ask(seen, rng) for kind, ask in QUESTIONS.items()}
    return {kind: found for kind, found in asked.items() if found}


def words() -> list[str]:
    """Every word and sign of captions, questions and answers, in alphabetical order."""
    rng = random.Random(0)
    found = {*SHAPES, *COLOURS, *TEXTURES, *BACKGROUNDS, *FAMILIES, *NUMBERS[1:], "yes", "no"}
    found |= {noun.name for noun in NOUNS} | {"and", "on", "with", "stripe", "stripes", "thing"}
    for noun in range(-1, len(NOUNS)):
        row = [SHAPES.index("square"), 0, TEXTURES.index("striped"), 1, 0, noun, 1]
        seen = Seen(row)
        for text in (*captions(seen), *(q for q, _ in questions(seen, rng).values())):
            found |= set(split(text))
    return sorted(found)


def split(text: str) -> list[str]:
    """Words and signs of a text.

    >>> split("is it on sand?")
    ['is', 'it', 'on', 'sand', '?']
    """
    return text.replace("?", " ?").split()
