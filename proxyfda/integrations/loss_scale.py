"""By which factor a loop multiplies its loss before the backward pass, found without being told.

A loop divides its loss by the number of batches that it accumulates, and ``GradScaler`` multiplies
it by its scale. A term inside the loss would be multiplied along with it; one that joins later, in
the backward pass, has to know the factor. It stands in the graph, at its root, but its numbers are
freed while the pass runs, so it is read when the pass begins: as long as something asks for it
(:func:`watch`), ``torch.autograd.backward`` and ``torch.autograd.grad`` are wrapped.
"""

from __future__ import annotations

import functools
import math
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple, Union

import torch
from torch import Tensor

from proxyfda.utils.errors import Unusable

__all__ = ["LossScale", "current", "unnoted_grad", "unwatch", "watch"]

Number = Union[float, Tensor]


@dataclass(frozen=True)
class LossScale:
    """The factor of a loss.

    Attributes:
        factor: all of it.
        constant: the part that stands in the graph as divisors (1/k); the rest is that of a
            ``GradScaler``.
    """

    factor: Number = 1.0
    constant: Number = 1.0


# What hands on one number as it is.
_SAME = (
    "AliasBackward0",
    "CloneBackward0",
    "ReshapeAliasBackward0",
    "SqueezeBackward0",
    "SqueezeBackward1",
    "ToCopyBackward0",
    "UnsafeViewBackward0",
    "UnsqueezeBackward0",
    "ViewBackward0",
)
_ARITHMETIC = ("AddBackward", "DivBackward", "MulBackward", "NegBackward", "SubBackward")
_SUM = 2  # of a loss function's reduction


def _below(node: Any) -> List[Any]:
    return [below for below, _ in node.next_functions if below is not None]


def _hands_on(node: Any) -> bool:
    """Whether a node gives the one number that it was given, or that and a constant."""
    if node.name() in _SAME:
        return True
    if node.name() in ("AddBackward0", "SubBackward0"):
        return node.next_functions[1][0] is None
    if node.name() not in ("MeanBackward0", "SumBackward0"):
        return False
    if hasattr(node, "_saved_self_sym_sizes"):
        return math.prod(node._saved_self_sym_sizes) == 1
    sizes = getattr(node, "_saved_self_sizes", None)
    return sizes is not None and math.prod(sizes) == 1


def _constant(node: Any) -> Optional[Tensor]:
    """The number that a product or a quotient multiplies with or divides by."""
    name = node.name()
    if name not in ("MulBackward0", "DivBackward0"):
        return None
    first, second = (below for below, _ in node.next_functions)
    if (first is None) == (second is None) or (name == "DivBackward0" and first is None):
        return None
    found = node._saved_other if second is None else node._saved_self
    if not isinstance(found, Tensor) or found.numel() != 1 or found.is_complex():
        return None
    if found.device.type == "cpu" and not (float(found) > 0 and math.isfinite(float(found))):
        return None  # a sign, or a term that is switched off
    return found.detach().reshape(())


def _is_sum(node: Any) -> bool:
    """Whether a loss is a sum over samples, possibly with others added to it."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if node.name().startswith(_ARITHMETIC) or _hands_on(node):
            waiting += _below(node)
        elif node.name().startswith("SumBackward") or (
            getattr(node, "_saved_reduction", None) == _SUM
        ):
            return True
    return False


def _scale_of(loss: Tensor) -> LossScale:
    """Read the factor off the graph of a loss.

    What the whole loss is divided by counts, and what that is multiplied with again (the number of
    ranks). Of a sum over samples the innermost divisor does not: it makes the sum a mean. Where
    that sum is a cross-entropy (transformers divide by the number of samples of all accumulated
    batches) the share of this batch is what remains of it. A number that multiplies a loss which
    nothing divides, as in ``0.5 * loss``, is the task's own weight.
    """
    node: Any = loss.grad_fn
    scaler: Number = 1.0
    # From the outside in: a number, and whether the loss is divided by its inverse.
    constants: List[Tuple[Number, bool]] = []
    while node is not None:
        if not _hands_on(node):
            found = _constant(node)
            if found is None:
                break
            divides = node.name() == "DivBackward0"
            # Python's numbers are kept in the widest type; GradScaler has a tensor in fp32.
            is_tensor = found.dtype == torch.float32
            if is_tensor and not divides and not constants:
                scaler = scaler * found
            else:
                value: Number = float(found) if found.device.type == "cpu" else found
                constants.append((1.0 / value if divides else value, divides))
        below = _below(node)
        if len(below) != 1:
            break
        node = below[0]
    _leave_weights_out(constants)
    innermost = constants[-1][0] if constants else 1.0
    shrinks = isinstance(innermost, Tensor) or innermost < 1
    if shrinks and node is not None and _is_sum(node):
        constants.pop()
        total = getattr(node, "_saved_total_weight", None)
        if isinstance(total, Tensor):
            share = innermost * (float(total) if total.device.type == "cpu" else total)
            constants.append((share, True))
        _leave_weights_out(constants)
    constant: Number = 1.0
    for value, _ in constants:
        constant = constant * value
    return LossScale(scaler * constant, constant)


def _leave_weights_out(constants: List[Tuple[Number, bool]]) -> None:
    """Drop the numbers that multiply what nothing divides."""
    while constants and not constants[-1][1]:
        constants.pop()


@dataclass(frozen=True, eq=False)
class _Pass:
    """A backward pass that runs: who began it, and the factor where it is that of a loss."""

    thread: int
    scale: Optional[LossScale]


_passes: List[_Pass] = []
_watchers = 0
_originals: Dict[str, Callable[..., Any]] = {}
_wrappers: Dict[str, Callable[..., Any]] = {}


@contextmanager
def _running(roots: Any, gradients: Any) -> Iterator[None]:
    roots, gradients = (
        list(found) if isinstance(found, (list, tuple)) else [found] for found in (roots, gradients)
    )
    scale: Optional[LossScale] = None
    # A checkpoint's own pass, within that of the loss, starts from tensors with their gradients.
    if len(roots) == 1 and isinstance(roots[0], Tensor) and roots[0].numel() == 1:
        scale = _scale_of(roots[0])
        if gradients and isinstance(gradients[0], Tensor):
            factor = scale.factor * gradients[0].detach().reshape(())
            scale = LossScale(factor, scale.constant)
    entry = _Pass(threading.get_ident(), scale)
    _passes.append(entry)
    try:
        yield
    finally:
        _passes.remove(entry)


def _wrap(name: str, root: str, gradient: str) -> None:
    original = getattr(torch.autograd, name)

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if not _watchers:
            return original(*args, **kwargs)
        position = {"backward": 1, "grad": 2}[name]
        roots = args[0] if args else kwargs.get(root, ())
        gradients = args[position] if len(args) > position else kwargs.get(gradient)
        with _running(roots, gradients):
            return original(*args, **kwargs)

    _originals[name], _wrappers[name] = original, wrapper
    setattr(torch.autograd, name, wrapper)


def watch() -> None:
    """From now on note the factor of every backward pass, until :func:`unwatch`."""
    global _watchers
    _watchers += 1
    for name, root, gradient in (
        ("backward", "tensors", "grad_tensors"),
        ("grad", "outputs", "grad_outputs"),
    ):
        if name not in _wrappers:
            _wrap(name, root, gradient)


def unwatch() -> None:
    """The opposite of :func:`watch`; with the last of them torch is as it was."""
    global _watchers
    _watchers -= 1
    for name in list(_wrappers):
        # Where somebody wrapped it once more ours stays, and does nothing.
        if not _watchers and getattr(torch.autograd, name) is _wrappers[name]:
            setattr(torch.autograd, name, _originals.pop(name))
            del _wrappers[name]


def unnoted_grad(*args: Any, **kwargs: Any) -> Any:
    """``torch.autograd.grad`` of what is no loop's loss."""
    return _originals.get("grad", torch.autograd.grad)(*args, **kwargs)


def current() -> LossScale:
    """The factor of the loss whose backward pass this is.

    1 where it is none's: a pass that starts from tensors and their gradients, or from several
    losses.

    Raises:
        Unusable: passes of several threads run, and which of them this is cannot be known.
    """
    passes = list(_passes)
    own = threading.get_ident()
    # On a GPU this runs in a thread of its device, which began no pass or one of a checkpoint.
    threads = {entry.thread for entry in passes if entry.scale is not None}
    chosen = {own} if own in threads else threads
    if len(chosen) > 1:
        raise Unusable(
            "several threads run backward passes at once, so the factor of the loss cannot be "
            "found; give scale=1.0, or the factor, to attach"
        )
    for entry in reversed(passes):
        if entry.thread in chosen and entry.scale is not None:
            return entry.scale
    return LossScale()
