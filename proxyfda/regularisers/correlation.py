"""Correlation: every row's similarities keep their proportions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Optional, Type

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

__all__ = ["Correlation", "CorrelationOptions", "ProxyCorrelation", "correlation_loss"]


@dataclass(frozen=True)
class CorrelationOptions(Options):
    """:class:`Correlation` has no options."""


def correlation_row_losses(cosines: Tensor, relations: Relations) -> Tensor:
    """1 - Pearson correlation of a row's tuned and frozen similarities [N, P]: [N]."""

    def centred(similarities: Tensor) -> Tensor:
        scaled = relations.hide((similarities - relations.threshold) / relations.spread)
        mean = scaled.sum(1, keepdim=True) / relations.count
        return relations.hide(scaled - mean)

    tuned, frozen = centred(cosines), centred(relations.similarities)
    return 1.0 - F.cosine_similarity(tuned, frozen, dim=1, eps=1e-4)


def correlation_loss(features: Tensor, anchors: Optional[Tensor] = None, **more: Any) -> Tensor:
    """mean_i (1 - Pearson correlation of row i's tuned and frozen similarities), 0 to 2 (ours).

    A row may shift and stretch freely as long as its similarities keep their proportions. Rows
    without spread on one side count 1.

    The arguments are those of :func:`~proxyfda.regularisers.relations.relation_loss`.

    Returns:
        Scalar, fp32 at least.

    >>> import torch
    >>> frozen = torch.eye(6) + 0.5 + torch.arange(6.0).diag()
    >>> abs(correlation_loss(frozen, frozen).item()) < 1e-6
    True
    """
    return relation_loss(correlation_row_losses, features, anchors, k=more.pop("k", 1), **more)


@register
class Correlation(RelationalRegulariser):
    """Correlation of similarities as a module, see :func:`correlation_loss`."""

    name = "correlation"
    options_class: ClassVar[Type[Options]] = CorrelationOptions
    exact_proxies = True

    def row_losses(self, cosines: Tensor, relations: Relations) -> Tensor:
        """See :meth:`RelationalRegulariser.row_losses`."""
        return correlation_row_losses(cosines, relations)


@dataclass(frozen=True)
class ProxyCorrelationOptions(ProxyOptions):
    """Options of :class:`ProxyCorrelation`: those of proxies."""


@register
class ProxyCorrelation(ProxiedRegulariser, Correlation):
    """Correlation over features and their proxies (ours)."""

    name = "proxy_correlation"
    options_class = ProxyCorrelationOptions
