"""Image encoders that are tuned end to end: features, the outputs of layers, texts where there are
any, and how images are prepared."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Iterator, Sequence

import torch
from torch import Tensor, nn

from proxyfda.utils.errors import BadModel

__all__ = ["ImageBackbone", "slice_positions"]

SLICES = 5
"""Layers that LDIFS compares: before the first block, and after each quarter of the blocks.

Mukhoti et al., TMLR 2024, arXiv 2308.13320, and its code: ``ln_pre`` and the blocks 3, 6, 9, 12."""


def slice_positions(blocks: int) -> list[int]:
    """After how many of a number of blocks the slices are taken, 0 for before the first.

    >>> slice_positions(12), slice_positions(4), slice_positions(2)
    ([0, 3, 6, 9, 12], [0, 1, 2, 3, 4], [0, 1, 2])
    """
    quarters = (round(blocks * part / (SLICES - 1)) for part in range(SLICES))
    return sorted(set(quarters))


class ImageBackbone(nn.Module):
    """An image encoder with all that has to be known to tune it and to compare its features.

    It is a :class:`~proxyfda.backbones.Backbone`. Subclasses make ``image_tower`` and, where there
    is one, ``text_tower``, and define :meth:`forward` and :meth:`blocks`.

    Attributes:
        name: as it was asked for.
        image_tower: the module that is tuned; its state dict is what checkpoints hold.
        text_tower: module of the texts, or None. It is frozen unless somebody thaws it, and
            outside of ``image_tower``.
        output_dim: d of the features.
        image_size: side of the images in pixels.
        image_mean, image_std: of each channel, with which images in [0, 1] are normalised.
        interpolation: with which images are brought to that size, ``bicubic`` or ``bilinear``.
        logit_scale: scalar by whose exponential the cosines of images and texts are multiplied;
            None without texts.
    """

    name: str = ""
    image_tower: nn.Module
    text_tower: nn.Module | None = None
    output_dim: int
    image_size: int
    image_mean: Sequence[float]
    image_std: Sequence[float]
    interpolation: str = "bicubic"
    logit_scale: Tensor | None = None

    # -- what a library's models define -----------------------------------------------------------

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, d], not normalised, of images [B, 3, H, W]; with gradient."""
        raise NotImplementedError

    def blocks(self) -> Sequence[nn.Module]:
        """The blocks whose outputs are the layers, in their order."""
        raise NotImplementedError

    def tokens_of(self, output: Any) -> Tensor:
        """What a block gives or takes as [B, T, C]."""
        found: Tensor = output[0] if isinstance(output, (tuple, list)) else output
        return found

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Features [n, d] of texts, not normalised, with gradient where the text tower has some.

        Raises:
            BadModel: the backbone has no texts.
        """
        raise BadModel(
            f"{self.name} has no text encoder; use a CLIP (or FLAVA), or leave out what needs texts"
        )

    # -- what follows -----------------------------------------------------------------------------

    @property
    def has_texts(self) -> bool:
        """Whether there is a text encoder in the space of the features."""
        return self.text_tower is not None

    def with_layers(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Features [B, d] and the slices of :func:`slice_positions`, [B, T, C] each, by one
        forward pass."""
        blocks = self.blocks()
        with _captured(blocks, self.tokens_of) as slices:
            features = self(images)
        return features, [slices[i] for i in slice_positions(len(blocks))]

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Features [B, d] without gradient and in eval mode, whatever mode the backbone is in."""
        training = [module for module in self.modules() if module.training]
        self.eval()
        try:
            return self(images)
        finally:
            for module in training:
                module.training = True


@contextmanager
def _captured(blocks: Sequence[nn.Module], tokens_of: Any) -> Iterator[dict[int, Tensor]]:
    """The input of the first block and the outputs of all, by number of blocks passed."""
    found: dict[int, Tensor] = {}
    wanted = set(slice_positions(len(blocks)))

    def before(module: nn.Module, args: tuple, kwargs: dict) -> None:
        found[0] = tokens_of(args[0] if args else next(iter(kwargs.values())))

    def after(number: int) -> Any:
        def keep(module: nn.Module, args: tuple, output: Any) -> None:
            found[number] = tokens_of(output)

        return keep

    handles = [blocks[0].register_forward_pre_hook(before, with_kwargs=True)]
    handles += [
        block.register_forward_hook(after(number))
        for number, block in enumerate(blocks, 1)
        if number in wanted
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
