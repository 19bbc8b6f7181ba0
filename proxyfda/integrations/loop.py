"""A regulariser in a training loop that is not to be changed: :func:`attach`."""

from __future__ import annotations

import math
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple, Union

import torch
from torch import Tensor, nn

from proxyfda.anchors.frozen_copy import FrozenCopy
from proxyfda.integrations.capture import in_backward_pass, register_forward_hook
from proxyfda.neighbours.cosines import full_precision
from proxyfda.regularisers.base import Regulariser
from proxyfda.utils.errors import BadType, BadValue, Unusable

__all__ = ["Attached", "attach"]


def attach(
    module: nn.Module,
    regulariser: Callable[..., Tensor],
    weight: float = 1.0,
    anchors: Union[str, nn.Module, Callable[..., Any]] = "copy",
    *,
    scale: Any = 1.0,
    output: Union[int, str, None] = None,
    features: Optional[Callable[[Tensor], Tensor]] = None,
) -> Attached:
    """Regularise the features that a module returns, wherever it is trained.

    From now on the gradient of ``weight * regulariser(features, anchors)`` joins the backward pass
    of every forward pass of the module that is trained, as if the term stood in the loss. Nothing
    else has to be called inside the loop. The reported loss is the task's alone; the terms are in
    ``handle.terms``.

    Each forward pass is one batch to the regulariser, also with several of them before a backward
    pass or an optimiser's step. Passes without gradient (evaluation) are left alone.

    A regulariser with parameters of its own (the proxies' generator) receives their gradients;
    give ``regulariser.parameters()`` to an optimiser.

    Args:
        module: returns features, alone or in a tuple, list or mapping.
        regulariser: one of :mod:`proxyfda.regularisers`, or a function of (features, anchors) that
            gives one scalar.
        weight: λ; it may be changed later as ``handle.weight``.
        anchors: the frozen side: ``"copy"``, a copy of the module as it is now; a module; or a
            function. The last two are called with what the module is called with (before torch 2.0
            with its positional arguments), without gradient, and return what the module returns.
        scale: the factor by which the loop scales its loss before the backward pass: a number (1/k
            where a loop divides by k steps of gradient accumulation), a ``GradScaler``, or a
            function that gives the factor.
        output: which of several outputs has the features, a position or a key; None: the first.
        features: makes features [N, d] of that output, for example ``lambda x: x[:, 0]`` of a
            transformer's tokens [N, T, d]; the gradient goes through it.

    Returns:
        The handle; ``handle.remove()`` restores the module.

    Raises:
        BadType: no module, or anchors of another kind.
        BadValue: a weight that is negative or not finite.

    >>> encoder = nn.Linear(4, 3)
    >>> handle = attach(encoder, lambda x, anchors: (x - anchors).square().sum())
    >>> encoder(torch.ones(2, 4)).sum().backward()
    >>> handle.terms, handle.remove()
    ({'loss': tensor(0.)}, None)
    """
    if not isinstance(module, nn.Module):
        raise BadType(
            f"module is a {type(module).__name__}; give the torch.nn.Module to regularise."
        )
    if isinstance(regulariser, Regulariser) and regulariser.kind == "weights":
        raise BadType(
            f"{type(regulariser).__name__} acts on weights and not on features; add "
            f"weight * regulariser() to the loss."
        )
    if anchors == "copy":
        anchors = FrozenCopy(module)
    if not callable(anchors):
        raise BadType(f'anchors is {anchors!r}; give "copy", a module or a function.')
    return Attached(module, regulariser, weight, anchors, scale, output, features)


class Attached:
    """What :func:`attach` returns.

    Attributes:
        weight: λ.
        terms: the terms of the last backward pass by name, without λ.
    """

    def __init__(
        self,
        module: nn.Module,
        regulariser: Callable[..., Tensor],
        weight: float,
        anchors: Callable[..., Any],
        scale: Any,
        output: Union[int, str, None],
        features: Optional[Callable[[Tensor], Tensor]],
    ) -> None:
        self.weight = weight
        self.terms: Dict[str, Tensor] = {}
        self._regulariser, self._anchors = regulariser, anchors
        self._scale, self._output, self._features = scale, output, features
        self._own: List[nn.Parameter] = []
        if isinstance(regulariser, nn.Module):
            self._own = [p for p in regulariser.parameters() if p.requires_grad]
        self._handle: Any = register_forward_hook(module, self._see)

    @property
    def weight(self) -> float:
        """λ; 0 leaves everything out."""
        return self._weight

    @weight.setter
    def weight(self, value: float) -> None:
        if not (isinstance(value, (int, float)) and math.isfinite(value) and value >= 0):
            raise BadValue(f"weight is {value!r}; give a finite number of at least 0.")
        self._weight = float(value)

    def remove(self) -> None:
        """Take everything off the module; graphs that exist lose the term as well."""
        if self._handle is not None:
            self._handle.remove()
        self._handle = None

    def _see(self, args: Tuple[Any, ...], kwargs: Dict[str, Any], output: Any) -> None:
        """A forward pass of the module."""
        if not torch.is_grad_enabled() or not self.weight:
            return
        returned = _tensor_of(output, self._output)
        # Activation checkpointing computes a pass again; its features count once.
        if not returned.requires_grad or in_backward_pass():
            return
        with torch.no_grad():
            anchors = _tensor_of(self._anchors(*args, **kwargs), self._output).detach()
        returned.register_hook(self._joiner(returned.detach(), anchors))

    def _joiner(self, returned: Tensor, anchors: Tensor) -> Callable[[Tensor], Optional[Tensor]]:
        """What adds the term's gradient to the one that arrives at what the module returned.

        Args:
            returned: without gradient: a hook that held the tensor it belongs to would keep it for
                ever. It shares the version counter.
            anchors: what the frozen side returned.
        """
        version, waiting = returned._version, [True]

        def join(grad: Tensor) -> Optional[Tensor]:
            if self._handle is None or not waiting:
                return None
            waiting.clear()  # a second backward pass over the graph is not a second term
            if returned._version != version:
                raise Unusable(
                    "the features were changed in place after the module returned them, so the "
                    "regulariser cannot see what they were; write x = x / y instead of x /= y"
                )
            extra = self._gradient(returned, anchors)
            # fp32 sum: a scaled half-precision gradient would lose the smaller summand.
            return (grad.float() + extra.float()).to(grad.dtype)

        return join

    def _gradient(self, returned: Tensor, anchors: Tensor) -> Tensor:
        """The scaled gradient of the weighted term; that of the regulariser's own goes there."""
        leaf = returned.float().detach().requires_grad_()
        with torch.enable_grad(), full_precision(leaf.device):
            features = leaf if self._features is None else self._features(leaf)
            anchors = anchors if self._features is None else self._features(anchors)
            if isinstance(self._regulariser, Regulariser):
                terms = self._regulariser.terms(features, anchors)
            else:
                terms = {"loss": self._regulariser(features, anchors)}
            total = torch.stack(list(terms.values())).sum() * (self.weight * self._factor(leaf))
            found = torch.autograd.grad(total, [leaf, *self._own], allow_unused=True)
        for parameter, gradient in zip(self._own, found[1:]):
            if gradient is not None:
                before = parameter.grad
                parameter.grad = gradient if before is None else before + gradient
        self.terms = {name: term.detach() for name, term in terms.items()}
        return torch.zeros_like(leaf) if found[0] is None else found[0]

    def _factor(self, like: Tensor) -> Any:
        scale = self._scale
        if hasattr(scale, "scale") and hasattr(scale, "is_enabled"):  # a GradScaler
            # In place of get_scale, which waits for the device.
            return scale.scale(like.new_ones(())) if scale.is_enabled() else 1.0
        return scale() if callable(scale) else scale


def _tensor_of(output: Any, key: Union[int, str, None]) -> Tensor:
    """The tensor that a module returns, alone or among others."""
    found = output
    if isinstance(output, Mapping):
        found = next(iter(output.values()), None) if key is None else output.get(key)
    elif isinstance(output, (tuple, list)):
        position: Any = 0 if key is None else key
        known = isinstance(position, int) and -len(output) <= position < len(output)
        found = output[position] if known else None
    if not isinstance(found, Tensor):
        which = "first" if key is None else repr(key)
        raise BadType(
            f"the module returned a {type(output).__name__} whose output {which} is a "
            f"{type(found).__name__} and no tensor; name the one with the features by output="
        )
    return found
