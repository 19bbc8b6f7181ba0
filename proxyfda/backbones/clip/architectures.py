"""CLIP models by name: open_clip's configs, what they say, and those read off OpenAI's files."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import open_clip
from torch import Tensor

from proxyfda.utils.errors import BadValue, NotFound
from proxyfda.utils.suggest import did_you_mean

OPENAI_NAMES = (
    "RN50", "RN101", "RN50x4", "RN50x16", "RN50x64",
    "ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px",
)  # fmt: skip
BUNDLED_NAME = "ViT-Bundled"
BUNDLED_DIR = Path(__file__).parent / "bundled"


def architecture_name(name: str) -> str:
    """open_clip's spelling of a model name: ``ViT-L/14@336px`` is its ``ViT-L-14-336``."""
    return name.replace("/", "-").replace("@336px", "-336")


def model_config_of(name: str) -> dict[str, Any]:
    """:func:`model_config` of a name alone."""
    return model_config(name, architecture_name(name))


def known_names() -> list[str]:
    """The names that stand in documentation and suggestions."""
    return [*OPENAI_NAMES, *open_clip.list_models(), BUNDLED_NAME]


def is_known(name: str) -> bool:
    """Whether a name is one of open_clip's models, in any spelling, or the bundled one."""
    return name == BUNDLED_NAME or architecture_name(name) in open_clip.list_models()


def model_config(name: str, arch: str) -> dict[str, Any]:
    """open_clip's model config (embed_dim, vision_cfg, text_cfg, ...) for a name."""
    if name == BUNDLED_NAME:
        path = BUNDLED_DIR / f"{BUNDLED_NAME}.json"
        if not path.is_file():
            raise NotFound(f"the bundled model's config {path} is missing; reinstall proxy-fda.")
        return json.loads(path.read_text())
    config = open_clip.get_model_config(arch) if arch in open_clip.list_models() else None
    if config is None:
        raise BadValue(
            f"unknown backbone {name!r}{did_you_mean(name, known_names())}; MODEL.BACKBONE.NAME is "
            f"one of {', '.join(OPENAI_NAMES)}, {BUNDLED_NAME}, or a name of "
            "open_clip.list_models()."
        )
    return config


def cannot_be_prompted(config: dict[str, Any]) -> str:
    """Why a model's text tower takes no learnable-context prompts as in CoOp; empty if it does."""
    text = config["text_cfg"]
    if "multimodal_cfg" in config or text.get("embed_cls"):
        return "CoCa's text tower reads an appended class token"
    if text.get("hf_model_name"):
        return f"its text tower is Hugging Face's {text['hf_model_name']}"
    if text.get("no_causal_mask"):
        return "its text attention is not causal"
    if text.get("pool_type", "argmax") not in ("argmax", "eos"):
        return f"its text features are pooled by {text['pool_type']!r}, not at the end of text"
    return ""


def prompts_no_images(name: str) -> bool:
    """Whether a model is known by its name to have an image tower without tokens to prompt."""
    if not is_known(name):
        return False
    vision = model_config_of(name)["vision_cfg"]
    return bool(vision.get("timm_model_name")) or not has_one_depth(vision)


def has_one_depth(vision: dict[str, Any]) -> bool:
    """Whether an image tower is a ViT; OpenAI's ResNets have a depth for each stage."""
    return isinstance(vision.get("layers", 0), int)


def describe(config: dict[str, Any]) -> str:
    """One line on the size of a model config."""
    vision = {**asdict(open_clip.CLIPVisionCfg()), **config["vision_cfg"]}
    text = {**asdict(open_clip.CLIPTextCfg()), **config["text_cfg"]}
    if has_one_depth(vision):
        tower = "ViT of width {width}, {layers} layers, patch {patch_size}, {image_size} pixels"
    else:
        tower = "ResNet of width {width}, {layers} blocks, {image_size} pixels"
    return tower.format(**vision) + "; text width {width}, {layers} layers".format(**text)


def openai_config(state: dict[str, Tensor], file: Path) -> dict[str, Any]:
    """open_clip's model config of a state dict in OpenAI's layout, read off its shapes."""

    def count(prefix: str) -> int:
        depth = prefix.count(".")
        return len({k.split(".")[depth] for k in state if k.startswith(prefix)})

    try:
        if "visual.proj" in state:
            width, _, patch, _ = state["visual.conv1.weight"].shape
            side = math.isqrt(state["visual.positional_embedding"].shape[0] - 1)
            vision = {
                "layers": count("visual.transformer.resblocks."),
                "width": width,
                "patch_size": patch,
                "image_size": side * patch,
            }
        else:
            side = math.isqrt(state["visual.attnpool.positional_embedding"].shape[0] - 1)
            vision = {
                "layers": [count(f"visual.layer{stage}.") for stage in (1, 2, 3, 4)],
                "width": state["visual.layer1.0.conv1.weight"].shape[0],
                "image_size": side * 32,  # the trunk halves the image five times
            }
        text_width, embed_dim = state["text_projection"].shape
        text = {
            "context_length": state["positional_embedding"].shape[0],
            "vocab_size": state["token_embedding.weight"].shape[0],
            "width": text_width,
            "heads": text_width // 64,
            "layers": count("transformer.resblocks."),
        }
    except (KeyError, ValueError) as error:
        raise BadValue(
            f"{file} is not a complete CLIP checkpoint in OpenAI's layout ({error} is missing or "
            f"odd); fetch it again or set MODEL.BACKBONE.WEIGHTS to another file."
        ) from error
    return {"embed_dim": embed_dim, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}


def refuse_another_architecture(
    name: str, config: dict[str, Any], found: dict[str, Any], file: Path
) -> None:
    """Raise BadValue if a file's model is of another kind than the name says, or a known other one.

    Args:
        config: the model config of the name.
        found: that of the file, which may differ in size from all known ones.
    """
    names = (*OPENAI_NAMES, BUNDLED_NAME)
    known = [other for other in names if describe(model_config_of(other)) == describe(found)]
    same_kind = has_one_depth(found["vision_cfg"]) == has_one_depth(config["vision_cfg"])
    if known or not same_kind or config["vision_cfg"].get("timm_model_name"):
        called = f"{known[0]} ({describe(found)})" if known else describe(found)
        raise BadValue(
            f"{file} holds {called}, and not {name} ({describe(config)}); set MODEL.BACKBONE.NAME "
            f"to {known[0] if known else 'the model that the file belongs to'}, or "
            "MODEL.BACKBONE.WEIGHTS to another file."
        )
