"""KL: every row's distribution over the others stays as it was."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Optional

from torch import Tensor

from proxyfda.neighbours.graph import Relations
from proxyfda.regularisers.base import Options, register
from proxyfda.regularisers.relations import (
    ProxiedRegulariser,
    ProxyOptions,
    RelationalRegulariser,
    relation_loss,
)

__all__ = ["KL", "KLOptions", "ProxyKL", "kl_loss"]


@dataclass(frozen=True)
class KLOptions(Options):
    """Options of :class:`KL`.

    Attributes:
        temperature: T of the softmax, in units of spread. Across modalities 0.5 is near CLIP's own
            temperature: 0.01 in cosines of spread 0.02.
    """

    temperature: float = 0.5

    def check(self) -> None:
        """See :meth:`Options.check`."""
        self._require_positive("temperature")


def kl_row_losses(cosines: Tensor, relations: Relations, temperature: float) -> Tensor:
    """KL(softmax_j(v_ij / T) || softmax_j(z_ij / T)) for rows of cosines [N, P]: [N]."""
    z = relations.hide(relations.standardise(cosines) / temperature, -1e4)
    v = relations.hide(relations.standardise(relations.similarities) / temperature, -1e4)
    log_q = v.log_softmax(1)
    return (log_q.exp() * (log_q - z.log_softmax(1))).sum(1)


def kl_loss(
    features: Tensor, anchors: Optional[Tensor] = None, *, temperature: float = 0.5, **more: Any
) -> Tensor:
    """Neighbourhood as a distribution (ours): mean_i KL(softmax_j(v_ij/T) || softmax_j(z_ij/T)).

    z and v are tuned and frozen cosines in units of the frozen similarities' spread; a row's offset
    does not count. 0 at the frozen features.

    Args:
        temperature: see :class:`KLOptions`.

    The other arguments are those of :func:`~proxyfda.regularisers.relations.relation_loss`.

    Returns:
        Scalar, fp32 at least.

    >>> import torch
    >>> frozen = torch.eye(6) + 0.5
    >>> kl_loss(frozen, frozen), kl_loss(frozen[[1, 0, 2, 3, 4, 5]] * 2 + frozen, frozen) > 0
    (tensor(0.), tensor(True))
    """
    rows = functools.partial(kl_row_losses, temperature=KLOptions(temperature).temperature)
    return relation_loss(rows, features, anchors, k=more.pop("k", 1), **more)


@register
class KL(RelationalRegulariser):
    """Neighbourhoods as distributions as a module, see :func:`kl_loss`."""

    name = "kl"
    options_class = KLOptions
    exact_proxies = True

    def row_losses(self, cosines: Tensor, relations: Relations) -> Tensor:
        """See :meth:`RelationalRegulariser.row_losses`."""
        return kl_row_losses(cosines, relations, self.options.temperature)


@dataclass(frozen=True)
class ProxyKLOptions(ProxyOptions, KLOptions):
    """Options of :class:`ProxyKL`: those of KL and of proxies."""


@register
class ProxyKL(ProxiedRegulariser, KL):
    """KL over features and their proxies (ours)."""

    name = "proxy_kl"
    options_class = ProxyKLOptions
