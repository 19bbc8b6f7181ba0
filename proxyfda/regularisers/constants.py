"""τ and b of Eq. 2, which the paper leaves open: given, derived from the frozen graph, or learned.

Eq. 2 of the paper (Huang et al., ICML 2025, arXiv 2505.24088) is SigLIP's loss (Zhai et al., 2023,
arXiv 2303.15343) with real-valued labels. SigLIP learns its temperature and bias; the paper gives
no value for either. What follows is ours.

*Derived.* At the frozen features themselves, where tuning starts, Eq. 2 pulls pair (i, j) with

    -dL/dc_ij = w_ij/τ · sigmoid(w_ij (b - ŵ_ij/τ)),   w = ŵ for neighbours, -ŵ for the others.

It vanishes for no τ and b, but two sums of it can: Σ_ij dL/dc_ij, the pull on all similarities
together (neighbours are drawn as much as the others are driven away), and Σ_ij ŵ_ij dL/dc_ij, the
pull that stretches them. These are, up to factors, the derivatives of L in b and in 1/τ, in both of
which together L is convex: the constants for which the frozen features are stationary under every
change c -> αc + β of their similarities are those that minimise L at the frozen features, a
logistic regression of being a neighbour on the frozen similarity. There is one pair of them, found
by Newton's method.

*Learned.* As in SigLIP: the constants minimise the same loss on the tuned features, together with
the model. On frozen features they would arrive at the derived ones.
"""

from __future__ import annotations

import functools
import math
from typing import Dict, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from proxyfda.neighbours.cosines import zero_loss
from proxyfda.neighbours.graph import MIN_SPREAD, NeighbourGraph, Relations
from proxyfda.regularisers.relations import relation_loss
from proxyfda.utils.errors import BadValue

__all__ = ["CONSTANTS", "derive_constants"]

CONSTANTS = ("given", "derived", "learned")

FIRST_BATCHES = 32
"""Batches whose pairs the derived constants are fitted to."""

_BINS = 4096  # of the similarities from -1 to 1
_START = 2.0  # steepness per spread and mean weight: where the fit starts, and the ridge draws to
_RIDGE = 1e-5  # changes τ by 1 to 2 % where neighbours and others overlap
_LEAST_TAU = 1e-4  # a fifth of a bin
_STEPS = 60


Number = Union[float, Tensor]


def eq2_row_losses(
    cosines: Tensor, relations: Relations, tau: Number, bias: Number, keep: bool = True
) -> Tensor:
    """mean_j log(1 + exp(w_ij (-c_ij / τ + b))) for rows of cosines [N, P]: [N].

    Args:
        tau, bias: numbers, or scalar tensors with ``keep=False``.
        keep: whether these are here to stay, so that what a kept graph makes of them is kept too.
    """

    def coefficients() -> Tuple[Tensor, Tensor]:
        weights = relations.weights
        return weights * (-1.0 / tau), weights * bias

    if relations.has_proxies or not keep:
        slopes, offsets = coefficients()
    else:
        slopes, offsets = relations.graph.remember(("eq2", tau, bias), coefficients)
    pairs = F.softplus(cosines * slopes + offsets)
    if relations.width == relations.count:
        return pairs.mean(-1)
    # The weight of a row with itself is 0, so that pair gives log 2, whatever its cosine is.
    return (pairs.sum(-1) - math.log(2.0)) / relations.count


# -- derived --------------------------------------------------------------------------------------


def derive_constants(graph: NeighbourGraph) -> Tuple[float, float]:
    """τ and b of Eq. 2 that fit a frozen graph (ours, see the module).

    For ``fda_loss(features, graph=graph, tau=tau, bias=bias)``. At the frozen features neighbours
    are then pulled as much in sum as the others are pushed, and no common shift or stretch of the
    similarities lowers the loss.

    Where one similarity parts all neighbours from all others the fit alone has no finite τ; a
    faint pull towards similarities' spread holds it (ridge 1e-5 in standardised units).

    Args:
        graph: of the frozen features.

    Returns:
        (tau, bias), to be read as Eq. 2 reads them; τ·b is the similarity at which attraction and
        repulsion meet.

    Raises:
        BadValue: a graph without pairs.

    >>> x = torch.tensor([[1.0, 0.0], [0.98, 0.2], [0.8, 0.6], [0.75, 0.66], [0.6, 0.8]])
    >>> tau, bias = derive_constants(NeighbourGraph(x, 2))
    >>> 0 < tau < 0.1, 0.8 < tau * bias < 1
    (True, True)
    """
    if graph.is_empty:
        raise BadValue(f"{graph!r} has no pair of features; give a graph of at least 2.")
    return _fit(_count_pairs(graph), graph.min_weight)


def _count_pairs(graph: NeighbourGraph) -> Tensor:
    """Pairs by similarity, other than neighbours and neighbours: int64 [2, bins], on the CPU.

    That is all the fit depends on. Counts add up exactly over batches, in whatever order.
    """

    def count() -> Tensor:
        place = ((graph.similarities + 1) * (_BINS / 2)).long().clamp(0, _BINS - 1)
        place = (place + _BINS * graph.mask)[graph.valid]
        return torch.bincount(place, minlength=2 * _BINS).view(2, _BINS).cpu()

    return graph.remember("pairs by similarity", count)


def _fit(pairs: Tensor, min_weight: float = 0.0) -> Tuple[float, float]:
    """τ and b that minimise Eq. 2 over counted pairs at their frozen similarities."""
    used = pairs.any(0)
    # A share is the same double however often all of them were counted.
    shares = (pairs[:, used].double() / int(pairs.sum())).flatten()
    centres = ((torch.arange(_BINS, dtype=torch.float64)[used] + 0.5) * (2 / _BINS) - 1).repeat(2)
    mean = (shares * centres).sum()
    spread = (shares * (centres - mean).square()).sum().sqrt().clamp(min=MIN_SPREAD)
    weights = centres.clamp(min=min_weight)
    unit = (shares * weights).sum().clamp(min=1e-6)
    weights = weights / unit
    weights[: len(weights) // 2].neg_()
    # The exponent of Eq. 2 is w (-steepness z + offset) in standardised similarities z.
    terms = torch.stack([-weights * (centres - mean) / spread, weights], dim=1)
    start = torch.tensor([_START, 0.0], dtype=torch.float64)

    def loss_at(point: Tensor) -> float:
        ridge = 0.5 * _RIDGE * (point - start).square().sum()
        return float((shares * F.softplus(terms @ point)).sum() + ridge)

    point, loss = start, loss_at(start)
    for _ in range(_STEPS):
        chances = torch.sigmoid(terms @ point)
        slope = terms.t() @ (shares * chances) + _RIDGE * (point - start)
        bent = terms * (shares * chances * (1 - chances)).unsqueeze(1)
        curvature = terms.t() @ bent + _RIDGE * torch.eye(2, dtype=torch.float64)
        step = torch.linalg.solve(curvature, slope)
        while loss_at(point - step) > loss and float(step.abs().max()) > 1e-12:
            step = step / 2
        point = point - step
        loss = loss_at(point)
        if float(step.abs().max()) < 1e-10:
            break
    steepness, offset = (float(value) for value in point)
    # Similarities that tell the wrong way round would have neighbours repelled.
    steepness = max(steepness, 1e-2)
    tau = max(float(unit * spread) / steepness, _LEAST_TAU)
    return tau, offset / float(unit) + float(mean) / tau


# -- how a module comes by them -------------------------------------------------------------------


class GivenConstants:
    """τ and b as they were given.

    Attributes:
        settled: whether the values are final numbers.
    """

    settled = True

    def __init__(self, tau: float, bias: float) -> None:
        self._values = (tau, bias)

    def values(self) -> Tuple[float, float]:
        """τ and b."""
        return self._values

    def learn(
        self, features: Tensor, columns: Optional[Tensor], graph: NeighbourGraph
    ) -> Dict[str, Tensor]:
        """Nothing."""
        return {}


class DerivedConstants(nn.Module):
    """τ and b derived from the frozen graphs of the first :data:`FIRST_BATCHES` batches.

    Until then from those seen so far; afterwards they stay. In evaluation mode nothing is added.
    The pairs counted so far are in the state, so that a resumed run has the same constants.
    """

    def __init__(self) -> None:
        super().__init__()
        self._batches = 0
        self._pairs = torch.zeros(2, _BINS, dtype=torch.int64)
        self._values: Optional[Tuple[float, float]] = None

    @property
    def settled(self) -> bool:
        """Whether the values stay as they are."""
        return self._batches >= FIRST_BATCHES

    def values(self) -> Tuple[float, float]:
        """τ and b of the batches so far."""
        if self._values is None:
            self._values = _fit(self._pairs)
        return self._values

    def learn(
        self, features: Tensor, columns: Optional[Tensor], graph: NeighbourGraph
    ) -> Dict[str, Tensor]:
        """Count the pairs of a batch's frozen graph."""
        if self.settled or graph.is_trivial:
            return {}
        if self.training:
            self._pairs = self._pairs + _count_pairs(graph)
            self._batches += 1
            self._values = None
        elif not self._batches:
            self._values = derive_constants(graph)
        return {}

    def get_extra_state(self) -> Tensor:
        """Number of batches, and their pairs by similarity."""
        return torch.cat([torch.tensor([self._batches]), self._pairs.flatten()])

    def set_extra_state(self, state: Tensor) -> None:
        """Take up :meth:`get_extra_state`."""
        self._batches, self._values = int(state[0]), None
        self._pairs = state[1:].cpu().view(2, _BINS)

    def extra_repr(self) -> str:
        """What the representation shows."""
        return "tau={:.4g}, bias={:.4g}".format(*self.values()) if self._batches else ""


class LearnedConstants(nn.Module):
    """τ and b as parameters, as in SigLIP: they minimise Eq. 2 on the tuned features.

    The parameters are log τ and the boundary τ·b: with SigLIP's own two, log 1/τ and b, every
    step on the first would shift the boundary by more than a step on the second can take back,
    since cosines of CLIP lie far from 0. τ stays above 0.001.

    Args:
        tau, bias: where they start.
    """

    settled = False

    def __init__(self, tau: float, bias: float) -> None:
        super().__init__()
        self.log_tau = nn.Parameter(torch.tensor(math.log(tau)))
        self.boundary = nn.Parameter(torch.tensor(tau * bias))

    def _live(self) -> Tuple[Tensor, Tensor]:
        tau = self.log_tau.exp().clamp(min=MIN_SPREAD)
        return tau, self.boundary / tau

    def values(self) -> Tuple[Tensor, Tensor]:
        """τ and b, scalars without gradient."""
        tau, bias = self._live()
        return tau.detach(), bias.detach()

    def learn(
        self, features: Tensor, columns: Optional[Tensor], graph: NeighbourGraph
    ) -> Dict[str, Tensor]:
        """The loss of the constants, which has no gradient for the features."""
        if graph.is_trivial:
            return {"loss_constants": zero_loss(features.detach())}
        tau, bias = self._live()
        rows = functools.partial(eq2_row_losses, tau=tau, bias=bias, keep=False)
        columns = None if columns is None else columns.detach()
        return {
            "loss_constants": relation_loss(rows, features.detach(), columns=columns, graph=graph)
        }

    def extra_repr(self) -> str:
        """What the representation shows."""
        return "tau={:.4g}, bias={:.4g}".format(*(value.item() for value in self.values()))
