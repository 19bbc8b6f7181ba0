"""Match: every pair stays as much a neighbour as it was."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Optional

import torch.nn.functional as F
from torch import Tensor

from proxyfda.neighbours.graph import Relations
from proxyfda.regularisers.base import Options, register
from proxyfda.regularisers.relations import (
    ProxiedRegulariser,
    ProxyOptions,
    RelationalRegulariser,
    relation_loss,
)

__all__ = ["Match", "MatchOptions", "ProxyMatch", "match_loss"]


@dataclass(frozen=True)
class MatchOptions(Options):
    """Options of :class:`Match`.

    Attributes:
        k: neighbours per anchor; the threshold lies between the K-th and the next.
        slope: steepness per unit of spread.
    """

    k: int = 8
    slope: float = 2.0

    def check(self) -> None:
        """See :meth:`Options.check`."""
        self._require(self.k >= 1, "k", "a neighbourhood needs at least 1 neighbour")
        self._require_positive("slope")


def match_row_losses(cosines: Tensor, relations: Relations, slope: float) -> Tensor:
    """mean_j KL(Bernoulli(q_ij) || Bernoulli(sigmoid(slope z_ij))) for rows [N, P]: [N]."""
    z = slope * relations.standardise(cosines)
    v = slope * relations.standardise(relations.similarities)
    # softplus(z) - q z - (softplus(v) - q v) is the divergence without a log of q or 1 - q.
    return relations.mean(F.softplus(z) - F.softplus(v) - v.sigmoid() * (z - v))


def match_loss(
    features: Tensor,
    anchors: Optional[Tensor] = None,
    *,
    k: int = 8,
    slope: float = 2.0,
    **more: Any,
) -> Tensor:
    """FDA with soft targets (ours): mean_ij KL(Bernoulli(q_ij) || Bernoulli(sigmoid(slope z_ij))).

    q_ij = sigmoid(slope v_ij), z_ij = (c_ij - threshold_i) / spread with the tuned cosine c and
    v_ij the same with the frozen one. That is binary cross-entropy less the targets' entropy: 0
    with zero gradient at the frozen features, positive elsewhere.

    Args:
        k, slope: see :class:`MatchOptions`.

    The other arguments are those of :func:`~proxyfda.regularisers.relations.relation_loss`.

    Returns:
        Scalar, fp32 at least.

    >>> import torch
    >>> frozen = torch.eye(6) + 0.5
    >>> match_loss(frozen, frozen, k=2), match_loss(frozen + torch.eye(6), frozen, k=2) > 0
    (tensor(0.), tensor(True))
    """
    options = MatchOptions(k, slope)
    rows = functools.partial(match_row_losses, slope=options.slope)
    return relation_loss(rows, features, anchors, k=options.k, **more)


@register
class Match(RelationalRegulariser):
    """Soft neighbourhoods as a module, see :func:`match_loss`."""

    name = "match"
    options_class = MatchOptions
    exact_proxies = True

    def row_losses(self, cosines: Tensor, relations: Relations) -> Tensor:
        """See :meth:`RelationalRegulariser.row_losses`."""
        return match_row_losses(cosines, relations, self.options.slope)


@dataclass(frozen=True)
class ProxyMatchOptions(ProxyOptions, MatchOptions):
    """Options of :class:`ProxyMatch`: those of Match and of proxies."""


@register
class ProxyMatch(ProxiedRegulariser, Match):
    """Match over features and their proxies (ours)."""

    name = "proxy_match"
    options_class = ProxyMatchOptions
