"""CLIP's image tower for tuning end to end, with its texts for zero-shot evaluation."""

from __future__ import annotations

from typing import Any, Sequence

import torch
from torch import Tensor, nn

from proxyfda.backbones.clip.encoders import ImageEncoder, TextEncoder
from proxyfda.backbones.clip.loading import load_clip
from proxyfda.backbones.image import ImageBackbone
from proxyfda.utils.errors import BadModel

__all__ = ["CLIPBackbone"]


class CLIPBackbone(ImageBackbone):
    """An open_clip model: its image tower, with all weights trained, and its frozen texts.

    Args:
        name, weights: see :func:`proxyfda.backbones.clip.load_clip`.
        device: where it goes.
    """

    def __init__(self, name: str, weights: str, device: str | torch.device = "cpu"):
        super().__init__()
        clip: Any = load_clip(name, weights, device=device)
        encoder = ImageEncoder(clip)
        self.name = name
        self.image_tower = clip.visual.requires_grad_(True)
        self.text_tower = TextEncoder(clip)
        self.logit_scale = clip.logit_scale.detach().clone()
        self.output_dim = encoder.output_dim
        self.image_size = encoder.image_size
        self.image_mean, self.image_std = encoder.image_mean, encoder.image_std

    def forward(self, images: Tensor) -> Tensor:
        """See :meth:`ImageBackbone.forward`."""
        out = self.image_tower(images)
        return out[0] if isinstance(out, tuple) else out

    def blocks(self) -> Sequence[nn.Module]:
        """See :meth:`ImageBackbone.blocks`.

        Raises:
            BadModel: a tower without transformer blocks.
        """
        transformer = getattr(self.image_tower, "transformer", None)
        if transformer is None:
            raise BadModel(
                f"{self.name} has no transformer blocks, whose outputs are wanted; use a ViT, or "
                "another regulariser than ldifs"
            )
        return list(transformer.resblocks)

    def tokens_of(self, output: Any) -> Tensor:
        """See :meth:`ImageBackbone.tokens_of`."""
        found = super().tokens_of(output)
        first: bool = getattr(self.image_tower.transformer, "batch_first", False)
        return found if first else found.transpose(0, 1)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """See :meth:`ImageBackbone.encode_texts`."""
        text: Any = self.text_tower
        return text.encode(list(texts))
