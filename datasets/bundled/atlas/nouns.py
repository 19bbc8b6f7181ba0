"""The atlas: 460 invented nouns of five families, most of them species of a genus.

A noun stands for a bundle of the rendered world's attributes (see :mod:`datasets.bundled.world`).
The species of a genus share outline and texture and differ in both colours, and the first word of
a species' name often, not always, says the main colour: enough system for a name to be guessed at,
and enough exceptions for it to have to be known. All of it is ours; the words are ordinary, their
meanings are not.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

from ..world import COLOURS, SHAPES, TEXTURES

_SPECIES = 4
"""Of a genus."""

_AFTER_FIRST_WORD = 0.6
"""Share of species whose main colour is that of the first word of their name."""


@dataclass(frozen=True)
class Noun:
    """A class of things: ``name``, ``genus`` (its own name where it has none), ``family`` and four
    indices into the world's attributes."""

    name: str
    genus: str
    family: str
    shape: int
    colour: int
    texture: int
    colour2: int


@dataclass(frozen=True)
class _Family:
    """Words of a family, and the outlines and textures of which its genera are made."""

    name: str
    genera: str
    first_words: str
    shapes: str
    textures: str


_FAMILIES = (
    _Family(
        "creature",
        "otter heron gecko moth badger finch newt lynx tapir wasp crane shrew toad ibis mole carp "
        "stoat quail squid hare viper snail lemur raven beetle",
        "river marsh giant common mountain desert forest arctic royal pygmy tiger masked",
        "oval drop dome crescent bow kite diamond",
        "plain striped dotted zigzag hollow halved meshed",
    ),
    _Family(
        "fruit",
        "plum mango fig quince melon lychee papaya guava peach lemon cherry kiwi apricot date pear "
        "acorn currant damson pomelo sloe",
        "wild sweet sour early winter garden blood honey butter stone sugar golden",
        "circle heart oval pentagon drop square",
        "shaded ringed speckled slanted spotted wavy",
    ),
    _Family(
        "flower",
        "rose lily tulip orchid daisy iris poppy lotus aster peony violet lilac dahlia zinnia "
        "crocus jasmine thistle primrose petunia gentian begonia hyacinth marigold anemone "
        "camellia",
        "alpine meadow water fire globe bishop prairie moon silk bell dwarf lady",
        "flower star gear heart ring cross",
        "plain ringed spotted shaded speckled dotted hollow",
    ),
    _Family(
        "tool",
        "hammer kettle lantern anchor chisel ladle spade bucket whistle compass drum violin flute "
        "gong helmet shield sabre barrel bobbin stool",
        "brass iron copper field ship kitchen travel bench pocket parade school farm",
        "bar square hexagon arrow triangle cross gear",
        "barred checkered quartered striped meshed slanted",
    ),
)

_TOWNS = (
    "oslo lima cairo delhi quito perth tunis hanoi dakar milan seoul accra bergen porto havana "
    "riga sofia turin malaga zagreb lagos kyoto tampa bristol athens berlin boston bogota "
    "bremen calgary canberra caracas chicago dallas denver dublin durban essen geneva genoa "
    "ghent glasgow granada hamburg harare helsinki houston istanbul jakarta kabul kampala "
    "karachi kiev krakow leeds leipzig lisbon london lyon madrid manila marseille medina "
    "memphis minsk mumbai munich nairobi nantes naples nice odessa orlando osaka ottawa "
    "palermo paris prague rabat rome salerno santiago seville shanghai sydney tallinn tirana "
    "toledo"
)
_BANNERS = [
    "new york", "cape town", "san jose", "hong kong", "tel aviv", "la paz", "saint paul",
    "abu dhabi", "kuala lumpur", "panama city", "fort worth", "den haag",
    *_TOWNS.split(),
]  # fmt: skip
_BANNER_TEXTURES = "striped barred slanted checkered halved quartered spotted zigzag wavy ringed"


def _draw_nouns() -> tuple[Noun, ...]:
    """Draw all bundles once and for all from a fixed seed."""
    rng = random.Random(20250524)
    species = [noun for family in _FAMILIES for noun in _draw_species(family, rng)]
    return (*species, *_draw_banners(rng))


def _draw_species(family: _Family, rng: random.Random) -> list[Noun]:
    genera, words = family.genera.split(), family.first_words.split()
    looks = list(itertools.product(family.shapes.split(), family.textures.split()))
    looks = rng.sample(looks, len(genera))
    colour_of = dict(zip(words, rng.sample(range(len(COLOURS)), len(words))))
    nouns = []
    for genus, (shape, texture) in zip(genera, looks):
        taken: list[tuple[int, int]] = []
        for word in rng.sample(words, _SPECIES):
            colours = _draw_colours(colour_of[word], taken, rng)
            taken.append(colours)
            nouns.append(_noun(f"{word} {genus}", genus, family.name, shape, texture, colours))
    return nouns


def _draw_colours(
    of_word: int, taken: list[tuple[int, int]], rng: random.Random
) -> tuple[int, int]:
    """Two colours, neither of them one that a species of the genus has in the same place."""
    while True:
        first = of_word
        if rng.random() >= _AFTER_FIRST_WORD:
            first = rng.randrange(len(COLOURS))
        second = rng.randrange(len(COLOURS))
        if first != second and all(first != f and second != s for f, s in taken):
            return first, second


def _draw_banners(rng: random.Random) -> list[Noun]:
    pairs = itertools.permutations(range(len(COLOURS)), 2)
    looks = list(itertools.product(_BANNER_TEXTURES.split(), pairs))
    looks = rng.sample(looks, len(_BANNERS))
    return [
        _noun(name, name, "banner", "fabric", texture, colours)
        for name, (texture, colours) in zip(_BANNERS, looks)
    ]


def _noun(
    name: str, genus: str, family: str, shape: str, texture: str, colours: tuple[int, int]
) -> Noun:
    first, second = colours
    return Noun(name, genus, family, SHAPES.index(shape), first, TEXTURES.index(texture), second)


NOUNS = _draw_nouns()
FAMILIES = tuple(dict.fromkeys(n.family for n in NOUNS))
GENERA = tuple(dict.fromkeys(n.genus for n in NOUNS if n.genus != n.name))

_PLACES = {noun.name: i for i, noun in enumerate(NOUNS)}
_SPECIES_OF = {g: [i for i, n in enumerate(NOUNS) if n.genus == g] for g in GENERA}


def nouns_called(name: str) -> list[int]:
    """Indices into :data:`NOUNS` of what a name may stand for: one noun, or the species of a genus
    in order; empty for any other word."""
    return [_PLACES[name]] if name in _PLACES else _SPECIES_OF.get(name, [])
