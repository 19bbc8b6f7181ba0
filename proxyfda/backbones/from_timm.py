"""timm's vision models for tuning end to end: DINOv2, MAE, and whatever else it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Sequence

import torch
from torch import Tensor, nn

from proxyfda.backbones.image import ImageBackbone
from proxyfda.backbones.names import HUB, RANDOM, TIMM
from proxyfda.backbones.weights import (
    cached,
    first_line,
    mismatches,
    random_weights,
    read_state_dict,
    unreachable,
)
from proxyfda.utils.errors import BadValue, NotFound, NotInstalled
from proxyfda.utils.suggest import did_you_mean

try:
    import timm
    from timm.data import resolve_model_data_config
    from timm.models import get_pretrained_cfg
except ImportError as error:
    raise NotInstalled(
        f"timm cannot be imported ({error}); pip install 'proxyfda[timm]'"
    ) from error

__all__ = ["TimmBackbone", "tokens_of_timm", "transformer_blocks"]

FILES = ("model.safetensors", "pytorch_model.bin")
"""Files in timm's repositories on the hub."""


def transformer_blocks(model: Any) -> Sequence[nn.Module]:
    """The blocks of a timm model if it is a chain of equal ones, as in a ViT; otherwise none.

    timm says where a model's features are: at every block, all of the same stride, in a ViT; at the
    end of each stage in convolutional and hierarchical models.
    """
    blocks, info = getattr(model, "blocks", ()), getattr(model, "feature_info", ())
    places = [(place["module"], place["reduction"]) for place in info if "module" in place]
    chain = [(f"blocks.{number}", place[1]) for number, place in enumerate(places)]
    equal = places == chain and len({stride for _, stride in places}) == 1
    return list(blocks) if equal and len(places) == len(blocks) else ()


def tokens_of_timm(output: Tensor, model: Any) -> Tensor:
    """What a block gives as [B, T, C]; some give maps [B, H, W, C] or [B, C, H, W]."""
    if output.dim() == 3:
        return output
    channels_last = output.shape[-1] == model.num_features
    return output.flatten(1, 2) if channels_last else output.flatten(2).transpose(1, 2)


class TimmBackbone(ImageBackbone):
    """A vision model of timm without its classifier, all that timm trains trained; no texts.

    A feature is timm's own: ``forward_head(forward_features(images), pre_logits=True)``, pooled as
    the model was pre-trained or evaluated: the class token of DINOv2 and MAE after the last norm,
    the mean over the pixels of a convolutional network.

    Args:
        name: ``timm:`` and a name of timm, with its tag of pre-trained weights
            (``timm:vit_base_patch14_dinov2.lvd142m``) or without (timm's default for the model).
        weights: ``hub`` (also when empty), ``random``, or a file in timm's layout or one that timm
            converts, such as the original ones of DINOv2 and MAE.
        image_size: side of the images in pixels; the model's own if None. Positional embeddings
            are resized by timm.
        changes: of the architecture, as ``timm.create_model`` takes them.

    Raises:
        BadValue: no such model or tag; other weights; a file that does not fit; a size that the
            model cannot have.
        NotFound: no such file, or weights that cannot be downloaded.
    """

    def __init__(
        self, name: str, weights: str = "", image_size: int | None = None, **changes: Any
    ) -> None:
        super().__init__()
        self.name, self.weights = name, weights or HUB
        self.image_tower = model = _create(name, self.weights, image_size, changes)
        config = resolve_model_data_config(model)
        self.output_dim = getattr(model, "head_hidden_size", model.num_features)
        self.image_size = image_size or config["input_size"][-1]
        self.image_mean, self.image_std = tuple(config["mean"]), tuple(config["std"])
        self.interpolation = config["interpolation"]
        self._ready()

    def forward(self, images: Tensor) -> Tensor:
        """See :meth:`ImageBackbone.forward`."""
        model: Any = self.image_tower
        return model.forward_head(model.forward_features(images), pre_logits=True)

    def blocks(self) -> Sequence[nn.Module]:
        """See :meth:`ImageBackbone.blocks`."""
        return transformer_blocks(self.image_tower)

    def stages(self, images: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        """See :meth:`ImageBackbone.stages`; the stages are those of ``forward_intermediates``."""
        model: Any = self.image_tower
        if not hasattr(model, "forward_intermediates"):
            return super().stages(images)
        last, maps = model.forward_intermediates(images, output_fmt="NCHW")
        return model.forward_head(last, pre_logits=True), maps

    def tokens_of(self, output: Any) -> Tensor:
        """See :meth:`ImageBackbone.tokens_of`."""
        return tokens_of_timm(super().tokens_of(output), self.image_tower)


# -- building and loading ---------------------------------------------------------------------


def _create(name: str, weights: str, image_size: int | None, changes: dict[str, Any]) -> nn.Module:
    """The model of a name with its weights, without a classifier."""
    model_name = name[len(TIMM) :]
    config: Any = _pretrained_config(name, model_name)
    options: dict[str, Any] = {"num_classes": 0, **changes}
    if weights == RANDOM:
        with random_weights(name):
            return _build(name, model_name, image_size, options)
    if weights != HUB:
        return _from_file(name, model_name, _file(name, weights), config, image_size, options)
    files = [config.hf_hub_filename] if config.hf_hub_filename else FILES
    found = cached(config.hf_hub_id, files) if config.hf_hub_id else None
    if found and not config.custom_load:
        return _from_file(name, model_name, found, config, image_size, options)
    problem, place = _hub_problem(config, files)
    if problem is None:
        try:
            return _build(name, model_name, image_size, {**options, "pretrained": True})
        except BadValue:
            raise
        except Exception as error:  # the hub's client raises many kinds; all mean the same here
            problem = first_line(error)
    raise NotFound(
        f"the weights of {name} could not be downloaded ({problem}); fetch {place} elsewhere and "
        "set MODEL.BACKBONE.WEIGHTS to the path of the file."
    )


def _pretrained_config(name: str, model_name: str) -> Any:
    """timm's entry for the weights of a name."""
    architecture, _, tag = model_name.partition(".")
    if not timm.is_model(architecture):
        known = [TIMM + other for other in timm.list_models()]
        raise BadValue(
            f"timm has no model {model_name!r}{did_you_mean(name, known)}; MODEL.BACKBONE.NAME is "
            f"{TIMM} and a name of timm.list_models()."
        )
    tags = [found.partition(".")[2] for found in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise BadValue(
            f"timm has no weights {tag!r} of {architecture}{did_you_mean(tag, tags)}; use one of "
            f"{', '.join(tags) or 'none'}, or {TIMM}{architecture} with "
            "MODEL.BACKBONE.WEIGHTS random or a file."
        )
    return get_pretrained_cfg(model_name)


def _file(name: str, weights: str) -> Path:
    """The local file that weights name."""
    path = Path(weights).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        raise BadValue(f"{path} is a folder; set MODEL.BACKBONE.WEIGHTS to the file in it.")
    if path.suffix or len(path.parts) > 1:
        raise NotFound(
            f"the weights file {path} does not exist; set MODEL.BACKBONE.WEIGHTS to an existing "
            f"file or to {HUB}."
        )
    raise BadValue(
        f"{name} has no weights {weights!r}; MODEL.BACKBONE.WEIGHTS is {HUB}, {RANDOM} or a file."
    )


def _hub_problem(config: Any, files: Sequence[str]) -> tuple[str | None, str]:
    """Why the weights of an entry of timm cannot be fetched, if so, and where they are."""
    import huggingface_hub

    if config.hf_hub_id:
        hub = huggingface_hub.constants.ENDPOINT
        return unreachable(hub), f"{hub}/{config.hf_hub_id}/resolve/main/{files[0]}"
    if config.url:
        return unreachable(config.url), config.url
    return "timm has none", "weights of this model"


def _build(
    name: str, model_name: str, image_size: int | None, options: dict[str, Any]
) -> nn.Module:
    """timm's model; for images of a size if one is given and the model is built for one."""
    sized = options if image_size is None else {**options, "img_size": image_size}
    # Weights that are drawn here and overwritten must not move what the caller draws next.
    with torch.random.fork_rng(devices=[]):
        try:
            model = timm.create_model(model_name, **sized)
        except TypeError as error:  # most convolutional networks take images of any size
            if "img_size" not in str(error):
                raise
            model = timm.create_model(model_name, **options)
            own = resolve_model_data_config(model)["input_size"][-1]
            if image_size != own and model.pretrained_cfg["fixed_input_size"]:
                raise BadValue(
                    f"{name} takes images of {own} pixels, not of {image_size}; set INPUT.SIZE to "
                    "that."
                ) from error
    patch: Any = getattr(getattr(model, "patch_embed", None), "patch_size", 1)
    patch = patch if isinstance(patch, int) else patch[0]
    if image_size is not None and image_size % patch:
        raise BadValue(
            f"{name} cannot take images of {image_size} pixels; set INPUT.SIZE to a multiple of "
            f"its patches, {patch}."
        )
    return model


def _from_file(
    name: str,
    model_name: str,
    file: Path,
    config: Any,
    image_size: int | None,
    options: dict[str, Any],
) -> nn.Module:
    """A model with the weights in a file, converted by timm and all of them used."""
    state = read_state_dict(file, "checkpoint of this model")
    names = config.classifier or ()
    for classifier in [names] if isinstance(names, str) else names:
        state = {k: v for k, v in state.items() if not k.startswith(f"{classifier}.")}
    # Without a classifier to leave out timm loads strictly.
    overlay = {"state_dict": dict(state), "classifier": None}
    loading = {**options, "pretrained": True, "pretrained_cfg_overlay": overlay}
    try:
        model: Any = _build(name, model_name, image_size, loading)
    except BadValue:
        raise
    except Exception as error:  # strict loading, or a conversion that finds other shapes
        wanted = _build(name, model_name, image_size, options).state_dict()
        raise BadValue(
            f"{file} does not fit {name}: {mismatches(wanted, state) or first_line(error)}; set "
            "MODEL.BACKBONE.NAME to the model that the file belongs to."
        ) from error
    model.pretrained_cfg["state_dict"] = None  # the weights are in the model: no second copy
    return model
