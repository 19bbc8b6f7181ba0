"""LDIFS against loops over samples, tokens and channels, in its readings."""

import math

import pytest
import torch

from proxyfda import LDIFS, ldifs_loss


def layer(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) + 0.3


def unit(values):
    length = math.sqrt(sum(v * v for v in values))
    return [v / length for v in values]


def normalised(x, over):
    """Nested lists [B][T][C] with what ``over`` names brought to length 1."""
    x = x.tolist()
    if over == "channels":
        return [[unit(token) for token in sample] for sample in x]
    if over == "tokens":  # each channel along the tokens
        columns = [[unit(channel) for channel in zip(*sample)] for sample in x]
        return [[list(token) for token in zip(*sample)] for sample in columns]
    return x


def naive(x, y, over):
    x, y = normalised(x, over), normalised(y, over)
    squares = [
        (p - q) ** 2
        for sample, other in zip(x, y)
        for token, other_token in zip(sample, other)
        for p, q in zip(token, other_token)
    ]
    return sum(squares) / len(squares)


OVER = ["tokens", "channels", "nothing"]
SHAPES = [(3, 5, 4), (3, 2, 7), (3, 1, 6)]


@pytest.mark.parametrize("over", OVER)
def test_several_layers_with_tokens_equal_the_loop(over):
    tuned = [layer(*shape, seed=i) for i, shape in enumerate(SHAPES)]
    frozen = [layer(*shape, seed=i + 9) for i, shape in enumerate(SHAPES)]
    want = sum(naive(x, y, over) for x, y in zip(tuned, frozen)) / 3
    assert ldifs_loss(tuned, frozen, normalise_over=over).item() == pytest.approx(want)
    assert LDIFS(normalise_over=over)(tuned, frozen).item() == pytest.approx(want)
    one = ldifs_loss(tuned[0], frozen[0], normalise_over=over)
    assert one.item() == pytest.approx(naive(tuned[0], frozen[0], over))


@pytest.mark.parametrize("over", OVER)
def test_features_without_tokens(over):
    x, y = layer(4, 6), layer(4, 6, seed=1)
    one_token = naive(x.unsqueeze(1), y.unsqueeze(1), "channels" if over != "nothing" else over)
    assert ldifs_loss(x, y, normalise_over=over).item() == pytest.approx(one_token)


def test_published_code_is_the_default():
    x, y = layer(3, 5, 4), layer(3, 5, 4, seed=1)
    assert torch.equal(LDIFS()(x, y), ldifs_loss(x, y))
    assert torch.equal(ldifs_loss(x, y), ldifs_loss(x, y, normalise_over="tokens"))
    # Without looking at loops: normalize over dimension 1, square, mean.
    want = torch.nn.functional.mse_loss(
        torch.nn.functional.normalize(x), torch.nn.functional.normalize(y)
    )
    assert ldifs_loss(x, y).item() == pytest.approx(want.item())


@pytest.mark.parametrize("over", OVER)
def test_gradients(over):
    x, z = layer(2, 3, 4).requires_grad_(), layer(2, 5, seed=2).requires_grad_()
    y, v = layer(2, 3, 4, seed=1).requires_grad_(), layer(2, 5, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, z: ldifs_loss([x, z], [y.detach(), v.detach()], normalise_over=over), (x, z)
    )
    ldifs_loss([x, z], [y, v], normalise_over=over).backward()
    assert x.grad.abs().sum() > 0 and z.grad.abs().sum() > 0
    assert y.grad is None and v.grad is None


def test_zero_at_the_frozen_features_and_finite_for_zero_ones():
    x = layer(2, 3, 4).requires_grad_()
    loss = ldifs_loss(x, x.detach())
    loss.backward()
    assert loss.item() == 0.0 and (x.grad == 0).all()
    zero = torch.zeros(2, 3, 4, requires_grad=True)
    ldifs_loss(zero, layer(2, 3, 4)).backward()
    assert torch.isfinite(zero.grad).all()


def test_empty_batch_is_zero():
    x = torch.zeros(0, 3, 4, requires_grad=True)
    loss = ldifs_loss([x], [x.detach()])
    loss.backward()
    assert loss.item() == 0.0


def test_half_precision_is_computed_in_fp32():
    x, y = 300 * layer(3, 5, 4), 300 * layer(3, 5, 4, seed=1)
    got = ldifs_loss(x.half(), y.half(), normalise_over="nothing")
    assert got.dtype == torch.float32
    want = ldifs_loss(x.half().double(), y.half().double(), normalise_over="nothing")
    assert want > 65504 and got.item() == pytest.approx(want.item(), rel=1e-5)


X = layer(2, 3, 4)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: ldifs_loss(X, X[:, :2]), r"\[\(2, 3, 4\)\].*\[\(2, 2, 4\)\]"),
        (lambda: ldifs_loss([X, X], [X]), "equal layers"),
        (lambda: ldifs_loss([], []), "one at least"),
        (lambda: ldifs_loss(X[0, 0], X[0, 0]), r"\[\(4,\)\]"),
        (lambda: ldifs_loss(X.unsqueeze(0), X.unsqueeze(0)), r"\(1, 2, 3, 4\)"),
        (lambda: ldifs_loss(X, X, normalise_over="token"), "normalise_over is 'token'.*tokens"),
    ],
    ids=["shapes", "layers", "none", "one dimension", "four dimensions", "word"],
)
def test_bad_input_is_one_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()
