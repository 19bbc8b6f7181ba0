"""The rendered world: its attributes, its invented nouns, and how a picture is put in words.

Everything here is ours (no dataset or model of others takes part). A picture is described by a row
of six integers, see :data:`FIELDS`; :mod:`.render` draws such rows and :class:`Captioner` writes
captions for them.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

from proxyfda.utils.errors import BadValue

SHAPES = (
    "circle", "oval", "square", "bar", "diamond", "kite", "triangle", "pentagon", "hexagon",
    "star", "cross", "ring", "heart", "crescent", "drop", "dome", "arrow", "flower", "gear",
    "bow", "fabric",
)  # fmt: skip
"""Outlines. ``fabric`` is not an outline: the texture fills the whole picture."""

COLOURS = {
    "red": (0.86, 0.10, 0.12), "orange": (0.97, 0.52, 0.08), "yellow": (0.97, 0.88, 0.15),
    "lime": (0.62, 0.88, 0.12), "green": (0.10, 0.58, 0.16), "teal": (0.05, 0.50, 0.50),
    "cyan": (0.25, 0.85, 0.90), "blue": (0.15, 0.35, 0.90), "navy": (0.08, 0.10, 0.40),
    "purple": (0.48, 0.14, 0.62), "magenta": (0.90, 0.12, 0.75), "pink": (0.98, 0.65, 0.75),
    "brown": (0.48, 0.28, 0.12), "maroon": (0.45, 0.06, 0.14), "olive": (0.45, 0.46, 0.12),
    "white": (0.96, 0.96, 0.96), "grey": (0.52, 0.52, 0.52), "black": (0.06, 0.06, 0.06),
}  # fmt: skip
"""Colour word -> RGB in 0..1."""

TEXTURES = (
    "plain", "striped", "barred", "slanted", "dotted", "checkered", "ringed", "shaded",
    "speckled", "wavy", "zigzag", "meshed", "hollow", "halved", "quartered", "spotted",
)  # fmt: skip
"""How colour 2 is laid over colour 1; ``plain`` and ``hollow`` have no second colour."""

BACKGROUNDS = (
    "sand", "sea", "grass", "night", "brick", "sky", "snow", "wood", "stone", "lava", "fog",
    "paper",
)  # fmt: skip

FIELDS = ("shape", "colour", "texture", "colour2", "background", "noun")
"""Columns of a scene row. ``noun`` is an index into :data:`NOUNS`, or -1."""

_FAMILY_NAMES = {
    "creature": (
        "otter heron gecko moth badger finch newt lynx tapir wasp crane shrew toad ibis mole "
        "carp stoat quail squid hare viper snail lemur raven"
    ),
    "fruit": (
        "plum mango fig quince melon lychee papaya guava peach lemon cherry kiwi apricot date "
        "pear acorn currant damson pomelo medlar sloe tangelo rowan cranberry"
    ),
    "banner": (
        "oslo lima cairo delhi quito perth tunis hanoi dakar milan seoul accra bergen porto "
        "havana riga sofia turin malaga zagreb lagos kyoto tampa bristol"
    ),
}


@dataclass(frozen=True)
class Noun:
    """A word that stands for a bundle of attributes: ``name``, ``family`` and four indices."""

    name: str
    family: str
    shape: int
    colour: int
    texture: int
    colour2: int


def _make_nouns() -> tuple[Noun, ...]:
    """Draw each family's bundles once and for all from a fixed seed.

    Bundles of a family come from few shapes, colours and textures and differ pairwise in at least
    two of them: fine-grained, but distinguishable.
    """
    rng = random.Random(20250524)
    colours, nouns = list(COLOURS), []
    pools = {
        "creature": (
            "oval drop dome crescent bow kite",
            "plain striped dotted zigzag hollow halved",
        ),
        "fruit": (
            "circle heart flower pentagon ring square",
            "shaded ringed speckled slanted spotted wavy",
        ),
        "banner": (
            "fabric",
            "striped barred slanted checkered halved quartered spotted zigzag",
        ),
    }
    for family, names in _FAMILY_NAMES.items():
        shapes = [SHAPES.index(s) for s in pools[family][0].split()]
        textures = [TEXTURES.index(t) for t in pools[family][1].split()]
        palette = rng.sample(range(len(colours)), 9)
        taken: list[tuple[int, ...]] = []
        pool = [
            (s, c, t, c2)
            for s, c, t, c2 in itertools.product(shapes, palette, textures, palette)
            if c != c2
        ]
        for name in names.split():
            while True:
                bundle = rng.choice(pool)
                if all(sum(a != b for a, b in zip(bundle, other)) >= 2 for other in taken):
                    break
            taken.append(bundle)
            nouns.append(Noun(name, family, *bundle))
    return tuple(nouns)


NOUNS = _make_nouns()
FAMILIES = tuple(_FAMILY_NAMES)


def family(name: str) -> list[int]:
    """Indices into :data:`NOUNS` of one family's nouns, in order."""
    return [i for i, noun in enumerate(NOUNS) if noun.family == name]


def scene_for(words: str, rng: random.Random, nouns: Sequence[Noun] = NOUNS) -> list[int]:
    """A scene row that shows what ``words`` say; attributes that are not named are drawn.

    ``words`` are attribute words or one of ``nouns``, in any order: the first colour word is the
    main colour, the second the texture's. Raises BadValue for an unknown word.
    """
    colours = list(COLOURS)
    row = dict.fromkeys(FIELDS, -1)
    for word in words.replace(" and ", " ").replace(" on ", " ").split():
        noun = next((i for i, n in enumerate(nouns) if n.name == word), None)
        if noun is not None:
            n = nouns[noun]
            row.update(
                noun=noun, shape=n.shape, colour=n.colour, texture=n.texture, colour2=n.colour2
            )
        elif word in SHAPES:
            row["shape"] = SHAPES.index(word)
        elif word in TEXTURES:
            row["texture"] = TEXTURES.index(word)
        elif word in BACKGROUNDS:
            row["background"] = BACKGROUNDS.index(word)
        elif word in COLOURS:
            row["colour2" if row["colour"] >= 0 else "colour"] = colours.index(word)
        else:
            raise BadValue(
                f"'{word}' is not a word of the rendered world; see datasets/bundled/world.py"
            )
    for key, size in (
        ("shape", len(SHAPES) - 1),  # fabric only when asked for
        ("colour", len(COLOURS)),
        ("texture", len(TEXTURES)),
        ("background", len(BACKGROUNDS)),
    ):
        if row[key] < 0:
            row[key] = rng.randrange(size)
    if SHAPES[row["shape"]] == "fabric" and TEXTURES[row["texture"]] == "hollow":
        row["texture"] = TEXTURES.index("plain")  # a fabric has no rim to leave
    while row["colour2"] < 0 or row["colour2"] == row["colour"]:
        row["colour2"] = rng.randrange(len(COLOURS))
    return [row[key] for key in FIELDS]


def random_scene(rng: random.Random) -> list[int]:
    """A scene row for pre-training: a noun, a fabric, or a free combination of attributes."""
    kind = rng.random()
    if kind < 0.5:
        return scene_for(NOUNS[rng.randrange(len(NOUNS))].name, rng)
    return scene_for("fabric" if kind < 0.62 else "", rng)


class Captioner:
    """Writes one of many captions for a scene row; ``rng`` is the only source of chance."""

    SHORT = (
        "a photo of a {}.", "a photo of a {}.", "a photo of the {}.", "a picture of a {}.",
        "an image of a {}.", "a {}.", "{}.", "{}", "a photo of {}.", "a small photo of a {}.",
        "a blurry photo of a {}.", "a close-up photo of a {}.", "this is a {}.",
        "a drawing of a {}.", "a good photo of a {}.", "look at the {} here.",
    )  # fmt: skip
    LONG = (
        "there is a {} in the picture.", "we can see a {} in the middle.",
        "in the middle of this small picture there is a {}.",
        "if you look closely at the picture you will see one {}.",
        "this is what it looks like when someone draws a {}.",
        "the photo that was taken this morning shows, as always, a {}.",
    )  # fmt: skip
    KIND = ("a photo of a {}, a type of {}.", "{}, a kind of {}.", "a {}, which is a {}.")

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.colours = list(COLOURS)

    def __call__(self, row: list[int], long: bool = False) -> str:
        """A caption for ``row`` (see :data:`FIELDS`) that names some or all of what is seen.

        ``long`` puts the words late in the sentence, so that they are known at later positions too.
        """
        rng = self.rng
        shape, _, texture, _, background, noun = row
        place = rng.random() < 0.35 and SHAPES[shape] != "fabric"
        if noun >= 0 and rng.random() < 0.8:
            name, kin = NOUNS[noun].name, NOUNS[noun].family
            if rng.random() < 0.25:
                return rng.choice(self.KIND).format(name, kin)
            words = name
        elif SHAPES[shape] == "fabric" and rng.random() < 0.3:
            words = self._colours(row)
            words = f"{words} {TEXTURES[texture]} texture".strip()
        else:
            words = self._describe(row)
        if place:
            words = f"{words} on {BACKGROUNDS[background]}"
        return rng.choice(self.LONG if long else self.SHORT).format(words)

    def _colours(self, row: list[int]) -> str:
        first, second = self.colours[row[1]], self.colours[row[3]]
        has_two = TEXTURES[row[2]] not in ("plain", "hollow")
        kind = self.rng.random()
        if has_two and kind < 0.5:
            return f"{first} and {second}"
        return first if kind < 0.88 else ""

    def _describe(self, row: list[int]) -> str:
        texture = TEXTURES[row[2]] if self.rng.random() < 0.72 else ""
        parts = [self._colours(row), texture]
        if self.rng.random() < 0.3:
            parts.reverse()
        return " ".join(p for p in (*parts, SHAPES[row[0]]) if p)


def vocabulary() -> list[str]:
    """Every word that a caption or a class name can hold, for keeping its token rows."""
    frames = " ".join((*Captioner.SHORT, *Captioner.LONG, *Captioner.KIND)).replace("{}", "")
    extra = "a photo of the type kind texture fabric and on with small large one this it is in ."
    nouns = [n.name for n in NOUNS]
    return [frames, extra, *SHAPES, *COLOURS, *TEXTURES, *BACKGROUNDS, *FAMILIES, *nouns]
