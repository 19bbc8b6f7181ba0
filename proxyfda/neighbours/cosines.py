"""Cosine similarities in full precision.

Features need not be normalised and may have any floating dtype. Similarities and losses are
computed in fp32 (float64 stays float64), also under autocast: in half precision log(1 + exp(.))
overflows and cosines tie.
"""

from __future__ import annotations

import contextlib
from typing import Any, ContextManager, Optional, Tuple

import torch
from torch import Tensor

from proxyfda.utils.errors import BadValue

__all__ = ["autocast_dtype", "check_features", "full_precision", "unit_rows", "zero_loss"]

_SMALLEST_NORM = 1e-8


def full_precision(device: torch.device) -> ContextManager[Any]:
    """Context in which autocast leaves fp32 matrix products alone."""
    try:
        return torch.autocast(device_type=device.type, enabled=False)
    except RuntimeError:  # a device type that has no autocast in this torch
        return contextlib.nullcontext()


def autocast_dtype(device: str) -> Optional[torch.dtype]:
    """What autocast computes in at this moment on a type of device; None while it is off."""
    if hasattr(torch, "get_autocast_dtype"):
        enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    elif device == "cpu":
        enabled, dtype = torch.is_autocast_cpu_enabled(), torch.get_autocast_cpu_dtype()
    else:
        enabled, dtype = torch.is_autocast_enabled(), torch.get_autocast_gpu_dtype()
    return dtype if enabled else None


class _UnitRows(torch.autograd.Function):
    """x / max(|x|, eps) with a backward pass of four operations.

    That of ``torch.nn.functional.normalize`` has 16, which is felt where a GPU waits for each.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tuple[Tensor, Tensor]:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_(min=_SMALLEST_NORM)
        unit = x / norm
        # The norm is an output too, so that second derivatives pass through it.
        ctx.save_for_backward(unit, norm)
        ctx.set_materialize_grads(False)
        return unit, norm

    @staticmethod
    def backward(ctx: Any, *grads: Optional[Tensor]) -> Optional[Tensor]:
        unit, norm = ctx.saved_tensors
        grad, grad_norm = grads
        of_norm = None if grad_norm is None else grad_norm * unit
        if grad is None:
            return of_norm
        along = (grad * unit).sum(-1, keepdim=True)
        of_unit = torch.addcmul(grad, unit, along, value=-1.0) / norm
        return of_unit if of_norm is None else of_unit + of_norm


def unit_rows(x: Tensor) -> Tensor:
    """Rows of any float dtype [..., d] -> unit rows in fp32 (float64 stays); zero rows stay zero.

    >>> unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    x = x if x.dtype == torch.float64 else x.float()
    unit: Tensor = _UnitRows.apply(x)[0]
    return unit


def check_features(name: str, x: Tensor, dims: Tuple[int, ...] = (2,)) -> None:
    """Refuse what is not a matrix of features, one in each row.

    Args:
        name: what the argument is called.
        x: the argument.
        dims: allowed numbers of dimensions, the last being the features'.

    Raises:
        BadValue: another shape or an integer dtype.
    """
    if not isinstance(x, Tensor) or x.dim() not in dims or not x.is_floating_point():
        what = f"has shape {tuple(x.shape)} and dtype {x.dtype}" if isinstance(x, Tensor) else (
            f"is a {type(x).__name__}"
        )  # fmt: skip
        raise BadValue(f"{name} {what}; give a float matrix with one feature per row.")


def zero_loss(*tensors: Optional[Tensor]) -> Tensor:
    """Exactly 0 (fp32 at least), connected to the given tensors with zero gradient."""
    # Sums of empty slices: 0 * sum would be NaN for inputs that overflow.
    parts = [t.reshape(-1)[:0].sum() for t in tensors if t is not None]
    total = sum((p if p.dtype == torch.float64 else p.float() for p in parts), torch.zeros(()))
    return total if parts else torch.zeros(())
