"""Correlations with intervals by the bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from proxyfda.utils.errors import BadValue

__all__ = ["Correlation", "correlate"]


@dataclass(frozen=True)
class Correlation:
    """Pearson's r and Spearman's rho of N pairs, each with an interval of 95 %.

    The intervals are percentiles over samples of the pairs with replacement.
    """

    count: int
    pearson: float
    pearson_interval: tuple[float, float]
    spearman: float
    spearman_interval: tuple[float, float]


def correlate(
    x: Sequence[float],
    y: Sequence[float],
    groups: Sequence[object] | None = None,
    *,
    draws: int = 2000,
    seed: int = 0,
) -> Correlation:
    """How well x goes with y.

    Args:
        x, y: N numbers each.
        groups: of each pair what it belongs to; whole groups are drawn, as pairs of one group are
            not independent of each other. None: each pair by itself.
        draws: of the bootstrap. Those in which x or y does not vary are left out.
        seed: of the draws.

    Raises:
        BadValue: fewer than three pairs, or one of the two does not vary.

    >>> found = correlate([1, 2, 3, 4], [2, 4, 6, 9])
    >>> round(found.pearson, 3), found.spearman, found.spearman_interval
    (0.995, 1.0, (1.0, 1.0))
    """
    first, second = np.asarray(x, float), np.asarray(y, float)
    if first.shape != second.shape or len(first) < 3:
        raise BadValue(
            f"there are {len(first)} and {len(second)} numbers; give at least 3 pairs to correlate"
        )
    if not (np.ptp(first) and np.ptp(second)):
        raise BadValue("one of the two does not vary over the runs, so nothing goes with it")
    keys = list(range(len(first))) if groups is None else list(groups)
    members: dict[object, list[int]] = {}
    for place, key in enumerate(keys):
        members.setdefault(key, []).append(place)
    blocks = [np.array(places) for places in members.values()]
    stream = np.random.default_rng(seed)
    drawn = []
    for _ in range(draws):
        chosen = stream.integers(len(blocks), size=len(blocks))
        places = np.concatenate([blocks[at] for at in chosen])
        if np.ptp(first[places]) and np.ptp(second[places]):
            drawn.append(_both(first[places], second[places]))
    low, high = np.percentile(np.array(drawn), [2.5, 97.5], axis=0)
    pearson, spearman = _both(first, second)
    return Correlation(
        len(first), pearson, (low[0], high[0]), spearman, (low[1], high[1])
    )  # fmt: skip


def _both(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    return _pearson(x, y), _pearson(rankdata(x), rankdata(y))


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    return float(np.clip(x @ y / np.sqrt((x @ x) * (y @ y)), -1.0, 1.0))
