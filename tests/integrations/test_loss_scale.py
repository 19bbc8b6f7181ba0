"""The factor of a loss, read off its graph."""

import threading

import pytest
import torch
from torch.nn import functional as F

from proxyfda.integrations import loss_scale
from proxyfda.utils.errors import Unusable


@pytest.fixture(autouse=True)
def watched():
    loss_scale.watch()
    yield
    loss_scale.unwatch()


LOGITS = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, -100, 0])  # seven that count


def factor_of(make, run=lambda loss: loss.backward()):
    """What is found inside the backward pass of ``make(logits, labels)``."""
    logits, found = LOGITS.clone().requires_grad_(), []
    x = logits * 1.0
    x.register_hook(lambda grad: found.append(loss_scale.current()) and None)
    run(make(x))
    return float(found[0].factor)


def mean(x):
    return F.cross_entropy(x, LABELS)


def total(x):
    return F.cross_entropy(x, LABELS, reduction="sum")


SCALER = torch.tensor(1024.0)
CASES = {
    "plain": (mean, 1.0),
    "divided-by-k": (lambda x: mean(x) / 4, 0.25),
    "the-task's-own-weight": (lambda x: 0.25 * mean(x), 1.0),
    "own-weight-divided-by-k": (lambda x: 10 * mean(x) / 4, 0.25),
    "own-weight-of-a-sum-over-N": (lambda x: 0.5 * (x.square().sum() / 8), 1.0),
    "own-weight-scaled": (lambda x: (0.5 * mean(x)) * SCALER, 1024.0),
    "divided-by-a-tensor": (lambda x: mean(x) / torch.tensor(4), 0.25),
    "divided-twice": (lambda x: mean(x) / 4 / 2, 0.125),
    "scaled-and-divided": (lambda x: mean(x) / 4 * SCALER, 256.0),
    "half-batches": (lambda x: (mean(x) + F.mse_loss(x, x.detach())) / 2, 0.5),
    "through-a-mean-of-one": (lambda x: (mean(x) / 4).mean().double().float(), 0.25),
    "added-to-nothing": (lambda x: sum([mean(x) / 4]) - 0.1, 0.25),
    "sum-over-N": (lambda x: x.square().sum() / 8, 1.0),
    "sum-over-N-over-k": (lambda x: x.square().sum() / 8 / 4, 0.25),
    "sum-scaled": (lambda x: SCALER * x.square().sum(), 1024.0),
    "sum-times-a-large-number": (lambda x: x.square().sum() * 1024, 1.0),
    "sums-of-two-kinds": (lambda x: (total(x) + x.square().sum()) / 8, 1.0),
    "smoothed-sum": (
        lambda x: F.cross_entropy(x, LABELS, reduction="sum", label_smoothing=0.1) / 7,
        1.0,
    ),
    "squared-error-sum": (lambda x: F.mse_loss(x, x.detach() + 1, reduction="sum") / 8, 1.0),
    # as transformers do: divided by the number of samples of all accumulated batches
    "share-of-28-samples": (lambda x: total(x) / 28, 0.25),
    "share-of-28-samples-4-ranks": (lambda x: total(x) / torch.tensor(28) * 4, 1.0),
    "mean-of-sums": (lambda x: x.square().sum(1).mean() / 4, 0.25),
    "two-terms": (lambda x: mean(x) + 0.1 * x.square().mean(), 1.0),
    "switched-off": (lambda x: x.sum() * 0.0, 1.0),
    "negative": (lambda x: -mean(x), 1.0),
    "learnt-weight": (lambda x: mean(x) * torch.tensor(3.0, requires_grad=True), 1.0),
}


@pytest.mark.parametrize("name", CASES)
def test_the_factor_of(name):
    make, want = CASES[name]
    assert factor_of(make) == pytest.approx(want, rel=1e-6)


RUNS = {
    "method": lambda loss: loss.backward(),
    "autograd-backward": lambda loss: torch.autograd.backward([loss]),
    "autograd-backward-by-name": lambda loss: torch.autograd.backward(tensors=loss),
    "autograd-grad": lambda loss: torch.autograd.grad(loss, find_leaf(loss)),
    "given-gradient": lambda loss: (loss * 2).backward(gradient=torch.tensor(0.5)),
}


def find_leaf(loss):
    node = loss.grad_fn
    while not hasattr(node, "variable"):
        node = node.next_functions[0][0]
    return node.variable


@pytest.mark.parametrize("name", RUNS)
def test_however_the_backward_pass_is_called(name):
    assert factor_of(lambda x: mean(x) / 4, RUNS[name]) == 0.25


def test_a_pass_within_the_loss_s_does_not_hide_it():
    """Reentrant checkpoints run one from their outputs, with the gradients that arrived."""
    found = []
    x = LOGITS.clone().requires_grad_()

    class Inner(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            with torch.enable_grad():
                again = LOGITS.clone().requires_grad_()
                y = again * 2
                y.register_hook(lambda _: found.append(loss_scale.current().factor) and None)
            torch.autograd.backward(y, grad)
            return again.grad

    (mean(Inner.apply(x)) / 4).backward()
    assert found == [0.25]


def elsewhere(function):
    """Run in another thread, as hooks do that a device's thread calls."""
    found = []

    def run():
        try:
            found.append(function())
        except Unusable as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


def test_a_device_s_thread_sees_the_factor_of_the_pass_that_waits_for_it():
    found, x = [], LOGITS.clone().requires_grad_()
    y = x * 1.0
    y.register_hook(lambda _: found.append(elsewhere(loss_scale.current).factor) and None)
    (mean(y) / 4).backward()
    assert found == [0.25]


def test_passes_of_several_threads_are_refused_where_they_cannot_be_told_apart():
    found, x = [], LOGITS.clone().requires_grad_()
    y = x * 1.0

    def another(_):
        def run():
            z = LOGITS.clone().requires_grad_() * 1.0
            z.register_hook(lambda _: found.append(elsewhere(loss_scale.current)) and None)
            z.register_hook(lambda _: found.append(loss_scale.current().factor) and None)
            (mean(z) / 2).backward()

        elsewhere(run)

    y.register_hook(another)
    (mean(y) / 4).backward()
    assert isinstance(found[0], Unusable) and "give scale=1.0" in str(found[0])
    assert found[1] == 0.5


def test_outside_and_after_a_pass_that_failed_there_is_no_factor():
    def fail(_):
        raise ValueError

    x = LOGITS.clone().requires_grad_() * 1.0
    x.register_hook(fail)
    with pytest.raises(ValueError):
        (mean(x) / 4).backward()
    assert loss_scale.current().factor == 1.0


@pytest.fixture
def alone(monkeypatch):
    """As if no handle of another test were on."""
    monkeypatch.setattr(loss_scale, "_watchers", 1)


def test_torch_is_as_it_was_when_nobody_watches(alone):
    wrapped = torch.autograd.backward
    loss_scale.watch()
    assert torch.autograd.backward is wrapped
    loss_scale.unwatch()
    loss_scale.unwatch()
    assert torch.autograd.backward is wrapped.__wrapped__
    assert "proxyfda" not in torch.autograd.backward.__module__ + torch.autograd.grad.__module__
    loss_scale.watch()


def test_a_wrapper_around_ours_is_left_alone(alone):
    ours = torch.autograd.backward
    calls = []

    def theirs(*args, **kwargs):
        calls.append(1)
        return ours(*args, **kwargs)

    torch.autograd.backward = theirs
    loss_scale.unwatch()
    assert torch.autograd.backward is theirs
    torch.ones(1, requires_grad=True).sum().backward()
    torch.autograd.backward = ours
    loss_scale.watch()
    assert calls == [1] and factor_of(lambda x: mean(x) / 4) == 0.25
