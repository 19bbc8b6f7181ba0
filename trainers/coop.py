"""CoOp: learnable context words of the class prompts.

Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022, arXiv 2109.01134.
"""

from __future__ import annotations

import torch
from torch import nn

from proxyfda.backbones.clip import POSITIONS, TextEncoder, initial_context
from proxyfda.dassl import TRAINER_REGISTRY, compute_accuracy
from proxyfda.utils.rules import Flag, OneOf, Real, Whole
from trainers.base import PromptTrainer
from trainers.prompted_clip import CONTEXT_WORDS, PromptLearner


class ContextLearner(PromptLearner):
    """Context vectors ``ctx``: [n_ctx, w] shared by all classes, or [n, n_ctx, w] one set each.

    Args:
        text_encoder: of the CLIP to be prompted.
        classnames: n names.
        n_ctx: number of context tokens where they start at random.
        ctx_init: words to start from instead; n_ctx is then their number, and the context is
            shared.
        csc: class-specific contexts.
        position: of the class name: ``end``, ``middle`` or ``front``.
    """

    prompt_sets = {("ctx",): ("N_CTX or CTX_INIT", "")}

    def __init__(
        self,
        text_encoder: TextEncoder,
        classnames: list[str],
        n_ctx: int = 16,
        ctx_init: str = "",
        csc: bool = False,
        position: str = "end",
    ):
        words = ctx_init.replace("_", " ").strip()
        if words:
            context = initial_context(text_encoder, words, len(words.split()))
            if csc:
                print("CTX_INIT gives one context to all classes, CSC has no effect")
        else:
            kind = "class-specific contexts" if csc else "a generic context"
            print(f"Initializing {kind}")
            shape = (len(classnames), n_ctx) if csc else (n_ctx,)
            context = torch.empty(*shape, text_encoder.width)
            nn.init.normal_(context, std=0.02)
        super().__init__(text_encoder, classnames, context, words, position)


@TRAINER_REGISTRY.register()
class CoOp(PromptTrainer):
    """Context optimisation; options under ``TRAINER.COOP``."""

    config_node = "COOP"
    defaults = {
        "N_CTX": 16,  # number of context tokens
        "CSC": False,  # a context for each class
        "CTX_INIT": "",  # initial words; they set the number of tokens
        "PREC": "fp16",  # fp16, fp32, amp or bf16
        "CLASS_TOKEN_POSITION": "end",  # end, middle or front
        "GRID_MEMORY": 4.0,  # GiB for the text encoder's activations of settings trained together
    }
    rules = {
        "N_CTX": Whole(1),
        "CSC": Flag(),
        "CTX_INIT": CONTEXT_WORDS,
        "CLASS_TOKEN_POSITION": OneOf(POSITIONS),
        "GRID_MEMORY": Real(above=0),
    }

    @classmethod
    def build_grid(cls, cfgs, outputs):
        """What trains several settings at once, see :class:`trainers.coop_grid.CoOpGrid`."""
        from trainers.coop_grid import CoOpGrid

        return CoOpGrid(cfgs, outputs)

    def build_prompt_learner(self, classnames, clip, text_encoder):
        options = self.options
        return ContextLearner(
            text_encoder,
            classnames,
            options.N_CTX,
            options.CTX_INIT,
            options.CSC,
            options.CLASS_TOKEN_POSITION,
        )

    def metrics(self, logits, labels):
        return {"acc": compute_accuracy(logits, labels)[0]}

    def misfit_remedy(self, state):
        ours, theirs = state.wanted["ctx"].shape, state.given.get("ctx", torch.empty(0)).shape
        if ours[-2:] == theirs[-2:] and len(ours) != len(theirs):
            return f"set TRAINER.COOP.CSC {len(theirs) == 3}"
        if ours[-2:] == theirs[-2:] and ours != theirs:
            return (
                f"its contexts belong to {theirs[0]} classes of their own and cannot serve "
                f"these {ours[0]}: evaluate on the classes of its training"
            )
        return super().misfit_remedy(state)
