"""The mean distance, row by row."""

import pytest
import torch
from naive import features

from proxyfda.diagnostics import l2_drift


def naive(x, y):
    return sum((a - b).square().sum().sqrt().item() for a, b in zip(x, y)) / len(x)


def test_drift_is_the_mean_distance():
    x, y = features(9, 1), features(9, 2)
    assert l2_drift(x, y) == l2_drift(y, x) == pytest.approx(naive(x, y))
    assert l2_drift(x.numpy(), y.float().numpy()) == pytest.approx(naive(x, y), rel=1e-5)
    unit = [given / given.norm(dim=1, keepdim=True) for given in (x, y)]
    assert l2_drift(x, 3 * y, unit=True) == pytest.approx(naive(*unit))
    assert l2_drift(x, x) == l2_drift(x, 2 * x, unit=True) == l2_drift(x[:0], y[:0]) == 0.0


def test_half_precision_neither_overflows_nor_ties():
    x = torch.full((4, 300), 100.0)
    assert l2_drift(x.half(), (x - 40).half()) == pytest.approx(40 * 300**0.5)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda x: l2_drift(x, x[:4]), "x has 6 rows and y 4"),
        (lambda x: l2_drift(x, x[:, :3]), "x has 12 dimensions and y 3"),
        (lambda x: l2_drift(x.long(), x), "x has shape.*int64"),
    ],
    ids=["lengths", "dimensions", "integers"],
)
def test_bad_input_is_one_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call(features(6))
