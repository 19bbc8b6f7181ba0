"""How many neighbours are still neighbours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from proxyfda.diagnostics.pairs import paired
from proxyfda.neighbours.graph import NeighbourGraph

__all__ = ["neighbour_overlap", "neighbours_kept"]


def neighbour_overlap(x: Any, y: Any, k: int = 8) -> float:
    """Mean share of the K nearest neighbours (by cosine) that two sets of features have in common.

    Between the frozen and the tuned features of the same images a diagnostic of forgetting (ours).

    Args:
        x, y: features of the same N samples [N, d] and [N, d'], tensors or arrays.
        k: neighbours of each sample, clamped as :class:`~proxyfda.neighbours.NeighbourGraph` says.

    Returns:
        0 (none in common) to 1 (all); 1 where there is no neighbour to lose.

    Raises:
        BadValue: no matrices, or of unequal length.

    >>> import torch
    >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    >>> neighbour_overlap(x, 3 * x, k=1), neighbour_overlap(x, x[[0, 2, 1, 3]], k=1)
    (1.0, 0.0)
    """
    kept = neighbours_kept(x, y, k)
    return kept.mean().item() if len(kept) else 1.0


def neighbours_kept(x: Any, y: Any, k: int = 8) -> Tensor:
    """The same sample by sample, [N] in fp64; see :func:`neighbour_overlap`."""
    first, second = paired(x, y)
    if len(first) < 2:
        return torch.ones(len(first), dtype=torch.float64)
    graphs = [NeighbourGraph(features, k) for features in (first, second)]
    return (graphs[0].mask & graphs[1].mask).sum(1).double() / graphs[0].k
