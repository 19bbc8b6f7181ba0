"""CLIP through open_clip: names, loading, prompted encoders, class prompts."""

from proxyfda.backbones.clip.architectures import prompts_no_images
from proxyfda.backbones.clip.encoders import ImageEncoder, StateCache, TextEncoder
from proxyfda.backbones.clip.loading import (
    AUTOCAST,
    PRECISIONS,
    load_clip,
    resolve_precision,
)
from proxyfda.backbones.clip.prompts import POSITIONS, ClassPrompts, initial_context, plain_name

__all__ = [
    "AUTOCAST", "POSITIONS", "PRECISIONS", "ClassPrompts", "ImageEncoder", "StateCache",
    "TextEncoder", "initial_context", "load_clip", "plain_name", "prompts_no_images",
    "resolve_precision",
]  # fmt: skip
