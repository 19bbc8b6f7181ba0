"""Proxies: features made online that enrich a batch's neighbourhoods (Proxy-FDA).

Source: Huang et al., ICML 2025, arXiv 2505.24088: a generator of one attention and two
convolutional layers looks at the neighbours and the non-neighbours of every feature and pools each
set into a few proxies with softmax-normalised weights; it learns from L_proxy alone, and the
proxies join the real features in the FDA loss. The layout of the generator and the exact terms of
L_proxy are not published and *ours*.

A proxy is a convex combination p = A x of unit features, so every similarity follows from the
features' Gram matrix G (x·p = A G, |p|^2 = A G A^T) and no proxy is ever formed in d dimensions.
Memory grows with N · P · M (P = proxies of an anchor): meant for batches up to some hundreds.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from proxyfda.neighbours.graph import (
    FORMS,
    NeighbourGraph,
    Relations,
    form_options,
    full_precision,
    prepare,
    row_losses,
    signed_weights,
    unit_rows,
    zero_loss,
)
from proxyfda.utils.errors import BadValue

__all__ = ["Proxies", "ProxyGenerator", "proxy_fda_loss", "proxy_loss"]


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

    def cosines(self, similarities: Tensor, gram: Tensor) -> Tensor:
        """cos(x_i, p) [N, P] of each anchor and its proxies, without forming the proxies.

        Args:
            similarities: cosines of rows and columns [N, M].
            gram: cosines among the columns [M, M], or [S, M, M] of the columns of S sets, each of
                which N / S consecutive anchors look at.
        """
        return self.estimate(similarities) / self._norms(self._products(gram))

    def _products(self, gram: Tensor) -> Tensor:
        return _times(self.weights, gram)  # p·x for every column x

    def _norms(self, products: Tensor) -> Tensor:
        return (self.weights * products).sum(2).clamp(min=1e-8).sqrt()


def _times(weights: Tensor, gram: Tensor) -> Tensor:
    """Weights [N, P, M] times a Gram matrix [M, M], or times that of their set, [S, M, M]."""
    sets = gram.shape[:-2]
    return (weights.reshape(*sets, -1, weights.shape[-1]) @ gram).view(weights.shape)


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

    A set of size S gets max(1, floor(ratio·S + 1/2)) proxies.

    Args:
        dim: feature dimension d.
        ratio: s, proxies per set member, above 0.
        width: r.
        scale: start of the pooling scale.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self, dim: int, ratio: float = 0.4, *, width: int = 32, scale: float = 10.0
    ) -> None:
        super().__init__()
        if dim < 1 or width < 1:
            raise BadValue(f"dim is {dim} and width {width}; give at least 1 of each.")
        if not (ratio > 0 and scale > 0):
            raise BadValue(f"ratio is {ratio} and scale {scale}; give values above 0.")
        self.dim, self.ratio, self.width = int(dim), float(ratio), int(width)
        self.down = nn.Linear(dim, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.pointwise = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.depthwise = nn.ParameterList(
            nn.Parameter(torch.empty(3, width).uniform_(-1, 1) / math.sqrt(3)) for _ in range(2)
        )
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self._cached: Optional[Tuple[tuple, Tensor, Tensor]] = None

    def extra_repr(self) -> str:
        return f"dim={self.dim}, ratio={self.ratio}, width={self.width}"

    def count(self, size: int) -> int:
        """Number of proxies of a set of ``size`` members; 0 for an empty set."""
        return max(1, math.floor(self.ratio * size + 0.5)) if size else 0

    def forward(self, features: Tensor, graph: NeighbourGraph) -> Proxies:
        """Make the proxies of every anchor of a graph.

        Args:
            features: features of the graph's columns [M, d] (in the self form its rows); no
                gradient flows into them. [S, M, d]: N / S consecutive anchors look at each.
            graph: whose sets are pooled.

        Returns:
            Proxies with weights [N, P, M] in the parameters' dtype.

        Raises:
            ValueError: d is not ``dim``, or M not the graph's.
        """
        if features.dim() not in (2, 3) or features.shape[-1] != self.dim:
            raise BadValue(
                f"features have shape {tuple(features.shape)}, but this generator was built for "
                f"dimension {self.dim}; build ProxyGenerator({features.shape[-1]}) for them."
            )
        n, m = graph.shape
        if features.shape[-2] != m:
            raise BadValue(f"{features.shape[-2]} features meet {graph!r}; give its {m} columns.")
        positives, negatives = self.count(graph.k), self.count(graph.count - graph.k)
        if n == 0 or graph.count == 0:
            return Proxies(self.down.weight.new_zeros(n, 0, m), 0)
        with full_precision(features.device):
            x = unit_rows(features.detach()).to(self.down.weight.dtype)
            members = self._attend(self.norm(self.down(x - x.mean(-2, keepdim=True))))
            queries = F.normalize(self._queries(members, graph), dim=2)
            keys = self.log_scale.exp() * F.normalize(members, dim=-1)
            queries = queries.view(*members.shape[:-2], -1, self.width)
            logits = (queries @ keys.transpose(-1, -2)).view(n, -1, m)
            outside = torch.cat(
                [
                    (~graph.mask).unsqueeze(1).expand(n, positives, m),
                    (graph.mask | ~graph.valid).unsqueeze(1).expand(n, negatives, m),
                ],
                dim=1,
            )
            return Proxies(logits.masked_fill(outside, -float("inf")).softmax(2), positives)

    def _attend(self, tokens: Tensor) -> Tensor:
        """Tokens [M, r] -> members [M, r], or the same with a leading dimension of sets."""
        q, k, v = self.qkv(tokens).chunk(3, dim=-1)
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.width)
        return tokens + self.out(scores.softmax(-1) @ v)

    def _queries(self, members: Tensor, graph: NeighbourGraph) -> Tensor:
        """Members [M, r] or [S, M, r] -> one query per proxy [N, P, r]."""
        n, m = graph.shape
        averages, taps = self._constants(graph.count, graph.k, members)
        # Place of every column in its anchor's order; 0 for the anchor itself, which is in no set.
        place = torch.arange(1, graph.count + 1, device=members.device).expand(n, -1)
        places = place.new_zeros(n, m).scatter_(1, graph.order, place)
        pools = averages.index_select(1, places.view(-1)).view(len(averages), n, m)  # [P, N, M]
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
        key = (size, k, self.ratio, like.dtype, like.device)
        if self._cached is None or self._cached[0] != key:
            counts = [self.count(k), self.count(size - k)]
            with torch.inference_mode(False):  # what is made in evaluation serves training too
                averages = torch.block_diag(
                    *(_adaptive_average(s, c) for s, c in zip((k, size - k), counts) if c)
                )
                taps = [
                    torch.block_diag(*(torch.eye(c + 2)[1:-1, t : t + c] for c in counts if c))
                    for t in range(3)
                ]
                self._cached = (
                    key,
                    F.pad(averages, (1, 0)).to(like.device, like.dtype),
                    torch.cat(taps).to(like.device, like.dtype),
                )
        return self._cached[1], self._cached[2]


def _contrast(cosines: Tensor, proxies: Proxies, graph: NeighbourGraph, temperature: float):
    """Contrastive term of every proxy [N, P]; ``cosines`` [N, P, M] of proxies and columns."""
    near = graph.mask
    sets = torch.stack([near, graph.valid & ~near], dim=2).to(cosines.dtype)
    sets = sets / sets.sum(1, keepdim=True).clamp(min=1.0)
    # Bounded below by exp(-2 / temperature), so no maximum has to be taken out.
    means = ((cosines - 1.0) / temperature).exp() @ sets
    towards, away = means.unbind(2)
    odds = away.log() - towards.log()
    signs = odds.new_ones(odds.shape[1])
    signs[proxies.positives :] = -1.0
    return F.softplus(odds * signs)


def _spread(weights: Tensor, gram: Tensor, size: Tensor) -> Tensor:
    """Unbiased variance of unit vectors from the weights of their mean [..., M] and number."""
    squared_mean = (_times(weights, gram) * weights).sum(-1)
    return (1.0 - squared_mean).clamp(min=0.0) * size / (size - 1.0).clamp(min=1.0)


def _variance(weights: Tensor, proxies: Proxies, graph: NeighbourGraph, gram: Tensor) -> Tensor:
    """Variance term of every set [N, 2]; ``weights`` A / |p| [N, P, M] of unit proxies."""
    positives, total = proxies.positives, weights.shape[1]
    counts = weights.new_tensor([positives, total - positives])
    means = torch.stack(
        [weights[:, :positives].sum(1), weights[:, positives:].sum(1)], dim=1
    ) / counts.clamp(min=1.0).unsqueeze(1)
    near = graph.mask
    members = torch.stack([near, graph.valid & ~near], dim=1).to(weights.dtype)
    sizes = members.sum(2)
    real = _spread(members / sizes.clamp(min=1.0).unsqueeze(2), gram, sizes)
    made = _spread(means, gram, counts)
    counted = (counts > 1) & (sizes > 1) & (real > 1e-6)
    ratio = (made + 1e-6) / real.clamp(min=1e-6)
    return F.relu(1.0 - ratio.sqrt()).masked_fill(~counted, 0.0)


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
        ValueError: an option out of range.
    """
    if graph.is_trivial:
        return zero_loss(proxies.weights)
    with full_precision(features.device):
        x = unit_rows(features.detach())
        return _proxy_loss(
            _at_least_fp32(proxies), x @ x.transpose(-1, -2), graph, alpha, temperature
        )


def _at_least_fp32(proxies: Proxies) -> Proxies:
    weights = proxies.weights
    return proxies if weights.dtype == torch.float64 else proxies._replace(weights=weights.float())


def _proxy_loss(
    proxies: Proxies, gram: Tensor, graph: NeighbourGraph, alpha: float, temperature: float
) -> Tensor:
    if not temperature >= 0.03:
        raise BadValue(f"temperature of L_proxy is {temperature}; give 0.03 or more.")
    if not alpha >= 0:
        raise BadValue(f"alpha is {alpha}; give 0 or more.")
    gram = gram.detach().to(proxies.weights.dtype)
    products = proxies._products(gram)
    norms = proxies._norms(products).unsqueeze(2)
    contrast = _contrast(products / norms, proxies, graph, temperature)
    near, far = contrast[:, : proxies.positives], contrast[:, proxies.positives :]
    loss = near.mean() + far.mean()
    if alpha:
        variance = _variance(proxies.weights / norms, proxies, graph, gram)
        loss = loss + alpha * variance.sum(1).mean()
    return loss


def _append(graph: NeighbourGraph, proxies: Proxies, exact: bool) -> Relations:
    """The graph's relations with the proxies as further columns [N, M + P]."""
    real = graph.relations
    weights = proxies.weights
    if exact:
        gram = graph.column_gram.to(weights.dtype)
        similarities = proxies.cosines(graph.similarities.to(weights.dtype), gram)
    else:
        similarities = proxies.estimate(graph.similarities)
    similarities = similarities.to(real.similarities.dtype)
    positive = torch.zeros_like(similarities, dtype=torch.bool)
    positive[:, : proxies.positives] = True
    signed = signed_weights(similarities, positive, graph.min_weight)
    return real._replace(
        similarities=torch.cat([real.similarities, similarities], dim=1),
        positive=torch.cat([real.positive, positive], dim=1),
        weights=torch.cat([real.weights, signed], dim=1),
        valid=torch.cat([real.valid, torch.ones_like(positive)], dim=1),
        count=real.count + similarities.shape[1],
    )


def proxy_fda_loss(
    features: Tensor,
    anchors: Optional[Tensor] = None,
    generator: Optional[ProxyGenerator] = None,
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
    alpha: float = 1.0,
    proxy_temperature: float = 0.1,
) -> Tuple[Tensor, Tensor]:
    """FDA loss over the real features and their proxies, and the loss of the proxies' generator.

    L_Proxy-FDA^i = L_FDA^i({[X+, P+], [X-, P-]}, {[ŵ+, ŵp+], [ŵ-, ŵp-]}) with P = A X of the tuned
    features and ŵp = A ŵ. Forms that have their minimum at the frozen features take for ŵp the
    frozen cosine of the frozen proxy A X̂ instead (ours), because the estimate would shift it.
    Threshold and spread remain those of the real features.

    Minimise ``loss_task + λ loss_fda`` for the model and ``loss_proxy`` for the generator; their
    sum does both, since the first has no gradient for the generator and the second none for
    anything else.

    Args:
        generator: makes the proxies from the columns (in the self form the features); required.
        alpha: weight of the variance term in L_proxy.
        proxy_temperature: of the contrastive term in L_proxy.

    The other arguments are those of ``fda_loss``.

    Returns:
        (loss_fda, loss_proxy), scalars, fp32 at least. Both exactly 0 with zero gradients if there
        is nothing to align (see ``fda_loss``).

    Raises:
        ValueError: as ``fda_loss``; no generator; a generator of another dimension.
    """
    if generator is None:
        raise BadValue("generator is missing; give a ProxyGenerator(dim), or use fda_loss.")
    options = form_options(form, tau=tau, bias=bias, slope=slope, temperature=temperature)
    graph = prepare(features, anchors, columns, column_anchors, graph, k, scale)
    if graph.is_trivial:
        return zero_loss(features, columns), zero_loss(*generator.parameters())
    proxies = _at_least_fp32(generator(features if columns is None else columns, graph))
    with full_precision(features.device):
        rows = unit_rows(features)
        others = rows if columns is None else unit_rows(columns).to(rows.dtype)
        gram = others @ others.transpose(-1, -2)
        cosines = gram if columns is None else rows @ others.transpose(-1, -2)
        cosines = cosines.reshape(graph.shape)
        loss_proxy = _proxy_loss(proxies, gram, graph, alpha, proxy_temperature)

        fixed = proxies._replace(weights=proxies.weights.detach().to(gram.dtype))
        extended = _append(graph, fixed, FORMS[form].exact_proxies)
        cosines = torch.cat([cosines, fixed.cosines(cosines, gram)], dim=1)
        return row_losses(form, cosines, extended, options).mean(), loss_proxy
