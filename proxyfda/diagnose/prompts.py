"""A run that has learned prompts, ours or upstream's, on the images and classes of any dataset."""

from __future__ import annotations

import os.path as osp
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

from proxyfda.backbones import ImageBackbone, load_backbone
from proxyfda.dassl import TRAINER_REGISTRY, build_trainer
from proxyfda.diagnose.samples import Encoded, Sample
from proxyfda.experiments import layout
from proxyfda.experiments.config import default_config, merge_file, merge_options
from proxyfda.experiments.tuned import run_config
from proxyfda.names import split_run_name
from proxyfda.results.runs import printed_config
from proxyfda.utils.errors import BadValue
from proxyfda.utils.nested import flat

__all__ = ["PromptRun"]

_CHANGED = (
    "image features are those with the tuned prompts of the image encoder, and zero-shot is by the "
    "tuned prompts of the texts"
)
_UNCHANGED = (
    "the prompts are those of the texts, so that image features are the frozen ones, and what was "
    "learned shows in zero-shot, which is by the tuned prompts"
)


@dataclass(frozen=True)
class PromptRun:
    """What the folder of a run that learned prompts says.

    Upstream's folders have no ``config.yaml``; of theirs the config is read that their ``log.txt``
    begins with.

    Attributes:
        folder: as given.
        host: the trainer, as it is registered, without a regulariser: that is of the training.
        options: the run's config, flat, values as text.
        frozen: the CLIP as it was pre-trained; it also says how images are prepared.
    """

    folder: str
    host: str
    options: dict[str, str]
    frozen: ImageBackbone

    @classmethod
    def at(cls, folder: str, device: str | torch.device = "cpu") -> PromptRun:
        """The run in a folder.

        Raises:
            BadValue: no config, a trainer that is not registered or that learns no prompts, or no
                checkpoints.
        """
        options = _options_of(folder)
        name = options.get("TRAINER.NAME", "")
        host = split_run_name(name)[0]
        known = TRAINER_REGISTRY.registered_names()
        if host not in known:
            raise BadValue(
                f"{folder} holds a run of {name or 'no trainer'}, which is not registered (there "
                f"are {', '.join(known)}); name the module that registers it by --entry"
            )
        model = getattr(TRAINER_REGISTRY.get(host), "model_name", None)
        if model is None or not osp.isdir(osp.join(folder, model)):
            raise BadValue(
                f"{folder} holds a run of {name} without checkpoints of "
                f"{'a model' if model is None else model}; give the output folder of a training"
            )
        backbone = load_backbone(
            options["MODEL.BACKBONE.NAME"], options.get("MODEL.BACKBONE.WEIGHTS", ""), device=device
        )
        return cls(folder, host, options, backbone.eval())

    @property
    def output_dim(self) -> int:
        """d of the features."""
        return self.frozen.output_dim

    @torch.no_grad()
    def encoded(self, sample: Sample) -> Encoded:
        """What the run's model makes of a sample.

        Raises:
            BadValue: prompts of other classes than the sample's where each class has its own.
        """
        trainer = self._trainer(sample)
        features, guesses, same = [], [], True
        for images in sample.batches(self.frozen):
            images = images.to(trainer.device)
            made = trainer.model.encode_image(images)
            same = same and torch.allclose(made, trainer.frozen_image_features(images), atol=1e-5)
            features.append(made.float().cpu())
            guesses.append(trainer.model_inference(images).argmax(1).cpu())
        note = _UNCHANGED if same else _CHANGED
        return Encoded(torch.cat(features), {}, torch.cat(guesses), note)

    def _trainer(self, sample: Sample) -> Any:
        """The trainer on the dataset of a sample, with what the run has learned."""
        trainer = build_trainer(self._config(sample))
        trainer.load_model(self.folder)
        trainer.set_model_mode("eval")
        return trainer

    def _config(self, sample: Sample) -> CfgNode:
        node = getattr(TRAINER_REGISTRY.get(self.host), "config_node", self.host.upper())
        cfg = default_config()
        merge_file(cfg, sample.path, "--datasets")
        own = (f"TRAINER.{node}.", "MODEL.BACKBONE.", "INPUT.SIZE", "OPTIM.MAX_EPOCH")
        known = {key for key, _ in flat(cfg)}
        for key, value in self.options.items():
            if key.startswith(own) and key in known:
                merge_options(cfg, [key, value])
        cfg.TRAINER.NAME = self.host
        if "PREC" in cfg.TRAINER.get(node, {}):
            cfg.TRAINER[node].PREC = "fp32"
        cfg.DATASET.NUM_SHOTS, cfg.DATASET.SUBSAMPLE_CLASSES = -1, "all"
        cfg.DATALOADER.NUM_WORKERS = 0
        cfg.USE_CUDA = next(self.frozen.parameters()).is_cuda
        if sample.root:
            cfg.DATASET.ROOT = sample.root
        cfg.freeze()
        return cfg


def _options_of(folder: str) -> dict[str, str]:
    if osp.isfile(osp.join(folder, layout.CONFIG)):
        return {key: str(value) for key, value in flat(run_config(folder))}
    for path in sorted(Path(folder).glob(f"{layout.LOG}*")):
        found = printed_config(path.read_text(encoding="utf-8", errors="replace"))
        if "MODEL.BACKBONE.NAME" in found:
            return found
    raise BadValue(
        f"{folder} has neither a {layout.CONFIG} nor a {layout.LOG} that begins with a config; "
        "give the output folder of a run, or NAME=WEIGHTS of a backbone"
    )
