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
    is one, ``text_tower``, and define :meth:`forward`; :meth:`blocks` or :meth:`stages`; and
    :meth:`encode_texts` with a text tower. They end their constructor with :meth:`_ready`.

    Attributes:
        name: as it was asked for.
        weights: likewise.
        image_tower: the module that is tuned; its state dict is what checkpoints hold.
        text_tower: module of the texts, or None. It is frozen unless somebody thaws it, outside of
            ``image_tower``, and stays in eval mode.
        output_dim: d of the features.
        image_size: side of the images in pixels.
        image_mean, image_std: of each channel, with which images in [0, 1] are normalised.
        interpolation: with which images are brought to that size, ``bicubic`` or ``bilinear``.
        logit_scale: scalar by whose exponential the cosines of images and texts are multiplied;
            None without texts.
    """

    name: str = ""
    weights: str = ""
    image_tower: nn.Module
    text_tower: nn.Module | None
    output_dim: int
    image_size: int
    image_mean: Sequence[float]
    image_std: Sequence[float]
    interpolation: str = "bicubic"
    logit_scale: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("logit_scale", None)
        self.register_module("text_tower", None)

    def _ready(self) -> None:
        """Freeze the texts; everything else is in training mode."""
        if self.text_tower is not None:
            self.text_tower.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> ImageBackbone:
        """See ``nn.Module``; the text tower stays in eval mode, since texts are what features are
        compared with."""
        super().train(mode)
        if self.text_tower is not None:
            self.text_tower.eval()
        return self

    # -- what a library's models define -----------------------------------------------------------

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, d], not normalised, of images [B, 3, H, W]; with gradient."""
        raise NotImplementedError

    def blocks(self) -> Sequence[nn.Module]:
        """The blocks whose outputs are the layers, in their order; none if the tower has stages of
        different sizes in their place."""
        return ()

    def stages(self, images: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        """Features [B, d] and the maps [B, C, H, W] behind each stage, by one forward pass.

        Raises:
            BadModel: a tower whose library hands out neither blocks nor stages.
        """
        raise BadModel(
            f"{self.name} gives no outputs of its layers, which are wanted; use another backbone, "
            "or another regulariser than ldifs"
        )

    def tokens_of(self, output: Any) -> Tensor:
        """What a block gives or takes as [B, T, C]."""
        found: Tensor = output[0] if isinstance(output, (tuple, list)) else output
        return found

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Features [n, d] of texts, not normalised, with gradient where the text tower has some.

        Raises:
            BadModel: the backbone has no texts.
            NotFound: its tokenizer is not on this machine.
            BadValue: a text that is too long.
        """
        raise BadModel(
            f"{self.name} has no text encoder; use a CLIP (or FLAVA), or leave out what needs texts"
        )

    def _switch_checkpointing(self, on: bool) -> None:
        """Tell the library's tower, or raise an AssertionError or AttributeError."""
        self.image_tower.set_grad_checkpointing(on)

    # -- what follows -----------------------------------------------------------------------------

    @property
    def has_texts(self) -> bool:
        """Whether there is a text encoder in the space of the features."""
        return self.text_tower is not None

    def with_layers(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Features [B, d] and the slices that LDIFS compares, [B, T, C] each, by one forward pass.

        For a transformer these are the input of the first block and the outputs at each quarter of
        the blocks (:func:`slice_positions`), with all tokens. For a tower with stages, such as a
        convolutional one, they are the outputs of its stages, whose T positions are the pixels.

        Raises:
            BadModel: a tower whose library hands out neither.
        """
        blocks = self.blocks()
        if not blocks:
            features, maps = self.stages(images)
            return features, [map_.flatten(2).transpose(1, 2) for map_ in maps]
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

    def set_grad_checkpointing(self, on: bool = True) -> None:
        """Whether training keeps only the inputs of the image tower's blocks and computes the rest
        again in the backward pass: less memory for more time.

        Raises:
            BadModel: the library cannot do so for this tower.
        """
        try:
            self._switch_checkpointing(on)
        except (AssertionError, AttributeError, ValueError) as error:
            if on:
                raise BadModel(
                    f"{self.name} has no gradient checkpointing; set "
                    "MODEL.BACKBONE.GRAD_CHECKPOINTING False"
                ) from error


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
