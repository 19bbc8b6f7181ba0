"""A grid of settings of CoOp in one pass: one image forward pass, all settings' texts at once.

CoOp's image encoder is frozen and has no prompts, so the image features of a batch are the same
whatever the settings; and the contexts of S settings are S sets of the same class texts, which the
text encoder takes in one pass. Everything behind the features is each run's own: its loss, its
regulariser, its optimiser, its files. Ours; the numbers are those of single runs up to rounding.

    loss_s = task(images, texts_s) + λ_s R_s(images, texts_s),  s = 1..S

Texts_s depend on context s alone, so no gradient of one setting reaches another, and settings may
be taken in portions without computing anything twice. That bounds the memory.
"""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from proxyfda.backbones.clip.encoders import FrozenEncoder
from proxyfda.dassl import (
    TRAINER_REGISTRY,
    Together,
    get_rng_state,
    set_random_seed,
    set_rng_state,
)
from proxyfda.utils.errors import BadValue
from trainers.frozen_images import FrozenImages
from trainers.memory import GIB, saved_bytes


class _Prepared(FrozenEncoder):
    """An encoder of a member; what it does not do itself, the shared one does."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "encoder":
                raise
            return getattr(self.encoder, name)


class PreparedImages(_Prepared):
    """Takes image features [B, d] in place of images [B, 3, H, W], and gives them back."""

    def forward(self, images: Tensor, *prompts) -> Tensor:
        return images if images.dim() == 2 else self.encoder(images, *prompts)


class PreparedTexts(_Prepared):
    """Has the features of some texts beforehand, and encodes the others."""

    _tokens: Tensor | None = None
    _features: Tensor | None = None

    @contextlib.contextmanager
    def given(self, tokens: Tensor, features: Tensor):
        """Within it the texts of these ids (this very tensor) have these features."""
        self._tokens, self._features = tokens, features
        try:
            yield
        finally:
            self._tokens = self._features = None

    def forward(self, prompts: Tensor, tokenized_prompts: Tensor, *more, **options) -> Tensor:
        if tokenized_prompts is self._tokens:
            return self._features
        return self.encoder(prompts, tokenized_prompts, *more, **options)


class _Member:
    """Put before a trainer: takes data, CLIP and frozen features from what all members share."""

    shared: SimpleNamespace

    def build_data_loader(self):
        shared = self.shared
        if shared.first is None:
            shared.first = self
            super().build_data_loader()
            return
        for name in ("dm", "train_loader_x", "train_loader_u", "val_loader", "test_loader"):
            setattr(self, name, getattr(shared.first, name, None))
        for name in ("num_classes", "num_source_domains", "lab2cname"):
            setattr(self, name, getattr(shared.first, name, None))

    def load_clip(self):
        shared = self.shared
        if shared.clip is None:
            shared.clip = super().load_clip()
            shared.rng = get_rng_state()
        self.precision = shared.first.precision
        set_rng_state(shared.rng)  # initial values are those of a run that loaded all by itself
        return shared.clip

    def build_clip_model(self, classnames, clip):
        model = super().build_clip_model(classnames, clip)
        if self.shared.images is None:
            self.shared.images = FrozenImages(model.image_encoder, self.cfg)
        self._frozen_images = self.shared.images
        model.image_encoder = PreparedImages(model.image_encoder)
        model.text_encoder = PreparedTexts(model.text_encoder)
        return model

    @property
    def is_joint(self) -> bool:
        """Whether the run acts on features alone; one on the context itself needs its own pass."""
        return getattr(self, "_weights_term", None) is None

    def frozen_text_features(self):
        if self is self.shared.first:
            return super().frozen_text_features()
        return self.shared.first.frozen_text_features()

    def _class_similarity(self):
        if self.shared.similarity is None:
            self.shared.similarity = super()._class_similarity()
        return self.shared.similarity

    def update(self):
        if not self.is_joint:
            self.step_now()

    def step_now(self):
        """Let the optimiser step: the gradient has come from the joint pass."""
        super().update()


class CoOpGrid(Together):
    """Trains CoOp, plain or with regularisers, under several settings at once.

    Args:
        cfgs: the configs of the runs. They may differ in the trainer's form (``CoOp``,
            ``FDACoOp``, ...), under ``TRAINER.PROXYFDA`` and in the optimiser's options.
        outputs: for each run the file-like object that takes what it prints.

    Raises:
        BadValue: settings that do not lead to the same batches.
    """

    def __init__(self, cfgs, outputs):
        shared = SimpleNamespace(first=None, clip=None, rng=None, similarity=None, images=None)
        members = []
        for cfg, output in zip(cfgs, outputs):
            base = self.trainer_class(cfg)
            if cfg.SEED >= 0:
                set_random_seed(cfg.SEED)
            with contextlib.redirect_stdout(output):
                members.append(type(base.__name__, (_Member, base), {"shared": shared})(cfg))
            _check_batches(shared.first, members[-1])
            members[-1].train_loader_x = shared.first.train_loader_x
        super().__init__(members, outputs)
        self._first = shared.first
        self._portion = 0  # settings in one text pass; 0: not known yet

    def trainer_class(self, cfg) -> type:
        """The class of the trainer that would make a run by itself."""
        return TRAINER_REGISTRY.get(cfg.TRAINER.NAME)

    def steps(self, batch):
        """See :meth:`Together.steps`."""
        with torch.no_grad(), self._first.autocast():
            batch = {**batch, "img": self._encode_images(batch["img"])}
        summaries = {}
        joint = [member for member in self.members if member.is_joint]
        for member in [member for member in self.members if not member.is_joint]:
            with self.alone(member):
                summaries[member] = member.forward_backward(batch)
        size = self._portion_size(joint)
        for start in range(0, len(joint), size):
            self._joint_steps(joint[start : start + size], batch, summaries)
        return summaries

    def _encode_images(self, images: Tensor) -> Tensor:
        return self._first.model.image_encoder(images.to(self._first.device))

    def _joint_steps(self, members, batch, summaries) -> None:
        """Steps of some members on one batch of image features, added to ``summaries``.

        Each member goes backward to the features of its texts; from there all go together.
        """
        with self._first.autocast():
            texts = self.encode_texts(members)
        gradients = []
        for member, features in zip(members, texts.detach()):
            features = features.clone().requires_grad_()
            tokens = member.model.prompt_learner.tokenized_prompts
            with self.alone(member), member.model.text_encoder.given(tokens, features):
                summaries[member] = member.forward_backward(batch)
            gradients.append(torch.zeros_like(features) if features.grad is None else features.grad)
        texts.backward(torch.stack(gradients))
        for member in members:
            if member not in self.failed:
                member.step_now()

    def encode_texts(self, members) -> Tensor:
        """Text features [S, n, d] of the members' class prompts, not normalised, in one pass."""
        learners = [member.model.prompt_learner for member in members]
        contexts = torch.stack([learner.ctx for learner in learners])
        if contexts.dim() == 3:
            contexts = contexts.unsqueeze(1)  # [S, 1, n_ctx, w]: one for all classes of a set
        learner, encoder = learners[0], self._first.model.text_encoder.encoder
        prompts = learner.class_prompts(contexts)
        texts = encoder(prompts, learner.tokenized_prompts, shared=learner.shared_tokens)
        return texts.unflatten(0, (len(members), -1))

    def _portion_size(self, members) -> int:
        """How many settings go into one text pass, by the memory that one takes (measured)."""
        if not self._portion and members:
            first = self._first
            with first.autocast():
                taken = saved_bytes(first.model, lambda: self.encode_texts(members[:1]))
            self._portion = max(1, int(first.options.GRID_MEMORY * GIB // max(taken, 1)))
        return max(1, self._portion)


def _check_batches(first, other) -> None:
    """Refuse a member whose sampler would give other batches."""
    ours, theirs = (_batches(trainer) for trainer in (first, other))
    if ours != theirs:
        raise BadValue(
            f"{first.output_dir} trains on {ours} and {other.output_dir} on {theirs}; settings of "
            "one grid share their batches, so give both the same TRAINER.PROXYFDA.M, N and MINING, "
            "or train them in grids of their own"
        )


def _batches(trainer) -> str:
    """What the batches of a trainer are, in words."""
    sampler = getattr(trainer.train_loader_x, "batch_sampler", None)
    plugin = getattr(trainer, "_plugin", None)
    if plugin is None or not plugin.has_batches:
        return "batches of its own kind"
    mined = ", mined" if plugin.mining else ""
    return f"batches of {sampler.m} classes x {sampler.n} images{mined}"
