"""The neighbour graph of frozen features, which (Proxy-)FDA carries over to the tuned ones.

Source: Huang et al., "Proxy-FDA: Proxy-based Feature Distribution Alignment for Fine-tuning Vision
Foundation Models without Forgetting", ICML 2025, arXiv 2505.24088, Section 3.1. What the paper
leaves open is marked *ours*.
"""

from __future__ import annotations

import copy
import numbers
from typing import Any, Callable, Dict, Hashable, Optional, Tuple, TypeVar

import torch
from torch import Tensor

from proxyfda.neighbours.cosines import check_features, full_precision, unit_rows
from proxyfda.utils.errors import BadValue

__all__ = ["MIN_SPREAD", "NeighbourGraph", "Relations"]

_Derived = TypeVar("_Derived")

MIN_SPREAD = 1e-3
"""Smallest spread that similarities are divided by (ours): equal features have none."""


class NeighbourGraph:
    """K-nearest-neighbour graph of frozen features by cosine similarity; carries no gradient.

    Neighbours of row i are the K most similar columns, without i itself in the self form. Equal
    similarities are broken by the lower column index.

    K is clamped (ours) so that at least one non-neighbour remains: to N - 2 in the self form and
    to M - 1 in the cross-modal form, but never below 1; with a single candidate that one is the
    neighbour.

    Weights of Eq. 2: w_ij = max(ŵ_ij, min_weight) for neighbours, -max(ŵ_ij, min_weight) for the
    others. The paper says only that the latter are negative; -ŵ and the clamp, which keeps a
    negative cosine from turning attraction into repulsion or the reverse, are ours. At
    ``min_weight`` 0 a pair with a negative frozen cosine has no gradient.

    Spread (ours), the unit of every loss but the literal Eq. 2: the standard deviation of
    similarities around their own row's mean, because rows differ in their offset (an image that is
    close to all texts). ``scale="pooled"`` averages the variances over the rows and gives every row
    the same unit, which is stable for few columns and does not amplify a row whose similarities are
    nearly equal; ``scale="row"`` gives each row its own. Both hold within and across modalities:
    image-text cosines (0.15 to 0.35, spread about 0.03) get the same range as image-image ones.

    Everything but the similarities is computed when it is first used, outside of inference mode,
    so that a graph that served evaluation first can serve training too.

    Args:
        anchors: frozen row features [N, d].
        k: wanted number of neighbours, at least 1.
        columns: frozen column features [M, d] for the cross-modal graph; None: the rows.
        min_weight: smallest |w_ij|, at least 0.
        scale: "pooled" or "row".

    Attributes:
        k: number of neighbours after clamping.
        requested_k: number of neighbours asked for.
        count: number of columns that a row is related to: M, or N - 1 in the self form.
        is_cross: True if columns come from a second set.
        similarities: ŵ, frozen cosines [N, M], fp32 or float64.
        unit_rows: the anchors as unit rows [N, d].
        rows_of: the anchors as given, None if they carry gradient.

    Raises:
        BadValue: wrong shapes or options.
    """

    def __init__(
        self,
        anchors: Tensor,
        k: int,
        columns: Optional[Tensor] = None,
        *,
        min_weight: float = 0.0,
        scale: str = "pooled",
    ) -> None:
        check_features("anchors", anchors)
        given: Any = k
        if isinstance(given, bool) or not isinstance(given, numbers.Real) or int(k) != k or k < 1:
            raise BadValue(f"k is {k!r}; give a whole number of neighbours, at least 1.")
        if not min_weight >= 0:
            raise BadValue(f"min_weight is {min_weight}; give 0 or more.")
        if scale not in ("pooled", "row"):
            raise BadValue(f'scale is {scale!r}; give "pooled" or "row".')
        self.is_cross = columns is not None
        # A frozen encoder's features are their own anchors: they need not be normalised twice.
        self.rows_of = None if anchors.requires_grad else anchors
        self.min_weight, self.scale = float(min_weight), scale
        with torch.no_grad(), full_precision(anchors.device):
            self.unit_rows = rows = unit_rows(anchors)
            self._columns = rows
            if columns is not None:
                check_features("columns", columns)
                if columns.shape[1] != anchors.shape[1]:
                    raise BadValue(
                        f"anchors have dimension {anchors.shape[1]}, columns {columns.shape[1]}; "
                        "both must lie in one feature space."
                    )
                self._columns = unit_rows(columns).to(rows.dtype)
            self.similarities = rows @ self._columns.t()
        m = self.shape[1]
        self.count = m if self.is_cross else max(m - 1, 0)
        self.requested_k = int(k)
        self.k = min(int(k), max(self.count - 1, min(self.count, 1)))
        self._forget_derived()

    def _forget_derived(self) -> None:
        self._own: Optional[Tensor] = None  # the column that each row is, where rows were chosen
        self._remembered: Dict[Hashable, Any] = {}
        self._order: Optional[Tensor] = None
        self._mask: Optional[Tensor] = None
        self._weights: Optional[Tensor] = None
        self._threshold: Optional[Tensor] = None
        self._spread: Optional[Tensor] = None

    def remember(self, key: Hashable, make: Callable[[], _Derived]) -> _Derived:
        """``make()``, or what it gave before under that key: constants of a graph that is kept."""
        if key not in self._remembered:
            with torch.inference_mode(False):
                self._remembered[key] = make()
        found: _Derived = self._remembered[key]
        return found

    @property
    def shape(self) -> Tuple[int, int]:
        """(N, M)."""
        return (self.similarities.shape[0], self.similarities.shape[1])

    @property
    def is_empty(self) -> bool:
        """True if there is no row or no column to relate a row to."""
        return self.count < 1 or len(self.similarities) < 1

    @property
    def is_trivial(self) -> bool:
        """True if there is nothing to align.

        That is a self graph of at most 3 features (at most two candidates per row: an order of
        two similarities, no distribution), or a cross-modal one with fewer than 2 columns or no
        row (ours).
        """
        n, m = self.shape
        return n < 1 or m < 2 if self.is_cross else m <= 3

    # -- who is near ------------------------------------------------------------------------------

    @property
    def order(self) -> Tensor:
        """Columns of every row by falling similarity [N, count], without the row itself.

        The first k are the neighbours, the rest the non-neighbours.
        """
        if self._order is None:
            ranked = self.similarities
            if not self.is_cross:
                ranked = ranked.masked_fill(self.diagonal, -float("inf"))
            full = torch.sort(ranked, dim=1, descending=True, stable=True).indices
            self._order = full[:, : self.count]
        return self._order

    @property
    def indices(self) -> Tensor:
        """Neighbours of every row by falling similarity [N, k]."""
        return self.order[:, : self.k]

    @property
    def diagonal(self) -> Tensor:
        """True where a column is the row itself [N, M]; of self graphs alone."""
        n, m = self.shape
        device = self.similarities.device
        if self._own is not None:
            return self._own.unsqueeze(1) == torch.arange(m, device=device)
        eye = torch.eye(m, dtype=torch.bool, device=device)
        return eye if n == m else eye.repeat(n // max(m, 1), 1)

    @property
    def valid(self) -> Tensor:
        """False on the diagonal of a self graph, True elsewhere [N, M]."""
        if self.is_cross:
            return torch.ones_like(self.similarities, dtype=torch.bool)
        return ~self.diagonal

    @property
    def mask(self) -> Tensor:
        """True for neighbours [N, M]."""
        if self._mask is None:
            none = torch.zeros_like(self.similarities, dtype=torch.bool)
            self._mask = none.scatter_(1, self.indices, True)
        return self._mask

    @property
    def weights(self) -> Tensor:
        """w of Eq. 2 [N, M]: ŵ, negated for non-neighbours; 0 on the diagonal of a self graph."""
        if self._weights is None:
            with torch.inference_mode(False):
                signs = torch.full_like(self.similarities, -1.0).scatter_(1, self.indices, 1.0)
                weights = self.similarities.clamp(min=self.min_weight).mul_(signs)
                if not self.is_cross:
                    weights.masked_fill_(self.diagonal, 0.0)
                self._weights = weights
        return self._weights

    # -- units ------------------------------------------------------------------------------------

    @property
    def threshold(self) -> Tensor:
        """Half way between the K-th and the next neighbour's similarity [N, 1]."""
        if self._threshold is None:
            with torch.inference_mode(False):
                if self.is_empty:
                    self._threshold = self.similarities.new_zeros(len(self.similarities), 1)
                else:
                    edge = self.order[:, [self.k - 1, min(self.k, self.count - 1)]]
                    self._threshold = self.similarities.gather(1, edge).mean(1, keepdim=True)
        return self._threshold

    @property
    def spread(self) -> Tensor:
        """Standard deviation of the frozen similarities [N, 1], at least ``MIN_SPREAD``."""
        if self._spread is None:
            with torch.inference_mode(False):
                if self.is_empty:
                    self._spread = self.similarities.new_ones(len(self.similarities), 1)
                else:
                    variance = self._variances()
                    if self.scale == "pooled":
                        variance = variance.mean().expand(len(variance), 1)
                    self._spread = variance.sqrt().clamp(min=MIN_SPREAD)
        return self._spread

    def _variances(self) -> Tensor:
        sims = self.similarities
        if self.is_cross:
            return sims.var(1, unbiased=False, keepdim=True)
        diagonal = self.diagonal
        mean = sims.masked_fill(diagonal, 0.0).sum(1, keepdim=True) / self.count
        squares = (sims - mean).square_().masked_fill_(diagonal, 0.0)
        return squares.sum(1, keepdim=True) / self.count

    # -- related graphs ---------------------------------------------------------------------------

    @property
    def columns(self) -> Tensor:
        """The frozen columns as unit rows [M, d]; in the self form the anchors."""
        return self._columns

    def repeat(self, sets: int) -> NeighbourGraph:
        """The same graph for several sets of tuned features: its rows [sets · N, M], set by set."""
        graph = copy.copy(self)
        graph._remembered = {}
        graph.similarities = self.similarities.repeat(sets, 1)
        for name in ("_own", "_order", "_mask", "_weights", "_threshold", "_spread"):
            rows = getattr(self, name)
            if rows is not None:
                setattr(graph, name, rows.repeat(sets, *[1] * (rows.dim() - 1)))
        return graph

    def rows(self, index: Tensor) -> NeighbourGraph:
        """The part of the graph that some of its rows make, [n, M]; it keeps its columns."""
        part = copy.copy(self)
        part._remembered = {}
        own = torch.arange(len(self.similarities), device=index.device) % self.shape[1]
        part._own = (own if self._own is None else self._own)[index]
        part._threshold, part._spread = self.threshold[index], self.spread[index]
        part._order = self.order[index]
        part.similarities = self.similarities[index]
        part._mask = None if self._mask is None else self._mask[index]
        part._weights = None if self._weights is None else self._weights[index]
        return part

    def __repr__(self) -> str:
        n, m = self.shape
        kind = "cross" if self.is_cross else "self"
        wanted = "" if self.k == self.requested_k else f" (of {self.requested_k})"
        text = f"NeighbourGraph({kind}, {n} x {m}, k={self.k}{wanted}"
        if self.count and n:
            near = self.similarities[self.mask].mean().item()
            far = self.similarities[self.valid & ~self.mask]
            text += f", neighbours at {near:.3f}"
            text += f", others at {far.mean().item():.3f}" if far.numel() else ""
            text += f", spread {self.spread.mean().item():.3f}"
        return text + ")"


class Relations:
    """What the frozen side says about every pair of rows and columns: the input of row losses.

    Columns are those of the graph, followed by proxies where there are any. Everything is computed
    when it is first used.

    Args:
        graph: of the real features.
        proxy_similarities: frozen similarities of rows and their proxies [N, P], or None.
        positives: the first so many proxies stand for neighbours, the rest for the others.

    Attributes:
        graph, has_proxies: what was given.
        count: number of pairs of a row that count.
        width: number of columns, at most one more than ``count`` (the row itself).
    """

    def __init__(
        self,
        graph: NeighbourGraph,
        proxy_similarities: Optional[Tensor] = None,
        positives: int = 0,
    ) -> None:
        self.graph, self._proxies, self._positives = graph, proxy_similarities, positives
        self.has_proxies = proxy_similarities is not None
        made = 0 if proxy_similarities is None else proxy_similarities.shape[1]
        self.count, self.width = graph.count + made, graph.shape[1] + made

    @property
    def similarities(self) -> Tensor:
        """Frozen similarities [N, width]."""
        real = self.graph.similarities
        return real if self._proxies is None else torch.cat([real, self._proxies.to(real.dtype)], 1)

    @property
    def weights(self) -> Tensor:
        """Signed weights w of Eq. 2 [N, width]; 0 for the pair of a row with itself."""
        real = self.graph.weights
        if self._proxies is None:
            return real
        made = self._proxies.clamp(min=self.graph.min_weight).to(real.dtype)
        made[:, self._positives :].neg_()
        return torch.cat([real, made], dim=1)

    @property
    def threshold(self) -> Tensor:
        """See :class:`NeighbourGraph` [N, 1]; proxies do not shift it."""
        return self.graph.threshold

    @property
    def spread(self) -> Tensor:
        """See :class:`NeighbourGraph` [N, 1]; proxies do not change it."""
        return self.graph.spread

    def standardise(self, cosines: Tensor) -> Tensor:
        """(c - threshold) / spread [N, width]: positive where the frozen graph has a neighbour."""
        return (cosines - self.threshold) / self.spread

    def hide(self, values: Tensor, fill: float = 0.0) -> Tensor:
        """``values`` [N, width] with ``fill`` for the pair of a row with itself."""
        if self.width == self.count:
            return values
        hidden = self.graph.diagonal
        made = self.width - hidden.shape[1]
        if made:
            hidden = torch.nn.functional.pad(hidden, (0, made))
        return values.masked_fill(hidden, fill)

    def mean(self, pair_losses: Tensor) -> Tensor:
        """Mean over the pairs of a row that count: [N, width] -> [N]."""
        return self.hide(pair_losses).sum(-1) / self.count
