"""Proxy-FDA: feature distribution alignment over features and their proxies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Tuple

from torch import Tensor

from proxyfda.neighbours.graph import NeighbourGraph
from proxyfda.neighbours.proxies import MAX_PAIRS, ProxyGenerator
from proxyfda.regularisers.base import register
from proxyfda.regularisers.fda import BIAS, FDA, TAU, FDAOptions, check_form, row_losses_of
from proxyfda.regularisers.relations import (
    ProxiedRegulariser,
    ProxyOptions,
    proxied_relation_loss,
)
from proxyfda.utils.errors import BadValue

__all__ = ["ProxyFDA", "ProxyFDAOptions", "proxy_fda_loss"]


@dataclass(frozen=True)
class ProxyFDAOptions(ProxyOptions, FDAOptions):
    """Options of :class:`ProxyFDA`: those of FDA and of proxies."""


def proxy_fda_loss(
    features: Tensor,
    anchors: Optional[Tensor] = None,
    generator: Optional[ProxyGenerator] = None,
    *,
    k: Optional[int] = None,
    tau: float = TAU,
    bias: float = BIAS,
    form: str = "paper",
    units: str = "cosine",
    slope: float = 2.0,
    scale: str = "pooled",
    columns: Optional[Tensor] = None,
    column_anchors: Optional[Tensor] = None,
    graph: Optional[NeighbourGraph] = None,
    alpha: float = 1.0,
    proxy_temperature: float = 0.1,
    max_pairs: int = MAX_PAIRS,
    turn: int = 0,
) -> Tuple[Tensor, Tensor]:
    """FDA loss over the real features and their proxies, and the loss of the proxies' generator.

        L_Proxy-FDA^i = L_FDA^i({[X+, P+], [X-, P-]}, {[ŵ+, ŵp+], [ŵ-, ŵp-]})

    with P = A X of the tuned features and ŵp = A ŵ. Source: Huang et al., ICML 2025, arXiv
    2505.24088, Section 3.2.

    Minimise ``loss_task + λ loss_fda`` for the model and ``loss_proxy`` for the generator; their
    sum does both, since the first has no gradient for the generator and the second none for
    anything else.

    Args:
        generator: makes the proxies from the columns (in the self form the features); required.
        alpha: weight of the variance term in L_proxy.
        proxy_temperature: of the contrastive term in L_proxy.
        max_pairs, turn: see :func:`~proxyfda.regularisers.relations.proxied_relation_loss`.

    The other arguments are those of :func:`~proxyfda.regularisers.fda.fda_loss`.

    Returns:
        (loss_fda, loss_proxy), scalars, fp32 at least. Both exactly 0 with zero gradients if there
        is nothing to align (see ``fda_loss``).

    Raises:
        BadValue: as ``fda_loss``; no generator; a generator of another dimension.

    >>> import torch
    >>> frozen = torch.eye(6) + 0.5
    >>> loss_fda, loss_proxy = proxy_fda_loss(frozen, frozen, ProxyGenerator(6, seed=0), k=2)
    """
    if generator is None:
        raise BadValue("generator is missing; give a ProxyGenerator(dim), or use fda_loss.")
    check_form(form)
    options = FDAOptions(k=k or 1, tau=tau, bias=bias, constants="given", units=units, slope=slope)
    return proxied_relation_loss(
        row_losses_of(options),
        features,
        anchors,
        generator,
        k=k,
        columns=columns,
        column_anchors=column_anchors,
        graph=graph,
        scale=scale,
        alpha=alpha,
        proxy_temperature=proxy_temperature,
        max_pairs=max_pairs,
        turn=turn,
    )


@register
class ProxyFDA(ProxiedRegulariser, FDA):
    """Proxy-FDA as a module that owns its generator, see :func:`proxy_fda_loss`.

    τ and b are those of :class:`~proxyfda.regularisers.fda.FDA`: derived unless named.

    One line in a plain loop trains model and generator::

        regulariser = ProxyFDA(dim=512, k=8)
        optimiser = torch.optim.AdamW([*model.parameters(), *regulariser.parameters()])
        loss = task_loss + weight * regulariser(features, anchors)

    >>> import torch
    >>> regulariser = ProxyFDA(6, k=2)
    >>> regulariser(torch.eye(6) + 0.5, torch.eye(6) + 0.5).shape
    torch.Size([])
    """

    name = "proxy_fda"
    options_class = ProxyFDAOptions
