"""What a monitor sees in a loop, and that it changes nothing there."""

import copy

import pytest
import torch
from operations import count_operations
from torch import nn

from proxyfda import FDA, attach
from proxyfda.diagnostics import Monitor, l2_drift, neighbour_overlap
from proxyfda.utils.errors import BadType, BadValue


def loop(monitor, steps=5, weight=0.5, check=None, **more):
    """A training loop; returns the weights that it ends with."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 6))
    frozen = copy.deepcopy(encoder)
    optimiser = torch.optim.SGD(encoder.parameters(), lr=0.1)
    with attach(encoder, FDA(k=3), weight, monitor=monitor, **more):
        for images in torch.randn(steps, 12, 4):
            features = encoder(images)
            if check:
                check(features, frozen(images))
            optimiser.zero_grad()
            features.square().sum().backward()
            optimiser.step()
            with torch.no_grad():
                encoder(images)  # an evaluation is none of its business
    return torch.cat([p.detach().reshape(-1) for p in encoder.parameters()])


@pytest.mark.parametrize("weight", [0.5, 0.0], ids=["regularised", "plain"])
def test_overlap_and_drift_of_every_second_batch(weight):
    written, seen = [], []
    monitor = Monitor(lambda *entry: written.append(entry), every=2, k=3, prefix="image/")
    loop(monitor, weight=weight, check=lambda *pair: seen.append(pair))
    want = []
    for step in (0, 2, 4):
        x, anchors = seen[step]
        want.append(("image/overlap", neighbour_overlap(x, anchors, 3), step))
        want.append(("image/drift", pytest.approx(l2_drift(x, anchors, unit=True), abs=1e-6), step))
    assert written == want
    assert written[0][1] == 1.0 and written[-1][1] > 0.1
    assert monitor.last == {"overlap": written[-2][1], "drift": written[-1][1]}


@pytest.mark.parametrize("weight", [0.5, 0.0], ids=["regularised", "plain"])
def test_training_is_the_same_with_it(weight):
    without = loop(None, weight=weight)
    assert torch.equal(loop(Monitor(lambda *_: None, every=1), weight=weight), without)


def test_features_that_are_chosen_and_those_of_tokens():
    seen = []
    monitor = Monitor(lambda name, value, step: seen.append(value), every=1)
    loop(monitor, steps=1, features=lambda x: x[:, :2])
    encoder = nn.Linear(4, 6)
    with attach(encoder, lambda x, anchors: (x - anchors).square().mean(), monitor=monitor):
        encoder(torch.randn(8, 5, 4)).sum().backward()
    assert seen == [1.0, 0.0, 1.0, 0.0]


def test_passes_taken_together_are_one_batch():
    monitor = Monitor(lambda *_: None, every=1)
    encoder = nn.Linear(4, 6)
    with attach(encoder, FDA(k=3), monitor=monitor, together=True):
        (encoder(torch.randn(6, 4)).sum() + encoder(torch.randn(6, 4)).sum()).backward()
    assert monitor.batches == 1


@pytest.mark.skipif(
    torch.__version__.startswith("1."), reason="older versions make other operations of the same"
)
@pytest.mark.parametrize("weight", [0.5, 0.0], ids=["regularised", "plain"])
def test_batches_that_are_not_looked_at_cost_nothing(weight):
    counts = []
    for monitor in (None, Monitor(lambda *_: None, every=1000)):
        if monitor is not None:
            monitor.due()
        encoder = nn.Linear(4, 6)
        with attach(encoder, FDA(k=3, constants="given"), weight, monitor=monitor):
            encoder(torch.randn(12, 4)).sum().backward()
            counts.append(
                count_operations(lambda: encoder(torch.randn(12, 4)).sum().backward())  # noqa: B023
            )
    assert counts[0] == counts[1]


def test_tensorboard_takes_it(tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = tensorboard.SummaryWriter(str(tmp_path))
    loop(Monitor(writer.add_scalar, every=2))
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("features/overlap")] == [0, 2, 4]


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: Monitor(3), BadType, "write is a int"),
        (lambda: Monitor(print, every=0), BadValue, "every is 0"),
        (lambda: Monitor(print, k=0), BadValue, "k is 0"),
        (lambda: attach(nn.Linear(2, 2), FDA(), monitor=print), BadType, "monitor is a builtin"),
    ],
    ids=["write", "every", "k", "no-monitor"],
)
def test_bad_input_is_one_sentence(call, error, words):
    with pytest.raises(error, match=words):
        call()
