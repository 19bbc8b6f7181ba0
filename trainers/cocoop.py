"""CoCoOp: context words of the class prompts that depend on the image.

Zhou et al., "Conditional Prompt Learning for Vision-Language Models", CVPR 2022, arXiv 2203.05557.
Every image has its own C class texts, so a batch of B images is B x C text passes. How they are
cut to fit into memory is ours.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from proxyfda.backbones.clip import TextEncoder
from proxyfda.dassl import TRAINER_REGISTRY
from proxyfda.neighbours.cosines import autocast_dtype
from proxyfda.utils.errors import BadValue
from proxyfda.utils.rules import Real, Whole
from trainers.base import PromptTrainer
from trainers.coop import ContextLearner
from trainers.memory import GIB, saved_bytes
from trainers.prompted_clip import CONTEXT_WORDS, PromptedCLIP, unit


class ConditionalContextLearner(ContextLearner):
    """Context vectors ``ctx`` [n_ctx, w] and the meta-net, which shifts all of them by one vector
    per image: context m of image x is ``ctx_m + meta_net(x)`` (section 3.2 of the paper).

    Args:
        text_encoder: of the CLIP to be prompted.
        classnames: n names.
        n_ctx: number of context tokens where they start at random.
        ctx_init: words to start from instead; n_ctx is then their number.
    """

    def __init__(
        self, text_encoder: TextEncoder, classnames: list[str], n_ctx: int = 4, ctx_init: str = ""
    ):
        super().__init__(text_encoder, classnames, n_ctx, ctx_init)
        features, hidden = text_encoder.output_dim, max(1, text_encoder.output_dim // 16)
        self.meta_net = nn.Sequential(
            OrderedDict(
                linear1=nn.Linear(features, hidden),
                relu=nn.ReLU(),
                linear2=nn.Linear(hidden, text_encoder.width),
            )
        )

    def contexts(self, image_features: Tensor) -> Tensor:
        """Image features [B, d], not normalised, to contexts [B, n_ctx, w]."""
        return self.ctx + self.meta_net(unit(image_features)).unsqueeze(1)


class ConditionalCLIP(PromptedCLIP):
    """A frozen CLIP whose class texts are made anew for each image.

    Args:
        clip, prompt_learner, text_encoder: as in :class:`PromptedCLIP`.
        max_memory: GiB that the text encoder's activations may take. A batch that needs more is
            cut into pieces, which are computed again in the backward pass, one after the other.
    """

    def __init__(self, clip, prompt_learner, text_encoder, max_memory: float = 4.0):
        super().__init__(clip, prompt_learner, text_encoder)
        self.max_memory = max_memory
        self._cuts = {}

    def encode_text(self, image_features: Tensor) -> Tensor:
        """Image features [B, d] to the text features [B, n, d] of each, neither normalised."""
        contexts = self.prompt_learner.contexts(image_features)
        images, parts = self.cut()
        pieces = [(some, classes) for some in contexts.split(images) for classes in parts]
        texts = []
        for index, piece in enumerate(pieces):
            # The backward pass starts with the last piece: that one may be kept until then.
            if torch.is_grad_enabled() and index + 1 < len(pieces):
                texts.append(checkpoint(self._encode, *piece, use_reentrant=False))
            else:
                texts.append(self._encode(*piece))
        return self.prompt_learner.of_classes(torch.cat(texts).unflatten(0, (len(contexts), -1)))

    def _encode(self, contexts: Tensor, classes: slice, encoder=None) -> Tensor:
        """Contexts [b, n_ctx, w] to features [b * n, d] of the classes, image after image."""
        learner = self.prompt_learner
        prompts = learner.class_prompts(contexts.unsqueeze(1))[:, classes]
        tokens, shared = learner.tokenized_prompts[classes], learner.shared_tokens
        return (encoder or self.text_encoder)(prompts, tokens, shared=shared)

    def cut(self) -> tuple[int, list[slice]]:
        """How a batch is cut: images in one piece, and the classes of each piece (more than one
        slice only if the classes of a single image are too many).

        The memory is measured, once per precision, and again where words have more tokens than were
        measured: a formula would have to know what each version of torch keeps for each kind of
        block.

        Raises:
            ValueError: a single prompt takes more than ``max_memory``.
        """
        count = len(self.prompt_learner.tokenized_prompts)
        key = autocast_dtype(self.logit_scale.device.type), count
        tokens = self.prompt_learner.class_prompts.tokens
        if key not in self._cuts or self._cuts[key][0] < tokens:
            parts = self._fitting(slice(0, count))
            images = self.max_memory * GIB // parts[0][1] if len(parts) == 1 else 1
            self._cuts[key] = tokens, (int(images), [classes for classes, _ in parts])
        return self._cuts[key][1]

    def _fitting(self, classes: slice) -> list[tuple[slice, int]]:
        """The classes, halved until the activations of each part fit, with their bytes."""
        context = self.prompt_learner.ctx.detach().unsqueeze(0).requires_grad_()
        # ``forward`` itself: hooks are for the features of the step.
        encoder = self.text_encoder.forward
        taken = saved_bytes(self, lambda: self._encode(context, classes, encoder))
        if taken <= self.max_memory * GIB:
            return [(classes, taken)]
        middle = (classes.start + classes.stop) // 2
        if middle == classes.start:
            raise BadValue(
                f"TRAINER.COCOOP.MAX_MEMORY is {self.max_memory:g} GiB, but one prompt takes "
                f"{taken / GIB:.2g} GiB of activations; raise it."
            )
        halves = slice(classes.start, middle), slice(middle, classes.stop)
        return [part for half in halves for part in self._fitting(half)]

    def logits(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Scaled cosine similarities [B, n] of features [B, d] and [B, n, d], in fp32."""
        with torch.autocast(image_features.device.type, enabled=False):
            cosines = torch.einsum("bd,bnd->bn", unit(image_features), unit(text_features))
            return self.logit_scale.exp() * cosines

    def classify(self, image_features: Tensor) -> Tensor:
        """Image features [B, d] to logits [B, n]."""
        return self.logits(image_features, self.encode_text(image_features))


@TRAINER_REGISTRY.register()
class CoCoOp(PromptTrainer):
    """Conditional context optimisation; options under ``TRAINER.COCOOP``."""

    config_node = "COCOOP"
    defaults = {
        "N_CTX": 16,  # number of context tokens
        "CTX_INIT": "",  # initial words; they set the number of tokens
        "PREC": "fp16",  # fp16, fp32, amp or bf16
        "MAX_MEMORY": 4.0,  # GiB for the text encoder's activations
    }
    rules = {"N_CTX": Whole(1), "CTX_INIT": CONTEXT_WORDS, "MAX_MEMORY": Real(above=0)}

    def build_prompt_learner(self, classnames, clip, text_encoder):
        options = self.options
        return ConditionalContextLearner(text_encoder, classnames, options.N_CTX, options.CTX_INIT)

    def build_clip_model(self, classnames, clip):
        text_encoder = TextEncoder(clip)
        learner = self.build_prompt_learner(classnames, clip, text_encoder)
        return ConditionalCLIP(clip, learner, text_encoder, self.options.MAX_MEMORY)
