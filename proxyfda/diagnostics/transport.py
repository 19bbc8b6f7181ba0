"""The optimal transport dataset distance between two labelled sets of features."""

from __future__ import annotations

import warnings
from typing import Any, List, NamedTuple, Optional

import torch
from torch import Tensor

from proxyfda.neighbours.cosines import check_features
from proxyfda.utils.errors import BadValue, NotInstalled, Unusable

__all__ = ["class_distances", "otdd"]

_NUMBERS = 1 << 24  # of matrices that are decomposed in one call
_ITERATIONS = 10_000_000  # of the exact solver, which needs some 100,000 for 10,000 samples
_SINKHORN = {"numItermax": 1000, "stopThr": 1e-7}
_STEEPEST = 200.0  # largest cost in weights of the entropy that Sinkhorn takes without logarithms


def otdd(
    x: Any,
    labels_x: Any,
    y: Any,
    labels_y: Any,
    *,
    most: Optional[int] = 10_000,
    seed: int = 0,
    entropy: float = 0.0,
) -> float:
    """Optimal transport dataset distance between labelled sets of features.

    The least mean cost of moving one set onto the other, min over plans π with uniform margins of
    Σ π_ij (|x_i - y_j|² + W²(class of x_i, class of y_j)), where W² is the squared 2-Wasserstein
    distance of Gaussians with the classes' means and covariances (Alvarez-Melis and Fusi, NeurIPS
    2020, arXiv 2002.02923, with p = 2). It has squared units of the features, as the cost has; its
    root is a distance. Classes are compared by their features: their numbers say nothing, and need
    not agree.

    Of a model before and after tuning give *different* images, such as two halves of a set: between
    the features of the same images the best plan is nearly always each to itself, which is L2.

    Args:
        x, y: features [N, d] and [M, d], tensors or arrays. Cosine models: bring them to length 1.
        labels_x, labels_y: classes [N] and [M], whole numbers. The covariance of a class divides by
            its number of samples less one; of a single sample it is 0.
        most: samples of each set that are moved, drawn by ``seed``; None: all. Sets of one size
            have the same rows drawn. The classes' Gaussians are those of all samples. Memory grows
            with the square: 10,000 take about 4 GB.
        seed: of the draw.
        entropy: 0: the plan is exact. Above it, Sinkhorn's with this share of the mean cost as the
            weight of the entropy, of which the mean of both sets' plans onto themselves is
            subtracted (so that here, too, a set is at distance 0 of itself). It runs where the
            features are, on a GPU for example; the exact solver runs on the CPU.

    Returns:
        0 or more; by Sinkhorn not below it by more than its tolerance.

    Raises:
        BadValue: no matrices, of unequal dimension, labels of another length or kind, no samples,
            or an argument out of range.
        NotInstalled: POT is missing.
        Unusable: the solver did not end.

    >>> x = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 9.0], [2.0, 9.0]])
    >>> otdd(x, [0, 0, 1, 1], x, [1, 1, 0, 0]), otdd(x, [0, 0, 1, 1], x + 1, [0, 0, 1, 1])
    (0.0, 4.0)
    """
    _check(most, entropy)
    solver = _solver()
    sets = [_labelled("x", x, labels_x), _labelled("y", y, labels_y)]
    if sets[0].features.shape[1] != sets[1].features.shape[1]:
        raise BadValue(
            f"x has {sets[0].features.shape[1]} dimensions and y {sets[1].features.shape[1]}, and "
            "no distance is defined between them; compare models of one dimension."
        )
    sets[1] = _Labelled(*(part.to(sets[0].features.device) for part in sets[1]))
    classes = [_gaussians(given) for given in sets]
    drawn = [_drawn(given, most, seed) for given in sets]

    def cost(i: int, j: int) -> Tensor:
        between = class_distances(classes[i], classes[j])
        found = _squared_distances(drawn[i].features, drawn[j].features)
        return found + between[drawn[i].labels][:, drawn[j].labels]

    if not entropy:
        return _exact(solver, cost(0, 1))
    across = cost(0, 1)
    weight = entropy * across.mean()
    if not weight > 0:
        return 0.0
    own = [_sinkhorn(solver, cost(i, i), weight) for i in (0, 1)]
    return _sinkhorn(solver, across, weight) - sum(own) / 2


class _Labelled(NamedTuple):
    features: Tensor  # [N, d], fp64
    labels: Tensor  # [N], whole numbers from 0 without gaps


class Gaussians(NamedTuple):
    """Of each class the mean and a factor of the covariance.

    Attributes:
        means: [C, d].
        factors: A [C, r, d] with covariance Aᵀ A; rows beyond a covariance's rank are 0.
    """

    means: Tensor
    factors: Tensor


def class_distances(x: Gaussians, y: Gaussians) -> Tensor:
    """Squared 2-Wasserstein distances of Gaussians, [C, C'].

    |m - m'|² + tr S + tr S' - 2 tr (S^½ S' S^½)^½. With S = Aᵀ A the last trace is the sum of the
    singular values of A A'ᵀ, which has as many rows as the class has samples, at most d. So there
    are no roots of d x d matrices, which are singular for a class of fewer samples than dimensions:
    ``ot.gaussian.bures_wasserstein_distance`` is NaN there for arrays, and for 100 classes of 100
    samples at d = 512 it takes 10,000 of them, 21 GB and a quarter of an hour against 6 seconds.
    """
    spread = [given.factors.square().sum((1, 2)) for given in (x, y)]
    rows, step = x.factors.shape[1] * y.factors.shape[1], 1
    if rows:
        step = max(1, _NUMBERS // rows)
    common = spread[0].new_zeros(len(x.means), len(y.means))
    for i, factor in enumerate(x.factors):
        for start in range(0, len(y.means) if rows else 0, step):
            part = y.factors[start : start + step]
            common[i, start : start + step] = torch.linalg.svdvals(
                factor @ part.transpose(1, 2)
            ).sum(1)
    moved = (x.means[:, None] - y.means[None]).square().sum(2)
    # Rounding may leave equals a little below 0.
    return (moved + spread[0][:, None] + spread[1][None] - 2 * common).clamp(min=0)


def _gaussians(given: _Labelled) -> Gaussians:
    means: List[Tensor] = []
    factors: List[Tensor] = []
    for label in range(int(given.labels.max()) + 1):
        rows = given.features[given.labels == label]
        mean = rows.mean(0)
        factor = (rows - mean) / max(len(rows) - 1, 1) ** 0.5
        if len(factor) > factor.shape[1]:
            factor = torch.linalg.qr(factor, mode="r")[1]
        means.append(mean)
        factors.append(factor)
    return Gaussians(torch.stack(means), torch.nn.utils.rnn.pad_sequence(factors, batch_first=True))


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    # Around a common centre, so that little is lost in the difference.
    centre = x.mean(0)
    x, y = x - centre, y - centre
    found = torch.addmm(y.square().sum(1).expand(len(x), -1), x, y.t(), alpha=-2.0)
    return found.add_(x.square().sum(1)[:, None]).clamp_(min=0)


def _exact(solver: Any, cost: Tensor) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value, log = solver.emd2(
            [], [], cost.cpu().numpy(), numItermax=_ITERATIONS, log=True, return_matrix=False
        )
    if log["warning"]:
        raise Unusable(
            f"optimal transport between {cost.shape[0]} and {cost.shape[1]} samples found no plan "
            f"({log['warning']}); use fewer by most=, or entropy=0.05"
        )
    return float(value)


def _sinkhorn(solver: Any, cost: Tensor, weight: Tensor) -> float:
    margins = [cost.new_full((n,), 1 / n) for n in cost.shape]
    method = "sinkhorn" if cost.max() <= _STEEPEST * weight else "sinkhorn_log"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan = solver.sinkhorn(*margins, cost, float(weight), method=method, **_SINKHORN)
    return float((plan * cost).sum())


def _solver() -> Any:
    try:
        import ot
    except ImportError:
        raise NotInstalled(
            "otdd computes optimal transport by POT, which is not installed; run `pip install POT`."
        ) from None
    return ot


# -- what is given --------------------------------------------------------------------------------


def _check(most: Optional[int], entropy: float) -> None:
    if most is not None and most < 1:
        raise BadValue(f"most is {most!r}; give at least 1 sample, or None for all.")
    if not 0 <= entropy < float("inf"):
        raise BadValue(f"entropy is {entropy!r}; give 0 for the exact plan, or 0.05 for example.")


def _labelled(name: str, x: Any, labels: Any) -> _Labelled:
    features = torch.as_tensor(x).detach()
    check_features(name, features)
    if labels is None:
        raise BadValue(f"labels_{name} is None; otdd needs the class of each sample.")
    classes = torch.as_tensor(labels, device=features.device)
    if not len(features):
        raise BadValue(f"{name} has no rows; give at least one sample.")
    if classes.shape != features.shape[:1] or classes.is_floating_point() or classes.is_complex():
        raise BadValue(
            f"labels_{name} has shape {list(classes.shape)} and dtype {classes.dtype} for "
            f"{len(features)} features; give each one class, a whole number."
        )
    if not torch.isfinite(features).all():
        raise BadValue(f"{name} has numbers that are not finite; leave out such samples.")
    return _Labelled(features.double(), torch.unique(classes, return_inverse=True)[1])


def _drawn(given: _Labelled, most: Optional[int], seed: int) -> _Labelled:
    if most is None or len(given.features) <= most:
        return given
    stream = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(given.features), generator=stream)[:most]
    return _Labelled(*(part[rows.to(part.device)] for part in given))
