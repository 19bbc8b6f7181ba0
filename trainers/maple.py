"""MaPLe: prompts in the text encoder, and their learned projections in the image encoder.

Khattak et al., "MaPLe: Multi-modal Prompt Learning", CVPR 2023, arXiv 2210.03117.
"""

from __future__ import annotations

import copy

from torch import nn

from proxyfda.backbones.clip import ImageEncoder, TextEncoder
from proxyfda.dassl import TRAINER_REGISTRY
from proxyfda.utils.rules import Whole
from trainers.deep_prompts import DeepPromptLearner, DeepPromptTrainer, random_prompts
from trainers.prompted_clip import CONTEXT_WORDS


class MultiModalPromptLearner(DeepPromptLearner):
    """Text prompts of ``depth`` layers, and for each a linear map to the image encoder's width.

    ``ctx`` [n_ctx, w_t] and ``proj`` are those of the input, ``compound_prompts_text`` and
    ``compound_prompt_projections`` those of the blocks 1..depth-1. The projections of the deeper
    blocks start equal (as upstream's).

    Args:
        text_encoder: of the CLIP to be prompted.
        classnames: n names.
        n_ctx: number of tokens of every prompt, in both encoders.
        ctx_init: words to start the context from (see :class:`DeepPromptLearner`).
        depth: number of layers with prompts, at least 1.
        image_width: w_v, of the image encoder's tokens.
    """

    prompt_sets = {("ctx", "compound_prompts_text"): ("N_CTX", "PROMPT_DEPTH")}

    def __init__(
        self,
        text_encoder: TextEncoder,
        classnames: list[str],
        n_ctx: int,
        ctx_init: str,
        depth: int,
        image_width: int,
    ):
        super().__init__(text_encoder, classnames, n_ctx, ctx_init)
        width, deeper = text_encoder.width, range(depth - 1)
        self.proj = nn.Linear(width, image_width)
        self.compound_prompts_text = nn.ParameterList(random_prompts(n_ctx, width) for _ in deeper)
        projection = nn.Linear(width, image_width)
        self.compound_prompt_projections = nn.ModuleList(copy.deepcopy(projection) for _ in deeper)

    def text_prompts(self):
        return self.class_prompts(self.ctx), list(self.compound_prompts_text)

    def image_prompts(self):
        pairs = zip(self.compound_prompt_projections, self.compound_prompts_text)
        return self.proj(self.ctx), [projection(prompts) for projection, prompts in pairs]


@TRAINER_REGISTRY.register()
class MaPLe(DeepPromptTrainer):
    """Multi-modal prompt learning; options under ``TRAINER.MAPLE``."""

    config_node = "MAPLE"
    defaults = {
        "N_CTX": 2,  # number of context tokens on both sides
        "CTX_INIT": "a photo of a",  # initial words, used up to 4 tokens
        "PREC": "fp16",  # fp16, fp32, amp or bf16
        "PROMPT_DEPTH": 9,  # layers with prompts; 1: the input alone
    }
    model_name = "MultiModalPromptLearner"
    rules = {"N_CTX": Whole(1), "CTX_INIT": CONTEXT_WORDS, "PROMPT_DEPTH": Whole(1)}
    depths = {"PROMPT_DEPTH": ("text", "image")}
    image_tokens = "N_CTX"

    def build_prompt_learner(self, classnames, clip, text_encoder):
        options = self.options
        return MultiModalPromptLearner(
            text_encoder,
            classnames,
            options.N_CTX,
            options.CTX_INIT,
            options.PROMPT_DEPTH,
            ImageEncoder(clip).width,
        )
