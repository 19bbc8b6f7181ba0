"""FLAVA through transformers for tuning end to end.

Singh et al., "FLAVA: A Foundational Language And Vision Alignment Model", CVPR 2022, arXiv
2112.04482; weights ``facebook/flava-full``. Images are of 224 pixels and normalised as CLIP's
(``FLAVA_IMAGE_MEAN`` of transformers).

A feature is the contrastive one: the class token of the encoder of images (or of texts) behind its
last norm, projected into the space that both share. It is the first token of what
``FlavaModel.get_image_features`` projects, and what FLAVA's contrastive loss normalises. Not taken
are ``image_embeddings[:, 0]``, the same token before the projection, and the output of the
pooler. In the shared space features are compared with texts, so that zero-shot accuracy can be
kept and measured, and cosines, which the regularisers on relations keep, are what it was trained
for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Sequence

import torch
from torch import Tensor, nn

from proxyfda.backbones.image import ImageBackbone
from proxyfda.backbones.names import FLAVA, HUB, RANDOM
from proxyfda.backbones.weights import (
    cached,
    first_line,
    mismatches,
    quiet_transformers,
    random_weights,
    read_state_dict,
    unreachable,
)
from proxyfda.utils.errors import BadValue, NotFound, NotInstalled

try:
    from transformers import BertTokenizer, FlavaConfig, FlavaModel
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
except ImportError as error:
    raise NotInstalled(
        f"FLAVA cannot be imported from transformers ({error}); pip install 'proxyfda[flava]'"
    ) from error

__all__ = ["FlavaBackbone"]

REPOSITORY = FLAVA[-1]
CONFIG, VOCABULARY = "config.json", "vocab.txt"
FILES = ("model.safetensors", "pytorch_model.bin")
PARTS = ("image_model.", "text_model.", "image_projection.", "text_projection.", "logit_scale")
"""What of a ``FlavaModel`` is used; the encoder of both modalities together is not."""
LEFT_OUT = ("image_model.pooler.", "text_model.pooler.", "image_model.embeddings.mask_token")
"""What of these serves the pre-training alone."""


class ImageTower(nn.Module):
    """The encoder of images with its projection."""

    def __init__(self, flava: Any, resized: bool):
        super().__init__()
        self.model, self.projection = flava.image_model, flava.image_projection
        self.model.pooler = None
        self.model.embeddings.mask_token = None
        self.resized = resized

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, d] of images [B, 3, H, W]."""
        found = self.model(pixel_values=images, interpolate_pos_encoding=self.resized)
        return self.projection(found.last_hidden_state[:, 0])

    def set_grad_checkpointing(self, on: bool) -> None:
        """See :meth:`ImageBackbone.set_grad_checkpointing`."""
        # transformers 5 has another word for it. The reentrant kind would drop the gradient of the
        # outputs of blocks, which are compared.
        new = hasattr(self.model, "activation_checkpointing_enable")
        switch = ("activation" if new else "gradient") + "_checkpointing_"
        if on:
            getattr(self.model, switch + "enable")({"use_reentrant": False})
        else:
            getattr(self.model, switch + "disable")()


class TextTower(nn.Module):
    """The encoder of texts with its projection.

    Args:
        flava: the model.
        place: folder or repository of the tokenizer.
    """

    def __init__(self, flava: Any, place: str):
        super().__init__()
        self.model, self.projection = flava.text_model, flava.text_projection
        self.model.pooler = None
        self.longest: int = self.model.config.max_position_embeddings
        self._place, self._tokenizer = place, None

    def tokenize(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Token ids [n, L] and their mask, 1 for tokens and 0 for padding."""
        self._tokenizer = self._tokenizer or _tokenizer(self._place)
        found = self._tokenizer(texts, padding=True, return_tensors="pt")
        lengths = found["attention_mask"].sum(1)
        if lengths.max() > self.longest:
            worst = int(lengths.argmax())
            raise BadValue(
                f"the text {texts[worst]!r} has {int(lengths[worst])} tokens, FLAVA's text encoder "
                f"takes {self.longest}; use a shorter one."
            )
        device = self.projection.weight.device
        return found["input_ids"].to(device), found["attention_mask"].to(device)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Features [n, d]."""
        found = self.model(input_ids=tokens, attention_mask=mask)
        return self.projection(found.last_hidden_state[:, 0])


class FlavaBackbone(ImageBackbone):
    """FLAVA's image encoder with its projection, all weights trained, and its frozen texts.

    What a feature is, and why, says the module.

    Args:
        name: ``flava`` or ``facebook/flava-full``.
        weights: ``hub`` (also when empty), ``random``, a folder as transformers saves and downloads
            it (``config.json``, weights and the tokenizer's ``vocab.txt``), or a file of weights,
            of the architecture of a ``config.json`` beside it or of flava-full.
        image_size: side of the images in pixels; the model's own, 224, if None. For others
            transformers interpolates the positions at each pass.

    Raises:
        BadValue: other weights, files that do not fit, a size that the model cannot have.
        NotFound: no such file or folder, or weights that cannot be downloaded.
    """

    def __init__(self, name: str, weights: str = "", image_size: int | None = None) -> None:
        super().__init__()
        self.name, self.weights = name, weights or HUB
        flava: Any
        flava, place = _load(name, self.weights)
        config = flava.config
        own, patch = config.image_config.image_size, config.image_config.patch_size
        self.image_size = image_size or own
        if self.image_size % patch:
            raise BadValue(
                f"{name} cannot take images of {image_size} pixels; set INPUT.SIZE to a multiple "
                f"of its patches, {patch}."
            )
        self.image_tower = ImageTower(flava, resized=self.image_size != own)
        self.text_tower = TextTower(flava, place)
        self.logit_scale = flava.logit_scale.detach().clone()
        self.output_dim = config.projection_dim
        self.image_mean, self.image_std = tuple(OPENAI_CLIP_MEAN), tuple(OPENAI_CLIP_STD)
        self._ready()

    def forward(self, images: Tensor) -> Tensor:
        """See :meth:`ImageBackbone.forward`."""
        return self.image_tower(images)

    def blocks(self) -> Sequence[nn.Module]:
        """See :meth:`ImageBackbone.blocks`."""
        tower: Any = self.image_tower
        return list(tower.model.encoder.layer)

    def encode_texts(self, texts: Sequence[str], chunk: int = 256) -> Tensor:
        """See :meth:`ImageBackbone.encode_texts`; ``chunk`` texts at a time."""
        text: Any = self.text_tower
        texts = list(texts)
        parts = (texts[start : start + chunk] for start in range(0, len(texts), chunk))
        return torch.cat([text(*text.tokenize(part)) for part in parts])


# -- loading ----------------------------------------------------------------------------------


def _load(name: str, weights: str) -> tuple[Any, str]:
    """The model in fp32, and the folder or repository of its tokenizer."""
    path = Path(weights).expanduser()
    if weights == RANDOM:
        with random_weights(name):
            return FlavaModel(_without_fusion(FlavaConfig())), REPOSITORY
    if weights == HUB:
        return _from_pretrained(REPOSITORY, name), REPOSITORY
    if path.is_dir():
        return _from_pretrained(str(path), name), str(path)
    if path.is_file():
        return _from_file(path, name), str(path.parent)
    if path.suffix or len(path.parts) > 1:
        raise NotFound(
            f"the weights {path} do not exist; set MODEL.BACKBONE.WEIGHTS to an existing file or "
            f"folder, or to {HUB}."
        )
    raise BadValue(
        f"{name} has no weights {weights!r}; MODEL.BACKBONE.WEIGHTS is {HUB}, {RANDOM}, a file or "
        "a folder of transformers."
    )


def _without_fusion(config: Any) -> Any:
    """A config whose encoder of both modalities together, which is not used, has no layers."""
    config.multimodal_config.num_hidden_layers = 0
    return config


def _config(path: Path) -> Any:
    """The config in a file of transformers."""
    try:
        kind = json.loads(path.read_text()).get("model_type")
    except (ValueError, AttributeError) as error:
        raise BadValue(f"{path} is damaged ({first_line(error)}); fetch it again.") from error
    if kind != "flava":
        raise BadValue(
            f"{path} describes a model of the type {kind!r} and not 'flava'; set "
            "MODEL.BACKBONE.WEIGHTS to a folder of FLAVA."
        )
    return FlavaConfig.from_pretrained(path)


def _from_pretrained(place: str, name: str) -> Any:
    """The model in a folder or repository, all of whose weights are there."""
    folder = Path(place)
    local = place != REPOSITORY
    if local:
        for names in ((CONFIG,), FILES):
            if not any((folder / file).is_file() for file in names):
                raise NotFound(f"the folder {folder} of {name} has no {' or '.join(names)}.")
        config = _config(folder / CONFIG)
    else:
        local = all(cached(REPOSITORY, names) for names in ((CONFIG,), FILES))
        problem = None if local else _hub_problem()
        if problem:
            raise _not_downloaded(name, problem)
        config = None
    try:
        if config is None:
            config = FlavaConfig.from_pretrained(place, local_files_only=local)
        with quiet_transformers(), torch.random.fork_rng(devices=[]):  # missing weights are drawn
            model, report = FlavaModel.from_pretrained(
                place,
                config=_without_fusion(config),
                local_files_only=local,
                output_loading_info=True,
            )
    except Exception as error:  # transformers, the hub's client and torch all raise their own kinds
        if place == REPOSITORY:
            raise _not_downloaded(name, first_line(error)) from error
        raise BadValue(
            f"the weights in {folder} do not fit {name} or are damaged ({first_line(error)}); "
            "fetch them again."
        ) from error
    missing = sorted(filter(_is_used, report["missing_keys"]))
    if missing:
        wanted = {key: torch.empty(0) for key in missing}
        raise BadValue(
            f"the weights in {place} do not fit {name}: {mismatches(wanted, {})}; fetch them again."
        )
    return model.float()


def _from_file(path: Path, name: str) -> Any:
    """The model with the weights in one file."""
    beside = path.parent / CONFIG
    config = _config(beside) if beside.is_file() else FlavaConfig()
    state = read_state_dict(path, "checkpoint of FLAVA")
    state = {key[len("flava.") :] if key.startswith("flava.") else key: state[key] for key in state}
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are overwritten
        model = FlavaModel(_without_fusion(config))
    wanted = {key: value for key, value in model.state_dict().items() if _is_used(key)}
    given = {key: value for key, value in state.items() if key in wanted}
    problems = mismatches(wanted, given)
    if problems:
        raise BadValue(
            f"{path} does not fit {name}: {problems}; set MODEL.BACKBONE.WEIGHTS to a file of "
            f"{REPOSITORY}, or put the model's {CONFIG} beside it."
        )
    model.load_state_dict(given, strict=False)
    return model


def _is_used(key: str) -> bool:
    """Whether a weight of a ``FlavaModel`` is used."""
    return key.startswith(PARTS) and not key.startswith(LEFT_OUT)


def _tokenizer(place: str) -> Any:
    """The tokenizer of texts, BERT's; from a folder or the hub."""
    local = place != REPOSITORY
    problem = None
    if local and not (Path(place) / VOCABULARY).is_file():
        problem = "it is not there"
    elif not local and not cached(REPOSITORY, [VOCABULARY]):
        problem = _hub_problem()
    else:
        local = True
    if problem is None:
        try:
            return BertTokenizer.from_pretrained(place, local_files_only=local)
        except Exception as error:  # transformers and the hub's client raise many kinds
            problem = first_line(error)
    where = f"{place} on the hub" if place == REPOSITORY else f"the folder {place}"
    raise NotFound(
        f"texts need the vocabulary of FLAVA, {VOCABULARY} in {where} ({problem}); put it into a "
        "folder with the weights and set MODEL.BACKBONE.WEIGHTS to that, or leave out what needs "
        "texts."
    )


def _hub_problem() -> str | None:
    """Why the hub cannot be reached, if so."""
    import huggingface_hub

    return unreachable(huggingface_hub.constants.ENDPOINT)


def _not_downloaded(name: str, problem: str) -> NotFound:
    return NotFound(
        f"the weights of {name} could not be downloaded ({problem}); fetch {CONFIG}, "
        f"{' or '.join(FILES)} and {VOCABULARY} of {REPOSITORY} into a folder and set "
        "MODEL.BACKBONE.WEIGHTS to that."
    )
