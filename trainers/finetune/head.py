"""The linear head of a tuned encoder, and what it starts from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from proxyfda.backbones import ImageBackbone
from proxyfda.backbones.clip import plain_name
from trainers.base import dataset_template, unit

__all__ = ["Classifier", "Head", "class_texts", "dataset_templates", "zero_shot_weights"]


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


def dataset_templates(dataset) -> list[str]:
    """The hand-written prompts of a dataset: its ``template``, one or several, or CLIP's."""
    given = dataset_template(dataset)
    return [given] if isinstance(given, str) else list(given)


def class_texts(template: str, classnames: Sequence[str]) -> list[str]:
    """The texts of class names in a template."""
    return [template.format(plain_name(name)) for name in classnames]


def zero_shot_weights(
    backbone: ImageBackbone, classnames: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """Weights [C, d] of a head that classifies as the texts do, by cosines times the logit scale.

    Of each class the mean over the templates of its text features of length 1, brought to length 1,
    times exp(logit_scale).
    """
    found = [unit(backbone.encode_texts(class_texts(text, classnames))) for text in templates]
    mean = F.normalize(torch.stack(found).mean(dim=0), dim=-1)
    return backbone.logit_scale.exp() * mean
