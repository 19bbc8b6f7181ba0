"""Weights of an image tower of open_clip under the names that transformers has for them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

__all__ = ["vision_weights"]

_NAMES = (
    ("class_embedding", "embeddings.class_embedding"),
    ("positional_embedding", "embeddings.position_embedding.weight"),
    ("conv1", "embeddings.patch_embedding"),
    ("ln_pre", "pre_layrnorm"),
    ("ln_post", "post_layernorm"),
    ("transformer.resblocks", "encoder.layers"),
    ("ln_", "layer_norm"),
    ("mlp.c_fc", "mlp.fc1"),
    ("mlp.c_proj", "mlp.fc2"),
    ("attn.out_proj", "self_attn.out_proj"),
)


def vision_weights(tower: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights for the vision models of transformers that are CLIP's, those of GIT among them.

    Args:
        tower: state dict of a ViT of open_clip (``model.visual``).

    Returns:
        Name -> weight, without the projection into the space of texts, which those models lack.
    """
    found = {}
    for name, weight in tower.items():
        for old, new in _NAMES:
            name = name.replace(old, new)
        if ".attn.in_proj_" in name:
            layer, kind = name.split(".attn.in_proj_")
            for part, piece in zip("qkv", weight.chunk(3)):
                found[f"{layer}.self_attn.{part}_proj.{kind}"] = piece
        elif name != "proj":
            found[name] = weight
    return found
