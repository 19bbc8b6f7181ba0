"""The frozen side as a copy of a module, made before it is tuned."""

from __future__ import annotations

import copy
from typing import Any, Dict, Iterator, Tuple

import torch
from torch import Tensor, nn

from proxyfda.utils.errors import BadType

__all__ = ["FrozenCopy"]


class FrozenCopy(nn.Module):
    """A copy of a module as it is now: in eval mode, without gradient, never trained.

    Its output on a batch are the anchors of the features that the module itself gives::

        frozen = FrozenCopy(encoder)
        loss = task_loss + weight * regulariser(encoder(images), frozen(images))

    Of a module inside ``DistributedDataParallel``, ``DataParallel`` or ``torch.compile`` the module
    itself is copied. Its hooks are copied along, since some make weights (``weight_norm``).

    Args:
        module: what is copied; it stays as it is.

    Raises:
        BadType: not a module, or one that cannot be copied, such as one that FSDP has sharded.

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
        self.module = _copied(_unwrapped(module)).requires_grad_(False)
        self._places = _places(_unwrapped(module))
        self.eval()

    def train(self, mode: bool = True) -> FrozenCopy:
        """Stay in eval mode, whatever holds this module."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module returned when it was copied."""
        return self.module(*args, **kwargs)

    def follow(self, module: nn.Module) -> None:
        """Go where the module that was copied is by now, with every weight, and take its dtype."""
        module = _unwrapped(module)
        first = next(_weights(module), None)
        if first is None or self._places.get(first[0]) == (first[1].device, first[1].dtype):
            return
        places = _places(module)
        goals = {id(w): places[name] for name, w in _weights(self.module) if name in places}
        self.module._apply(lambda w: w.to(*goals[id(w)]) if id(w) in goals else w)
        self._places = places


def _weights(module: nn.Module) -> Iterator[Tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _places(module: nn.Module) -> Dict[str, Tuple[torch.device, torch.dtype]]:
    return {name: (weight.device, weight.dtype) for name, weight in _weights(module)}


def _unwrapped(module: nn.Module) -> nn.Module:
    """The module inside wrappers that have one alone."""
    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    while True:
        inner = module.module if isinstance(module, wrappers) else module._modules.get("_orig_mod")
        if inner is None:
            return module
        module = inner


def _copied(module: nn.Module) -> nn.Module:
    name = type(module).__name__
    known: Dict[int, Any] = {}
    for part in module.modules():
        if type(part).__name__ == "FullyShardedDataParallel":
            raise BadType(
                f"the {name} is sharded by FSDP and cannot be copied; copy it before, "
                "frozen = FrozenCopy(module), and give anchors=frozen."
            )
        # Weights that a hook has computed (weight_norm) are no leaves, which torch cannot copy.
        for value in vars(part).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                known[id(value)] = value.detach().clone()
    if any(nn.parameter.is_lazy(weight) for _, weight in _weights(module)):
        raise BadType(f"the {name} has weights without values yet; run it on a batch first.")
    try:
        return copy.deepcopy(module, known)
    except Exception as error:  # whatever the parts of a user's module raise
        reason = (str(error).splitlines() or [""])[0].rstrip(".")
        raise BadType(
            f"the {name} cannot be copied ({type(error).__name__}: {reason}); give as anchors a "
            "module that was loaded apart, or FrozenCopy(module) from before it was sharded."
        ) from error
