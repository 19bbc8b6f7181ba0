"""timm's training task with a regulariser: the hand-written sum, checkpoints, what is left."""

import pytest
import torch
from torch import nn

from proxyfda import L2SP, FrozenCopy, ProxyFDA, attach
from proxyfda.diagnostics import Monitor
from proxyfda.utils.errors import BadModel, BadType

timm = pytest.importorskip("timm")
pytest.importorskip("timm.task")

from timm.optim import create_optimizer_v2  # noqa: E402
from timm.task import ClassificationTask  # noqa: E402

from proxyfda.integrations.timm import RegularisedTask  # noqa: E402

WEIGHT, CLASSES = 0.7, 3


def build(name="vit"):
    torch.manual_seed(0)
    if name == "resnet":
        return timm.create_model("resnet10t", num_classes=CLASSES)
    return timm.create_model(
        "vit_base_patch16_224", num_classes=CLASSES, img_size=8, patch_size=4, embed_dim=16,
        depth=1, num_heads=2,
    )  # fmt: skip


def regulariser(dim=16):
    return ProxyFDA(dim, k=3, proxy_seed=0)


def batches(count=4, size=8):
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(count, 8, 3, size, size, generator=generator)
    return [(x, torch.arange(8) % CLASSES) for x in images]


def tune(task, optimiser):
    """timm's manner: the loss of two batches halved, then a step."""
    results = []
    for number, (images, labels) in enumerate(batches(), 1):
        results.append(task(images, labels))
        (results[-1]["loss"] / 2).backward()
        if number % 2 == 0:
            optimiser.step()
            optimiser.zero_grad()
    return results


def sgd(*modules):
    return torch.optim.SGD([p for module in modules for p in module.parameters()], lr=0.1)


def weights(*modules):
    return torch.cat([p.detach().flatten() for module in modules for p in module.parameters()])


@pytest.fixture
def by_hand():
    """The weights and the losses of the sum, written out."""
    model, term = build(), regulariser()
    frozen = FrozenCopy(build())
    optimiser, losses = sgd(model, term), []
    for number, (images, labels) in enumerate(batches(), 1):
        features, anchors = [
            m.forward_head(m.forward_features(images), pre_logits=True)
            for m in (model, frozen.module)
        ]
        task = nn.functional.cross_entropy(model.get_classifier()(features), labels)
        loss = task + WEIGHT * term(features, anchors.detach())
        (loss / 2).backward()
        if number % 2 == 0:
            optimiser.step()
            optimiser.zero_grad()
        losses.append((task.item(), loss.item()))
    return weights(model, term), losses


def test_the_task_is_the_hand_written_sum(by_hand):
    model, term = build(), regulariser()
    task = RegularisedTask(model, term, WEIGHT, criterion=nn.CrossEntropyLoss())
    results = tune(task, sgd(model, term))
    torch.testing.assert_close(weights(model, term), by_hand[0], rtol=1e-5, atol=1e-7)
    got = [(result["loss_task"].item(), result["loss"].item()) for result in results]
    assert got == pytest.approx([pytest.approx(pair, rel=1e-5) for pair in by_hand[1]])
    assert {"loss_fda", "loss_proxy", "output"} <= set(results[0])
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_attach_in_a_stock_task_is_the_hand_written_sum(by_hand):
    trunk, term = build(), regulariser()
    model = nn.Sequential(trunk, trunk.get_classifier())
    trunk.reset_classifier(0)
    handle = attach(trunk, term, WEIGHT, scale=1 / 2)
    tune(ClassificationTask(model, nn.CrossEntropyLoss()), sgd(model, term))
    handle.remove()
    torch.testing.assert_close(weights(model, term), by_hand[0], rtol=1e-5, atol=1e-7)
    assert not trunk._forward_hooks


@pytest.mark.parametrize("name, dim, size", [("vit", 16, 8), ("resnet", 512, 32)])
def test_the_frozen_features_are_those_of_the_start(name, dim, size):
    task = RegularisedTask(build(name).eval(), lambda x, anchors: (x - anchors).square().sum())
    images, labels = batches(1, size)[0]
    assert task(images, labels)["loss_regulariser"] < 1e-6
    assert task.frozen(images).shape == (8, dim)


@pytest.mark.parametrize("state", ["no gradient", "weight 0"])
def test_nothing_is_added(state):
    task = RegularisedTask(build(), regulariser(), 0.0 if state == "weight 0" else 1.0)
    with torch.set_grad_enabled(state == "weight 0"):
        assert "loss_task" not in task(*batches(1)[0])


@pytest.mark.parametrize("weight", [WEIGHT, 0.0], ids=["regularised", "plain"])
def test_a_monitor_sees_every_third_batch_and_its_count_is_kept(weight):
    def monitored():
        monitor = Monitor(lambda *entry: written.append(entry), every=3, k=3)
        task = RegularisedTask(build(), regulariser(), weight, monitor=monitor)
        return task, monitor

    written = []
    task, monitor = monitored()
    tune(task, sgd(task))
    with torch.no_grad():
        task(*batches(1)[0])  # an evaluation is none of its business
    assert [step for _, _, step in written] == [0, 0, 3, 3] and monitor.batches == 4
    assert [value for _, value, _ in written[:2]] == pytest.approx([1.0, 0.0], abs=1e-6)
    assert written[3][1] > 1e-3
    other, again = monitored()
    found = task.get_checkpoint_state()
    other.load_checkpoint_state(found["state_dict"], found["task_state"])
    assert again.batches == 4


def test_timms_optimiser_trains_the_generator_and_its_checkpoint_has_it():
    model, term = build(), regulariser()
    start = weights(term)
    task = RegularisedTask(model, term, WEIGHT)
    tune(task, create_optimizer_v2(task, opt="adamw", lr=1e-3))
    assert not torch.equal(weights(term), start)
    found = task.get_checkpoint_state()
    other = RegularisedTask(build(), regulariser(), WEIGHT)
    other.load_checkpoint_state(found["state_dict"], found["task_state"])
    torch.testing.assert_close(weights(other), weights(task), rtol=0, atol=0)


@pytest.mark.parametrize(
    "make, error, words",
    [
        (lambda: RegularisedTask(nn.Linear(1, 1), regulariser()), BadModel, "Linear has no single"),
        (lambda: RegularisedTask(build(), L2SP(build())), BadType, "acts on weights"),
        (lambda: RegularisedTask(build(), regulariser(), monitor=3), BadType, "monitor is a int"),
    ],
    ids=["classifier", "weights", "monitor"],
)
def test_a_mistake_is_one_sentence(make, error, words):
    with pytest.raises(error, match=words):
        make()
