"""Checkpoints of prompt learners, ours and upstream's.

Ours hold the learnables alone. Upstream's CoOp and CoCoOp store the prompt learner, its MaPLe and
PromptSRC the whole model; there the learnables have other names (``PromptLearner.upstream``), the
frozen entries are dropped, and complaints keep to the names that the file uses.
"""

from __future__ import annotations

import re

from torch import Tensor, nn

from proxyfda.backbones.weights import mismatches
from proxyfda.dassl import check_finite, load_checkpoint
from proxyfda.utils.errors import BadValue

# The embedded class names are among them: they belong to the classes of the training.
_FROZEN = re.compile(
    r"(prompt_learner\.)?token_(prefix|suffix)|logit_scale|prompt_learner\.ZS_image_encoder\..*"
    r"|(image|text)_encoder\.(?!.*VPT).*"
)
_WHOLE_MODEL = ("prompt_learner.", "image_encoder.", "text_encoder.")


def rename(name: str, pairs) -> str:
    """A name by the first pair of patterns whose left side it has; ``{}`` stands for anything."""
    for left, right in pairs:
        match = re.fullmatch(re.escape(left).replace(r"\{\}", "(.+)"), name)
        if match:
            return right.format(*match.groups())
    return name


def to_upstream(learner: nn.Module) -> dict[str, Tensor]:
    """A prompt learner's state dict under the names of upstream's checkpoints."""
    return {rename(k, learner.upstream): v for k, v in learner.state_dict().items()}


class LearnerState:
    """The learnables that a checkpoint holds for a prompt learner.

    Args:
        path: the file: a checkpoint with a ``state_dict``, or a bare state dict.
        learner: the prompt learner to be filled.

    Attributes:
        given: the learnables of the file, under our names.
        epoch: of the checkpoint, or "unknown".

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds no state dict.
        NotFinite: a weight in it is infinite or no number.
    """

    def __init__(self, path: str, learner: nn.Module):
        checkpoint = load_checkpoint(path)
        state = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, dict) else None
        values = list(state.values()) if isinstance(state, dict) else []
        if not values or not all(isinstance(value, Tensor) for value in values):
            raise BadValue(f"{path} is no checkpoint of a trainer (it has no state_dict).")
        check_finite(state, path)
        self.path = path
        self.epoch = checkpoint.get("epoch", "unknown")
        self.wanted = learner.state_dict()
        whole = any(name.startswith(_WHOLE_MODEL) for name in state)
        self._to_file = learner.upstream if whole else ()
        to_ours = [(theirs, ours) for ours, theirs in self._to_file]
        self._in_file = {k: v for k, v in state.items() if not _FROZEN.fullmatch(k)}
        self.given = {rename(name, to_ours): value for name, value in self._in_file.items()}

    def problems(self) -> str:
        """What is missing, unexpected or of another shape, in the file's names; or ""."""
        wanted = {rename(name, self._to_file): value for name, value in self.wanted.items()}
        return mismatches(wanted, self._in_file)

    def remedy(self, prompt_sets, node: str) -> str:
        """What to do about a checkpoint that does not fit.

        Args:
            prompt_sets: see ``PromptLearner.prompt_sets``.
            node: the trainer's config node, for example ``TRAINER.COOP``.
        """
        tokens = {head: option for heads, (option, _) in prompt_sets.items() for head in heads}
        for name in self.wanted:
            ours, theirs = self.wanted[name].shape, self.given.get(name, self.wanted[name]).shape
            if ours == theirs or min(len(ours), len(theirs)) < 2:
                continue
            option = tokens.get(name.partition(".")[0])
            if ours[-1] != theirs[-1] or (option is None and ours[-2] != theirs[-2]):
                return "it was trained with a backbone of another width: set MODEL.BACKBONE.NAME"
            if ours[-2] != theirs[-2]:
                return (
                    f"it has {theirs[-2]} context tokens and the config asks for {ours[-2]}: set "
                    f"{node}.{option} as in its training"
                )
        for heads, (_, option) in prompt_sets.items():
            ours, theirs = (
                sum(name.partition(".")[0] in heads for name in state)
                for state in (self.wanted, self.given)
            )
            if option and theirs and ours != theirs:
                return (
                    f"its prompt depth is {theirs} and the config asks for {ours}: set "
                    f"{node}.{option} {theirs}"
                )
        return f"check --trainer, --model-dir and the options under {node}"
