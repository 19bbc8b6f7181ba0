"""What the prompt-tuning trainers share: options, precision, the frozen CLIP, checkpoints.

A trainer of the family is a prompt learner (:class:`trainers.prompted_clip.PromptLearner`) and the
few lines that build it (:meth:`PromptTrainer.build_prompt_learner`); one with further loss terms
overrides :meth:`PromptTrainer.loss_terms`, one with its own way of making logits the model
(:meth:`PromptTrainer.build_clip_model`).
"""

from __future__ import annotations

import functools
import math
import os
from contextlib import nullcontext
from typing import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from yacs.config import CfgNode

from proxyfda.backbones.clip import (
    AUTOCAST,
    PRECISIONS,
    ImageEncoder,
    TextEncoder,
    load_clip,
    plain_name,
    resolve_precision,
)
from proxyfda.dassl import (
    TrainerX,
    build_lr_scheduler,
    build_optimizer,
    find_checkpoint,
)
from proxyfda.utils.errors import BadValue, NotFinite
from proxyfda.utils.rules import Flag, OneOf, Rule, Text, check_values
from proxyfda.utils.templates import DEFAULT_TEMPLATE, check_template
from trainers.checkpoints import LearnerState
from trainers.frozen_images import FrozenImages
from trainers.prompted_clip import PromptedCLIP, PromptLearner


def dataset_template(dataset) -> str:
    """The hand-written prompt of a dataset, or CLIP's general one."""
    template = getattr(dataset, "template", None) or DEFAULT_TEMPLATE
    return check_template(template, f"{type(dataset).__name__}: template")


def add_options(node: CfgNode, defaults: dict[str, object]) -> None:
    """Add to a config node the options that it does not have yet."""
    for name, default in defaults.items():
        if name not in node:
            node[name] = default


def _value(cfg: CfgNode, option: str) -> object:
    """The value of an option by its dotted name."""
    return functools.reduce(lambda node, name: node[name], option.split("."), cfg)


BACKBONE_OPTIONS: dict[str, object] = {
    "WEIGHTS": "openai",  # an open_clip tag, or a local file
    "GRAD_CHECKPOINTING": False,  # less memory for a second forward pass per step
}
BACKBONE_RULES: dict[str, Rule] = {
    "WEIGHTS": Text(empty=False, what="a tag of weights, or a file"),
    "GRAD_CHECKPOINTING": Flag(),
}


class ConfiguredTrainer(TrainerX):
    """A trainer with a config node of its own and a precision.

    Attributes:
        config_node: the trainer's node under ``cfg.TRAINER``.
        defaults: the options in that node with their defaults; ``PREC``, the precision, is one.
        rules: what each of the others may be.
        precisions: what ``PREC`` may be.
        precision: what the device can run of it; set when the model is built.
        learns: whether there is something to train, and so for FDA to act on.
        regularises_itself: whether it takes ``TRAINER.PROXYFDA`` without the plugin.
    """

    config_node = ""
    defaults: dict[str, object] = {}
    rules: dict[str, Rule] = {}
    precisions: Sequence[str] = PRECISIONS
    precision = "fp32"
    learns = True
    regularises_itself = False

    @classmethod
    def extend_cfg(cls, cfg) -> None:
        """Add the trainer's options with their defaults; what is there already stays.

        Args:
            cfg: Dassl's defaults, not frozen.
        """
        add_options(cfg.MODEL.BACKBONE, BACKBONE_OPTIONS)
        add_options(cfg.TRAINER, {cls.config_node: CfgNode()})
        add_options(cfg.TRAINER[cls.config_node], cls.defaults)

    @classmethod
    def option_rules(cls) -> dict[str, Rule]:
        """What the options that :meth:`extend_cfg` adds may be, by their dotted names."""
        node = {"PREC": OneOf(tuple(cls.precisions)), **cls.rules}
        return {
            **{f"MODEL.BACKBONE.{name}": rule for name, rule in BACKBONE_RULES.items()},
            **{
                f"TRAINER.{cls.config_node}.{name}": node[name]
                for name in cls.defaults
                if name in node
            },
        }

    @property
    def options(self):
        """The trainer's config node."""
        return self.cfg.TRAINER[self.config_node]

    def check_cfg(self, cfg):
        if self.config_node not in cfg.TRAINER:
            raise BadValue(
                f"the config has no node TRAINER.{self.config_node}, which "
                f"{type(self).__name__} reads; call {type(self).__name__}.extend_cfg(cfg) when "
                "the config is made."
            )
        rules = self.option_rules()
        check_values(((name, _value(cfg, name)) for name in rules), rules)
        for option, alone in (("INPUT.NO_TRANSFORM", False), ("DATALOADER.K_TRANSFORMS", 1)):
            if _value(cfg, option) != alone:
                raise BadValue(
                    f"{option} is {_value(cfg, option)}, but {type(self).__name__} takes one "
                    f"transformed view of an image; leave it {alone}"
                )

    def autocast(self):
        """The context of forward passes in training: autocast for ``amp`` and ``bf16``."""
        if self.precision not in AUTOCAST:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=AUTOCAST[self.precision])

    def build_scaler(self):
        """A ``GradScaler`` for ``amp``, else None: gradients of small losses vanish in fp16 unless
        the loss is scaled up; bfloat16 has the range of fp32."""
        return torch.amp.GradScaler(self.device.type) if self.precision == "amp" else None

    def parse_batch_train(self, batch):
        return self.parse_batch_test(batch)

    def check_step(self, batch_idx, values):
        """Raise FloatingPointError, naming epoch, batch and terms, if the loss is not finite."""
        super().check_step(batch_idx, values)
        if not math.isfinite(values["loss"]):
            terms = ", ".join(f"{name} {value:g}" for name, value in values.items())
            raise NotFinite(
                f"the loss is not finite in epoch {self.epoch + 1}, batch {batch_idx + 1} "
                f"({terms}); lower OPTIM.LR or set TRAINER.{self.config_node}.PREC fp32."
            )


class CLIPTrainer(ConfiguredTrainer):
    """Loading a frozen CLIP, its precision, and frozen features."""

    _frozen_text: Tensor | None = None
    _frozen_images: FrozenImages | None = None

    def load_clip(self) -> nn.Module:
        """The frozen CLIP of the config, on the trainer's device.

        Raises:
            ValueError: also if INPUT.SIZE is not what the image encoder takes.
        """
        cfg, backbone = self.cfg, self.cfg.MODEL.BACKBONE
        self.precision = resolve_precision(self.options.PREC, self.device)
        print(f"Loading CLIP (backbone: {backbone.NAME})")
        clip = load_clip(
            backbone.NAME,
            backbone.WEIGHTS,
            precision=self.precision,
            device=self.device,
        )
        clip.set_grad_checkpointing(backbone.GRAD_CHECKPOINTING)
        size = ImageEncoder(clip).image_size
        if size and tuple(cfg.INPUT.SIZE) != (size, size):
            raise BadValue(
                f"INPUT.SIZE is {tuple(cfg.INPUT.SIZE)}, but the image encoder of {backbone.NAME} "
                f'takes {size} x {size} pixels; set INPUT.SIZE "({size}, {size})".'
            )
        return clip

    def frozen_text_features(self) -> Tensor:
        """Features [n, d] of the dataset's hand-written prompts, not normalised; computed once."""
        if self._frozen_text is None:
            self._frozen_text = self.encode_template(dataset_template(self.dm.dataset))
        return self._frozen_text

    def frozen_word_features(self, words: Sequence[str]) -> Tensor:
        """The same [n, d] for names beyond the classes."""
        return self.encode_template(dataset_template(self.dm.dataset), words)

    def encode_template(self, template: str, names: Sequence[str] = ()) -> Tensor:
        """Frozen features [n, d] of names, by default the classes', in a template; not
        normalised."""
        names = names or self.dm.dataset.classnames
        texts = [template.format(plain_name(name)) for name in names]
        with torch.autocast(self.device.type, enabled=False):
            return self.model.text_encoder.encode(texts)

    def frozen_image_features(self, images: Tensor) -> Tensor:
        """Features [B, d] of the frozen CLIP without prompts, not normalised."""
        with self.autocast():
            return self.model.image_encoder.encode(images)

    @property
    def frozen_images(self) -> FrozenImages:
        """The features of test and validation images, of the frozen CLIP."""
        if self._frozen_images is None:
            self._frozen_images = FrozenImages(self.model.image_encoder, self.cfg)
        return self._frozen_images

    def evaluation_batches(self, loader):
        """Image features in place of images, where no prompt changes them."""
        ours = type(self)
        if (
            getattr(self.model, "has_frozen_images", False)
            and ours.model_inference is CLIPTrainer.model_inference
            and ours.parse_batch_test is CLIPTrainer.parse_batch_test
        ):
            return self.frozen_images.batches(loader)
        return super().evaluation_batches(loader)

    def model_inference(self, input):
        """Logits [B, n] of images [B, 3, H, W], or of their features [B, d]."""
        return self.model.classify(input) if input.dim() == 2 else self.model(input)


class PromptTrainer(CLIPTrainer):
    """Trains the prompt learner of a :class:`PromptedCLIP`, everything else being frozen.

    Attributes:
        model_name: name of the learnables among the trainer's models and in checkpoint folders.
        texts_in_label_order: says to the plugin which class a text is.
    """

    model_name = "prompt_learner"
    texts_in_label_order = True

    # -- what a trainer of the family defines ---------------------------------------------------

    def build_prompt_learner(self, classnames: list[str], clip, text_encoder) -> PromptLearner:
        """The prompt learner; fp32 learnables, whatever the precision of CLIP."""
        raise NotImplementedError

    def build_clip_model(self, classnames: list[str], clip) -> PromptedCLIP:
        """The model; override where logits are made in another way."""
        text_encoder = TextEncoder(clip)
        learner = self.build_prompt_learner(classnames, clip, text_encoder)
        return PromptedCLIP(clip, learner, text_encoder)

    def loss_terms(self, images: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Named losses and the logits; ``loss`` is what is minimised, all are logged."""
        logits = self.model(images)
        return {"loss": F.cross_entropy(logits, labels)}, logits

    def metrics(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Further values for the log line, tensors of one element."""
        return {}

    def set_words(self, names: list[str]) -> None:
        """Encode these names too, with the same prompts and in the same calls of the text encoder,
        for a regulariser that acts on them; the logits stay those of the classes."""
        self.model.prompt_learner.set_words(self.model.text_encoder, names)

    # -- building and training ------------------------------------------------------------------

    def build_model(self):
        cfg = self.cfg
        clip = self.load_clip()
        print("Building the prompted CLIP")
        self.model = self.build_clip_model(self.dm.dataset.classnames, clip)
        learner = self.model.prompt_learner
        print("Only the prompt learner is trained; image and text encoder are frozen")
        if cfg.MODEL.INIT_WEIGHTS:
            self.init_learner(learner, cfg.MODEL.INIT_WEIGHTS)
        self.model.to(self.device)
        self.optim = build_optimizer(learner, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model(self.model_name, learner, self.optim, self.sched)
        self.scaler = self.build_scaler()

    def forward_backward(self, batch):
        images, labels = self.parse_batch_train(batch)
        with self.autocast():
            terms, logits = self.loss_terms(images, labels)
        self.model_zero_grad()
        loss = terms["loss"]
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        self.update()
        summary = {name: term.detach() for name, term in terms.items()}
        return {**summary, **self.metrics(logits.detach(), labels)}

    def update(self):
        """Let the optimiser step with the gradients that are there."""
        if self.scaler is None:
            self.model_update()
        else:
            self.scaler.step(self.optim)
            self.scaler.update()

    def end_of_epoch(self):
        super().end_of_epoch()
        self.update_lr()

    # -- checkpoints ----------------------------------------------------------------------------

    def load_model(self, directory, epoch=None):
        """Load the learnables that this trainer, or upstream's, saved under a run folder.

        Args:
            directory: the run's folder; empty skips loading.
            epoch: 1-based; without it the best model on the validation set, if one was kept,
                else the last.

        Raises:
            FileNotFoundError: no such checkpoint.
            ValueError: a checkpoint whose names or shapes are not those of this trainer.
        """
        if not directory:
            print("No model directory is given, so no weights are loaded")
            return
        for name in self.get_model_names():
            path = find_checkpoint(directory, name, epoch)
            module = self._models[name]
            state = LearnerState(path, module)
            if state.problems():
                raise self.misfit(state)
            print(f'Loading weights to {name} from "{path}" (epoch = {state.epoch})')
            module.load_state_dict(state.given)

    def init_learner(self, learner: PromptLearner, path: str) -> None:
        """Start from what a checkpoint has in common with the learner in names and shapes.

        Args:
            path: the checkpoint, or the folder of the run whose model it is.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it holds nothing of the kind.
        """
        if os.path.isdir(path):
            path = find_checkpoint(path, self.model_name)
        state = LearnerState(path, learner)
        common = {
            name: value
            for name, value in state.given.items()
            if name in state.wanted and value.shape == state.wanted[name].shape
        }
        if not common:
            raise self.misfit(state)
        learner.load_state_dict({**state.wanted, **common})
        print(f"Initial values from {path}: {', '.join(common)}")
        if state.problems():
            print(f"The file and the config differ otherwise: {state.problems()}")

    def misfit(self, state: LearnerState) -> ValueError:
        """The error for a checkpoint that does not fit: what differs, and what to do."""
        return BadValue(
            f"{state.path} does not fit this {type(self).__name__}: {state.problems()}; "
            f"{self.misfit_remedy(state)}."
        )

    def misfit_remedy(self, state: LearnerState) -> str:
        """What to do about a checkpoint that does not fit."""
        sets = self.model.prompt_learner.prompt_sets
        return state.remedy(sets, f"TRAINER.{self.config_node}")
