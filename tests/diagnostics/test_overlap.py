"""The share of neighbours in common, counted sample by sample."""

import numpy
import pytest
import torch
from naive import cosine, features

from proxyfda.diagnostics import neighbour_overlap


def nearest(x, i, k):
    others = [j for j in range(len(x)) if j != i]
    return set(sorted(others, key=lambda j: -cosine(x[i], x[j]).item())[:k])


def naive(x, y, k):
    shares = [len(nearest(x, i, k) & nearest(y, i, k)) / k for i in range(len(x))]
    return sum(shares) / len(x)


@pytest.mark.parametrize("n, k, clamped", [(10, 3, 3), (10, 8, 8), (6, 8, 4), (3, 8, 1), (2, 8, 1)])
def test_share_of_common_neighbours(n, k, clamped):
    x, y = features(n, 1), features(n, 2, d=7)
    want = naive(x, y, clamped)
    assert n < 6 or 0 < want < 1
    assert neighbour_overlap(x, y, k) == pytest.approx(want)
    assert neighbour_overlap(y, x, k) == pytest.approx(want)


def test_default_is_8_neighbours():
    x, y = features(20, 1), features(20, 2)
    assert neighbour_overlap(x, y) == pytest.approx(naive(x, y, 8))
    assert naive(x, y, 8) != pytest.approx(naive(x, y, 7))


def test_extremes():
    x = features(9)
    assert neighbour_overlap(x, 3 * x, 3) == 1.0
    two_groups = torch.eye(2).repeat_interleave(2, 0) + 0.1 * torch.eye(4)[:, :2]
    assert neighbour_overlap(two_groups, two_groups[[0, 2, 1, 3]], 1) == 0.0
    assert neighbour_overlap(x[:1], x[:1]) == neighbour_overlap(x[:0], x[:0]) == 1.0


def test_arrays_dtypes_and_gradients():
    x, y = features(10, 1), features(10, 2)
    want = neighbour_overlap(x, y, 3)
    assert isinstance(want, float)
    assert neighbour_overlap(x.numpy(), numpy.float32(y.numpy()), 3) == want
    assert neighbour_overlap(x.float().requires_grad_(), y, 3) == want


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda x: neighbour_overlap(x, x[:4]), "x has 6 rows and y 4"),
        (lambda x: neighbour_overlap(x, x[0]), "y has shape"),
        (lambda x: neighbour_overlap(x.long(), x), "x has shape.*int64"),
        (lambda x: neighbour_overlap(x, x, 0), "k is 0"),
    ],
    ids=["lengths", "vector", "integers", "k"],
)
def test_bad_input_is_one_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call(features(6))
