"""FLYP: both towers tuned by the contrastive loss of images and the texts of their classes.

Goyal et al., "Finetune like you pretrain: Improved finetuning of zero-shot vision models", CVPR
2023, arXiv 2212.00638, and its code, ``locuslab/FLYP``.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from proxyfda.backbones.clip import StateCache
from proxyfda.backbones.zero_shot import class_texts, templates_of, zero_shot_weights
from proxyfda.utils.errors import BadModel
from trainers.finetune.head import Classifier
from trainers.finetune.start import load_part
from trainers.finetune.trainer import FineTune, register_with_forms
from trainers.prompted_clip import unit

__all__ = ["FLYP", "contrastive_loss"]


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """CLIP's loss of B images and their B texts: features [B, d] each, scale a scalar.

    The mean of two cross-entropies, of each image among the texts and of each text among the
    images. As in FLYP an image has one right text, its own: where a class has several images in a
    batch, the equal texts of the others count as wrong ones.

    >>> images = torch.eye(2)
    >>> contrastive_loss(images, images, torch.tensor(10.0)) < 0.001
    tensor(True)
    """
    logits = scale * unit(images) @ unit(texts).t()
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.t(), own)) / 2


class LogitScale(nn.Module):
    """The logarithm of what cosines are multiplied by, as a weight that is trained."""

    def __init__(self, value: Tensor):
        super().__init__()
        self.value = nn.Parameter(value.detach().clone().float())


class ZeroShotHead(nn.Module):
    """Logits by the texts of the classes, encoded again whenever the text tower has changed."""

    def __init__(self, backbone, classnames: list[str], templates: list[str]):
        super().__init__()
        self._parts = (backbone, classnames, templates)  # in a tuple: no part of this module
        self._cache = StateCache()

    def forward(self, features: Tensor) -> Tensor:
        backbone, *_ = self._parts
        weights = self._cache.get(backbone.text_tower, lambda: zero_shot_weights(*self._parts))
        return backbone.logit_scale.exp() * unit(features) @ weights.t()


@register_with_forms
class FLYP(FineTune):
    """Tunes image tower, text tower and logit scale like CLIP was pre-trained, on the images of a
    batch and the texts of their classes in the dataset's template (one of several at random);
    evaluated by the texts of the tuned text tower, without a head.

    A regulariser acts on the image tower, as in :class:`FineTune`. A step encodes each text once,
    however many images have it.
    """

    heads = ()

    def build_data_loader(self):
        super().build_data_loader()
        if not self.backbone.has_texts:
            raise BadModel(
                f"FLYP tunes a text tower, and {self.backbone.name} has none; use a CLIP, or "
                "FineTune"
            )

    def build_models(self):
        backbone, dataset = self.backbone, self.dm.dataset
        backbone.text_tower.requires_grad_(True)
        self._scale = LogitScale(backbone.logit_scale).to(self.device)
        self._templates = templates_of(dataset)
        head = ZeroShotHead(backbone, dataset.classnames, self._templates)
        self.model = Classifier(backbone, head)
        return {
            "image_encoder": backbone.image_tower,
            "text_encoder": backbone.text_tower,
            "logit_scale": self._scale,
        }

    def _start_from(self, folder):
        super()._start_from(folder)
        try:
            path = load_part(self.backbone.text_tower, folder, "text_encoder")
        except FileNotFoundError:
            print(f"{folder} has no text encoder, so the texts start from the pre-trained one")
        else:
            print(f"The text encoder starts from {path}")

    def task_loss(self, features, labels):
        classes, which = labels.unique(return_inverse=True)
        names = [self.dm.dataset.classnames[number] for number in classes.tolist()]
        with self.autocast():
            texts = self._encode_texts(names, which)
        return contrastive_loss(features, texts, self._scale.value.exp()), {}

    def _encode_texts(self, names: list[str], which: Tensor) -> Tensor:
        """Features [B, d] of the texts of classes ``which`` [B], each in a template."""
        if len(self._templates) == 1:
            return self.backbone.encode_texts(class_texts(self._templates[0], names))[which]
        pairs = [(random.randrange(len(self._templates)), number) for number in which.tolist()]
        different = sorted(set(pairs))
        texts = [class_texts(self._templates[t], [names[number]])[0] for t, number in different]
        rows = [different.index(pair) for pair in pairs]
        return self.backbone.encode_texts(texts)[rows]
