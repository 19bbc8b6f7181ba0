"""Zero-shot CLIP: hand-written prompts, nothing is trained.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021.
"""

from __future__ import annotations

import torch
from open_clip import SIMPLE_IMAGENET_TEMPLATES
from torch import Tensor, nn

from proxyfda.backbones.clip import ImageEncoder, TextEncoder, plain_name
from proxyfda.dassl import TRAINER_REGISTRY
from trainers.base import CLIPTrainer, dataset_template
from trainers.coop import CoOp
from trainers.prompted_clip import unit


class ZeroshotModel(nn.Module):
    """A frozen CLIP with fixed class texts.

    Args:
        clip: from ``load_clip``.
        prompts: m >= 1 lists of n texts. The features of each are normalised, averaged over the
            lists, and normalised again.
    """

    def __init__(self, clip: nn.Module, prompts: list[list[str]]):
        super().__init__()
        self.image_encoder = ImageEncoder(clip)
        self.text_encoder = TextEncoder(clip)
        self.logit_scale = clip.logit_scale
        features = [unit(self.text_encoder.encode(texts)) for texts in prompts]
        self.register_buffer("text_features", unit(torch.stack(features).mean(dim=0)))

    has_frozen_images = True

    def classify(self, image_features: Tensor) -> Tensor:
        """Image features [B, d] to logits [B, n]."""
        return self.logit_scale.exp() * unit(image_features) @ self.text_features.t()

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] to logits [B, n]."""
        return self.classify(self.image_encoder(images))


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(CLIPTrainer):
    """CLIP with the dataset's prompt; the precision is CoOp's option, as zero-shot runs take
    CoOp's configs."""

    config_node = CoOp.config_node
    defaults = {"PREC": CoOp.defaults["PREC"]}
    learns = False

    def templates(self) -> list:
        """Functions from a class name to a prompt."""
        return [dataset_template(self.dm.dataset).format]

    def build_model(self):
        clip = self.load_clip()
        names = [plain_name(name) for name in self.dm.dataset.classnames]
        prompts = [[template(name) for name in names] for template in self.templates()]
        print(f"Prompts per class: {len(prompts)}, the last: {prompts[-1]}")
        self.model = ZeroshotModel(clip, prompts)

    def train(self):
        print(f"{type(self).__name__} has nothing to train")
        if not self.cfg.TEST.NO_TEST:
            self.test()


@TRAINER_REGISTRY.register()
class ZeroshotCLIP2(ZeroshotCLIP):
    """CLIP with the features of seven general prompts (and the dataset's own) averaged."""

    def templates(self):
        own = dataset_template(self.dm.dataset).format
        general = list(SIMPLE_IMAGENET_TEMPLATES)
        return general if self.cfg.DATASET.NAME == "ImageNet" else [*general, own]
