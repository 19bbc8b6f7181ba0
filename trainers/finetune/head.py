"""The linear head of a tuned encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from proxyfda.backbones import ImageBackbone
from trainers.prompted_clip import unit

__all__ = ["Classifier", "Head"]


class Head(nn.Linear):
    """A linear layer on features of length 1, in fp32: [B, d] to logits [B, C].

    As in WiSE-FT and LDIFS (``mlfoundations/wise-ft``, ``omegafragger/ldifs_code``).
    """

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return super().forward(unit(features))

    @torch.no_grad()
    def start(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Take these values: weight [C, d] and bias [C], None for 0."""
        self.weight.copy_(weight)
        # A probe has minus infinity for classes without an image; a weight that is trained must be
        # finite.
        self.bias.copy_(torch.zeros_like(self.bias) if bias is None else bias.clamp(min=-100.0))


class Classifier(nn.Module):
    """An encoder and its head: images [B, 3, H, W] to logits [B, C]."""

    def __init__(self, backbone: ImageBackbone, head: nn.Module):
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))
