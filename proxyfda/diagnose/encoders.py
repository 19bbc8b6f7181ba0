"""The two models: a run's folder, or a backbone with its weights."""

from __future__ import annotations

import os.path as osp

import torch

from proxyfda.backbones import ImageBackbone, load_backbone
from proxyfda.experiments.tuned import TunedRun
from proxyfda.utils.errors import BadValue

__all__ = ["load_encoder", "pretrained_of"]


def load_encoder(
    model: str, device: str | torch.device = "cpu", *, alpha: float = 1.0
) -> ImageBackbone:
    """An encoder in eval mode.

    Args:
        model: the output folder of a run that has tuned an encoder end to end, or
            ``NAME=WEIGHTS`` of a backbone as :func:`~proxyfda.backbones.load_backbone` takes it,
            such as ``ViT-B/32=openai`` or ``timm:vit_small_patch16_224=/path/to/weights``.
        device: where it goes.
        alpha: share of the tuned weights, of a run.

    Raises:
        NotFound, BadValue, NotInstalled: neither of both, or weights that cannot be loaded.
    """
    if osp.isdir(model):
        return TunedRun.at(model).load(alpha, device).eval()
    name, equals, weights = model.partition("=")
    if not equals:
        raise BadValue(
            f"{model!r} is no model; give the output folder of a FineTune run, or NAME=WEIGHTS "
            "such as ViT-B/32=openai"
        )
    return load_backbone(name, weights, device=device).eval()


def pretrained_of(folder: str, device: str | torch.device = "cpu") -> ImageBackbone:
    """The backbone that a run started from, as it was pre-trained."""
    return load_backbone(**TunedRun.at(folder).backbone, device=device).eval()
