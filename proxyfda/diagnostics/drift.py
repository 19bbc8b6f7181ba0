"""How far features have moved."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from proxyfda.diagnostics.pairs import paired
from proxyfda.neighbours.cosines import unit_rows
from proxyfda.utils.errors import BadValue

__all__ = ["l2_drift"]


def l2_drift(x: Any, y: Any, *, unit: bool = False) -> float:
    """Mean Euclidean distance of features to where they were, 1/N Σ |x_i - y_i|.

    The distance that LDIFS keeps small (Mukhoti et al., TMLR 2024, arXiv 2308.13320, who square it)
    and that Huang et al. (ICML 2025, arXiv 2505.24088) find a poorer sign of forgetting than
    :func:`~proxyfda.diagnostics.otdd`. It has the units of the features; with ``unit`` it does not
    depend on their length, and compares models: 0 where no direction has changed, 1.41 where all
    are orthogonal to what they were, at most 2.

    Args:
        x, y: features of the same N samples [N, d], tensors or arrays.
        unit: whether each row is brought to length 1 first.

    Returns:
        0 or more; 0 without samples.

    Raises:
        BadValue: no matrices, or of unequal shape.

    >>> l2_drift([[3.0, 4.0], [1.0, 0.0]], [[0.0, 0.0], [1.0, 0.0]])
    2.5
    >>> l2_drift([[3.0, 4.0], [1.0, 0.0]], [[6.0, 8.0], [0.0, 2.0]], unit=True)
    0.7071067690849304
    """
    first, second = paired(x, y)
    if first.shape[1] != second.shape[1]:
        raise BadValue(
            f"x has {first.shape[1]} dimensions and y {second.shape[1]}, and no distance is "
            "defined between them; compare models of one dimension, or use cka."
        )
    if not len(first):
        return 0.0
    if unit:
        first, second = unit_rows(first), unit_rows(second)
    moved = torch.linalg.vector_norm(first - second, dim=1, dtype=_wide(first, second))
    return moved.double().mean().item()


def _wide(x: Tensor, y: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
