"""A frozen CLIP whose encoders take learned prompts: their learner, and the model around it."""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from proxyfda.backbones.clip import ClassPrompts, ImageEncoder, StateCache, TextEncoder
from proxyfda.utils.errors import BadValue
from proxyfda.utils.rules import Text

CONTEXT_WORDS = Text(what="words", barred="{}")
"""What CTX_INIT may be: it is no template, the class name has its place by itself."""


def unit(features: Tensor) -> Tensor:
    """Features of length 1, in fp32: half precision loses too much in the square sum."""
    return F.normalize(features.float(), dim=-1)


class PromptLearner(nn.Module):
    """The learnables of a trainer, a context before the class names being the first of them; its
    state dict is what checkpoints hold.

    Subclasses add deeper text prompts (``text_prompts``) and, where the image side is prompted too,
    ``image_prompts``.

    Args:
        text_encoder: of the CLIP to be prompted.
        classnames: n names.
        context: what ``ctx`` starts from, [n_ctx, w] or [n, n_ctx, w] one for each class.
        words: the context in words, see :class:`proxyfda.backbones.clip.ClassPrompts`.
        position: of the class name: ``end``, ``middle`` or ``front``.

    Attributes:
        upstream: pairs of patterns, a learnable's name here and in upstream's checkpoints of the
            whole model; ``{}`` stands for anything, and the first that fits counts.
        prompt_sets: first parts of the names of prompts that belong together -> the options that
            give the number of their tokens and that of their sets (layers), if there is one.
    """

    upstream: Sequence[tuple[str, str]] = (("{}", "prompt_learner.{}"),)
    prompt_sets: dict[tuple[str, ...], tuple[str, str]] = {}

    def __init__(
        self,
        text_encoder: TextEncoder,
        classnames: list[str],
        context: Tensor,
        words: str = "",
        position: str = "end",
    ):
        super().__init__()
        n_ctx = context.shape[-2]
        room = text_encoder.context_length - 3  # start, end, and a token of a class name
        if n_ctx > room:
            options = next((names[0] for names in self.prompt_sets.values()), "the context")
            raise BadValue(
                f"{options} gives {n_ctx} context tokens, which leave no room for class names in "
                f"the {text_encoder.context_length} tokens of the text encoder; use at most {room}"
            )
        print(f'Initial context: "{words or " ".join(["X"] * n_ctx)}"')
        print(f"Number of context words (tokens): {n_ctx}")
        self.ctx = nn.Parameter(context)
        self.class_prompts = ClassPrompts(text_encoder, classnames, n_ctx, words, position)

    @property
    def tokenized_prompts(self) -> Tensor:
        """Ids [n, L] of the prompts."""
        return self.class_prompts.tokenized_prompts

    @property
    def shared_tokens(self) -> int:
        """Number of leading tokens that the prompts of all classes have in common."""
        return self.class_prompts.shared_tokens(self.ctx)

    def set_words(self, text_encoder: TextEncoder, words: list[str]) -> None:
        """Prompt these names as well, behind the classes; none of them ends that.

        Raises:
            ValueError: each class has a context of its own, and so other names have none.
        """
        if words and self.ctx.dim() == 3:
            raise BadValue(
                "class-specific contexts (CSC True) say nothing about names beyond the classes, so "
                "words have no prompts; set CSC False, or use TRAINER.PROXYFDA.SPACES without words"
            )
        self.class_prompts.set_words(text_encoder, words)

    def of_classes(self, features: Tensor) -> Tensor:
        """Of text features [..., n, d] of all that is prompted those of the classes."""
        classes = self.class_prompts.classes
        return features if features.shape[-2] == classes else features[..., :classes, :]

    def text_prompts(self) -> tuple[Tensor, Sequence[Tensor]]:
        """Embedded prompts [n, L, w] of the classes, and the prompts of deeper blocks."""
        return self.class_prompts(self.ctx), ()

    def image_prompts(self) -> tuple[Tensor | None, Sequence[Tensor]]:
        """Prompts [t, w] of the image encoder's input, and those of deeper blocks."""
        return None, ()

    def forward(self) -> Tensor:
        return self.text_prompts()[0]


class PromptedCLIP(nn.Module):
    """A frozen CLIP whose encoders take the prompts of a prompt learner.

    Attributes: ``image_encoder``, ``text_encoder``, ``prompt_learner``, ``logit_scale`` and
    ``dtype``, as upstream names them.
    """

    def __init__(self, clip: nn.Module, prompt_learner: PromptLearner, text_encoder: TextEncoder):
        super().__init__()
        self.prompt_learner = prompt_learner
        self.image_encoder = ImageEncoder(clip)
        self.text_encoder = text_encoder
        self.logit_scale = clip.logit_scale
        self._text_cache = StateCache()

    @property
    def dtype(self) -> torch.dtype:
        return self.image_encoder.dtype

    def encode_image(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] to features [B, d], not normalised."""
        prompts, deep = self.prompt_learner.image_prompts()
        return self.image_encoder(images, prompts, deep)

    def encode_text(self) -> Tensor:
        """Features [n, d] of the class prompts, not normalised."""
        learner = self.prompt_learner
        prompts, deep = learner.text_prompts()
        features = self.text_encoder(
            prompts, learner.tokenized_prompts, deep, learner.shared_tokens
        )
        return learner.of_classes(features)

    def text_features(self) -> Tensor:
        """``encode_text``; without gradients computed once per state of the prompt learner."""
        return self._text_cache.get(self.prompt_learner, self.encode_text)

    def logits(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Scaled cosine similarities [B, n], in fp32 also under autocast."""
        with torch.autocast(image_features.device.type, enabled=False):
            return self.logit_scale.exp() * unit(image_features) @ unit(text_features).t()

    def classify(self, image_features: Tensor) -> Tensor:
        """Image features [B, d] to logits [B, n]."""
        return self.logits(image_features, self.text_features())

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] to logits [B, n]."""
        return self.classify(self.encode_image(images))

    @property
    def has_frozen_images(self) -> bool:
        """Whether the image features are those of the frozen CLIP, and all that logits need."""
        ours, learner = type(self), type(self.prompt_learner)
        return (
            ours.forward is PromptedCLIP.forward
            and ours.encode_image is PromptedCLIP.encode_image
            and learner.image_prompts is PromptLearner.image_prompts
        )
