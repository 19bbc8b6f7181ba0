"""CKA against its definition by N x N kernels."""

import pytest
import torch
from naive import features

from proxyfda.diagnostics import cka


def kernels(x, y):
    return x @ x.t(), y @ y.t()


def naive(x, y):
    centre = torch.eye(len(x), dtype=x.dtype) - 1 / len(x)

    def hsic(k, m):
        return torch.trace(k @ centre @ m @ centre)

    k, m = kernels(x, y)
    return (hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt()).item()


def naive_debiased(x, y):
    """The mean over all quadruples of different samples, summed by Song et al.'s identity."""
    n = len(x)

    def hsic(k, m):
        k, m = k - k.diag().diag(), m - m.diag().diag()
        ones = torch.ones(n, dtype=k.dtype)
        total = torch.trace(k @ m) + (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
        return (total - 2 / (n - 2) * (ones @ k @ m @ ones)) / (n * (n - 3))

    k, m = kernels(x, y)
    return (hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt()).item()


@pytest.mark.parametrize("debiased", [False, True], ids=["published", "debiased"])
def test_cka_is_its_definition(debiased, monkeypatch):
    want = (naive_debiased if debiased else naive)(features(20, 1), features(20, 2, d=7))
    assert 0 < abs(want) < 0.9
    for rows in (4096, 6):
        monkeypatch.setattr("proxyfda.diagnostics.alignment._ROWS", rows)
        got = cka(features(20, 1), features(20, 2, d=7), debiased=debiased)
        assert got == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("debiased", [False, True], ids=["published", "debiased"])
def test_rotation_scale_and_shift_change_nothing(debiased):
    x, y = features(30, 1), features(30, 2)
    turn = torch.linalg.qr(features(12, 3))[0]
    assert cka(x, 5 * x @ turn + 100, debiased=debiased) == pytest.approx(1)
    want = cka(x, y, debiased=debiased)
    assert cka(x @ turn - 7, y, debiased=debiased) == pytest.approx(want)
    assert cka(x.numpy(), y.float().numpy(), debiased=debiased) == pytest.approx(want, rel=1e-4)


def test_debiased_is_0_in_the_mean_for_unrelated_features():
    stream = torch.Generator().manual_seed(0)
    pairs = [torch.randn(2, 20, 60, generator=stream) for _ in range(40)]
    biased, debiased = (
        torch.tensor([cka(x, y, debiased=kind) for x, y in pairs]) for kind in (False, True)
    )
    assert biased.min() > 0.5
    assert abs(debiased.mean()) < 0.05 and debiased.min() < 0


def test_features_that_do_not_vary():
    x, still = features(9), torch.full((9, 4), 0.1)
    assert cka(still, still) == cka(still, 3 * still, debiased=True) == 1.0
    assert cka(x, still) == cka(still, x, debiased=True) == 0.0


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda x: cka(x, x[:4]), "x has 6 rows and y 4"),
        (lambda x: cka(x, x[0]), "y has shape"),
        (lambda x: cka(x[:1], x[:1]), "1 rows; give at least 2"),
        (lambda x: cka(x[:3], x[:3], debiased=True), "3 rows; give at least 4"),
    ],
    ids=["lengths", "vector", "one", "three"],
)
def test_bad_input_is_one_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call(features(6))
