"""FDA: feature distribution alignment, Eq. 2 of the paper."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Dict, Optional

import torch.nn.functional as F
from torch import Tensor

from proxyfda.neighbours.graph import NeighbourGraph, Relations
from proxyfda.regularisers.base import Options, register
from proxyfda.regularisers.constants import (
    CONSTANTS,
    DerivedConstants,
    GivenConstants,
    LearnedConstants,
    eq2_row_losses,
)
from proxyfda.regularisers.relations import RelationalRegulariser, RowLosses, relation_loss
from proxyfda.utils.errors import BadValue
from proxyfda.utils.rules import LARGEST_FLOAT

__all__ = ["FDA", "FDAOptions", "fda_loss"]

UNITS = ("cosine", "frozen")
TAU, BIAS = 0.1, 10.0  # where SigLIP starts


@dataclass(frozen=True)
class FDAOptions(Options):
    """Options of :class:`FDA`. None of the values is published: all are ours.

    Attributes:
        k: neighbours per anchor, clamped to what a batch allows (see ``NeighbourGraph``).
        tau: temperature τ of the cosines.
        bias: offset b of the logits, with its sign as in Eq. 2; with τ = 0.1, +10 is SigLIP's
            initialisation, logit = 10 cos - 10.
        constants: where τ and b come from (ours). ``"given"``: the two above. ``"derived"``: from
            the frozen graphs of the first 32 batches, so that the frozen features are as near to a
            minimum as Eq. 2 lets them be. ``"learned"``: on the tuned features together with the
            model, as in SigLIP, from the two above. Neither is published; see
            :mod:`proxyfda.regularisers.constants`. Empty becomes ``"derived"``, but ``"given"``
            where the two above are other than their defaults, which then count, and with units
            ``"frozen"``, which have neither.
        units: ``"cosine"``: Eq. 2 literally. ``"frozen"`` (ours): cosines are measured from the
            threshold between the K-th and the next neighbour, in units of the frozen similarities'
            spread, with ``slope`` in the place of 1 / τ and no bias.
        slope: steepness per unit of spread, with units ``"frozen"``.
    """

    k: int = 8
    tau: float = TAU
    bias: float = BIAS
    constants: str = ""
    units: str = "cosine"
    slope: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.constants:
            literal = self._has_own_constants or self.units != "cosine"
            object.__setattr__(self, "constants", "given" if literal else "derived")

    @property
    def keeps_state(self) -> bool:
        """See :attr:`Options.keeps_state`."""
        return self.constants != "given"

    @property
    def _has_own_constants(self) -> bool:
        return (self.tau, self.bias) != (TAU, BIAS)

    def check(self) -> None:
        """See :meth:`Options.check`."""
        self._require(self.k >= 1, "k", "a neighbourhood needs at least 1 neighbour")
        self._require_positive("tau", "slope")
        self._require(
            abs(self.bias) <= LARGEST_FLOAT,
            "bias",
            "use a finite number (SigLIP's is +10 in this sign)",
        )
        self._require(self.units in UNITS, "units", f"use one of {', '.join(UNITS)}")
        self._require(
            self.constants in ("", *CONSTANTS), "constants", f"use one of {', '.join(CONSTANTS)}"
        )
        self._require(
            self.constants in ("", "given") or self.units == "cosine",
            "constants",
            f"units {self.units} have no tau and bias: use given, or units cosine",
        )
        self._require(
            not (self.constants == "derived" and self._has_own_constants),
            "constants",
            f"tau {self.tau:g}, bias {self.bias:g} would not count: use given, or leave them out",
        )


def eq2_in_frozen_units(cosines: Tensor, relations: Relations, slope: float) -> Tensor:
    """mean_j log(1 + exp(-slope w'_ij z_ij)) for rows of cosines [N, P]: [N] (ours).

    z = (c - threshold) / spread, w' = w divided by its row's mean magnitude. The boundary between
    the K-th and the next neighbour takes the place of τ·b and the spread that of τ, so that it
    suits cosines of any range. It widens the margin at the boundary, but leaves well separated
    pairs alone.
    """
    weights = relations.weights
    magnitude = weights.abs().sum(1, keepdim=True) / relations.count
    labels = weights / magnitude.clamp(min=1e-6)
    return relations.mean(F.softplus(-slope * labels * relations.standardise(cosines)))


def fda_loss(
    features: Tensor,
    anchors: Optional[Tensor] = None,
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
) -> Tensor:
    """FDA loss of a batch, the mean over i and j != i of Eq. 2.

        L = 1/N Σ_i 1/(N-1) Σ_{j≠i} log(1 + exp(w_ij (-cos(x_i, x_j)/τ + b)))

    with w_ij = ŵ_ij, the frozen cosine, for the K nearest neighbours of the frozen feature i, and
    -ŵ_ij for the others (both clamped at 0, ours).

    Source: Huang et al., ICML 2025, arXiv 2505.24088, Eq. 2: SigLIP's sigmoid loss with real-valued
    labels. Its minimum is not at the frozen features: it draws neighbours to cosine 1 and drives
    the others apart.

    Args:
        features: tuned features [N, d], or [S, N, d].
        anchors: frozen features of the same samples [N, d]; no gradient flows into them.
        k: neighbours per row; required without ``graph``.
        tau, bias, units, slope: see :class:`FDAOptions`;
            :func:`~proxyfda.regularisers.constants.derive_constants` gives τ and b for a graph.
        form: ``"paper"``, which is what this is; other forms have functions of their own.
        scale: unit of the spread with units ``"frozen"``, see ``NeighbourGraph``.
        columns: tuned features of a second set [M, d], or [S, M, d]: the cross-modal form.
        column_anchors: their frozen counterparts [M, d].
        graph: frozen graph made before, instead of anchors, column_anchors, k and scale.

    Sets and columns are explained at :func:`~proxyfda.regularisers.relations.relation_loss`.

    Returns:
        Scalar, fp32 (float64 for float64 features). Exactly 0 with zero gradient if there is
        nothing to align: N <= 3, or fewer than 2 columns.

    Raises:
        BadValue: shapes that do not go together, options out of range.

    >>> import torch
    >>> frozen = torch.eye(6) + 0.5
    >>> tuned = frozen.clone().requires_grad_()
    >>> loss = fda_loss(tuned, frozen, k=2, tau=0.1, bias=10.0)
    >>> round(loss.item(), 4)
    0.9385
    """
    check_form(form)
    options = FDAOptions(k=k or 1, tau=tau, bias=bias, constants="given", units=units, slope=slope)
    return relation_loss(
        row_losses_of(options),
        features,
        anchors,
        k=k,
        columns=columns,
        column_anchors=column_anchors,
        graph=graph,
        scale=scale,
    )


_OTHER_FORMS = {
    "standardised": 'units="frozen"',
    "regress": "rkd_loss",
    "match": "match_loss",
    "kl": "kl_loss",
    "correlation": "correlation_loss",
}


def check_form(form: str) -> None:
    """Refuse forms of the loss that are asked for in another way.

    Raises:
        BadValue: naming what to use.
    """
    if form != "paper":
        remedy = _OTHER_FORMS.get(form)
        raise BadValue(
            f"form is {form!r}, but this is Eq. 2; "
            + (f"use {remedy} of proxyfda.regularisers." if remedy else "leave form out.")
        )


def row_losses_of(options: FDAOptions, constants: Any = None) -> RowLosses:
    """The function of rows that the options ask for.

    Args:
        constants: where τ and b come from; None: the options.
    """
    if options.units == "frozen":
        return functools.partial(eq2_in_frozen_units, slope=options.slope)
    constants = constants or GivenConstants(options.tau, options.bias)
    tau, bias = constants.values()
    return functools.partial(eq2_row_losses, tau=tau, bias=bias, keep=constants.settled)


@register
class FDA(RelationalRegulariser):
    """Feature distribution alignment as a module, see :func:`fda_loss`.

    Unless told otherwise it derives τ and b from the frozen features (ours, see
    :class:`FDAOptions`), for which a weight λ of 0.3 serves. ``FDA(tau=0.1, bias=10.0)``, naming
    either, is Eq. 2 with these numbers, as ``fda_loss`` is.

    >>> import torch
    >>> frozen = torch.eye(6) + 0.5
    >>> FDA(k=2, tau=0.1)(frozen, frozen) == fda_loss(frozen, frozen, k=2)
    tensor(True)
    >>> FDA(k=2).options.constants
    'derived'
    """

    name = "fda"
    options_class = FDAOptions
    default_weight = 0.3

    def __init__(self, options: Optional[Options] = None, **settings: Any) -> None:
        super().__init__(options, **settings)
        given = self.options
        self.constants: Any = {
            "given": lambda: GivenConstants(given.tau, given.bias),
            "derived": DerivedConstants,
            "learned": lambda: LearnedConstants(given.tau, given.bias),
        }[given.constants]()

    @classmethod
    def make_options(cls, **settings: Any) -> Options:
        """See :meth:`Regulariser.make_options`; τ or b by name are meant, whatever they are."""
        if "constants" not in settings and not {"tau", "bias"}.isdisjoint(settings):
            settings["constants"] = "given"
        return super().make_options(**settings)

    def learn(
        self, features: Tensor, columns: Optional[Tensor], graph: NeighbourGraph
    ) -> Dict[str, Tensor]:
        """See :meth:`RelationalRegulariser.learn`."""
        found: Dict[str, Tensor] = self.constants.learn(features, columns, graph)
        return found

    def row_losses(self, cosines: Tensor, relations: Relations) -> Tensor:
        """See :meth:`RelationalRegulariser.row_losses`."""
        return row_losses_of(self.options, self.constants)(cosines, relations)
