"""Draws batches of scene rows with signed-distance outlines, all samples at once (torch only).

One picture: a background, on it one outline filled with a two-colour texture, then the wear that a
:class:`Style` asks for. Pre-training uses a mild style; the few-shot datasets use harsher ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .world import BACKGROUNDS, COLOURS, FIELDS, SHAPES, TEXTURES

SIZE = 32
"""Side of a picture in pixels."""


@dataclass(frozen=True)
class Style:
    """How pictures vary and wear; ranges are drawn per picture.

    scale: radius of the outline, in half-sides. shift: largest offset of its centre. angle:
    largest rotation (radians). colour: std of the noise on each colour. cast: factors on R, G, B,
    the same for all. desaturate: range of mixing with grey. contrast: range of factors around
    mid-grey. noise: std of pixel noise. blur: range of mixing with a 5x5 mean. occlude: chance of
    a grey block. clutter: number of small blobs of chance colours. invert: chance of a negative.
    """

    scale: tuple[float, float] = (0.55, 0.95)
    shift: float = 0.2
    angle: float = 0.25
    colour: float = 0.04
    cast: tuple[float, float, float] = (1.0, 1.0, 1.0)
    desaturate: tuple[float, float] = (0.0, 0.15)
    contrast: tuple[float, float] = (0.8, 1.1)
    noise: float = 0.03
    blur: tuple[float, float] = (0.0, 0.4)
    occlude: float = 0.05
    clutter: int = 0
    invert: float = 0.0


PRETRAIN = Style()


def _polygon(u, v, n, apothem):
    step = 2 * math.pi / n
    theta = torch.atan2(u, -v)
    folded = torch.remainder(theta + step / 2, step) - step / 2
    return torch.hypot(u, v) * folded.cos() - apothem


def _star(u, v):
    step = 2 * math.pi / 5
    folded = (torch.remainder(torch.atan2(u, -v) + step / 2, step) - step / 2).abs()
    r = torch.hypot(u, v)
    a, b = r * folded.cos(), r * folded.sin()
    # edge from the tip (1, 0) to the notch at half a step
    na, nb = 0.42 * math.cos(step / 2), 0.42 * math.sin(step / 2)
    return ((a - 1) * nb - b * (na - 1)) / math.hypot(nb, na - 1)


def _outline(name: str, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Approximate signed distance to an outline (negative inside); v points down."""
    r, theta = torch.hypot(u, v), None
    if name in ("flower", "gear"):
        theta = torch.atan2(v, u)
    if name == "circle":
        return r - 0.9
    if name == "oval":
        return (torch.hypot(u, v / 0.58) - 0.98) * 0.6
    if name == "square":
        return torch.maximum(u.abs(), v.abs()) - 0.78
    if name == "bar":
        return torch.maximum(u.abs() - 0.98, v.abs() - 0.34)
    if name == "diamond":
        return (u.abs() / 0.68 + v.abs() - 1) * 0.56
    if name == "kite":
        return (u.abs() / 0.7 + torch.where(v < 0, -v / 0.45, v) - 0.98) * 0.5
    if name == "triangle":
        return _polygon(u, v - 0.15, 3, 0.5) * 1.0
    if name == "pentagon":
        return _polygon(u, v, 5, 0.74)
    if name == "hexagon":
        return _polygon(u, v, 6, 0.8)
    if name == "star":
        return _star(u, v)
    if name == "cross":
        return torch.minimum(
            torch.maximum(u.abs() - 0.95, v.abs() - 0.3),
            torch.maximum(v.abs() - 0.95, u.abs() - 0.3),
        )
    if name == "ring":
        return (r - 0.68).abs() - 0.25
    if name == "heart":
        return torch.hypot(u, -v - 0.62 * u.abs().sqrt() + 0.25) - 0.78
    if name == "crescent":
        return torch.maximum(r - 0.92, 0.72 - torch.hypot(u - 0.45, v))
    if name == "drop":
        tip = torch.maximum((u.abs() - 0.52 * (v + 1)) * 0.85, v - 0.35)
        return torch.minimum(torch.hypot(u, v - 0.35) - 0.6, tip)
    if name == "dome":
        return torch.maximum(torch.hypot(u, v - 0.42) - 0.98, v - 0.42)
    if name == "arrow":
        shaft = torch.maximum(v.abs() - 0.2, (u + 0.35).abs() - 0.6)
        head = torch.maximum((v.abs() - 0.9 * (0.95 - u)) * 0.7, 0.1 - u)
        return torch.minimum(shaft, head)
    if name == "flower":
        return r - (0.68 + 0.24 * (5 * theta).cos())
    if name == "gear":
        return r - (0.74 + 0.14 * torch.tanh(3 * (8 * theta).cos()))
    if name == "bow":
        return torch.maximum((v.abs() - 0.75 * u.abs() - 0.06) * 0.8, u.abs() - 0.92)
    return r * 0 - 1  # fabric


def _texture(name: str, u: torch.Tensor, v: torch.Tensor, chance: torch.Tensor) -> torch.Tensor:
    """Share of colour 2 at each point; ``chance`` is uniform noise of the same shape."""
    k = 7.5

    def step(x):
        return torch.sigmoid(5 * x)

    if name == "striped":
        return step((k * v).sin())
    if name == "barred":
        return step((k * u).sin())
    if name == "slanted":
        return step((k * 0.75 * (u + v)).sin())
    if name == "dotted":
        return torch.sigmoid(8 * ((k * u).sin() * (k * v).sin() - 0.35))
    if name == "checkered":
        return step(2 * (k * 0.7 * u).sin() * (k * 0.7 * v).sin())
    if name == "ringed":
        return step((k * 1.2 * torch.hypot(u, v)).sin())
    if name == "shaded":
        return ((v + 0.9) / 1.8).clamp(0, 1)
    if name == "speckled":
        return (chance < 0.3).to(u.dtype)
    if name == "wavy":
        return step((k * v + 1.6 * (k * 0.7 * u).sin()).sin())
    if name == "zigzag":
        tri = (2 * torch.remainder(1.3 * u, 1) - 1).abs()
        return step((k * v + 4.5 * tri).sin())
    if name == "meshed":
        return torch.sigmoid(9 * (torch.maximum((k * 0.8 * u).cos(), (k * 0.8 * v).cos()) - 0.72))
    if name == "halved":
        return step(4 * u)
    if name == "quartered":
        return step(12 * u * v)
    if name == "spotted":
        return step(6 * (0.42 - torch.hypot(u, v)))
    return torch.zeros_like(u)


STRIPED_HALF_HEIGHTS = {"circle": 0.9, "square": 0.78, "hexagon": 0.8, "cross": 0.95}
"""Outlines that can be given a number of stripes -> how far they reach up and down."""


def _counted_stripes(name: str, v: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Share of colour 2 where ``count`` [N] stripes of it lie over an outline, as high as the gaps
    above, between and below them."""
    half = STRIPED_HALF_HEIGHTS[name]
    bands = 2 * count[:, None, None] + 1
    return torch.sigmoid(-8 * (math.pi * bands * (v + half) / (2 * half)).sin())


_GROUND = {
    "sand": ((0.88, 0.77, 0.52), (0.78, 0.66, 0.42), "speckled"),
    "sea": ((0.10, 0.38, 0.58), (0.20, 0.52, 0.70), "wavy"),
    "grass": ((0.28, 0.55, 0.18), (0.18, 0.42, 0.12), "barred"),
    "night": ((0.04, 0.05, 0.16), (0.80, 0.80, 0.85), "stars"),
    "brick": ((0.62, 0.28, 0.20), (0.78, 0.70, 0.64), "meshed"),
    "sky": ((0.45, 0.68, 0.95), (0.85, 0.92, 0.99), "shaded"),
    "snow": ((0.94, 0.96, 0.99), (0.80, 0.86, 0.93), "speckled"),
    "wood": ((0.55, 0.36, 0.20), (0.42, 0.26, 0.13), "striped"),
    "stone": ((0.50, 0.50, 0.52), (0.36, 0.36, 0.38), "speckled"),
    "lava": ((0.28, 0.05, 0.03), (0.90, 0.35, 0.05), "wavy"),
    "fog": ((0.72, 0.74, 0.76), (0.58, 0.60, 0.62), "shaded"),
    "paper": ((0.93, 0.91, 0.84), (0.90, 0.88, 0.80), "plain"),
}


def _uniform(n, lo, hi, g):
    return torch.rand(n, generator=g) * (hi - lo) + lo


def _by_group(index: torch.Tensor, names, draw, *fields: torch.Tensor) -> torch.Tensor:
    """``draw(name, *fields)`` for each sample by its own name, one call per name in the batch."""
    out = torch.empty_like(fields[0])
    for i in index.unique().tolist():
        rows = (index == i).nonzero().squeeze(1)
        out[rows] = draw(names[i], *(f[rows] for f in fields))
    return out


def _mix(a: torch.Tensor, b: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Colours a, b [N, 3] mixed by share [N, H, W] -> [N, 3, H, W]."""
    return a[:, :, None, None] + (b - a)[:, :, None, None] * share[:, None]


def render(rows: torch.Tensor, style: Style, generator: torch.Generator) -> torch.Tensor:
    """Draw scene rows.

    Args:
        rows: integer tensor [N, 6], columns as in ``world.FIELDS``, or [N, 7] with the number of
            stripes of colour 2 behind them: 0 for as many as the texture has, more for an outline
            of :data:`STRIPED_HALF_HEIGHTS`.
        style: variation and wear.
        generator: the only source of chance; the same state gives the same pictures.

    Returns:
        float tensor [N, 3, 32, 32] in 0..1.
    """
    g, n = generator, len(rows)
    shape, colour, texture, colour2, ground = (rows[:, i] for i in range(5))
    grid = (torch.arange(SIZE) + 0.5) / SIZE * 2 - 1
    x, y = grid.expand(n, SIZE, SIZE), grid[:, None].expand(n, SIZE, SIZE)

    # background
    palette = torch.tensor([_GROUND[b][:2] for b in BACKGROUNDS])[ground]  # [N, 2, 3]
    palette = palette + torch.randn(palette.shape, generator=g) * (style.colour + 0.02)
    zoom = _uniform(n, 0.9, 1.4, g)[:, None, None]
    phase = (torch.rand(n, 2, generator=g) * 6)[:, :, None, None]
    chance = torch.rand(n, SIZE, SIZE, generator=g)

    def draw_ground(name, u, v, c):
        kind = _GROUND[name][2]
        if kind == "stars":
            return (c < 0.04).to(u.dtype)
        return _texture(kind, u, v, c)

    gradient = (ground == BACKGROUNDS.index("sky")) | (ground == BACKGROUNDS.index("fog"))
    moving = (~gradient)[:, None, None]
    bu = x * zoom * 1.6 + phase[:, 0] * moving
    bv = y * torch.where(moving, zoom * 1.6, 1.0) + phase[:, 1] * moving
    share = _by_group(ground, BACKGROUNDS, draw_ground, bu, bv, chance)
    image = _mix(palette[:, 0], palette[:, 1], share)

    # clutter: small discs behind the object
    for _ in range(style.clutter):
        centre = torch.rand(n, 2, generator=g) * 2 - 1
        radius = _uniform(n, 0.08, 0.28, g)
        tint = torch.rand(n, 3, generator=g)
        gap = torch.hypot(x - centre[:, :1, None], y - centre[:, 1:, None]) - radius[:, None, None]
        alpha = (0.5 - gap * SIZE / 2).clamp(0, 1)[:, None]
        image = image * (1 - alpha) + tint[:, :, None, None] * alpha

    # object
    fabric = shape == SHAPES.index("fabric")
    scale = _uniform(n, *style.scale, g)
    offset = (torch.rand(n, 2, generator=g) * 2 - 1) * style.shift
    angle = (torch.rand(n, generator=g) * 2 - 1) * style.angle
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    dx, dy = x - offset[:, :1, None], y - offset[:, 1:, None]
    s = scale[:, None, None]
    u, v = (dx * cos + dy * sin) / s, (dy * cos - dx * sin) / s
    distance = _by_group(shape, SHAPES, _outline, u, v)
    band = (texture == TEXTURES.index("hollow")) & ~fabric
    distance = torch.where(band[:, None, None], torch.maximum(distance, -0.2 - distance), distance)
    alpha = (0.5 - distance * s * SIZE / 2).clamp(0, 1)[:, None]
    chance = torch.rand(n, SIZE, SIZE, generator=g)
    share = _by_group(texture, TEXTURES, _texture, u, v, chance)
    if rows.shape[1] > len(FIELDS):
        counted = (rows[:, len(FIELDS)] > 0).nonzero().squeeze(1)
        some = [f[counted] for f in (shape, v, rows[:, len(FIELDS)])]
        share[counted] = _by_group(some[0], SHAPES, _counted_stripes, *some[1:])
    rgb = torch.tensor(list(COLOURS.values()))
    first = rgb[colour] + torch.randn(n, 3, generator=g) * style.colour
    second = rgb[colour2] + torch.randn(n, 3, generator=g) * style.colour
    image = image * (1 - alpha) + _mix(first, second, share) * alpha

    # wear
    if style.occlude:
        hit = (torch.rand(n, generator=g) < style.occlude).float()[:, None, None]
        centre = torch.rand(n, 2, generator=g) * 1.6 - 0.8
        half = _uniform(n, 0.15, 0.35, g)[:, None, None]
        gap = torch.maximum((x - centre[:, :1, None]).abs(), (y - centre[:, 1:, None]).abs())
        alpha = ((gap < half) * hit)[:, None]
        image = image * (1 - alpha) + 0.5 * alpha
    if style.invert:
        negative = (torch.rand(n, generator=g) < style.invert)[:, None, None, None]
        image = torch.where(negative, 1 - image, image)
    grey = image.mean(1, keepdim=True)
    image = image + (grey - image) * _uniform(n, *style.desaturate, g)[:, None, None, None]
    image = image * torch.tensor(style.cast)[:, None, None]
    image = (image - 0.5) * _uniform(n, *style.contrast, g)[:, None, None, None] + 0.5
    soft = F.avg_pool2d(F.pad(image, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    image = image + (soft - image) * _uniform(n, *style.blur, g)[:, None, None, None]
    image = image + torch.randn(image.shape, generator=g) * style.noise
    return image.clamp(0, 1)
