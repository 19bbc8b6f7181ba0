"""How many neighbours are still neighbours."""

from __future__ import annotations

from typing import Any

from proxyfda.diagnostics.pairs import paired
from proxyfda.neighbours.graph import NeighbourGraph

__all__ = ["neighbour_overlap"]


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
    first, second = paired(x, y)
    if len(first) < 2:
        return 1.0
    graphs = [NeighbourGraph(features, k) for features in (first, second)]
    common = (graphs[0].mask & graphs[1].mask).sum(1).double() / graphs[0].k
    return common.mean().item()
