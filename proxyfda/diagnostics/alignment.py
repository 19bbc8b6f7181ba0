"""Centred kernel alignment: how alike two sets of features are up to rotation and scale."""

from __future__ import annotations

from typing import Any, Tuple

import torch
from torch import Tensor

from proxyfda.diagnostics.pairs import paired
from proxyfda.utils.errors import BadValue

__all__ = ["cka"]

_ROWS = 4096  # that are in double precision at a time


def cka(x: Any, y: Any, *, debiased: bool = False) -> float:
    """Linear centred kernel alignment of two sets of features of the same samples.

    |Yᵀ X|² / (|Xᵀ X| |Yᵀ Y|) in Frobenius norms of centred features (Kornblith et al., ICML 2019,
    arXiv 1905.00414, Eq. 4 with their Section 3). Rotations and a common scale change nothing, and
    the dimensions may differ.

    With few samples for the number of dimensions it is large for unrelated features too; with
    ``debiased`` the three products are the unbiased estimates of Song et al. (JMLR 2012), in the
    mean 0 for unrelated features, and so sometimes negative. The default is the published formula.

    Only sums over the samples are kept, d x d' numbers and never N x N: 100,000 rows are no matter.

    Args:
        x, y: features of the same N samples [N, d] and [N, d'], tensors or arrays.
        debiased: see above; from 4 samples on.

    Returns:
        0 to 1, debiased also slightly below 0; 1 between equals, and where neither varies.

    Raises:
        BadValue: no matrices, of unequal length, or too few rows.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0], [0.0, 3.0]])
    >>> round(cka(x, -2 * x.flip(1)), 6), round(cka(x, x[:, :1] ** 2), 3)
    (1.0, 0.45)
    """
    first, second = paired(x, y)
    least = 4 if debiased else 2
    if len(first) < least:
        raise BadValue(f"there are {len(first)} rows; give at least {least} to compare.")
    kind = _unbiased if debiased else _biased
    own, other, across = kind(first, first), kind(second, second), kind(first, second)
    still = [_still(features) for features in (first, second)]
    if any(still):
        return float(all(still))
    if own <= 0 or other <= 0:
        return 0.0  # an unbiased estimate of next to nothing
    return across / (own * other) ** 0.5


def _still(x: Tensor) -> bool:
    """Whether features vary by no more than the last digits of their numbers."""
    length = torch.linalg.vector_norm(x, dtype=torch.float64)
    return bool(_biased(x, x) ** 0.5 <= 1e-12 * length.square())


def _biased(x: Tensor, y: Tensor) -> float:
    """|Yᵀ X|² of centred features, (N - 1)² times HSIC."""
    return _sums(x, y)[0].square().sum().item()


def _unbiased(x: Tensor, y: Tensor) -> float:
    """The unbiased HSIC of linear kernels.

    With K̃ and L̃ the kernels without their diagonals, and 1 a vector of ones: (tr K̃L̃
    + 1ᵀK̃1 1ᵀL̃1 / ((N-1)(N-2)) - 2/(N-2) 1ᵀK̃L̃1) / (N(N-3)). As the features are centred,
    K 1 = 0, and so K̃ 1 = -a, where a_i = |x_i|² is K's diagonal.
    """
    n = len(x)
    across, a_times_b, sum_a, sum_b = _sums(x, y)
    trace = across.square().sum() - a_times_b
    found = trace + sum_a * sum_b / ((n - 1) * (n - 2)) - 2 / (n - 2) * a_times_b
    return (found / (n * (n - 3))).item()


def _sums(x: Tensor, y: Tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of centred features Xᵀ Y [d, d'], Σ |x_i|² |y_i|², Σ |x_i|² and Σ |y_i|², in fp64."""
    means = [features.mean(0, dtype=torch.float64) for features in (x, y)]
    product = means[0].new_zeros(x.shape[1], y.shape[1])
    sums = means[0].new_zeros(3)
    for rows in zip(x.split(_ROWS), y.split(_ROWS)):
        a, b = (part.double() - mean for part, mean in zip(rows, means))
        product += a.t() @ b
        of_a, of_b = a.square().sum(1), b.square().sum(1)
        sums += torch.stack([of_a @ of_b, of_a.sum(), of_b.sum()])
    return product, sums[0], sums[1], sums[2]
