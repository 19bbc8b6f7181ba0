"""Loading a frozen CLIP through open_clip: weights, precision, and what can go wrong."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed
from torch import Tensor, nn

from proxyfda.backbones.clip.architectures import (
    BUNDLED_DIR,
    BUNDLED_NAME,
    OPENAI_NAMES,
    architecture_name,
    cannot_be_prompted,
    describe,
    has_one_depth,
    model_config,
    model_config_of,
    openai_config,
    refuse_another_architecture,
)
from proxyfda.backbones.names import RANDOM
from proxyfda.backbones.weights import (
    ArchiveDict,
    cached,
    first_line,
    mismatches,
    random_weights,
    read_state_dict,
    unreachable,
)
from proxyfda.utils.errors import BadValue, NotFound
from proxyfda.utils.suggest import did_you_mean

PRECISIONS = ("fp32", "fp16", "amp", "bf16")
AUTOCAST = {"amp": torch.float16, "bf16": torch.bfloat16}
"""Precisions with fp32 weights, and what training computes in under autocast."""
BUNDLED_WEIGHTS = "bundled"
# Tag of weights that come with the package, each for a rendered world -> their file.
_BUNDLED_FILES = {
    BUNDLED_WEIGHTS: f"{BUNDLED_NAME}.safetensors",
    "atlas": f"{BUNDLED_NAME}-atlas.safetensors",
}
# Entries of OpenAI's archives that describe the model; they are not weights.
OPENAI_META = ("input_resolution", "context_length", "vocab_size")
# A buffer that transformers no longer stores; files of models with its text towers still do.
TEXT_POSITIONS = "text.transformer.embeddings.position_ids"


def resolve_precision(prec: str, device: str | torch.device) -> str:
    """The precision that a device can run: ``fp32``, ``fp16``, ``amp`` or ``bf16``.

    ``fp16`` and ``amp`` (fp16 autocast) are for GPUs: on a CPU they become ``fp32``, and one
    printed line says so. ``bf16`` (bfloat16 autocast) runs on both; of a GPU that only emulates it
    a line says that it is slow.

    Raises:
        ValueError: for any other name.
    """
    if prec not in PRECISIONS:
        raise BadValue(
            f"unknown precision {prec!r}{did_you_mean(prec, PRECISIONS)}; "
            f"PREC is one of {', '.join(PRECISIONS)}."
        )
    on_cpu = torch.device(device).type == "cpu"
    if prec in ("fp16", "amp") and on_cpu:
        print(f"Precision {prec} needs a GPU: computing in fp32 on the CPU")
        return "fp32"
    if prec == "bf16" and not on_cpu and not _has_bf16(device):
        print("Precision bf16 is emulated on this GPU, and slow: amp is for it")
    return prec


def _has_bf16(device: str | torch.device) -> bool:
    # From compute capability 8.0 on (NVIDIA, CUDA C++ Programming Guide, "Compute Capabilities");
    # torch's own answer counts emulation in.
    return torch.version.cuda is None or torch.cuda.get_device_capability(device) >= (8, 0)


def load_clip(
    name: str,
    weights: str = "openai",
    *,
    precision: str = "fp32",
    device: str | torch.device = "cpu",
) -> nn.Module:
    """A frozen open_clip model in eval mode whose texts can be prompted, with its tokenizer as
    ``.tokenizer``.

    Args:
        name, weights, precision: see :func:`load_any_clip`.
        device: where the model goes.

    Raises:
        ValueError: a model whose text tower cannot be prompted; see also :func:`load_any_clip`.
        FileNotFoundError: see :func:`load_any_clip`; or the tokenizer cannot be loaded.
    """
    precision = resolve_precision(precision, device)
    reason = cannot_be_prompted(model_config_of(name))
    if reason:
        raise BadValue(
            f"{name} cannot be prompted: {reason}; choose a CLIP with a causal text transformer, "
            f"such as ViT-B/16."
        )
    model, config = load_any_clip(name, weights, precision=precision)
    model.tokenizer = build_tokenizer(name, config)
    return model.requires_grad_(False).eval().to(device)


def load_any_clip(
    name: str, weights: str, *, precision: str = "fp32", image_size: int | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """Any open_clip model on the CPU, and the config that it was built from.

    Args:
        name: OpenAI's spelling as in CoOp (``ViT-B/16``, ``RN50``, ``ViT-L/14@336px``), an
            open_clip model name (``ViT-B-16-quickgelu``), or ``ViT-Bundled``.
        weights: an open_clip tag (``openai``, ``laion2b_s34b_b88k``), ``bundled`` or ``atlas`` for
            ``ViT-Bundled``, ``random``, or a file: OpenAI's TorchScript archive, a state dict in
            OpenAI's layout, or a state dict / safetensors of the named open_clip model.
        precision: ``fp16`` stores the matrices of attention, MLPs and projections in half
            precision (LayerNorms stay in fp32); all others store fp32.
        image_size: side of the images in pixels, if it is to be another than the model's own.

    A file in OpenAI's layout brings its own architecture: it is read off the shapes, whatever
    size the name stands for, and QuickGELU is used, as in all of OpenAI's models. A file counts
    as OpenAI's if it is a TorchScript archive, holds OpenAI's ``input_resolution`` entry, or is
    loaded under one of OpenAI's names; otherwise it belongs to the named open_clip model, whose
    config decides on the activation. For tags open_clip's list of weights decides.

    Raises:
        ValueError: unknown name, tag or precision; a file that is not a CLIP checkpoint or does
            not fit the model; a size that the model cannot have.
        FileNotFoundError: the file does not exist, or the weights cannot be downloaded.
    """
    arch = architecture_name(name)
    config, tag = model_config(name, arch), {}
    if weights == RANDOM:
        config["quick_gelu"] = name in OPENAI_NAMES or config.get("quick_gelu", False)
        own_size = set_image_size(name, config, image_size)
        with random_weights(name):
            model = build(config, precision)
    else:
        file, tag = weights_file(name, arch, weights)
        state, config = read_clip(name, file, tag, config)
        own_size = set_image_size(name, config, image_size)
        model = build(config, precision)
        load_weights(model, state, name, file, resized=bool(image_size) and image_size != own_size)
    if image_size and image_size != own_size:
        print(f"{name} takes images of {image_size} instead of {own_size} pixels")
        if hasattr(model.visual, "trunk"):  # timm's
            model.visual.set_input_size(image_size)
    model.visual.image_mean = tag.get("mean") or open_clip.OPENAI_DATASET_MEAN
    model.visual.image_std = tag.get("std") or open_clip.OPENAI_DATASET_STD
    model.visual.interpolation = tag.get("interpolation") or "bicubic"
    return model, config


def read_clip(
    name: str, file: Path, tag: dict[str, Any], config: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights in a file, and the config of the model that they belong to."""
    state = expand_token_embedding(read_state_dict(file))
    marked = isinstance(state, ArchiveDict) or "input_resolution" in state
    state = {k: v for k, v in state.items() if k not in OPENAI_META}
    if tag:
        config["quick_gelu"] = bool(tag.get("quick_gelu"))
        return state, config
    if "text_projection" in state and (marked or name in OPENAI_NAMES):
        found = openai_config(state, file)
        if describe(found) != describe(config):
            refuse_another_architecture(name, config, found, file)
            print(f"The architecture is the file's: {describe(found)} ({file})")
        config = found
    if not marked and name != BUNDLED_NAME:
        quick = config.get("quick_gelu", False)
        print(f"Activation {'QuickGELU' if quick else 'GELU'}, by the name {name} ({file})")
    return state, config


# -- files ----------------------------------------------------------------------------------


def weights_file(name: str, arch: str, weights: str) -> tuple[Path, dict[str, Any]]:
    """Path of the weights and open_clip's entry for their tag ({} for a local file)."""
    if weights in _BUNDLED_FILES or (name == BUNDLED_NAME and weights == "openai"):
        if name != BUNDLED_NAME:
            raise BadValue(
                f"MODEL.BACKBONE.WEIGHTS {weights!r} belongs to {BUNDLED_NAME}, not to {name}; "
                f"set MODEL.BACKBONE.NAME {BUNDLED_NAME} or choose other weights."
            )
        if weights not in _BUNDLED_FILES:
            raise BadValue(
                f"OpenAI has no weights for {name}; set MODEL.BACKBONE.WEIGHTS to "
                f"{' or '.join(_BUNDLED_FILES)}."
            )
        path = BUNDLED_DIR / _BUNDLED_FILES[weights]
        if not path.is_file():
            raise NotFound(f"the bundled weights {path} are missing; reinstall proxy-fda.")
        return path, {}

    path = Path(weights).expanduser()
    if path.is_file():
        return path, {}
    tag = open_clip.get_pretrained_cfg(arch, weights)
    if tag:
        return download(name, weights, tag), tag
    if path.is_dir():
        raise BadValue(f"{path} is a folder; set MODEL.BACKBONE.WEIGHTS to the file in it.")
    if path.suffix or len(path.parts) > 1:
        raise NotFound(
            f"the weights file {path} does not exist; set MODEL.BACKBONE.WEIGHTS to an existing "
            f"file or to an open_clip tag."
        )
    bundled = name == BUNDLED_NAME
    tags = list(_BUNDLED_FILES) if bundled else open_clip.list_pretrained_tags_by_model(arch)
    known = f"{', '.join(tags)} or a file" if tags else "a file, since open_clip has none of it"
    raise BadValue(
        f"{name} has no weights {weights!r}{did_you_mean(weights, tags)}; set "
        f"MODEL.BACKBONE.WEIGHTS to {known}."
    )


def download(name: str, weights: str, tag: dict[str, Any]) -> Path:
    """The file of an open_clip tag: from the local caches, else from the hub, else from its URL.

    Each server is asked once whether it can be reached at all, since the hub's client otherwise
    retries for a minute when there is no network.
    """
    import huggingface_hub

    repo, _, filename = tag.get("hf_hub", "").rpartition("/")
    defaults = ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
    files = [filename] if filename else defaults
    url = tag.get("url", "")
    found = cached(repo, files) if repo else None
    if found:
        return found
    old = Path("~/.cache/clip").expanduser() / url.rpartition("/")[2]
    if url and old.is_file():
        return old

    hub = huggingface_hub.constants.ENDPOINT
    sources = [(hub, {"hf_hub": tag.get("hf_hub")})] if repo else []
    sources += [(url, {"url": url})] if url else []
    problems = []
    for address, source in sources:
        problem = unreachable(address)
        if problem is None:
            try:
                return Path(open_clip.download_pretrained(source))
            except Exception as error:  # the clients raise many kinds; all mean the same here
                problem = first_line(error)
        problems.append(problem)
    places = ([f"{hub}/{repo}/resolve/main/{files[0]}"] if repo else []) + ([url] if url else [])
    # A file does not say which activation it was trained with, so the name has to.
    quick, named = bool(tag.get("quick_gelu")), ""
    if quick != (name in OPENAI_NAMES or name.endswith("-quickgelu")):
        named = f" and MODEL.BACKBONE.NAME to {architecture_name(name)}" + "-quickgelu" * quick
    raise NotFound(
        f"the weights {weights!r} of {name} could not be downloaded ({'; '.join(problems)}); fetch "
        f"{' or '.join(places)} elsewhere and set MODEL.BACKBONE.WEIGHTS to the path of the "
        f"file{named}."
    )


def expand_token_embedding(state: dict[str, Tensor], vocabulary: int = 49408) -> dict[str, Tensor]:
    """Undo the compact form of a token embedding, in place.

    ``token_embedding.rows`` [r] names the vocabulary entries whose rows
    ``token_embedding.weight`` [r, w] holds; every other entry gets the mean of those rows.
    """
    for prefix in ("", "text."):
        rows = state.pop(f"{prefix}token_embedding.rows", None)
        if rows is None:
            continue
        kept = state[f"{prefix}token_embedding.weight"].float()
        full = kept.mean(dim=0).repeat(max(vocabulary, int(rows.max()) + 1), 1)
        full[rows.long()] = kept
        state[f"{prefix}token_embedding.weight"] = full
    return state


# -- building -------------------------------------------------------------------------------


def set_image_size(name: str, config: dict[str, Any], size: int | None) -> int:
    """Change a model config to another side of the images, in pixels; gives the model's own.

    Raises:
        BadValue: the model cannot have it.
    """
    vision = {**asdict(open_clip.CLIPVisionCfg()), **config["vision_cfg"]}
    own, patch = vision["image_size"], vision["patch_size"]
    own = own[0] if isinstance(own, (list, tuple)) else own
    if size in (None, own) or vision["timm_model_name"]:
        return own
    if not has_one_depth(vision):
        raise BadValue(f"{name} takes images of {own} pixels, not of {size}; set INPUT.SIZE to it.")
    if size % patch:
        raise BadValue(
            f"{name} cannot take images of {size} pixels; set INPUT.SIZE to a multiple of its "
            f"patches, {patch}."
        )
    config["vision_cfg"]["image_size"] = size
    return own


def build(config: dict[str, Any], precision: str) -> nn.Module:
    """An open_clip model with random weights, its matrices in fp16 for precision ``fp16``.

    Raises:
        NotFound: a text tower of Hugging Face whose config cannot be loaded.
    """
    config = copy.deepcopy(config)
    config.pop("preprocess_cfg", None)
    hugging_face = config["text_cfg"].get("hf_model_name")
    custom = config.pop("custom_text", False) or hugging_face
    kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    kind = open_clip.CoCa if "multimodal_cfg" in config else kind
    if hugging_face:
        config["text_cfg"]["hf_model_pretrained"] = False  # the weights come with the rest
        refuse_unreachable(hugging_face)
    half = precision == "fp16"
    # The weights drawn here are overwritten: they must not move what the caller draws next.
    with torch.random.fork_rng(devices=[]):
        model = kind(**config, cast_dtype=torch.float16 if half else None)
    if half:
        open_clip.convert_weights_to_lp(model, dtype=torch.float16)
        if config["vision_cfg"].get("timm_model_name"):
            # timm's norms do not cast: such a tower stays in fp32, ImageEncoder feeds it so
            model.visual.float()
    return model


def refuse_unreachable(model: str) -> None:
    """Raise NotFound for a text tower whose config is neither in the cache nor within reach."""
    import huggingface_hub

    problem = None
    if not cached(model, ["config.json"]):
        problem = unreachable(huggingface_hub.constants.ENDPOINT)
    if importlib.util.find_spec("transformers") is None:
        problem = "transformers is not installed"
    if problem:
        raise NotFound(
            f"the text tower {model} of Hugging Face cannot be built: {problem}; install "
            "transformers and fetch its config into the local cache while online."
        )


def load_weights(
    model: nn.Module, state: dict[str, Tensor], name: str, file: Path, resized: bool = False
) -> None:
    """Strict loading with one sentence on what does not fit.

    Args:
        resized: whether the model takes images of another size than the one in the file.
    """
    state = convert_state_dict(model, dict(state))  # third-party layouts that open_clip knows
    if not isinstance(model, open_clip.CLIP):
        state = convert_to_custom_text_state_dict(state)
    if resized:
        state = {key: value.float() for key, value in state.items()}  # halves are not resized
        resize_pos_embed(state, model)
    wanted = model.state_dict()
    if TEXT_POSITIONS not in wanted:
        state.pop(TEXT_POSITIONS, None)
    for key in ("logit_scale", "logit_bias"):
        if key in state and key in wanted and state[key].numel() == 1:
            state[key] = state[key].reshape(wanted[key].shape)
    problems = mismatches(wanted, state)
    if problems:
        raise BadValue(
            f"{file} does not fit {name}: {problems}; set MODEL.BACKBONE.NAME to the model that "
            f"the file belongs to."
        )
    model.load_state_dict(state)


def build_tokenizer(name: str, config: dict[str, Any]) -> Any:
    """The tokenizer of a model: texts to LongTensor [n, context_length].

    Raises:
        NotFound: it is one of Hugging Face's and cannot be loaded.
    """
    text = config["text_cfg"]
    if not text.get("hf_tokenizer_name"):
        return open_clip.SimpleTokenizer(
            context_length=text.get("context_length", 77), **text.get("tokenizer_kwargs") or {}
        )
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return open_clip.get_tokenizer(architecture_name(name))
    except Exception as error:  # network, missing package, hub client: all mean the same here
        raise NotFound(
            f"the tokenizer {text['hf_tokenizer_name']} of {name} could not be loaded "
            f"({first_line(error)}); install transformers and fetch it from "
            f"the Hugging Face hub while online."
        ) from error
