"""Correlations against SciPy, and what the bootstrap draws."""

import numpy
import pytest
from scipy import stats

from proxyfda.diagnose import correlate
from proxyfda.diagnose.correlation import stronger


def pairs(count=30, noise=1.0, seed=0):
    stream = numpy.random.default_rng(seed)
    x = stream.normal(size=count)
    return x, x + noise * stream.normal(size=count)


def test_coefficients_are_scipys():
    x, y = pairs()
    y[3] = y[4]  # a tie
    found = correlate(x, y)
    assert found.pearson == pytest.approx(stats.pearsonr(x, y)[0])
    assert found.spearman == pytest.approx(stats.spearmanr(x, y)[0])
    assert found.count == 30


def test_the_interval_is_about_that_of_the_theory():
    x, y = pairs(200)
    found = correlate(x, y)
    theory = stats.pearsonr(x, y).confidence_interval()
    assert found.pearson_interval == pytest.approx((theory.low, theory.high), abs=0.05)
    low, high = found.spearman_interval
    assert low < found.spearman < high
    assert correlate(x, y) == found != correlate(x, y, draws=400, seed=1)


def test_pairs_of_a_group_are_drawn_together():
    x, y = pairs(10)
    many = [numpy.repeat(given, 5) for given in (x, y, range(10))]
    alone = correlate(x, y)
    copies = correlate(*many[:2])
    grouped = correlate(*many)
    # Copies say nothing new: the interval is that of the ten, and not one of fifty.
    assert grouped.pearson_interval == pytest.approx(alone.pearson_interval)
    assert numpy.ptp(copies.pearson_interval) < 0.7 * numpy.ptp(grouped.pearson_interval)


def test_which_of_two_measures_goes_more_closely():
    x, y = pairs(60, noise=0.5)
    other = -(y + 3 * numpy.random.default_rng(1).normal(size=60))
    found = stronger(x, other, y)
    want = [abs(of(x, y)[0]) - abs(of(other, y)[0]) for of in (stats.pearsonr, stats.spearmanr)]
    assert [found.pearson, found.spearman] == pytest.approx(want)
    assert found.pearson_interval[0] > 0 and found.spearman_interval[0] > 0
    # A measure is not told apart from itself, and two alike move together over the draws.
    assert stronger(x, x, y).pearson_interval == (0, 0)
    near = stronger(x, x + 0.01 * other, y)
    assert numpy.ptp(near.pearson_interval) < 0.2 * numpy.ptp(correlate(x, y).pearson_interval)


@pytest.mark.parametrize(
    "x, y, words",
    [([1, 2], [1, 2], "at least 3 pairs"), ([1, 1, 1], [1, 2, 3], "does not vary")],
    ids=["two", "constant"],
)
def test_bad_input_is_one_sentence(x, y, words):
    with pytest.raises(ValueError, match=words):
        correlate(x, y)


def test_a_draw_with_repeats_has_scipys_coefficients():
    from proxyfda.diagnose.correlation import _ranks, _weighted

    x, y = pairs(12)
    times = numpy.random.default_rng(0).integers(0, 3, size=(5, 12))
    rho = _weighted(times, *_ranks(times, x, y))
    for row, found in zip(times, rho):
        again = [numpy.repeat(given, row) for given in (x, y)]
        assert found == pytest.approx(stats.spearmanr(*again)[0])
