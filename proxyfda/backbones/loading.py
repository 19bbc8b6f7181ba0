"""A backbone for tuning end to end, by its name and weights."""

from __future__ import annotations

import torch

from proxyfda.backbones.image import ImageBackbone

__all__ = ["load_backbone"]


def load_backbone(
    name: str,
    weights: str = "openai",
    *,
    image_size: int | None = None,
    device: str | torch.device = "cpu",
) -> ImageBackbone:
    """A backbone in fp32 and training mode, all weights of its image tower trained.

    Args:
        name: what :func:`proxyfda.backbones.clip.load_clip` takes.
        weights: likewise.
        image_size: side of the images in pixels, for those that can be built for several.
        device: where it goes.
    """
    from proxyfda.backbones.clip.tuned import CLIPBackbone

    return CLIPBackbone(name, weights, device)
