"""What trainers with prompts in both encoders, down to some depth, share (MaPLe, PromptSRC)."""

from __future__ import annotations

import torch
from torch import nn

from proxyfda.backbones.clip import (
    ImageEncoder,
    TextEncoder,
    initial_context,
    prompts_no_images,
)
from proxyfda.utils.errors import BadValue
from trainers.base import PromptTrainer
from trainers.prompted_clip import PromptLearner

MAX_WORDS = 4  # longer contexts start at random, whatever CTX_INIT says (as upstream)


def random_prompts(n_ctx: int, width: int) -> nn.Parameter:
    """Prompts [n_ctx, width] from N(0, 0.02^2)."""
    return nn.Parameter(nn.init.normal_(torch.empty(n_ctx, width), std=0.02))


class DeepPromptLearner(PromptLearner):
    """A context ``ctx`` [n_ctx, w] before the class names, the first of the text prompts.

    With words and n_ctx <= 4 the context starts from the embeddings of their first n_ctx tokens.
    The words beyond stay in the prompt as they are. Where the words have fewer tokens than n_ctx,
    upstream's reading is kept: the context then takes the place of the class name's first tokens,
    and a printed line says so.

    Args:
        text_encoder: of the CLIP to be prompted.
        classnames: n names.
        n_ctx: number of context tokens.
        ctx_init: words to start from.
    """

    def __init__(self, text_encoder: TextEncoder, classnames: list[str], n_ctx: int, ctx_init: str):
        words = ctx_init.replace("_", " ").strip()
        if words and n_ctx > MAX_WORDS:
            print(f'CTX_INIT "{words}" is not used: {n_ctx} context tokens are above {MAX_WORDS}')
            words = ""
        if words:
            context = initial_context(text_encoder, words, n_ctx)
            used = int(text_encoder.eot_positions(text_encoder.tokenize([words]))) - 1
            if used < n_ctx:
                print(
                    f'Warning: "{words}" has {used} tokens for {n_ctx} context tokens; the others '
                    "take the place of the first tokens of the class names"
                )
        else:
            context = random_prompts(n_ctx, text_encoder.width)
        super().__init__(text_encoder, classnames, context, words)


class DeepPromptTrainer(PromptTrainer):
    """Checks of the options for prompts in both encoders.

    Attributes:
        depths: option of a depth -> the encoders, ``image`` and ``text``, that it must fit.
        image_tokens: option of the number of prompts beside the image's own tokens.
    """

    depths: dict[str, tuple[str, ...]] = {}
    image_tokens = ""

    def check_cfg(self, cfg):
        super().check_cfg(cfg)
        backbone = cfg.MODEL.BACKBONE.NAME
        if prompts_no_images(backbone):  # said before anything is fetched
            raise self._no_tokens(backbone)

    def _no_tokens(self, backbone: str) -> BadValue:
        return BadValue(
            f"{type(self).__name__} prompts the image encoder, and that of {backbone} has no "
            "tokens; set MODEL.BACKBONE.NAME to a vision transformer such as ViT-B/16."
        )

    def build_clip_model(self, classnames, clip):
        encoders = {"image": ImageEncoder(clip), "text": TextEncoder(clip)}
        backbone = self.cfg.MODEL.BACKBONE.NAME
        if not encoders["image"].takes_prompts:
            raise self._no_tokens(backbone)
        asked, there = self.options[self.image_tokens], encoders["image"].num_tokens
        if asked > there:
            raise BadValue(
                f"TRAINER.{self.config_node}.{self.image_tokens} is {asked}, but an image has "
                f"{there} tokens in {backbone}; use at most as many."
            )
        for name, sides in self.depths.items():
            for side in sides:
                layers = encoders[side].num_layers
                if self.options[name] > layers:
                    raise BadValue(
                        f"TRAINER.{self.config_node}.{name} is {self.options[name]}, but the "
                        f"{side} encoder of {backbone} has {layers} layers; use at most {layers}."
                    )
        return super().build_clip_model(classnames, clip)
