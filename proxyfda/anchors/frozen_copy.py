"""The frozen side as a copy of a module, made before it is tuned."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from proxyfda.utils.errors import BadType

__all__ = ["FrozenCopy"]


class FrozenCopy(nn.Module):
    """A copy of a module as it is now: in eval mode, without gradient, never trained.

    Its output on a batch are the anchors of the features that the module itself gives::

        frozen = FrozenCopy(encoder)
        loss = task_loss + weight * regulariser(encoder(images), frozen(images))

    Args:
        module: what is copied; it stays as it is.

    Raises:
        BadType: not a module.

    >>> layer = nn.Linear(2, 2)
    >>> frozen = FrozenCopy(layer)
    >>> _ = layer.weight.data.add_(1.0)
    >>> x = torch.ones(1, 2)
    >>> bool((frozen(x) == layer(x)).any()), frozen(x).requires_grad
    (False, False)
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise BadType(f"module is a {type(module).__name__}; give a torch.nn.Module to copy.")
        self.module = copy.deepcopy(module).requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> FrozenCopy:
        """Stay in eval mode, whatever holds this module."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module returned when it was copied."""
        return self.module(*args, **kwargs)
