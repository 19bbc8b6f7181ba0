"""RKD: relational knowledge distillation from the frozen features."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Dict, Optional, Type

import torch
import torch.nn.functional as F
from torch import Tensor

from proxyfda.neighbours.cosines import full_precision, zero_loss
from proxyfda.neighbours.graph import NeighbourGraph, Relations
from proxyfda.regularisers.base import Options, register
from proxyfda.regularisers.relations import (
    ProxiedRegulariser,
    ProxyOptions,
    RelationalRegulariser,
    graph_of,
    relation_loss,
)
from proxyfda.utils.errors import BadValue

__all__ = ["RKD", "ProxyRKD", "RKDOptions", "angle_loss", "distance_loss", "rkd_loss"]

MAX_ANGLES = 2**24
"""Most angles in a step (ours): with more than 256 features some are no vertices."""


@dataclass(frozen=True)
class RKDOptions(Options):
    """Weights of the three relations of :func:`rkd_loss`; at least one above 0.

    Park et al. take distance 1 and angle 2 (https://github.com/lenscloth/RKD) and no similarity.
    """

    similarity: float = 1.0
    distance: float = 0.0
    angle: float = 0.0

    def check(self) -> None:
        """See :meth:`Options.check`."""
        self._require_not_negative("similarity", "distance", "angle")
        self._require(
            self.similarity + self.distance + self.angle > 0,
            "similarity",
            "set similarity, distance or angle above 0",
        )


def similarity_row_losses(cosines: Tensor, relations: Relations) -> Tensor:
    """mean_j Huber((c_ij - ŵ_ij) / spread) for rows of cosines [N, P]: [N]."""
    error = (cosines - relations.similarities) / relations.spread
    return relations.mean(F.smooth_l1_loss(error, torch.zeros_like(error), reduction="none"))


def _huber(tuned: Tensor, frozen: Tensor) -> Tensor:
    return F.smooth_l1_loss(tuned, frozen)


def _relative_distances(rows: Tensor, columns: Tensor) -> Tensor:
    """Euclidean distances divided by the mean of the positive ones [..., N, M]."""
    squared = (
        rows.square().sum(-1).unsqueeze(-1)
        + columns.square().sum(-1).unsqueeze(-2)
        - 2.0 * rows @ columns.transpose(-1, -2)
    )
    if rows is columns:
        eye = torch.eye(rows.shape[-2], dtype=torch.bool, device=rows.device)
        squared = squared.masked_fill(eye, 0.0)
    positive = squared > 1e-12
    # The root has no gradient at 0: equal features have distance 0 without one.
    distances = torch.where(positive, squared, torch.ones_like(squared)).sqrt()
    distances = torch.where(positive, distances, torch.zeros_like(distances))
    mean = distances.sum((-1, -2), keepdim=True) / positive.sum((-1, -2), keepdim=True).clamp(min=1)
    return distances / mean.clamp(min=1e-8)


def distance_loss(
    features: Tensor,
    anchors: Tensor,
    columns: Optional[Tensor] = None,
    column_anchors: Optional[Tensor] = None,
) -> Tensor:
    """Mean over pairs of Huber(d_ij - d̂_ij), d being Euclidean distances relative to their mean.

    Source: Park et al., "Relational Knowledge Distillation", CVPR 2019, arXiv 1904.05068, Eq. 6-8.

    Args:
        features: tuned [N, d], or [S, N, d].
        anchors: frozen, of the same shape or [N, d]; no gradient flows into them.
        columns, column_anchors: a second set, for distances across (ours).

    Returns:
        Scalar, fp32 at least.
    """
    with full_precision(features.device):
        rows = features if features.dtype == torch.float64 else features.float()
        frozen = anchors.detach().to(rows.dtype)
        others = rows if columns is None else columns.to(rows.dtype)
        frozen_others = frozen if column_anchors is None else column_anchors.detach().to(rows.dtype)
        wanted = _relative_distances(frozen, frozen_others)
        tuned = _relative_distances(rows, others)
        return _huber(tuned, wanted.expand_as(tuned))


def _angles(x: Tensor, vertices: Tensor) -> Tensor:
    """Cosines of the angles at some vertices j between x_i and x_k [V, N, N]."""
    differences = x.unsqueeze(0) - x[vertices].unsqueeze(1)
    squared = differences.square().sum(-1, keepdim=True)
    # As with distances: equal features have no direction, and none with a gradient.
    lengths = squared.masked_fill(squared == 0.0, math.inf).sqrt()
    directions = differences / lengths
    return directions @ directions.transpose(1, 2)


def angle_loss(features: Tensor, anchors: Tensor) -> Tensor:
    """Mean over triples of Huber(cos ∠ijk - its frozen value), the angle at j between i and k.

    Source: Park et al., CVPR 2019, Eq. 9-10. N^3 angles; with more than 2^24 of them evenly spaced
    features serve as vertices (ours).

    Args:
        features: tuned [N, d].
        anchors: frozen [N, d]; no gradient flows into them.

    Returns:
        Scalar, fp32 at least.
    """
    n = len(features)
    vertices = torch.arange(n, device=features.device)
    most = max(1, MAX_ANGLES // max(n * n, 1))
    if n > most:
        vertices = vertices[:: -(-n // most)]
    with full_precision(features.device):
        x = features if features.dtype == torch.float64 else features.float()
        with torch.no_grad():
            wanted = _angles(anchors.detach().to(x.dtype), vertices)
        return _huber(_angles(x, vertices), wanted)


def rkd_loss(
    features: Tensor,
    anchors: Optional[Tensor] = None,
    *,
    similarity: float = 1.0,
    distance: float = 0.0,
    angle: float = 0.0,
    scale: str = "pooled",
    columns: Optional[Tensor] = None,
    column_anchors: Optional[Tensor] = None,
    graph: Optional[NeighbourGraph] = None,
) -> Tensor:
    """Relations as they were: a weighted sum of up to three losses, all 0 at the frozen features.

    - similarity: mean_ij Huber((cos(x_i, x_j) - cos(x̂_i, x̂_j)) / spread), in units of the frozen
      similarities' spread (ours);
    - distance: :func:`distance_loss`; angle: :func:`angle_loss`.

    Source: Park et al., "Relational Knowledge Distillation", CVPR 2019, arXiv 1904.05068. No
    difference is made between neighbours and others.

    Args:
        similarity, distance, angle: weights.

    The other arguments are those of :func:`~proxyfda.regularisers.relations.relation_loss`.
    Distances need ``anchors`` themselves, not a graph alone; angles exist within one set.

    Returns:
        Scalar, fp32 (float64 for float64 features); 0 if there is nothing to align.

    Raises:
        BadValue: shapes that do not go together, negative weights, angles across two sets.

    >>> import torch
    >>> frozen = torch.eye(5) + 0.5
    >>> rkd_loss(frozen, frozen), rkd_loss(frozen + torch.eye(5), frozen) > 0
    (tensor(0.), tensor(True))
    """
    options = RKDOptions(similarity, distance, angle)
    more = {"columns": columns, "column_anchors": column_anchors, "graph": graph}
    losses = []
    if options.similarity:
        loss = relation_loss(similarity_row_losses, features, anchors, k=1, scale=scale, **more)  # type: ignore[arg-type]  # fmt: skip
        losses.append(loss if options.similarity == 1 else options.similarity * loss)
    if options.distance or options.angle:
        losses += geometric_losses(options, features, anchors, scale=scale, **more)
    return torch.stack(losses).sum() if len(losses) > 1 else losses[0]


def geometric_losses(  # type: ignore[no-untyped-def]
    options: RKDOptions, features: Tensor, anchors: Optional[Tensor], **more: Any
):
    """The losses on distances and angles with their weights, those above 0."""
    columns, column_anchors = more.get("columns"), more.get("column_anchors")
    if anchors is None or (columns is not None and column_anchors is None):
        raise BadValue(
            "distances and angles are of the frozen features themselves; give anchors (and "
            "column_anchors with columns), not a graph alone."
        )
    if options.angle and columns is not None:
        raise BadValue(
            f"angle is {options.angle}, but angles exist within one set of features; set angle 0 "
            "for features of two modalities."
        )
    graph = graph_of(features, anchors, columns, column_anchors, None, 1, "pooled")
    if graph.is_trivial:
        return [zero_loss(features, columns)]
    losses = []
    if options.distance:
        if len(anchors) != features.shape[-2] and anchors.dim() == 2:
            anchors = anchors.view(features.shape)  # a set per image
        losses.append(options.distance * distance_loss(features, anchors, columns, column_anchors))
    if options.angle:
        sets = features.unbind(0) if features.dim() == 3 else [features]
        angles = torch.stack([angle_loss(one, anchors) for one in sets]).mean()
        losses.append(options.angle * angles)
    return losses


@register
class RKD(RelationalRegulariser):
    """Relational knowledge distillation as a module, see :func:`rkd_loss`."""

    name = "rkd"
    options_class: ClassVar[Type[Options]] = RKDOptions
    exact_proxies = True

    def row_losses(self, cosines: Tensor, relations: Relations) -> Tensor:
        """See :meth:`RelationalRegulariser.row_losses`."""
        losses = similarity_row_losses(cosines, relations)
        return losses if self.options.similarity == 1 else self.options.similarity * losses

    def terms(self, features: Any, anchors: Any = None, **more: Any) -> Dict[str, Tensor]:
        """See :meth:`Regulariser.terms`."""
        options = self.options
        losses = []
        if options.similarity:
            losses.append(super().terms(features, anchors, **more)[self.log_name])
        if options.distance or options.angle:
            losses += geometric_losses(options, features, anchors, **more)
        return {self.log_name: torch.stack(losses).sum() if len(losses) > 1 else losses[0]}


@dataclass(frozen=True)
class ProxyRKDOptions(ProxyOptions):
    """Options of :class:`ProxyRKD`; its one relation is similarity, with a weight of 1."""


@register
class ProxyRKD(ProxiedRegulariser, RKD):
    """Similarities as they were, over features and their proxies (ours)."""

    name = "proxy_rkd"
    options_class = ProxyRKDOptions

    def row_losses(self, cosines: Tensor, relations: Relations) -> Tensor:
        """See :meth:`RelationalRegulariser.row_losses`."""
        return similarity_row_losses(cosines, relations)
