"""What regularisers on relations share: frozen similarities against tuned ones, row by row.

A relational regulariser is a function from the tuned cosines of a row and what the frozen side says
about them to a loss (:meth:`RelationalRegulariser.row_losses`). Everything else is common: within
one set of features or across two, several sets at once, and with proxies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, ClassVar, Dict, Optional, Tuple

import torch
from torch import Tensor

from proxyfda.neighbours.cosines import check_features, full_precision, unit_rows, zero_loss
from proxyfda.neighbours.graph import NeighbourGraph, Relations
from proxyfda.neighbours.proxies import (
    MAX_PAIRS,
    MAX_PROXIES,
    ProxyGenerator,
    UnitColumns,
    choose_anchors,
    proxy_terms,
)
from proxyfda.regularisers.base import Options, Regulariser
from proxyfda.utils.errors import BadValue
from proxyfda.utils.rules import LARGEST_FLOAT

RowLosses = Callable[[Tensor, Relations], Tensor]
"""(cosines [N, P], Relations) -> losses [N]."""


def graph_of(
    features: Tensor,
    anchors: Optional[Tensor],
    columns: Optional[Tensor],
    column_anchors: Optional[Tensor],
    graph: Optional[NeighbourGraph],
    k: Optional[int],
    scale: str,
) -> NeighbourGraph:
    """Check the inputs of a loss and give its graph, the one handed in or a new one.

    Raises:
        BadValue: shapes that do not go together; neither graph nor k.
    """
    check_features("features", features, (2, 3))
    sets = features.shape[:-2]
    if columns is not None:
        check_features("columns", columns, (2, 3))
        if columns.shape[-1] != features.shape[-1]:
            raise BadValue(
                f"features have dimension {features.shape[-1]}, columns {columns.shape[-1]}; "
                "both must lie in one feature space."
            )
        if columns.shape[:-2] != sets:
            raise BadValue(
                f"features have shape {tuple(features.shape)}, columns {tuple(columns.shape)}; "
                "give both for the same number of sets, or both without."
            )
    if graph is None:
        if anchors is None or (columns is None) != (column_anchors is None):
            raise BadValue(
                "without a graph the loss needs anchors, and column_anchors exactly when columns "
                "are given."
            )
        if k is None:
            raise BadValue("k is missing; give the number of neighbours or a NeighbourGraph.")
        if sets and anchors.shape[:-1] == features.shape[:-1] and columns is not None:
            anchors = anchors.flatten(0, 1)
        graph = NeighbourGraph(anchors, k, column_anchors, scale=scale)
    wanted = (features.shape[:-1].numel(), (features if columns is None else columns).shape[-2])
    if sets and graph.shape[0] * sets[0] == wanted[0]:
        graph = graph.repeat(sets[0])
    if graph.shape != wanted or graph.is_cross != (columns is not None):
        raise BadValue(
            f"the loss relates {wanted[0]} rows to {wanted[1]} "
            f"{'rows' if columns is None else 'columns'}, but the frozen side is {graph!r}; "
            "give features and anchors of the same samples."
        )
    return graph


def relation_loss(
    row_losses: RowLosses,
    features: Tensor,
    anchors: Optional[Tensor] = None,
    *,
    k: Optional[int] = None,
    columns: Optional[Tensor] = None,
    column_anchors: Optional[Tensor] = None,
    graph: Optional[NeighbourGraph] = None,
    scale: str = "pooled",
) -> Tensor:
    """Mean over rows of a loss on their relations.

    With ``columns`` the cross-modal form (ours): rows i from ``features``, columns j from
    ``columns``, all of which count. Both receive gradient. For the opposite direction call again
    with the two swapped.

    Several sets of tuned features that share a frozen side go in one call (ours): ``features``
    [S, N, d], for the cross-modal form with ``columns`` [S, M, d], row i of set s meeting the
    columns of set s alone. The loss is the mean over the sets. CoCoOp needs it, whose class texts
    differ from image to image.

    Args:
        row_losses: the loss of each row.
        features: tuned features [N, d], or [S, N, d].
        anchors: frozen features of the same samples [N, d], in the cross-modal form also
            [S, N, d]; no gradient flows into them.
        k: neighbours per row, clamped as ``NeighbourGraph`` says; required without ``graph``.
        columns: tuned column features [M, d], or [S, M, d].
        column_anchors: their frozen counterparts [M, d].
        graph: frozen graph made before, instead of anchors, column_anchors, k and scale; of N
            rows, or of S · N rows set by set.
        scale: unit of the spread, see ``NeighbourGraph``.

    Returns:
        Scalar, fp32 (float64 for float64 features). Exactly 0 with zero gradient if there is
        nothing to align: N <= 3, or fewer than 2 columns.

    Raises:
        BadValue: shapes that do not go together.
    """
    graph = graph_of(features, anchors, columns, column_anchors, graph, k, scale)
    if graph.is_trivial:
        return zero_loss(features, columns)
    with full_precision(features.device):
        cosines, _ = _cosines(features, columns, graph)
        return row_losses(cosines, Relations(graph)).mean()


def _cosines(
    features: Tensor, columns: Optional[Tensor], graph: NeighbourGraph
) -> Tuple[Tensor, UnitColumns]:
    """Tuned cosines [N, M] of rows and columns, and the unit columns."""
    is_frozen = graph.rows_of is features and not features.requires_grad
    rows = graph.unit_rows if is_frozen else unit_rows(features)
    others = rows if columns is None else unit_rows(columns).to(rows.dtype)
    cosines = rows @ others.transpose(-1, -2)
    unit = UnitColumns(others, cosines if columns is None else None)
    return cosines.reshape(graph.shape), unit


def proxied_relation_loss(
    row_losses: RowLosses,
    features: Tensor,
    anchors: Optional[Tensor],
    generator: ProxyGenerator,
    *,
    exact_proxies: bool = False,
    k: Optional[int] = None,
    columns: Optional[Tensor] = None,
    column_anchors: Optional[Tensor] = None,
    graph: Optional[NeighbourGraph] = None,
    scale: str = "pooled",
    alpha: float = 1.0,
    proxy_temperature: float = 0.1,
    max_pairs: int = MAX_PAIRS,
    turn: int = 0,
) -> Tuple[Tensor, Tensor]:
    """The same over real features and their proxies, and the loss of the proxies' generator.

    Where the anchors are too many for ``max_pairs``, some get proxies in this turn (ours), and the
    loss is mean_i l_i(real) + mean_{i chosen} (l_i(real, proxies) - l_i(real)): over the turns the
    same as if all had them.

    Args:
        exact_proxies: take for ŵ^p the frozen cosine of the frozen proxy in place of the paper's
            pooled estimate A ŵ (ours): a loss that has its minimum at the frozen features keeps it.
        generator: makes the proxies from the columns (in the self form the features).
        alpha: weight of the variance term in L_proxy.
        proxy_temperature: of the contrastive term in L_proxy.
        max_pairs: bound on pairs of proxies and columns, see :mod:`proxyfda.neighbours.proxies`.
        turn: number of the step, which chooses the anchors where not all get proxies.

    The other arguments are those of :func:`relation_loss`.

    Returns:
        (loss, loss_proxy), scalars; the first has no gradient for the generator, the second for
        nothing else. Both are 0, and the second without any gradient, if there is nothing to align.
    """
    graph = graph_of(features, anchors, columns, column_anchors, graph, k, scale)
    if graph.is_trivial:
        # Without a gradient the generator's optimiser leaves it where it is.
        return zero_loss(features, columns), zero_loss(features.detach())
    with full_precision(features.device):
        cosines, unit = _cosines(features, columns, graph)
        sets = features.shape[0] if features.dim() == 3 else 1
        rows = graph.shape[0] // sets
        chosen = choose_anchors(
            sets, rows, generator.pairs_per_row(graph), max_pairs, turn, cosines.device
        )
        if chosen is None:
            loss, loss_proxy = _with_proxies(
                row_losses, cosines, unit, graph, generator, exact_proxies, alpha, proxy_temperature
            )
            return loss.mean(), loss_proxy
        some, some_graph, some_unit = _part(cosines, graph, unit, chosen, rows)
        loss, loss_proxy = _with_proxies(
            row_losses, some, some_unit, some_graph, generator, exact_proxies, alpha,
            proxy_temperature,
        )  # fmt: skip
        without = row_losses(some, Relations(some_graph))
        return row_losses(cosines, Relations(graph)).mean() + (loss - without).mean(), loss_proxy


def _part(
    cosines: Tensor,
    graph: NeighbourGraph,
    unit: UnitColumns,
    chosen: Tuple[Tensor, Tensor],
    rows: int,
) -> Tuple[Tensor, NeighbourGraph, UnitColumns]:
    """What the chosen anchors need; ``rows`` is the number of anchors in a set."""
    in_sets, in_rows = chosen
    index = (in_sets.unsqueeze(1) * rows + in_rows).flatten()
    if unit.unit.dim() == 3 and len(in_sets) < len(unit.unit):
        unit = UnitColumns(unit.unit[in_sets], unit.gram[in_sets] if unit.by_gram else None)
    return cosines[index], graph.rows(index), unit


def _with_proxies(
    row_losses: RowLosses,
    cosines: Tensor,
    unit: UnitColumns,
    graph: NeighbourGraph,
    generator: ProxyGenerator,
    exact_proxies: bool,
    alpha: float,
    proxy_temperature: float,
) -> Tuple[Tensor, Tensor]:
    """Losses of the rows [N] with their proxies as further columns, and that of the generator."""
    proxies = generator.pool(unit.unit.detach(), graph).at_least_fp32()
    weights = proxies.weights
    made, loss_proxy = proxy_terms(
        proxies, cosines.to(weights.dtype), unit, graph, alpha, proxy_temperature
    )
    fixed = proxies._replace(weights=weights.detach())
    if exact_proxies:
        anchors = UnitColumns(graph.columns.to(weights.dtype))
        similarities = fixed.cosines(graph.similarities, anchors)
    else:
        similarities = fixed.estimate(graph.similarities)
    tuned = torch.cat([cosines, made.to(cosines.dtype)], dim=1)
    return row_losses(tuned, Relations(graph, similarities, proxies.positives)), loss_proxy


class RelationalRegulariser(Regulariser):
    """A regulariser on the relations among features.

    Attributes:
        exact_proxies: whether the loss has its minimum at the frozen features, so that proxies
            have to enter with their exact frozen cosines to keep it there.
    """

    kind = "relations"
    exact_proxies: ClassVar[bool] = False

    @property
    def neighbours(self) -> int:
        """K of the graph; 1 where the loss does not look at neighbourhoods."""
        return int(getattr(self.options, "k", 1))

    def row_losses(self, cosines: Tensor, relations: Relations) -> Tensor:
        """Losses [N] of rows with tuned cosines [N, P]."""
        raise NotImplementedError

    def graph(
        self, anchors: Tensor, columns: Optional[Tensor] = None, *, scale: str = "pooled"
    ) -> NeighbourGraph:
        """The frozen graph, to be made once where the anchors do not change."""
        return NeighbourGraph(anchors, self.neighbours, columns, scale=scale)

    def learn(
        self, features: Tensor, columns: Optional[Tensor], graph: NeighbourGraph
    ) -> Dict[str, Tensor]:
        """What the regulariser learns for itself from a batch, before the batch's loss.

        Args:
            features, columns: tuned, see :func:`relation_loss`.
            graph: of the batch, or a kept one.

        Returns:
            Further terms, with a gradient in the regulariser's own parameters alone.
        """
        return {}

    def _batch_graph(
        self,
        features: Tensor,
        anchors: Optional[Tensor],
        *,
        columns: Optional[Tensor] = None,
        column_anchors: Optional[Tensor] = None,
        graph: Optional[NeighbourGraph] = None,
        scale: str = "pooled",
    ) -> NeighbourGraph:
        """The frozen graph of a batch, with the arguments checked."""
        k = self.neighbours
        return graph_of(features, anchors, columns, column_anchors, graph, k, scale)

    def terms(self, features: Any, anchors: Any = None, **more: Any) -> Dict[str, Tensor]:
        """One scalar, see :func:`relation_loss` for the arguments, and those of :meth:`learn`."""
        graph, columns = self._batch_graph(features, anchors, **more), more.get("columns")
        own = self.learn(features, columns, graph)
        loss = relation_loss(self.row_losses, features, columns=columns, graph=graph)
        return {self.log_name: loss, **own}


@dataclass(frozen=True)
class ProxyOptions(Options):
    """Options of proxies.

    Attributes:
        k: neighbours per anchor, clamped to what a batch allows; the rest are non-neighbours.
        proxy_ratio: proxies per set member, s of the paper.
        alpha: weight of the variance term in L_proxy (value ours).
        proxy_temperature: of the contrastive term in L_proxy (value ours).
        max_proxies: most proxies of a set (ours).
        max_proxy_pairs: most pairs of proxies and columns in a step (ours); where it is reached
            anchors take turns.
        proxy_seed: of the generator's initial weights; below 0: from torch's global stream.
    """

    k: int = 8
    proxy_ratio: float = 0.4
    alpha: float = 1.0
    proxy_temperature: float = 0.1
    max_proxies: int = MAX_PROXIES
    max_proxy_pairs: int = MAX_PAIRS
    proxy_seed: int = -1

    @property
    def keeps_state(self) -> bool:
        """See :class:`Options`: the generator."""
        return True

    def check(self) -> None:
        """See :meth:`Options.check`."""
        super().check()  # of the options that a proxied form adds these to
        self._require(self.k >= 1, "k", "a neighbourhood needs at least 1 neighbour")
        self._require(
            0 < self.proxy_ratio <= 4,
            "proxy_ratio",
            "use a number above 0 and up to 4 (paper: 0.4)",
        )
        self._require_not_negative("alpha")
        self._require(
            0.03 <= self.proxy_temperature <= LARGEST_FLOAT,
            "proxy_temperature",
            "use at least 0.03",
        )
        self._require(abs(self.proxy_seed) < 2**63, "proxy_seed", "use a whole number below 2**63")
        for name in ("max_proxies", "max_proxy_pairs"):
            self._require(getattr(self, name) >= 1, name, "use at least 1")


class ProxiedRegulariser(RelationalRegulariser):
    """A relational regulariser over features and their proxies; put it before the relational class.

    It owns the proxies' generator: give its ``parameters()`` to an optimiser, and one backward pass
    of the sum trains model and generator.

    Args:
        dim: dimension d of the features.
        options, settings: see :class:`Regulariser`.
    """

    needs_dim = True

    def __init__(self, dim: int, options: Optional[Options] = None, **settings: Any) -> None:
        super().__init__(options, **settings)
        given = self.options
        self.generator = ProxyGenerator(
            dim,
            given.proxy_ratio,
            max_proxies=given.max_proxies,
            seed=None if given.proxy_seed < 0 else given.proxy_seed,
        )
        self._turn = 0

    @property
    def neighbours(self) -> int:
        """K of the graph."""
        return int(self.options.k)

    def terms(self, features: Any, anchors: Any = None, **more: Any) -> Dict[str, Tensor]:
        """The loss that the model minimises, and ``loss_proxy``, which the generator does."""
        graph, columns = self._batch_graph(features, anchors, **more), more.get("columns")
        own = self.learn(features, columns, graph)
        loss, loss_proxy = proxied_relation_loss(
            self.row_losses,
            features,
            None,
            self.generator,
            columns=columns,
            graph=graph,
            exact_proxies=self.exact_proxies,
            alpha=self.options.alpha,
            proxy_temperature=self.options.proxy_temperature,
            max_pairs=self.options.max_proxy_pairs,
            turn=self._turn,
        )
        if self.training:
            self._turn += 1
        return {self.log_name: loss, **own, "loss_proxy": loss_proxy}

    def get_extra_state(self) -> Tensor:
        """The turn (see :func:`~proxyfda.neighbours.proxies.choose_anchors`)."""
        return torch.tensor(self._turn)

    def set_extra_state(self, state: Tensor) -> None:
        """Take up :meth:`get_extra_state`."""
        self._turn = int(state)
