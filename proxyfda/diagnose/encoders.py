"""The two models: a run's folder, or a backbone with its weights; and what they make of images."""

from __future__ import annotations

import contextlib
import io
import os.path as osp
from typing import Union

import torch

from proxyfda.backbones import ImageBackbone, load_backbone
from proxyfda.backbones.image import slice_positions
from proxyfda.backbones.zero_shot import zero_shot_weights
from proxyfda.diagnose.prompts import PromptRun
from proxyfda.diagnose.samples import Encoded, Sample
from proxyfda.experiments import layout
from proxyfda.experiments.tuned import IMAGE, TunedRun, run_config
from proxyfda.names import tunes_end_to_end
from proxyfda.utils.errors import BadModel, BadValue, NotFound

__all__ = ["encode", "load_encoder", "pretrained_of"]

Encoder = Union[ImageBackbone, PromptRun]


def load_encoder(model: str, device: str | torch.device = "cpu", *, alpha: float = 1.0) -> Encoder:
    """A model to look at.

    Args:
        model: the output folder of a run that has tuned an encoder end to end or learned prompts,
            ours or upstream's, or ``NAME=WEIGHTS`` of a backbone as
            :func:`~proxyfda.backbones.load_backbone` takes it, such as ``ViT-B/32=openai`` or
            ``timm:vit_small_patch16_224=/path/to/weights``.
        device: where it goes.
        alpha: share of the tuned weights, of a run that tuned end to end.

    Raises:
        NotFound, BadValue, NotInstalled: neither of both, or weights that cannot be loaded.
    """
    if osp.isdir(model):
        with _quietly():
            if _is_tuned(model):
                return TunedRun.at(model).load(alpha, device).eval()
            return PromptRun.at(model, device)
    name, equals, weights = model.partition("=")
    if equals:
        return load_backbone(name, weights, device=device).eval()
    if osp.sep in model:
        raise NotFound(
            f"the folder {model} does not exist; give the output folder of a run, or NAME=WEIGHTS "
            "of a backbone"
        )
    raise BadValue(
        f"{model!r} is no model; give the output folder of a run, or NAME=WEIGHTS such as "
        "ViT-B/32=openai"
    )


def pretrained_of(folder: str, device: str | torch.device = "cpu") -> ImageBackbone:
    """The backbone that a run started from, as it was pre-trained."""
    with _quietly():
        if not _is_tuned(folder):
            return PromptRun.at(folder, device).frozen
        return load_backbone(**TunedRun.at(folder).backbone, device=device).eval()


def _is_tuned(folder: str) -> bool:
    """Whether a run has tuned an encoder end to end, or should have."""
    if osp.isdir(osp.join(folder, IMAGE)):
        return True
    ours = osp.isfile(osp.join(folder, layout.CONFIG))
    return ours and tunes_end_to_end(run_config(folder)["TRAINER"]["NAME"])


@contextlib.contextmanager
def _quietly():
    """Without the lines that trainers, readers and checkpoints print, once for each dataset."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


@torch.no_grad()
def encode(model: Encoder, sample: Sample, *, layers: bool = False) -> Encoded:
    """What a model makes of a sample's images.

    Args:
        layers: also the means of the tokens between blocks, in the same pass, where a backbone has
            them.
    """
    if isinstance(model, PromptRun):
        with _quietly():
            return model.encoded(sample)
    device = next(model.image_tower.parameters()).device
    features, slices = [], []
    for images in sample.batches(model):
        if layers:
            try:
                made, tokens = model.with_layers(images.to(device))
                slices.append([part.mean(1).float().cpu() for part in tokens])
            except BadModel:
                layers = False
        if not layers:
            made = model(images.to(device))
        features.append(made.float().cpu())
    found = torch.cat(features)
    guesses = None
    if model.has_texts:
        texts = zero_shot_weights(model, sample.classnames, sample.templates).float().cpu()
        guesses = (found @ texts.t()).argmax(1)
    parts = [torch.cat(each) for each in zip(*slices)] if layers else []
    blocks = len(model.blocks())
    positions = slice_positions(blocks) if blocks else range(len(parts))  # of stages all
    return Encoded(found, dict(zip(positions, parts)), guesses)
