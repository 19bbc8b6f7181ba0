"""Proxies: features made online that enrich a batch's neighbourhoods (Proxy-FDA).

Source: Huang et al., ICML 2025, arXiv 2505.24088, Section 3.2: a generator of one attention and two
convolutional layers looks at the neighbours and the non-neighbours of every feature and pools each
set into a few proxies with softmax-normalised weights; it learns from L_proxy alone, and the
proxies join the real features in the FDA loss. The layout of the generator and the exact terms of
L_proxy are not published and *ours*.

A proxy is a convex combination p = A x of unit features, so every similarity follows from the
weights A and the features' Gram matrix, and with few columns no proxy is ever formed in d
dimensions.

Cost (ours): an anchor has P proxies over M columns, P growing with M, so N anchors take N · P · M
numbers, which is cubic in the number of classes where N = M = C. Two bounds keep it in check:
``ProxyGenerator.max_proxies`` for the proxies of a set (64 sets of a few hundred members have
fewer), and :func:`choose_anchors` for the anchors that get proxies in a step; the others get theirs
in later steps. Below the bounds nothing is left out.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Dict, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import skip_init

from proxyfda.neighbours.cosines import full_precision, unit_rows, zero_loss
from proxyfda.neighbours.graph import NeighbourGraph
from proxyfda.utils.errors import BadValue

__all__ = [
    "MAX_PAIRS",
    "MAX_PROXIES",
    "Proxies",
    "ProxyGenerator",
    "UnitColumns",
    "choose_anchors",
    "proxy_loss",
]

MAX_PROXIES = 128
"""Most proxies of one set (ours): sets of up to 321 members have s = 0.4 of their size."""

MAX_PAIRS = 2**19
"""Most pairs of proxies and columns in a step (ours), about 25 MB in all."""

_KEPT_CONSTANTS = 8  # of batches of different sizes


def choose_anchors(
    sets: int,
    rows: int,
    pairs_per_row: int,
    max_pairs: int,
    turn: int,
    device: Optional[torch.device] = None,
) -> Optional[Tuple[Tensor, Tensor]]:
    """Which anchors get proxies in this step (ours).

    Evenly spaced ones, as many as the bound allows but at least one; with every turn the choice
    moves on by one, so that each anchor gets proxies equally often.

    Args:
        sets: number of sets of anchors.
        rows: anchors in a set.
        pairs_per_row: proxies of an anchor times columns.
        max_pairs: bound on the sum of these.
        turn: number of the step.
        device: where the result is wanted.

    Returns:
        Numbers of the sets, and of the anchors in each of them; None for all of them.

    >>> choose_anchors(1, 8, 100, 1000, turn=0)
    >>> [choose_anchors(1, 8, 100, 400, turn=turn)[1].tolist() for turn in (0, 1)]
    [[0, 2, 4, 6], [1, 3, 5, 7]]
    """
    most = max(1, max_pairs // max(pairs_per_row, 1))
    if sets * rows <= most:
        return None
    some_sets = min(sets, most)

    def spaced(size: int, wanted: int, shift: int) -> Tensor:
        return (torch.arange(wanted, device=device) * size // wanted + shift) % size

    # All sets stay in their order, since their columns then stay as they are.
    in_sets = spaced(sets, some_sets, turn // rows if some_sets < sets else 0)
    return in_sets, spaced(rows, most // some_sets, turn)


class UnitColumns:
    """Unit features that proxies are combinations of, as rows of X [M, d] or [S, M, d].

    Products with them go by the Gram matrix X Xᵀ where that costs less than going by X: up to d
    columns, and up to 2d where the matrix is known.

    Args:
        unit: the features; S sets in a leading dimension.
        gram: X Xᵀ, if it is known.
    """

    def __init__(self, unit: Tensor, gram: Optional[Tensor] = None) -> None:
        self.unit, self._gram = unit, gram
        self.by_gram = unit.shape[-2] <= (1 if gram is None else 2) * unit.shape[-1]

    def detach(self) -> UnitColumns:
        """The same without gradient."""
        gram = None if self._gram is None else self._gram.detach()
        return UnitColumns(self.unit.detach(), gram)

    @property
    def gram(self) -> Tensor:
        """X Xᵀ [M, M] or [S, M, M]."""
        if self._gram is None:
            self._gram = self.unit @ self.unit.transpose(-1, -2)
        return self._gram

    def _grouped(self, weights: Tensor) -> Tensor:
        """[n, P, M] -> [n · P, M], or [S, n / S · P, M] for S sets."""
        return weights.reshape(*self.unit.shape[:-2], -1, weights.shape[-1])

    def products(self, weights: Tensor) -> Tensor:
        """p·x of combinations p = A X, A [n, P, M], and every column x of their set [n, P, M]."""
        grouped = self._grouped(weights)
        if self.by_gram:
            return (grouped @ self.gram).view(weights.shape)
        return ((grouped @ self.unit) @ self.unit.transpose(-1, -2)).view(weights.shape)

    def squared_norms(self, weights: Tensor) -> Tensor:
        """|p|² of combinations p = A X, A [n, P, M]: [n, P]."""
        grouped = self._grouped(weights)
        if self.by_gram:
            return ((grouped @ self.gram) * grouped).sum(-1).view(weights.shape[:-1])
        return (grouped @ self.unit).square().sum(-1).view(weights.shape[:-1])


class Proxies(NamedTuple):
    """Proxies of all anchors as pooling weights.

    Attributes:
        weights: A [N, P, M]; row [i, p] is not negative, sums to 1 and is 0 outside the set that
            the proxy stands for. The proxies themselves are ``A @ x`` [N, P, d] for unit columns x.
        positives: the first so many proxies of an anchor stand for its neighbours, the rest for
            its non-neighbours.
    """

    weights: Tensor
    positives: int

    def estimate(self, similarities: Tensor) -> Tensor:
        """Estimated similarities ŵ^p = A ŵ [N, P] from frozen ones [N, M]."""
        return (self.weights @ similarities.to(self.weights.dtype).unsqueeze(2)).squeeze(2)

    def cosines(self, similarities: Tensor, columns: UnitColumns) -> Tensor:
        """cos(x_i, p) [N, P] of each anchor and its proxies.

        Args:
            similarities: cosines of rows and columns [N, M].
            columns: the columns; with S sets N / S consecutive anchors look at each.
        """
        squared = columns.squared_norms(self.weights)
        return self.estimate(similarities) * squared.clamp(min=1e-8).rsqrt()

    def at_least_fp32(self) -> Proxies:
        """The same with weights in fp32 (float64 stays)."""
        weights = self.weights
        return self if weights.dtype == torch.float64 else self._replace(weights=weights.float())


def _adaptive_average(size: int, count: int) -> Tensor:
    """Adaptive average pooling of a sequence as a matrix [count, size]."""
    matrix = torch.zeros(count, size)
    for p in range(count):
        start, end = p * size // count, -(-(p + 1) * size // count)
        matrix[p, start:end] = 1.0 / (end - start)
    return matrix


class ProxyGenerator(nn.Module):
    """Pools the neighbour and the non-neighbour set of every anchor into proxies.

    Layout (ours; the paper: one attention layer, two convolutional layers, 23.6K parameters):

    1. features minus their batch mean, down-projected d -> r, layer norm;
    2. one attention layer with residual over the columns. An anchor's two sets together are the
       batch, so this is the same for every anchor and done once;
    3. adaptive average pooling of each set, in the order of falling frozen similarity to its
       anchor, to one query per proxy;
    4. two depthwise-separable convolutions of width 3 along each set's queries, with a ReLU
       between them and a residual around both;
    5. the pooling weights of a proxy are the softmax over its set of scale times the cosine of
       query and member. The scale starts at 10 (learned): unscaled, the weights would start
       uniform and all proxies coincide.

    d·r + 6 r^2 + 11 r + 1 parameters: 22,881 at d = 512, r = 32.

    A set of size S gets max(1, floor(ratio·S + 1/2)) proxies, at most ``max_proxies``.

    Args:
        dim: feature dimension d.
        ratio: s, proxies per set member, above 0.
        width: r.
        scale: start of the pooling scale.
        max_proxies: most proxies of a set.
        seed: of the initial weights; None takes them from torch's global stream, as modules do.

    Raises:
        BadValue: an option out of range.
    """

    def __init__(
        self,
        dim: int,
        ratio: float = 0.4,
        *,
        width: int = 32,
        scale: float = 10.0,
        max_proxies: int = MAX_PROXIES,
        seed: Optional[int] = None,
    ) -> None:
        super().__init__()
        if dim < 1 or width < 1:
            raise BadValue(f"dim is {dim} and width {width}; give at least 1 of each.")
        if not (ratio > 0 and scale > 0):
            raise BadValue(f"ratio is {ratio} and scale {scale}; give values above 0.")
        if max_proxies < 1:
            raise BadValue(f"max_proxies is {max_proxies}; give at least 1.")
        self.dim, self.ratio, self.width = int(dim), float(ratio), int(width)
        self.max_proxies = int(max_proxies)
        # ``skip_init`` would take the CPU, whatever ``torch.device(...)`` this is built in.
        device = torch.empty(0).device
        self.down = skip_init(nn.Linear, dim, width, bias=False, device=device)
        self.norm = nn.LayerNorm(width)
        self.qkv = skip_init(nn.Linear, width, 3 * width, bias=False, device=device)
        self.out = skip_init(nn.Linear, width, width, device=device)
        self.pointwise = nn.ModuleList(
            skip_init(nn.Linear, width, width, device=device) for _ in range(2)
        )
        self.depthwise = nn.ParameterList(nn.Parameter(torch.empty(3, width)) for _ in range(2))
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self._cached: Dict[object, Tuple[Tensor, Tensor]] = {}
        self._initialise(None if seed is None else torch.Generator("cpu").manual_seed(seed))

    def _initialise(self, stream: Optional[torch.Generator]) -> None:
        """Weights as torch's modules draw them, from a stream of their own or the global one."""

        def draw(weight: Tensor, bound: float) -> Tensor:
            if stream is None:
                return weight.uniform_(-bound, bound)
            # The stream is the CPU's, so that a seed means the same on every device.
            drawn = torch.empty(weight.shape, dtype=weight.dtype, device="cpu")
            return weight.copy_(drawn.uniform_(-bound, bound, generator=stream))

        linears = [self.down, self.qkv, self.out, *self.pointwise]
        with torch.no_grad():
            for linear in linears:
                bound = 1 / math.sqrt(linear.in_features)
                draw(linear.weight, bound)
                if linear.bias is not None:
                    draw(linear.bias, bound)
            for weight in self.depthwise:
                draw(weight, 1.0).div_(math.sqrt(3))

    def extra_repr(self) -> str:
        """What the representation shows beside the layers."""
        return f"dim={self.dim}, ratio={self.ratio}, width={self.width}"

    def count(self, size: int) -> int:
        """Number of proxies of a set of ``size`` members; 0 for an empty set."""
        if not size:
            return 0
        return min(self.max_proxies, max(1, math.floor(self.ratio * size + 0.5)))

    def pairs_per_row(self, graph: NeighbourGraph) -> int:
        """Proxies of an anchor of the graph times its columns."""
        made = self.count(graph.k) + self.count(graph.count - graph.k)
        return made * graph.shape[1]

    def forward(self, features: Tensor, graph: NeighbourGraph) -> Proxies:
        """Make the proxies of every anchor of a graph.

        Args:
            features: features of the graph's columns [M, d] (in the self form its rows); no
                gradient flows into them. [S, M, d]: N / S consecutive anchors look at each.
            graph: whose sets are pooled.

        Returns:
            Proxies with weights [N, P, M] in the parameters' dtype.

        Raises:
            BadValue: d is not ``dim``, or M not the graph's.
        """
        self._check(features)
        if features.shape[-2] != graph.shape[1]:
            raise BadValue(f"{features.shape[-2]} features meet {graph!r}; give its columns.")
        with torch.no_grad(), full_precision(features.device):
            unit = unit_rows(features.detach())
        return self.pool(unit, graph)

    def _check(self, features: Tensor) -> None:
        if features.dim() not in (2, 3) or features.shape[-1] != self.dim:
            raise BadValue(
                f"features have shape {tuple(features.shape)}, but this generator was built for "
                f"dimension {self.dim}; build ProxyGenerator({features.shape[-1]}) for them."
            )

    def pool(self, unit: Tensor, graph: NeighbourGraph) -> Proxies:
        """:meth:`forward` of unit features without gradient."""
        self._check(unit)
        n, m = graph.shape
        positives, negatives = self.count(graph.k), self.count(graph.count - graph.k)
        if graph.is_empty:
            return Proxies(self.down.weight.new_zeros(n, 0, m), 0)
        with full_precision(unit.device):
            x = unit.to(self.down.weight.dtype)
            members = self._attend(self.norm(self.down(x - x.mean(-2, keepdim=True))))
            queries = unit_rows(self._queries(members, graph))
            keys = self.log_scale.exp() * unit_rows(members)
            queries = queries.view(*members.shape[:-2], -1, self.width)
            logits = (queries @ keys.transpose(-1, -2)).view(n, -1, m)
            return Proxies(
                logits.masked_fill(self._outside(graph, positives, negatives), -math.inf).softmax(
                    2
                ),
                positives,
            )

    @staticmethod
    def _outside(graph: NeighbourGraph, positives: int, negatives: int) -> Tensor:
        """True where a column is not in the set that a proxy stands for [N, P, M]."""

        def make() -> Tensor:
            made = _made(positives, negatives, 1, 1, graph.mask.device, torch.float32)
            outside = graph.mask.unsqueeze(1) ^ made.for_near.unsqueeze(1)
            if not graph.is_cross:
                outside |= graph.diagonal.unsqueeze(1)
            return outside

        return graph.remember(("outside", positives, negatives), make)

    def _attend(self, tokens: Tensor) -> Tensor:
        """Tokens [M, r] -> members [M, r], or the same with a leading dimension of sets."""
        q, k, v = self.qkv(tokens).chunk(3, dim=-1)
        scores = (q / math.sqrt(self.width)) @ k.transpose(-1, -2)
        return tokens + self.out(scores.softmax(-1) @ v)

    def _queries(self, members: Tensor, graph: NeighbourGraph) -> Tensor:
        """Members [M, r] or [S, M, r] -> one query per proxy [N, P, r]."""
        n, m = graph.shape
        averages, taps = self._constants(graph.count, graph.k, members)

        def make() -> Tensor:
            # Place of every column in its anchor's order; 0 for the anchor itself, in no set.
            place = torch.arange(1, graph.count + 1, device=members.device).expand(n, -1)
            places = place.new_zeros(n, m).scatter_(1, graph.order, place)
            return averages.index_select(1, places.view(-1)).view(len(averages), n, m)

        key = ("pools", self.ratio, self.max_proxies, members.dtype)
        pools = graph.remember(key, make)  # [P, N, M]
        if members.dim() == 2:
            averaged = pools.view(-1, m) @ members
        else:
            averaged = pools.view(len(averages), len(members), -1, m) @ members
        averaged = averaged.view(-1, n * self.width)
        hidden = averaged
        for i, (pointwise, weight) in enumerate(zip(self.pointwise, self.depthwise)):
            hidden = pointwise(hidden.view(-1, self.width)).view_as(averaged)
            hidden = (taps @ hidden).view(3, -1, self.width) * weight.unsqueeze(1)
            hidden = hidden.sum(0).view_as(averaged)
            if i == 0:
                hidden = F.relu(hidden)
        return (averaged + hidden).view(-1, n, self.width).transpose(0, 1).contiguous()

    def _constants(self, size: int, k: int, like: Tensor) -> Tuple[Tensor, Tensor]:
        """Pooling of both sets [P, 1 + S], and the shifts of a convolution along them [3·P, P]."""
        key = (size, k, self.ratio, self.max_proxies, like.dtype, like.device)
        if key not in self._cached:
            sizes = [s for s in (k, size - k) if s]
            counts = [self.count(s) for s in sizes]
            with torch.inference_mode(False):  # what is made in evaluation serves training too
                averages = torch.block_diag(*map(_adaptive_average, sizes, counts))
                taps = [
                    torch.block_diag(*(torch.eye(c + 2)[1:-1, t : t + c] for c in counts))
                    for t in range(3)
                ]
                if len(self._cached) >= _KEPT_CONSTANTS:
                    self._cached.clear()
                self._cached[key] = (
                    F.pad(averages, (1, 0)).to(like.device, like.dtype),
                    torch.cat(taps).to(like.device, like.dtype),
                )
        return self._cached[key]


def proxy_loss(
    proxies: Proxies,
    features: Tensor,
    graph: NeighbourGraph,
    *,
    alpha: float = 1.0,
    temperature: float = 0.1,
) -> Tensor:
    """L_proxy = L_P+ + L_P-, each a contrastive plus alpha times a variance term.

    The paper names the terms; their formulas are ours. With p a unit proxy of anchor i that stands
    for the set X (X' the anchor's other set), e(p, X) = mean_{x in X} exp(cos(p, x) / temperature):

    - contrastive: mean_i mean_p -log(e(p, X) / (e(p, X) + e(p, X'))): near its own set, away from
      the other. Means, not sums: the sets differ in size.
    - variance: mean_i max(0, 1 - sqrt(Var(P) / Var(X))), Var the unbiased variance of unit
      vectors, summed over dimensions: proxies as diverse as the set itself, which unit vectors can
      reach, unlike a target of 1. 0 for sets of one member or proxy.

    Args:
        proxies: of ``graph``'s anchors; receive the gradient.
        features: the graph's column features [M, d] or [S, M, d], as in ``ProxyGenerator``; no
            gradient flows into them.
        graph: the frozen graph.
        alpha: weight of the variance term (value ours).
        temperature: of the contrastive term, at least 0.03 (value ours).

    Returns:
        Scalar, fp32 (float64 for float64 proxies); 0 for a graph that ``is_trivial``.

    Raises:
        BadValue: an option out of range.
    """
    if graph.is_trivial:
        return zero_loss(proxies.weights)
    proxies = proxies.at_least_fp32()
    with full_precision(features.device):
        unit = unit_rows(features.detach()).to(proxies.weights.dtype)
        own = graph.similarities.to(unit.dtype)  # without an effect on the loss
        return proxy_terms(proxies, own, UnitColumns(unit), graph, alpha, temperature)[1]


class _Made(NamedTuple):
    """Constants of a step's proxies: how many, of what, and how their terms are weighed.

    Attributes:
        for_near: True for proxies of neighbours [P].
        signs: 1 for proxies of neighbours, -1 for the others [P].
        shares: 1 / number of proxies of the same set, that is the weight of each in its mean [P].
        averages: the same as rows of the two sets, 0 outside [2, P].
        unbiased: n / (n - 1) of the proxies and of the real members of the two sets [2, 2].
        counted: 1 for sets with several proxies and members, else 0 [2].
    """

    for_near: Tensor
    signs: Tensor
    shares: Tensor
    averages: Tensor
    unbiased: Tensor
    counted: Tensor


@functools.lru_cache(maxsize=64)
def _made(
    positives: int, negatives: int, near: int, far: int, device: torch.device, dtype: torch.dtype
) -> _Made:
    with torch.inference_mode(False):  # what is made in evaluation serves training too
        first = torch.arange(positives + negatives) < positives
        both = torch.stack([first, ~first]).to(dtype)
        averages = both / both.sum(1, keepdim=True).clamp(min=1.0)
        counts = torch.tensor([[positives, negatives], [near, far]], dtype=dtype)
        parts = _Made(
            first,
            both[0] - both[1],
            averages.sum(0),
            averages,
            counts / (counts - 1.0).clamp(min=1.0),
            (counts > 1).all(0).to(dtype),
        )
        return _Made(*(part.to(device) for part in parts))


class _ProxyTerms(torch.autograd.Function):
    """Cosines of anchors and their proxies, and L_proxy, from one product of proxies and columns.

    Written out because automatic differentiation takes three times the memory traffic and twice
    the operations: the arrays [N, P, M] are read and written 16 times instead of about 50. The
    gradient of L_proxy is computed in the forward pass, where everything is at hand.
    """

    @staticmethod
    def forward(
        ctx: Any,
        weights: Tensor,
        own: Tensor,
        columns: Tensor,
        by_gram: bool,
        means: Tensor,
        made: _Made,
        alpha: float,
        temperature: float,
    ) -> Tuple[Tensor, Tensor]:
        """
        Args:
            weights: A [N, P, M]; only L_proxy has a gradient in them.
            own: cosines of anchors and columns [N, M]; only the first result has one.
            columns: Gram matrix [(S,) M, M] or unit columns [(S,) M, d]; likewise.
            by_gram: which of the two.
            means: weights of the means of both real sets [N, 2, M].
        """
        unit = UnitColumns(columns, columns) if by_gram else UnitColumns(columns)
        products = unit.products(weights)
        n, p, m = weights.shape
        squared = _row_products(weights, products)
        inverse = squared.clamp(min=_SMALLEST_SQUARE).rsqrt()
        estimates = (weights @ own.unsqueeze(2)).squeeze(2)
        cosines = estimates * inverse

        # exp(cos / T) is bounded by exp(1 / 0.03), so no maximum has to be taken out.
        warm = (inverse / temperature).unsqueeze(2)
        closeness = (products * warm).exp_()
        to_sets = closeness @ means.transpose(1, 2)  # [N, P, 2]
        towards, away = to_sets.log().unbind(2)
        odds = (away - towards) * made.signs
        share = made.shares / n
        loss = (F.softplus(odds) * share).sum()

        if alpha:
            pooling = made.averages * inverse.unsqueeze(1)  # [N, 2, P]: mean of unit proxies
            mean, mean_products = pooling @ weights, pooling @ products
            real = (1.0 - unit.squared_norms(means)).clamp_(min=0.0) * made.unbiased[1]
            within = 1.0 - (mean * mean_products).sum(2)
            variance = within.clamp(min=0.0) * made.unbiased[0] + 1e-6
            counted = (real > 1e-6) * made.counted * (alpha / n)
            real = real.clamp_(min=1e-6)
            root = (variance / real).sqrt_()
            loss = loss + ((1.0 - root).clamp_(min=0.0) * counted).sum()

        gradient = None
        if ctx.needs_input_grad[0]:
            slopes = odds.sigmoid_() * (made.signs * share)
            to_closeness = torch.stack([-slopes, slopes], dim=2) / to_sets
            to_products = (to_closeness @ means).mul_(closeness)
            to_inverse = _row_products(to_products, products) / temperature
            to_products.mul_(warm)
            if alpha:
                moved = counted * ((root < 1.0) & (within > 0.0))
                to_within = (0.5 * moved * made.unbiased[0] / (root * real)).unsqueeze(2)
                to_mean, to_mean_products = to_within * mean_products, to_within * mean
                back = pooling.transpose(1, 2)
                to_products.baddbmm_(back, to_mean_products)
                to_pooling = to_mean @ weights.transpose(1, 2)
                to_pooling.baddbmm_(to_mean_products, products.transpose(1, 2))
                to_inverse += (to_pooling * made.averages).sum(1)
            to_squared = _through_rsqrt(to_inverse, inverse, squared).unsqueeze(2)
            to_products.addcmul_(weights, to_squared)
            gradient = unit.products(to_products).addcmul_(products, to_squared)
            if alpha:
                gradient.baddbmm_(back, to_mean)
        ctx.by_gram = by_gram
        ctx.save_for_backward(weights, columns, inverse, squared, estimates, gradient)
        # A loss that is not minimised gives None, not zeros: an optimiser would decay on zeros.
        ctx.set_materialize_grads(False)
        return cosines, loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Optional[Tensor]) -> Tuple[Optional[Tensor], ...]:
        """Gradients in ``weights``, ``own`` and ``columns``."""
        to_cosines, to_loss = grads
        weights, columns, inverse, squared, estimates, gradient = ctx.saved_tensors
        to_weights = None if gradient is None or to_loss is None else gradient * to_loss
        to_own = to_columns = None
        if to_cosines is None:
            return to_weights, None, None, None, None, None, None, None
        if ctx.needs_input_grad[1]:
            to_own = ((to_cosines * inverse).unsqueeze(1) @ weights).squeeze(1)
        if ctx.needs_input_grad[2]:
            to_squared = _through_rsqrt(to_cosines * estimates, inverse, squared)
            scaled = weights * to_squared.unsqueeze(2)
            sets = columns.shape[:-2]
            rows = weights.reshape(*sets, -1, weights.shape[2])
            scaled = scaled.view(rows.shape).transpose(-1, -2)
            to_columns = scaled @ rows if ctx.by_gram else 2.0 * (scaled @ (rows @ columns))
        return to_weights, to_own, to_columns, None, None, None, None, None


_SMALLEST_SQUARE = 1e-8


def _row_products(a: Tensor, b: Tensor) -> Tensor:
    """Sums over the last dimension of a · b [N, P, M] -> [N, P]."""
    n, p, m = a.shape
    return (a.reshape(n * p, 1, m) @ b.reshape(n * p, m, 1)).view(n, p)


def _through_rsqrt(gradient: Tensor, inverse: Tensor, squared: Tensor) -> Tensor:
    """The gradient in x of 1 / sqrt(max(x, smallest)), given that in the result."""
    return gradient * (-0.5 * inverse.pow(3)) * (squared > _SMALLEST_SQUARE)


def proxy_terms(
    proxies: Proxies,
    own: Tensor,
    columns: UnitColumns,
    graph: NeighbourGraph,
    alpha: float,
    temperature: float,
) -> Tuple[Tensor, Tensor]:
    """cos(x_i, p) [N, P] of anchors and their proxies, and :func:`proxy_loss`.

    The first has its gradient in ``own`` and ``columns`` alone, the second in the proxies' weights.

    Args:
        proxies: of the graph's anchors.
        own: tuned cosines of anchors and columns [N, M].
        columns: tuned unit columns.
        graph: the frozen graph.
        alpha, temperature: see :func:`proxy_loss`.
    """
    if not temperature >= 0.03:
        raise BadValue(f"temperature of L_proxy is {temperature}; give 0.03 or more.")
    if not alpha >= 0:
        raise BadValue(f"alpha is {alpha}; give 0 or more.")
    weights, positives = proxies
    sizes = (graph.k, graph.count - graph.k)
    made = _made(positives, weights.shape[1] - positives, *sizes, weights.device, weights.dtype)

    def make() -> Tensor:
        near = graph.mask.to(weights.dtype)
        far = 1.0 - near
        if not graph.is_cross:
            far.masked_fill_(graph.diagonal, 0.0)
        return torch.stack([near / max(sizes[0], 1), far / max(sizes[1], 1)], dim=1)

    means = graph.remember(("means of both sets", weights.dtype), make)
    source = columns.gram if columns.by_gram else columns.unit
    found: Tuple[Tensor, Tensor] = _ProxyTerms.apply(
        weights, own, source.to(weights.dtype), columns.by_gram, means, made, alpha, temperature
    )
    return found
