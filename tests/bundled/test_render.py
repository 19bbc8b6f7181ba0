"""The renderer: same seed, same pictures; and pictures show what their words say."""

import random

import pytest
import torch

from datasets.bundled.render import PRETRAIN, SIZE, Style, render
from datasets.bundled.world import (
    BACKGROUNDS,
    COLOURS,
    FIELDS,
    NOUNS,
    SHAPES,
    TEXTURES,
    Captioner,
    random_scene,
    scene_for,
)

CLEAN = Style(
    scale=(0.9, 0.9), shift=0, angle=0, colour=0, desaturate=(0, 0), contrast=(1, 1), noise=0,
    blur=(0, 0), occlude=0,
)  # fmt: skip


def draw(words, count=8, style=CLEAN, seed=0):
    rng = random.Random(seed)
    rows = torch.tensor([scene_for(words, rng) for _ in range(count)])
    return render(rows, style, torch.Generator().manual_seed(seed))


def test_same_seed_same_pictures_other_seed_other_pictures():
    a, b, c = (draw("", 16, PRETRAIN, seed) for seed in (3, 3, 4))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_pictures_are_finite_and_in_range():
    harsh = Style(noise=0.3, clutter=3, occlude=1, invert=0.5, contrast=(0.3, 2), cast=(2, 1, 0.5))
    rng = random.Random(0)
    rows = torch.tensor([random_scene(rng) for _ in range(200)])
    images = render(rows, harsh, torch.Generator().manual_seed(0))
    assert images.shape == (200, 3, SIZE, SIZE)
    assert images.isfinite().all() and images.min() >= 0 and images.max() <= 1


@pytest.mark.parametrize("colour", list(COLOURS))
def test_plain_fabric_has_the_named_colour(colour):
    mean = draw(f"plain {colour} fabric").mean((0, 2, 3))
    assert torch.allclose(mean, torch.tensor(COLOURS[colour]), atol=1e-4)


@pytest.mark.parametrize("texture", [t for t in TEXTURES if t not in ("plain", "hollow")])
def test_texture_shows_both_colours(texture):
    image = draw(f"{texture} black and white fabric").mean(1)
    dark, light = (image < 0.3).float().mean(), (image > 0.7).float().mean()
    assert dark > 0.04 and light > 0.04


@pytest.mark.parametrize(
    ("texture", "constant_along"), [("striped", 2), ("barred", 1), ("plain", 1), ("plain", 2)]
)
def test_stripes_run_the_named_way(texture, constant_along):
    image = draw(f"{texture} black and white fabric").mean(1)
    assert image.std(constant_along).max() < 1e-4
    if texture != "plain":
        assert image.std(3 - constant_along).min() > 0.2


def test_outlines_differ_pairwise():
    outlines = SHAPES[:-1]
    masks = torch.stack([draw(f"plain white {s} night", 1)[0].mean(0) > 0.85 for s in outlines])
    area = masks.flatten(1).float()
    both = area @ area.T
    iou = both / (area.sum(1)[:, None] + area.sum(1)[None] - both)
    iou.fill_diagonal_(0)
    assert area.sum(1).min() > 40
    assert iou.max() < 0.92, [outlines[i] for i in divmod(iou.argmax().item(), len(outlines))]


def test_hollow_keeps_only_the_rim():
    full, hollow = (draw(f"{t} red square paper", 1)[0] for t in ("plain", "hollow"))
    red = torch.tensor(COLOURS["red"])
    assert torch.allclose(full[:, 16, 16], red, atol=1e-3)
    assert (hollow[:, 16, 16] - red).abs().max() > 0.3


def test_backgrounds_differ_pairwise():
    corners = torch.stack(
        [draw(f"plain red circle {b}", 16)[:, :, :5].mean((0, 2, 3)) for b in BACKGROUNDS]
    )
    gap = torch.cdist(corners, corners) + torch.eye(len(corners))
    assert gap.min() > 0.04


def test_noun_bundles_differ_in_two_attributes_within_a_family():
    for i, a in enumerate(NOUNS):
        for b in NOUNS[:i]:
            if a.family == b.family:
                pairs = zip(
                    (a.shape, a.colour, a.texture, a.colour2),
                    (b.shape, b.colour, b.texture, b.colour2),
                )
                assert sum(x != y for x, y in pairs) >= 2, (a.name, b.name)
    words = [n.name for n in NOUNS] + [*SHAPES, *COLOURS, *TEXTURES, *BACKGROUNDS]
    assert len(words) == len(set(words))


def test_scene_for_follows_the_words():
    row = dict(zip(FIELDS, scene_for("red and blue striped star on sand", random.Random(0))))
    assert SHAPES[row["shape"]] == "star" and TEXTURES[row["texture"]] == "striped"
    assert BACKGROUNDS[row["background"]] == "sand"
    assert [list(COLOURS)[row[k]] for k in ("colour", "colour2")] == ["red", "blue"]
    with pytest.raises(ValueError, match="'elephant' is not a word of the rendered world"):
        scene_for("red elephant", random.Random(0))


def test_captions_say_only_what_is_seen():
    rng = random.Random(0)
    write = Captioner(rng)
    for i in range(500):
        row = random_scene(rng)
        words = set(write(row, long=i % 2 == 0).replace(".", "").replace(",", "").split())
        shape, colour, texture, colour2, ground, noun = row
        allowed = {SHAPES[shape], list(COLOURS)[colour], TEXTURES[texture]}
        allowed |= {list(COLOURS)[colour2], BACKGROUNDS[ground]}
        if noun >= 0:
            allowed.add(NOUNS[noun].name)
        known = {*SHAPES, *COLOURS, *TEXTURES, *BACKGROUNDS, *(n.name for n in NOUNS)}
        assert words & known <= allowed
