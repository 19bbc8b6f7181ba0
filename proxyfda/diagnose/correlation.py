"""Correlations with intervals by the bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from proxyfda.utils.errors import BadValue

__all__ = ["Correlation", "correlate", "stronger"]


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
    (0.994, 1.0, (1.0, 1.0))
    """
    found = _of_draws(x, y, groups, draws, seed)
    return _with_intervals(len(x), found)


def stronger(
    x: Sequence[float],
    other: Sequence[float],
    y: Sequence[float],
    groups: Sequence[object] | None = None,
    *,
    draws: int = 2000,
    seed: int = 0,
) -> Correlation:
    """How much more closely x goes with y than another measure does, whatever the signs.

    The two coefficients are the differences |r of x| - |r of the other|, and the intervals are of
    the differences in the same draws: one that does not hold 0 tells the two apart.

    Args:
        x, other, y: N numbers each; the rest as for :func:`correlate`.

    Raises:
        BadValue: as :func:`correlate`.

    >>> round(stronger([1, 2, 3, 4], [1, 2, 4, 3], [2, 4, 6, 8]).spearman, 3)
    0.2
    """
    one, two = (_of_draws(given, y, groups, draws, seed) for given in (x, other))
    return _with_intervals(len(x), np.abs(one) - np.abs(two))


def _with_intervals(count: int, found: np.ndarray) -> Correlation:
    """Of r and rho [2, 1 + draws], those of the pairs themselves first."""
    low, high = np.nanpercentile(found[:, 1:], [2.5, 97.5], axis=1)
    pearson, spearman = map(float, found[:, 0])
    return Correlation(
        count,
        pearson,
        (float(low[0]), float(high[0])),
        spearman,
        (float(low[1]), float(high[1])),
    )


def _of_draws(
    x: Sequence[float],
    y: Sequence[float],
    groups: Sequence[object] | None,
    draws: int,
    seed: int,
) -> np.ndarray:
    """Pearson's r and Spearman's rho [2, 1 + draws] of the pairs, and of each draw."""
    first, second = np.asarray(x, float), np.asarray(y, float)
    if first.shape != second.shape or len(first) < 3:
        raise BadValue(
            f"there are {len(first)} and {len(second)} numbers; give at least 3 pairs to correlate"
        )
    if not (np.ptp(first) and np.ptp(second)):
        raise BadValue("one of the two does not vary over the runs, so nothing goes with it")
    keys = list(range(len(first))) if groups is None else list(groups)
    order = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    stream = np.random.default_rng(seed)
    drawn = stream.multinomial(len(order), np.full(len(order), 1 / len(order)), size=draws)
    times = drawn[:, [order[key] for key in keys]]  # that each pair is in a draw
    times = np.concatenate([np.ones((1, len(first))), times])
    ranked = _ranks(times, first, second)
    return np.stack([_weighted(times, first, second), _weighted(times, *ranked)])


def _ranks(times: np.ndarray, *values: np.ndarray) -> list[np.ndarray]:
    """Ranks [draws, N] of values [N] that are there several times, mean ranks for equals; less a
    half, which no correlation depends on."""
    return [
        times @ ((one[:, None] < one[None]) + 0.5 * (one[:, None] == one[None])) for one in values
    ]


def _weighted(times: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's r [draws] of pairs that are there several times; NaN where one does not vary."""
    total = times.sum(1, keepdims=True)
    x, y = (one - (times * one).sum(1, keepdims=True) / total for one in (x, y))
    across, of_x, of_y = ((times * a * b).sum(1) for a, b in ((x, y), (x, x), (y, y)))
    scale = np.sqrt(of_x * of_y)
    still = scale <= 1e-12 * max(scale.max(), 1e-300)
    return np.where(still, np.nan, np.clip(across / np.where(still, 1, scale), -1, 1))
