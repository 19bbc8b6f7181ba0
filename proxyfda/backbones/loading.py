"""A backbone for tuning end to end, by its name and weights."""

from __future__ import annotations

from typing import Any

import torch

from proxyfda.backbones.image import ImageBackbone
from proxyfda.backbones.names import FLAVA, TIMM
from proxyfda.utils.errors import BadValue, NotInstalled
from proxyfda.utils.suggest import did_you_mean

__all__ = ["load_backbone"]


def load_backbone(
    name: str,
    weights: str = "",
    *,
    image_size: int | None = None,
    device: str | torch.device = "cpu",
) -> ImageBackbone:
    """A backbone in fp32 and training mode: its image tower trained, its texts frozen.

    | name | weights |
    |---|---|
    | open_clip's: ``ViT-B/32``, ``RN50``, ``ViT-B-16-SigLIP`` | ``openai``, another tag, a file |
    | ``ViT-Bundled`` | ``bundled``, ``atlas``, a file |
    | ``timm:`` and a name of timm | ``hub``, a file |
    | ``flava`` or ``facebook/flava-full`` | ``hub``, a file or a folder of transformers |

    ``random`` weights are drawn with the same seed each time; they are for tests and dry runs, and
    a line says so. Where the weights are empty, the first of the row is meant.

    Args:
        name, weights: as above.
        image_size: side of the images in pixels; the model's own if None.
        device: where it goes.

    Raises:
        BadValue: no such name or weights; a file that does not fit; a size that the model cannot
            have.
        NotFound: a file that does not exist, or weights that cannot be downloaded: the message says
            what to put where.
        NotInstalled: the library of the name.
    """
    if image_size is not None and image_size < 1:
        raise BadValue(f"images of {image_size} pixels are asked for; give a number above 0.")
    make: Any
    if name.startswith(TIMM):
        from proxyfda.backbones.from_timm import TimmBackbone as make
    elif name in FLAVA:
        from proxyfda.backbones.from_flava import FlavaBackbone as make
    else:
        try:
            from proxyfda.backbones.from_open_clip import OpenCLIPBackbone as make
        except ModuleNotFoundError as error:
            raise NotInstalled(
                f"open_clip cannot be imported ({error}); pip install 'proxyfda[clip]'"
            ) from error
        _refuse_unknown(name)
    return make(name, weights, image_size).to(device)


def _refuse_unknown(name: str) -> None:
    """Raise BadValue for a name of no library."""
    from proxyfda.backbones.clip.architectures import (
        BUNDLED_NAME,
        OPENAI_NAMES,
        is_known,
        known_names,
    )

    if is_known(name):
        return
    import timm  # open_clip needs it, so it is there

    hint = did_you_mean(name, [*known_names(), *FLAVA])
    if timm.is_model(name.partition(".")[0]):
        hint = f" (did you mean {TIMM + name!r}?)"
    raise BadValue(
        f"unknown backbone {name!r}{hint}; MODEL.BACKBONE.NAME is one of {', '.join(OPENAI_NAMES)},"
        f" {BUNDLED_NAME}, a name of open_clip.list_models(), {TIMM}<a name of "
        f"timm.list_models()> or {FLAVA[0]}."
    )
