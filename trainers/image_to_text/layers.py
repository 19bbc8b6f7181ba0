"""The outputs of several layers of an image encoder, for regularisers that compare those."""

from __future__ import annotations

from contextlib import contextmanager

import torch

from proxyfda.backbones.image import slice_positions

__all__ = ["OUTPUT", "handed_out", "listed"]

OUTPUT = "hidden_states"
"""Of an encoder's outputs the one with its layers."""


@contextmanager
def handed_out(vision):
    """Within, an image encoder of transformers hands out the layers that LDIFS compares.

    Its ``hidden_states`` are then one tensor [N, S, T, d]: what goes into the first block and what
    comes out of each quarter of the blocks (:func:`~proxyfda.backbones.image.slice_positions`). Its
    other outputs keep their values. A gradient that is added to that tensor, as ``attach`` does,
    reaches the layers. Copies made within, such as a frozen one, do the same.
    """
    hooks = [
        vision.register_forward_pre_hook(_asked_for, with_kwargs=True),
        vision.register_forward_hook(_stacked),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def listed(stack):
    """The S layers [N, T, d] of a tensor [N, S, T, d]."""
    return list(stack.unbind(1))


def _asked_for(module, args, kwargs):
    return args, {**kwargs, "output_hidden_states": True}


def _stacked(module, args, output):
    states = output[OUTPUT]
    stack = torch.stack([states[i] for i in slice_positions(len(states) - 1)], dim=1)
    # The task's loss makes use of the last state alone. Through this nothing, its gradient comes by
    # the stack, where another one can join it.
    output["last_hidden_state"] = output["last_hidden_state"] + 0.0 * stack[:, 0, :1]
    output[OUTPUT] = stack
    return output
