"""Add the gradient of a further loss inside somebody else's backward pass.

A host trainer computes its loss and steps inside ``forward_backward`` and hands out neither the
features nor the loss. For L = L_task + λ R(f) with features f, the chain rule gives

    dL/dθ = (dL_task/df + λ dR/df) · df/dθ,

so it is enough to add λ dR/df to the gradient that arrives at f while the host's own backward pass
runs. This is exact, needs no second backward through the encoders, and works for any loss. With the
trained weights themselves in the place of f it holds for a loss on weights.
"""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import (
    Any,
    Callable,
    ContextManager,
    Dict,
    Iterator,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    Union,
)

import torch
from torch import Tensor, nn
from torch.utils import checkpoint

from proxyfda.anchors.host_weights import is_images
from proxyfda.neighbours.cosines import autocast_dtype, full_precision
from proxyfda.utils.errors import BadType, Unusable

__all__ = ["Call", "Captured", "FeatureCapture", "WeightCapture", "tensors_in"]

Scale = Callable[[], Union[float, Tensor]]
"""Gives the factor by which the host scales its loss."""


def _backward_pass() -> int:
    """Number of the backward pass that this thread is in; -1 outside."""
    if hasattr(torch._C, "_current_graph_task_id"):
        return torch._C._current_graph_task_id()
    # Before torch 2.0: a checkpoint that computes its part again shows on the stack.
    frame: Any = sys._getframe()
    while frame is not None:
        code = frame.f_code
        if code.co_name in ("unpack", "backward") and code.co_filename == checkpoint.__file__:
            return 0
        frame = frame.f_back
    return -1


def in_backward_pass() -> bool:
    """Whether this runs within a backward pass, as activation checkpointing does."""
    return _backward_pass() != -1


def _autocast(device: str) -> Callable[[], ContextManager[Any]]:
    """Gives contexts with the autocast setting that holds now."""
    dtype = autocast_dtype(device)
    return nullcontext if dtype is None else partial(torch.autocast, device, dtype=dtype)


@dataclass
class Call:
    """One forward call of an encoder.

    Attributes:
        inputs: what it was called with: the first images [B, 3, H, W] among the tensors in its
            arguments, also in lists, tuples and dicts; or else the first tensor without gradient
            (prompts have some), or else the first tensor, or else the first argument; None without
            any.
        output: the features.
        tuned: whether they carried gradient when they came out.
        precision: gives the autocast context that the call ran in.
        args, kwargs: all that it was called with.
        more: further inputs behind these, whose features the host does not see; the last rows of
            ``output`` are theirs.
    """

    inputs: Any
    output: Tensor
    tuned: bool
    precision: Callable[[], ContextManager[Any]]
    args: Tuple[Any, ...] = ()
    kwargs: Dict[str, Any] = field(default_factory=dict)
    more: Optional[Tensor] = None


_REENTRANT = (
    "the {} runs inside a reentrant checkpoint, whose features have no gradient to add to; call "
    "torch.utils.checkpoint.checkpoint with use_reentrant=False"
)


@dataclass
class Captured:
    """Features of one training step, as detached fp32 leaves that a loss can differentiate.

    Attributes:
        calls: per encoder name, the calls that take part (see :meth:`FeatureCapture.step`).
        leaves: per encoder name, one leaf for each call, same shape as its output.
    """

    calls: Dict[str, List[Call]] = field(default_factory=dict)
    leaves: Dict[str, List[Tensor]] = field(default_factory=dict)

    def tuned(self, name: str) -> bool:
        """Whether gradients flow through this encoder's output in this step."""
        return any(call.tuned for call in self.calls.get(name, []))


class _Joint:
    """When a gradient joins a backward pass: within :meth:`step`, once for each tensor.

    Args:
        backward_pass: which of the backward passes that reach a tensor in a step takes the
            gradient, from 1.
    """

    def __init__(self, backward_pass: int) -> None:
        self._backward_pass = backward_pass
        self._active = False
        self._reached: Counter[Any] = Counter()
        self._extra: Optional[Dict[int, Optional[Tensor]]] = None
        self._scale: Scale = lambda: 1.0
        self._scaled_by: Union[float, Tensor] = 1.0
        self._handles: List[Any] = []

    @property
    def joined(self) -> bool:
        """Whether the gradient reached the host's backward pass in the current or last step."""
        return self._extra is not None

    def remove(self) -> None:
        """Take all hooks off."""
        for handle in self._handles:
            handle.remove()

    @contextmanager
    def step(self, scale: Scale = lambda: 1.0) -> Iterator[None]:
        """Capture what happens inside, and join the gradient to the backward pass in it.

        Args:
            scale: gives the factor by which the host scales its loss (``GradScaler``), asked once
                when the backward pass gets here.
        """
        self._begin()
        self._active, self._scale = True, scale
        self._reached, self._extra = Counter(), None
        try:
            yield
        finally:
            self._active = False
            self._end()

    def _begin(self) -> None:
        pass

    def _end(self) -> None:
        pass

    def _compute(self) -> Dict[int, Optional[Tensor]]:
        """Gradient by the identity of the tensor that it joins."""
        raise NotImplementedError

    def _has_more(self) -> bool:
        """Whether something came that the last computation has not seen."""
        return False

    def _join(self, key: int) -> Callable[[Tensor], Optional[Tensor]]:
        def join(grad: Tensor) -> Optional[Tensor]:
            if not self._active:
                return None
            # A host may run backward twice over one graph; the term belongs in once. Where it does
            # so for the features of two batches, what both share (class texts) takes both terms.
            self._reached[key] += 1
            due = self._reached[key] == self._backward_pass
            if self._extra is not None and self._backward_pass == 1:
                due |= key in self._extra or self._has_more()
            if not due:
                return None
            if self._extra is None or self._has_more():
                # The hooks also run where the loss of this gradient goes back to the weights.
                self._active = False
                self._extra = {**(self._extra or {}), **self._compute()}
                self._active = True
                self._scaled_by = self._scale()
            extra = self._extra.pop(key, None)
            if extra is None:
                return None
            # fp32 sum: a scaled half-precision gradient would lose the smaller summand.
            return (grad.float() + extra.float() * self._scaled_by).to(grad.dtype)

        return join


class FeatureCapture(_Joint):
    """Watches encoders by forward hooks and joins a gradient to their features.

    Args:
        encoders: name -> module whose forward returns features (a tensor, or a tuple that starts
            with one).
        gradients: called once per step, as soon as the host's backward pass reaches any of the
            captured features, with a :class:`Captured`; returns for each encoder name one
            gradient (or ``None``) per leaf.
        backward_pass: see :class:`_Joint`.
        more_inputs: per encoder name, what gives further inputs [n, ...] for the inputs [B, ...] of
            a call, or None. They go through the encoder in the same call, behind the host's own,
            and their features do not reach the host. It may be asked again for the same call.

    Attributes:
        seen: the encoders called in the last step, and whether their features had gradient.
    """

    def __init__(
        self,
        encoders: Dict[str, nn.Module],
        gradients: Callable[[Captured], Dict[str, List[Optional[Tensor]]]],
        backward_pass: int = 1,
        more_inputs: Optional[Mapping[str, Callable[[Tensor], Optional[Tensor]]]] = None,
    ) -> None:
        super().__init__(backward_pass)
        self.seen: Dict[str, bool] = {}
        self._gradients = gradients
        self._calls: Dict[str, List[Call]] = {}
        self._again: Counter[Any] = Counter()
        self._added: Dict[str, Tuple[Tensor, Optional[Tensor]]] = {}
        for name, module in encoders.items():
            self._handles.append(register_forward_hook(module, self._hook(name)))
            if more_inputs and name in more_inputs:
                add = self._adder(name, more_inputs[name])
                self._handles.append(_register_pre_hook(module, add))

    def _begin(self) -> None:
        self._calls, self._again, self._added = {}, Counter(), {}
        self._computed: Counter[str] = Counter()

    def _end(self) -> None:
        self.seen = {name: any(call.tuned for call in calls) for name, calls in self._calls.items()}
        self._calls = {}

    def _adder(
        self, name: str, more_inputs: Callable[[Tensor], Optional[Tensor]]
    ) -> Callable[[Tuple[Any, ...], Dict[str, Any]], Any]:
        """What puts further inputs behind those of a call."""

        def add(args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:
            if not self._active:
                return None
            inputs = _first_input([*args, *kwargs.values()])
            if not isinstance(inputs, Tensor):
                raise Unusable(
                    f"the {name} got no tensor by position (by keyword it is seen from torch 2.0 "
                    "on), so there is nothing to mix; set TRAINER.PROXYFDA.MIXED 0"
                )
            if not any(value is inputs for value in [*args, *kwargs.values()]):
                raise Unusable(
                    f"the {name} gets its images inside a list, where none can be put behind them; "
                    "set TRAINER.PROXYFDA.MIXED 0"
                )
            more = more_inputs(inputs)
            self._added[name] = inputs, more
            if more is None:
                return None
            joined = torch.cat([inputs, more.to(inputs.dtype)])
            return (
                tuple(joined if value is inputs else value for value in args),
                {key: joined if value is inputs else value for key, value in kwargs.items()},
            )

        return add

    def _hook(self, name: str) -> Callable[[Any, Any, Any], Any]:
        def hook(args: Any, kwargs: Any, output: Any) -> Any:
            if not self._active:
                return None
            added, more = self._added.pop(name, (None, None))
            note(args, kwargs, output, added, more)
            # The host gets what it asked for.
            return None if more is None or added is None else _first_rows(output, added, more)

        def note(args: Any, kwargs: Any, output: Any, added: Any, more: Any) -> None:
            features = output[0] if isinstance(output, (tuple, list)) else output
            if not isinstance(features, Tensor):
                raise BadType(
                    f"the {name} returned a {type(features).__name__}, not a feature tensor; "
                    "name the module that returns features in the trainer's regularised_modules"
                )
            calls = self._calls.setdefault(name, [])
            backward = _backward_pass()
            if backward != -1:
                # Activation checkpointing computes the call again; its features count once.
                self._again[name, backward] += features.requires_grad
                if self._again[name, backward] > sum(call.tuned for call in calls):
                    raise Unusable(_REENTRANT.format(name))
                return
            inputs = _first_input([*args, *kwargs.values()]) if added is None else added
            precision = _autocast(features.device.type)
            calls.append(
                Call(inputs, features, features.requires_grad, precision, tuple(args), kwargs, more)
            )
            if features.requires_grad:
                features.register_hook(self._join(id(features)))

        return hook

    def _has_more(self) -> bool:
        # Half-batches: forward, backward, forward, backward within one step of the host.
        return any(
            call.tuned
            for name, calls in self._calls.items()
            for call in calls[self._computed[name] :]
        )

    def _compute(self) -> Dict[int, Optional[Tensor]]:
        captured = Captured()
        for name, found in self._calls.items():
            calls = found[self._computed[name] :] or found
            self._computed[name] = len(found)
            tuned = [call for call in calls if call.tuned]
            if any(call.output.requires_grad and not call.tuned for call in calls):
                raise Unusable(_REENTRANT.format(name))
            # Where a host runs an encoder both tuned and frozen (a teacher pass), the tuned
            # features are the ones to align.
            captured.calls[name] = tuned or calls
            captured.leaves[name] = [
                call.output.detach().float().requires_grad_(call.tuned)
                for call in captured.calls[name]
            ]
        # A host may run its backward pass under autocast, which would round this one too.
        device = next(iter(captured.leaves.values()))[0].device
        with torch.enable_grad(), full_precision(device):
            gradients = self._gradients(captured)
        return {
            id(call.output): gradient
            for name, found in gradients.items()
            for call, gradient in zip(captured.calls[name], found)
        }


def tensors_in(value: Any) -> List[Tensor]:
    """The tensors in a value, itself one or a list, tuple or dict of values, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for part in value for tensor in tensors_in(part)]
    return []


def _first_input(arguments: List[Any]) -> Any:
    """See :class:`Call`."""
    tensors = tensors_in(arguments)
    tensors = [t for t in tensors if not t.requires_grad] + tensors
    return next(iter([*filter(is_images, tensors), *tensors, *arguments]), None)


def _first_rows(output: Any, inputs: Tensor, more: Tensor) -> Any:
    """What an encoder would have returned without the further inputs."""

    def cut(value: Any) -> Any:
        rows = len(inputs) + len(more)
        whole = isinstance(value, Tensor) and value.dim() > 0 and len(value) == rows
        return value[: len(inputs)] if whole else value

    if isinstance(output, (tuple, list)):
        return type(output)(map(cut, output))
    return cut(output)


def _register_pre_hook(
    module: nn.Module, hook: Callable[[Tuple[Any, ...], Dict[str, Any]], Any]
) -> Any:
    """A hook that is given positional and keyword arguments and may replace them."""
    try:
        return module.register_forward_pre_hook(
            lambda _, args, kwargs: hook(args, kwargs), with_kwargs=True
        )
    except TypeError:  # before torch 2.0, where hooks see no keyword arguments

        def positional(_: Any, args: Any) -> Any:
            replaced = hook(args, {})
            return None if replaced is None else replaced[0]

        return module.register_forward_pre_hook(positional)


def register_forward_hook(module: nn.Module, hook: Callable[[Any, Any, Any], Any]) -> Any:
    """A forward hook that is given positional and keyword arguments and the output, which what it
    returns replaces unless that is None."""
    try:
        return module.register_forward_hook(
            lambda _, args, kwargs, output: hook(args, kwargs, output), with_kwargs=True
        )
    except TypeError:  # before torch 2.0, where hooks see no keyword arguments
        return module.register_forward_hook(lambda _, args, output: hook(args, {}, output))


class WeightCapture(_Joint):
    """Joins a gradient to trained weights.

    Args:
        weights: the weights.
        gradients: called once per step, as soon as the backward pass reaches any of them; returns
            one gradient per weight.
        backward_pass: see :class:`_Joint`.
    """

    def __init__(
        self,
        weights: Sequence[nn.Parameter],
        gradients: Callable[[], Sequence[Tensor]],
        backward_pass: int = 1,
    ) -> None:
        super().__init__(backward_pass)
        self._weights, self._gradients = list(weights), gradients
        self._handles = [weight.register_hook(self._join(id(weight))) for weight in self._weights]

    def _compute(self) -> Dict[int, Optional[Tensor]]:
        with torch.enable_grad():
            found = self._gradients()
        return {id(weight): gradient for weight, gradient in zip(self._weights, found)}
