"""The point-wise pull against its formula."""

import pytest
import torch
from naive import cosine, features

from proxyfda import Pointwise, pointwise_loss


def test_mean_of_one_minus_cosine():
    x, frozen = features(5, 1).requires_grad_(), features(5, 2).requires_grad_()
    want = sum(1 - cosine(a, b).item() for a, b in zip(x, frozen)) / 5
    loss = pointwise_loss(x, frozen)
    assert loss.item() == pytest.approx(want) == Pointwise()(x, frozen).item()
    loss.backward()
    assert x.grad.abs().sum() > 0 and frozen.grad is None
    assert torch.autograd.gradcheck(lambda x: pointwise_loss(x, frozen.detach()), (x,))


def test_zero_at_the_frozen_features_whatever_their_norms():
    x = features(5).requires_grad_()
    loss = pointwise_loss(x, 3 * x.detach())
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-12) and x.grad.abs().max() < 1e-9


def test_half_precision_and_autocast():
    x, frozen = features(6, 1, torch.bfloat16), features(6, 2, torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = pointwise_loss(x, frozen)
    want = pointwise_loss(x.double(), frozen.double())
    assert got.dtype == torch.float32 and got.item() == pytest.approx(want.item(), rel=1e-5)


def test_zero_rows_and_empty_batches():
    x = torch.zeros(3, 4, requires_grad=True)
    loss = pointwise_loss(x, torch.ones(3, 4))
    loss.backward()
    assert loss.item() == 1.0 and torch.isfinite(x.grad).all()
    assert pointwise_loss(x[:0], torch.ones(0, 4)).item() == 0.0


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda x: pointwise_loss(x, x[:5]), "one anchor per feature"),
        (lambda x: pointwise_loss(x[0], x[0]), "features has shape"),
    ],
    ids=["anchors", "one feature"],
)
def test_bad_input_is_one_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call(features(6))
