"""Feature distribution alignment (FDA): keep a batch's frozen neighbourhoods while tuning.

Source: Huang et al., "Proxy-FDA: Proxy-based Feature Distribution Alignment for Fine-tuning
Vision Foundation Models without Forgetting", ICML 2025, arXiv 2505.24088, Eq. 2. What the paper
leaves open is marked *ours*.

Notation: ``features`` x [N, d] are tuned, ``anchors`` are their frozen counterparts, c_ij =
cos(x_i, x_j), w_ij the same on the frozen side. In the cross-modal form the columns j come from a
second set (``columns`` [M, d], ``column_anchors`` [M, d]), for example class text features.

Inputs need not be normalised and may have any floating dtype. Similarities and losses are computed
in fp32 (float64 stays float64), also under autocast: in half precision log(1 + exp(.)) overflows
and cosines tie.
"""

from __future__ import annotations

import contextlib
import copy
from typing import Callable, Dict, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from proxyfda.utils.errors import BadValue

__all__ = [
    "FORMS",
    "NeighbourGraph",
    "Relations",
    "fda_loss",
    "form_options",
    "pointwise_loss",
    "register_form",
]

MIN_SPREAD = 1e-3
"""Smallest spread that similarities are divided by (ours): equal features have none."""


def full_precision(device: torch.device):
    """Context in which autocast leaves fp32 matrix products alone."""
    try:
        return torch.autocast(device_type=device.type, enabled=False)
    except RuntimeError:  # a device type that has no autocast in this torch
        return contextlib.nullcontext()


def unit_rows(x: Tensor) -> Tensor:
    """Rows [N, d] of any float dtype -> unit rows in fp32 (float64 stays); zero rows stay zero."""
    x = x if x.dtype == torch.float64 else x.float()
    return F.normalize(x, dim=-1, eps=1e-8)


def _require_matrix(name: str, x: Tensor, sets: bool = False) -> None:
    if x.dim() not in (2, 3 if sets else 2) or not x.is_floating_point():
        raise BadValue(
            f"{name} has shape {tuple(x.shape)} and dtype {x.dtype}; "
            "give a float matrix with one feature per row."
        )


def signed_weights(similarities: Tensor, positive: Tensor, min_weight: float) -> Tensor:
    """w of Eq. 2 [N, P]: the frozen similarity, negated for non-neighbours; see NeighbourGraph."""
    strength = similarities.clamp(min=min_weight)
    return torch.where(positive, strength, -strength)


class Relations(NamedTuple):
    """What the frozen side says about every pair; the input of each form.

    Shapes: P is M, or M plus the number of proxies where those are appended.

    Attributes:
        similarities: frozen cosines [N, P].
        positive: True for neighbours [N, P].
        weights: signed weights w_ij of Eq. 2 [N, P].
        valid: False for pairs that do not count, j = i [N, P].
        count: number of valid pairs in a row.
        threshold: half way between the K-th and the next neighbour's similarity [N, 1].
        spread: standard deviation of the frozen similarities [N, 1].
    """

    similarities: Tensor
    positive: Tensor
    weights: Tensor
    valid: Tensor
    count: int
    threshold: Tensor
    spread: Tensor

    def standardise(self, cosines: Tensor) -> Tensor:
        """(c - threshold) / spread [N, P]: positive where the frozen graph has a neighbour."""
        return (cosines - self.threshold) / self.spread


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

    Spread (ours), used by all forms but ``paper``: the standard deviation of similarities around
    their own row's mean, because rows differ in their offset (an image that is close to all
    texts). ``scale="pooled"`` averages the variances over the rows and gives every row the same
    unit, which is stable for few columns and does not amplify a row whose similarities are nearly
    equal; ``scale="row"`` gives each row its own. Both hold within and across modalities: image-
    text cosines (0.15 to 0.35, spread about 0.03) get the same range as image-image ones.

    Args:
        anchors: frozen row features [N, d].
        k: wanted number of neighbours, at least 1.
        columns: frozen column features [M, d] for the cross-modal graph; None: the rows.
        min_weight: smallest |w_ij|, at least 0.
        scale: "pooled" or "row".

    Attributes:
        k: number of neighbours after clamping.
        requested_k: number of neighbours asked for.
        is_cross: True if columns come from a second set.
        similarities: ŵ, frozen cosines [N, M], fp32 or float64.
        mask: True for neighbours [N, M].
        valid: False on the diagonal of a self graph, True elsewhere [N, M].
        weights: w [N, M], 0 where not valid.
        threshold: half way between the K-th and the next neighbour [N, 1].
        spread: [N, 1], at least ``MIN_SPREAD``.

    Raises:
        ValueError: wrong shapes or options.
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
        _require_matrix("anchors", anchors)
        if isinstance(k, bool) or int(k) != k or k < 1:
            raise BadValue(f"k is {k!r}; give a whole number of neighbours, at least 1.")
        if min_weight < 0:
            raise BadValue(f"min_weight is {min_weight}; give 0 or more.")
        if scale not in ("pooled", "row"):
            raise BadValue(f'scale is {scale!r}; give "pooled" or "row".')
        self.is_cross = columns is not None
        with torch.no_grad(), full_precision(anchors.device):
            rows = unit_rows(anchors)
            if columns is not None:
                _require_matrix("columns", columns)
                if columns.shape[1] != anchors.shape[1]:
                    raise BadValue(
                        f"anchors have dimension {anchors.shape[1]}, columns {columns.shape[1]}; "
                        "both must lie in one feature space."
                    )
                self._columns = unit_rows(columns).to(rows.dtype)
                self.similarities = rows @ self._columns.t()
            else:
                self._columns = rows
                self.similarities = rows @ rows.t()
            self.min_weight = float(min_weight)
            self._build(int(k), scale)

    def _build(self, k: int, scale: str) -> None:
        sims = self.similarities
        n, m = sims.shape
        candidates = m if self.is_cross else m - 1
        self.requested_k = k
        self.k = k = min(k, max(candidates - 1, min(candidates, 1)))
        self.count = candidates
        self.valid = torch.ones_like(sims, dtype=torch.bool)
        if not self.is_cross:
            self.valid.fill_diagonal_(False)
        self._order: Optional[Tensor] = None
        if candidates < 1 or n < 1:
            self.mask = torch.zeros_like(self.valid)
            self.weights = torch.zeros_like(sims)
            self.threshold = sims.new_zeros(n, 1)
            self.spread = sims.new_ones(n, 1)
            return

        ranked = self._ranked()
        top = ranked.topk(min(k + 1, candidates), dim=1).values
        kth = top[:, k - 1 : k]
        self.threshold = (kth + top[:, -1:]) / 2
        # topk alone leaves the choice among equals to the backend: take the lowest columns.
        above, equal = ranked > kth, ranked == kth
        room = k - above.sum(1, keepdim=True)
        self.mask = above | (equal & (equal.cumsum(1) <= room))

        weights = signed_weights(sims, self.mask, self.min_weight)
        self.weights = weights.masked_fill(~self.valid, 0.0)

        centre = sims.masked_fill(~self.valid, 0.0).sum(1, keepdim=True) / candidates
        squares = (sims - centre).square().masked_fill(~self.valid, 0.0)
        variance = squares.sum(1, keepdim=True) / candidates
        if scale == "pooled":
            variance = variance.mean().expand(n, 1)
        self.spread = variance.sqrt().clamp(min=MIN_SPREAD)

    def repeat(self, sets: int) -> NeighbourGraph:
        """The same graph for several sets of tuned features: its rows [sets · N, M], set by set."""
        graph = copy.copy(self)
        for name in ("similarities", "mask", "valid", "weights", "threshold", "spread", "_order"):
            rows = getattr(self, name)
            setattr(graph, name, None if rows is None else rows.repeat(sets, 1))
        return graph

    def _ranked(self) -> Tensor:
        return self.similarities.masked_fill(~self.valid, -float("inf"))

    @property
    def shape(self) -> Tuple[int, int]:
        """(N, M)."""
        return (self.similarities.shape[0], self.similarities.shape[1])

    @property
    def order(self) -> Tensor:
        """Valid columns of every row by falling similarity [N, M - 1] (cross-modal: [N, M]).

        The first k are the neighbours, the rest the non-neighbours. Sorted on first use.
        """
        if self._order is None:
            full = torch.sort(self._ranked(), dim=1, descending=True, stable=True).indices
            self._order = full[:, : self.count]
        return self._order

    @property
    def indices(self) -> Tensor:
        """Neighbours of every row by falling similarity [N, k]."""
        return self.order[:, : self.k]

    @property
    def column_gram(self) -> Tensor:
        """Frozen cosines among the columns [M, M]; in the self form the similarities."""
        if not self.is_cross:
            return self.similarities[: len(self._columns)]
        with full_precision(self._columns.device):
            return self._columns @ self._columns.t()

    @property
    def is_trivial(self) -> bool:
        """True if there is nothing to align.

        That is a self graph of at most 3 features (at most two candidates per row: an order of
        two similarities, no distribution), or a cross-modal one with fewer than 2 columns or no
        row (ours).
        """
        n, m = self.shape
        return n < 1 or m < 2 if self.is_cross else m <= 3

    @property
    def relations(self) -> Relations:
        """The graph as the input of a form."""
        return Relations(
            self.similarities,
            self.mask,
            self.weights,
            self.valid,
            self.count,
            self.threshold,
            self.spread,
        )

    def overlap(self, other: NeighbourGraph) -> float:
        """Mean share of neighbours in common with another graph of the same rows and K, 0 to 1.

        Between the graphs of frozen and of tuned features it is a diagnostic of forgetting
        (ours).

        Raises:
            ValueError: the graphs differ in shape or K.
        """
        if self.shape != other.shape or self.k != other.k or self.is_cross != other.is_cross:
            raise BadValue(f"{self!r} and {other!r} are not comparable; use equal rows and k.")
        if self.k == 0 or self.shape[0] == 0:
            return 1.0
        common = (self.mask & other.mask.to(self.mask.device)).sum(1).double() / self.k
        return common.mean().item()

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


# Forms: (cosines [N, P], Relations, **the hyper-parameters it uses) -> loss per row [N].


class Form(NamedTuple):
    """An entry of ``FORMS``.

    Attributes:
        function: (cosines [N, P], Relations, **hyper-parameters) -> [N].
        uses: hyper-parameters it takes.
        exact_proxies: True if proxies enter with the frozen cosine of the frozen proxy instead of
            the paper's pooled estimate A·ŵ, so that the frozen features stay at the minimum.
    """

    function: Callable[..., Tensor]
    uses: Tuple[str, ...]
    exact_proxies: bool


FORMS: Dict[str, Form] = {}
"""Loss forms by name; ``register_form`` adds one."""


def register_form(name: str, *, uses: Tuple[str, ...], exact_proxies: bool = False):
    """Decorator that adds a form; see ``Form`` for the arguments and the function's signature."""

    def add(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        FORMS[name] = Form(function, uses, exact_proxies)
        return function

    return add


def form_options(form: str, **options: float) -> Dict[str, float]:
    """The entries of ``options`` that ``form`` uses.

    Raises:
        ValueError: unknown form, or an option that divides and is not positive.
    """
    if form not in FORMS:
        raise BadValue(f"form is {form!r}; give one of {', '.join(sorted(FORMS))}.")
    used = {name: options[name] for name in FORMS[form].uses}
    for name in ("tau", "slope", "temperature"):
        if name in used and not used[name] > 0:
            raise BadValue(f"{name} is {used[name]}; form {form!r} needs it above 0.")
    return used


def _row_mean(pair_loss: Tensor, relations: Relations) -> Tensor:
    return pair_loss.masked_fill(~relations.valid, 0.0).sum(1) / relations.count


@register_form("paper", uses=("tau", "bias"))
def paper_form(cosines: Tensor, relations: Relations, tau: float, bias: float) -> Tensor:
    """Eq. 2: mean_j log(1 + exp(w_ij (-c_ij / tau + bias))).

    SigLIP's sigmoid loss with real-valued labels; tau 0.1 and bias +10 are SigLIP's
    initialisation, logit = 10 c - 10. Its minimum is not at the frozen features: it draws
    neighbours to cosine 1 and drives the others apart.
    """
    return _row_mean(F.softplus(relations.weights * (bias - cosines / tau)), relations)


@register_form("standardised", uses=("slope",))
def standardised_form(cosines: Tensor, relations: Relations, slope: float) -> Tensor:
    """Eq. 2 in the frozen graph's own units (ours).

    mean_j log(1 + exp(-slope w'_ij z_ij)) with z_ij = (c_ij - threshold_i) / spread_i and w' the
    weights of Eq. 2 divided by their row's mean magnitude. The boundary between the K-th and the
    next neighbour takes the place of tau·bias, the spread that of tau, so that it suits cosines of
    any range. It widens the margin at the boundary, but leaves well separated pairs alone.
    """
    weights = relations.weights
    magnitude = weights.abs().sum(1, keepdim=True) / relations.count
    labels = weights / magnitude.clamp(min=1e-6)
    return _row_mean(F.softplus(-slope * labels * relations.standardise(cosines)), relations)


@register_form("match", uses=("slope",), exact_proxies=True)
def match_form(cosines: Tensor, relations: Relations, slope: float) -> Tensor:
    """Soft targets (ours): mean_j KL(Bernoulli(q_ij) || Bernoulli(sigmoid(slope z_ij))).

    q_ij = sigmoid(slope v_ij); z as in ``standardised``, v its frozen counterpart. That is binary
    cross-entropy less the targets' entropy: 0 with zero gradient at the frozen features, positive
    elsewhere.
    """
    z = slope * relations.standardise(cosines)
    v = slope * relations.standardise(relations.similarities)
    # softplus(z) - q z - (softplus(v) - q v) is the divergence without a log of q or 1 - q.
    return _row_mean(F.softplus(z) - F.softplus(v) - v.sigmoid() * (z - v), relations)


@register_form("kl", uses=("temperature",), exact_proxies=True)
def kl_form(cosines: Tensor, relations: Relations, temperature: float) -> Tensor:
    """Neighbourhood as a distribution (ours): KL(softmax_j(v_ij / T) || softmax_j(z_ij / T)).

    z and v as in ``match``; a row's offset does not count. 0 at the frozen features. Across
    modalities T 0.5 is near CLIP's own temperature: 0.01 in cosines of spread 0.02.
    """
    hidden = ~relations.valid
    z = (relations.standardise(cosines) / temperature).masked_fill(hidden, -1e4)
    v = (relations.standardise(relations.similarities) / temperature).masked_fill(hidden, -1e4)
    log_q = v.log_softmax(1)
    return (log_q.exp() * (log_q - z.log_softmax(1))).sum(1)


@register_form("regress", uses=(), exact_proxies=True)
def regress_form(cosines: Tensor, relations: Relations) -> Tensor:
    """Similarity regression: mean_j Huber((c_ij - ŵ_ij) / spread).

    After relational knowledge distillation (Park et al., CVPR 2019); here in the frozen graph's
    units (ours). No difference between neighbours and others.
    """
    error = (cosines - relations.similarities) / relations.spread
    return _row_mean(F.smooth_l1_loss(error, torch.zeros_like(error), reduction="none"), relations)


@register_form("correlation", uses=(), exact_proxies=True)
def correlation_form(cosines: Tensor, relations: Relations) -> Tensor:
    """1 - Pearson correlation of a row's tuned and frozen similarities (ours), 0 to 2.

    A row may shift and stretch freely as long as its similarities keep their proportions. Rows
    without spread on one side count 1.
    """

    def centred(s: Tensor) -> Tensor:
        s = (s - relations.threshold) / relations.spread
        mean = s.masked_fill(~relations.valid, 0.0).sum(1, keepdim=True) / relations.count
        return (s - mean).masked_fill(~relations.valid, 0.0)

    return 1.0 - F.cosine_similarity(
        centred(cosines), centred(relations.similarities), dim=1, eps=1e-4
    )


def row_losses(form: str, cosines: Tensor, relations: Relations, options: Dict[str, float]):
    """Losses [N] of a registered form; ``options`` from ``form_options``."""
    return FORMS[form].function(cosines, relations, **options)


def zero_loss(*tensors: Optional[Tensor]) -> Tensor:
    """Exactly 0 (fp32 at least), connected to the given tensors with zero gradient."""
    # Sums of empty slices: 0 * sum would be NaN for inputs that overflow.
    parts = [t.reshape(-1)[:0].sum() for t in tensors if t is not None]
    total = sum(p if p.dtype == torch.float64 else p.float() for p in parts)
    return torch.as_tensor(total)


def prepare(
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
        ValueError: shapes that do not go together; neither graph nor k.
    """
    _require_matrix("features", features, sets=True)
    sets = features.shape[:-2]
    if columns is not None:
        _require_matrix("columns", columns, sets=True)
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


def fda_loss(
    features: Tensor,
    anchors: Optional[Tensor] = None,
    *,
    k: Optional[int] = None,
    tau: float = 0.1,
    bias: float = 10.0,
    form: str = "paper",
    slope: float = 2.0,
    temperature: float = 0.5,
    scale: str = "pooled",
    columns: Optional[Tensor] = None,
    column_anchors: Optional[Tensor] = None,
    graph: Optional[NeighbourGraph] = None,
) -> Tensor:
    """FDA loss of a batch (Eq. 2): mean over i, and over j != i.

    With ``columns`` the cross-modal form (ours): rows i from ``features``, columns j from
    ``columns``, mean over all j. Both receive gradient. For the opposite direction call again with
    the two swapped.

    Several sets of tuned features that share a frozen side go in one call (ours): ``features``
    [S, N, d], for the cross-modal form with ``columns`` [S, M, d], row i of set s meeting the
    columns of set s alone. The loss is the mean over the sets. CoCoOp needs it, whose class texts
    differ from image to image.

    ======== ============================ ==================== ======================
    form     formula                      uses                 minimum
    ======== ============================ ==================== ======================
    paper        Eq. 2, literal           tau, bias            neighbours at cosine 1
    standardised Eq. 2, frozen units      slope                wider than frozen
    match        soft targets             slope                frozen features
    kl           row distributions        temperature          frozen features
    regress      similarity regression    -                    frozen features
    correlation  row correlations         -                    frozen features
    ======== ============================ ==================== ======================

    All but ``paper`` are ours; each is described at its function.

    Args:
        features: tuned features [N, d], or [S, N, d].
        anchors: frozen features of the same samples [N, d], in the cross-modal form also
            [S, N, d]; no gradient flows into them.
        k: neighbours per row, clamped as ``NeighbourGraph`` says; required without ``graph``.
        tau: temperature of the cosines, in ``paper`` (value ours).
        bias: offset of the logits with its sign as in Eq. 2, in ``paper`` (value ours).
        form: one of ``FORMS``.
        slope: steepness per unit of spread, in ``standardised`` and ``match``.
        temperature: of the row softmax in units of spread, in ``kl``.
        scale: unit of the spread, see ``NeighbourGraph``.
        columns: tuned column features [M, d], or [S, M, d].
        column_anchors: their frozen counterparts [M, d].
        graph: frozen graph made before, instead of anchors, column_anchors, k and scale; of N
            rows, or of S · N rows set by set.

    Returns:
        Scalar, fp32 (float64 for float64 features). Exactly 0 with zero gradient if there is
        nothing to align: N <= 3, or fewer than 2 columns.

    Raises:
        ValueError: shapes that do not go together, unknown form, options out of range.
    """
    options = form_options(form, tau=tau, bias=bias, slope=slope, temperature=temperature)
    graph = prepare(features, anchors, columns, column_anchors, graph, k, scale)
    if graph.is_trivial:
        return zero_loss(features, columns)
    with full_precision(features.device):
        rows = unit_rows(features)
        others = rows if columns is None else unit_rows(columns).to(rows.dtype)
        cosines = (rows @ others.transpose(-1, -2)).reshape(graph.shape)
        return row_losses(form, cosines, graph.relations, options).mean()


def pointwise_loss(features: Tensor, anchors: Tensor) -> Tensor:
    """Pull to the frozen features, mean_i (1 - cos(x_i, x̂_i)): the baseline FDA is compared with.

    Args:
        features: tuned features [N, d].
        anchors: frozen features of the same samples [N, d]; no gradient flows into them.

    Returns:
        Scalar, fp32 (float64 for float64 features); 0 for an empty batch.

    Raises:
        ValueError: the shapes differ.
    """
    _require_matrix("features", features)
    if features.shape != anchors.shape:
        raise BadValue(
            f"features have shape {tuple(features.shape)}, anchors {tuple(anchors.shape)}; "
            "give one anchor per feature."
        )
    if len(features) == 0:
        return zero_loss(features)
    with full_precision(features.device):
        return (1.0 - (unit_rows(features) * unit_rows(anchors.detach())).sum(1)).mean()
