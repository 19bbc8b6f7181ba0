"""Backbones: the models whose features are tuned and compared.

A backbone is whatever fits :class:`Backbone`. :mod:`proxyfda.backbones.clip` has CLIP's, with a
text encoder and prompts; :func:`load_backbone` gives one that is tuned end to end, of open_clip,
timm or transformers.
"""

from __future__ import annotations

from typing import Protocol, Sequence, runtime_checkable

from torch import Tensor

from proxyfda.backbones.image import ImageBackbone
from proxyfda.backbones.loading import load_backbone

__all__ = ["Backbone", "ImageBackbone", "load_backbone"]


@runtime_checkable
class Backbone(Protocol):
    """An image encoder, and what has to be known to use it.

    Attributes:
        output_dim: d, the number of dimensions of a feature.
        image_size: side of the square images that it takes, in pixels.
        image_mean: mean of each of the three channels, with which images in [0, 1] are normalised.
        image_std: their standard deviation.
    """

    output_dim: int
    image_size: int
    image_mean: Sequence[float]
    image_std: Sequence[float]

    def encode(self, images: Tensor) -> Tensor:
        """Features [B, d], not normalised and without gradient, of images [B, 3, H, W] that are
        normalised as the attributes say."""
