"""A step of each method of tuning end to end against its formula, loss and gradient to 1e-5."""

import copy
import math

import pytest
import torch
from naive import with_unit_columns

import trainers.finetune.trainer as finetune
from proxyfda.backbones.zero_shot import class_texts
from proxyfda.dassl import TRAINER_REGISTRY
from proxyfda.neighbours import NeighbourGraph
from proxyfda.utils.errors import NotFinite
from tests.trainers.finetune_tools import (
    BATCH,
    LAYERS,
    cosines,
    gradient_of,
    naive_head_loss,
    naive_layers,
    step,
    tuned,
)
from trainers.finetune.flyp import contrastive_loss
from trainers.finetune.head import Head
from trainers.finetune.schedule import factor, warmup_of

IMAGES, LABELS = BATCH["img"].double(), BATCH["label"]
NODE = "TRAINER.PROXYFDA"


def l2sp(frozen, now, trainer):
    pairs = zip(now.image_tower.parameters(), frozen.image_tower.parameters())
    return sum(((a - b.detach()) ** 2).sum() for a, b in pairs)


def ldifs(over):
    def formula(frozen, now, trainer):
        with torch.no_grad():
            there = naive_layers(frozen.image_tower, IMAGES)[1]
        here = naive_layers(now.image_tower, IMAGES)[1]
        total = 0.0
        for x, y in zip(here, there):
            for sample, other in zip(x, y):  # [T, C]: "tokens" takes a channel's column
                lines = (sample.t(), other.t()) if over == "tokens" else (sample, other)
                for a, b in zip(*lines):
                    total = total + ((a / a.norm() - b / b.norm()) ** 2).sum() / x.numel()
        return total / LAYERS

    return formula


def both_features(frozen, now):
    with torch.no_grad():
        there = naive_layers(frozen.image_tower, IMAGES)[0]
    return naive_layers(now.image_tower, IMAGES)[0], there


def rkd(frozen, now, trainer):
    x, y = both_features(frozen, now)
    c, w = cosines(x, x), cosines(y, y)
    off = ~torch.eye(len(x), dtype=torch.bool)
    rows = [w[i][off[i]] for i in range(len(x))]
    sigma = (sum(((r - r.mean()) ** 2).mean() for r in rows) / len(rows)).sqrt()
    e = ((c - w)[off] / sigma).abs()
    return torch.where(e < 1, 0.5 * e * e, e - 0.5).mean()


def pointwise(frozen, now, trainer):
    x, y = both_features(frozen, now)
    return sum(1 - (a @ b) / (a.norm() * b.norm()) for a, b in zip(x, y)) / len(x)


def eq2(frozen, now, proxies=None):
    """Eq. 2 with K 3, τ 0.1, b 10, pair by pair."""
    x, y = both_features(frozen, now)
    total = 0.0
    for i in range(len(x)):
        others = [j for j in range(len(x)) if j != i]
        w = {j: ((y[i] @ y[j]) / (y[i].norm() * y[j].norm())).clamp(min=0) for j in others}
        near = sorted(others, key=lambda j: -w[j])[:3]
        terms = [(x[j], w[j] if j in near else -w[j]) for j in others]
        if proxies is not None:
            made = with_unit_columns(proxies.weights[i], x)
            for p, (point, weights) in enumerate(zip(made, proxies.weights[i])):
                estimate = sum(
                    a * (y[i] @ v) / (y[i].norm() * v.norm()) for a, v in zip(weights, y)
                ).clamp(min=0)
                terms.append((point, estimate if p < proxies.positives else -estimate))
        losses = [
            (1 + (v * (-(x[i] @ z) / (x[i].norm() * z.norm()) / 0.1 + 10)).exp()).log()
            for z, v in terms
        ]
        total = total + sum(losses) / len(losses)
    return total / len(x)


def fda(frozen, now, trainer):
    return eq2(frozen, now)


def proxy_fda(frozen, now, trainer):
    x, y = both_features(frozen, now)
    generator = copy.deepcopy(trainer.term.regulariser.generator).double()
    with torch.no_grad():
        proxies = generator(x, NeighbourGraph(y, 3))
    return eq2(frozen, now, proxies)


REGULARISED = {
    "l2sp": ("FineTune", l2sp, {"REGULARISER": "l2sp"}),
    "ldifs-published": ("FineTune", ldifs("tokens"), {"REGULARISER": "ldifs"}),
    "ldifs-intended": (
        "FineTune",
        ldifs("channels"),
        {"REGULARISER": "ldifs", "NORMALISE_OVER": "channels"},
    ),
    "rkd": ("FineTune", rkd, {"REGULARISER": "rkd"}),
    "pointwise": ("FineTune", pointwise, {"REGULARISER": "pointwise"}),
    "fda": ("FDAFineTune", fda, {"K": 3, "CONSTANTS": "given"}),
    "proxy_fda": ("ProxyFDAFineTune", proxy_fda, {"K": 3, "CONSTANTS": "given"}),
    "fda-on-lpft": ("FDALPFT", fda, {"K": 3, "CONSTANTS": "given"}),
}


def agree(got, want, tolerance=1e-5):
    assert (got - want).abs().max() <= tolerance * max(1.0, want.abs().max().item())


@pytest.mark.parametrize("case", ["naive", *REGULARISED])
def test_a_step_is_the_task_s_loss_plus_lambda_times_the_regulariser(make_trainer, case):
    name, formula, own = REGULARISED.get(case, ("FineTune", None, {}))
    opts = [word for key, value in own.items() for word in (f"{NODE}.{key}", value)]
    if formula is not None:
        opts += [f"{NODE}.WEIGHT", 2.5]
    trainer, frozen, now = tuned(make_trainer, name, *opts)
    head = copy.deepcopy(trainer.head).double()
    features = naive_layers(now.image_tower, IMAGES)[0]
    task = naive_head_loss(features, LABELS, head.weight, head.bias).mean()
    pull = formula(frozen, now, trainer) if formula is not None else torch.zeros(())
    (task + 2.5 * pull).backward()

    values, gradient = step(trainer)

    assert values["loss"] == pytest.approx((task + 2.5 * pull).item(), rel=1e-5)
    agree(gradient, gradient_of(now.image_tower))
    agree(trainer.head.weight.grad.double(), head.weight.grad)
    agree(trainer.head.bias.grad.double(), head.bias.grad)
    if formula is not None:
        logged = trainer.term.regulariser.log_name
        assert values[logged] == pytest.approx(pull.item(), rel=1e-4)
        assert values["loss_task"] == pytest.approx(task.item(), rel=1e-5)
    assert ("loss_proxy" in values) == (case == "proxy_fda")


def test_flyp_s_step_is_the_contrastive_loss_of_images_and_their_classes_texts(make_trainer):
    trainer, _, now = tuned(make_trainer, "FLYP")
    now.text_tower.requires_grad_(True)
    scale = now.logit_scale.clone().requires_grad_()
    names = trainer.dm.dataset.classnames
    texts = class_texts("a photo of a {}.", [names[y] for y in LABELS])
    # Each image with its own text: image 7 is of class 0 as image 0 is, and yet the other's text is
    # a wrong one.
    c = scale.exp() * cosines(now(IMAGES), now.encode_texts(texts))
    rows = [c[i].exp().sum().log() + c[:, i].exp().sum().log() - 2 * c[i, i] for i in range(8)]
    want = sum(rows) / 16
    want.backward()

    values, gradient = step(trainer)

    assert values["loss"] == pytest.approx(want.item(), rel=1e-5)
    agree(gradient, gradient_of(now.image_tower))
    agree(gradient_of(trainer.backbone.text_tower), gradient_of(now.text_tower))
    agree(trainer._scale.value.grad.double(), scale.grad)
    assert contrastive_loss(torch.eye(3), torch.eye(3), torch.tensor(0.0)).item() == pytest.approx(
        math.log(3)
    )


def test_flyp_is_evaluated_by_the_texts_of_the_tuned_tower_and_its_own_checkpoints(make_trainer):
    trainer = make_trainer("FLYP", "INPUT.TRANSFORMS", ("normalize",), "OPTIM.LR", 0.1)
    trainer.train()
    names = trainer.dm.dataset.classnames
    with torch.no_grad():
        texts = trainer.backbone.encode_texts(class_texts("a photo of a {}.", names))
        got = trainer.model(BATCH["img"]).softmax(-1)
        want = (cosines(trainer.backbone(BATCH["img"]), texts) / 0.07).softmax(-1)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
    again = make_trainer("FLYP", "INPUT.TRANSFORMS", ("normalize",), output="other")
    assert not torch.allclose(again.model(BATCH["img"]).softmax(-1), got)
    again.load_model(trainer.output_dir)
    with torch.no_grad():
        torch.testing.assert_close(again.model(BATCH["img"]).softmax(-1), got)


def test_flyp_draws_one_of_several_templates_for_each_image(make_trainer, monkeypatch):
    trainer, _, now = tuned(make_trainer, "FLYP")
    trainer._templates = ["a {}.", "the {}."]
    seen = []
    encode = trainer.backbone.encode_texts
    monkeypatch.setattr(
        trainer.backbone, "encode_texts", lambda texts: seen.append(texts) or encode(texts)
    )
    loss, _ = trainer.task_loss(trainer.backbone(BATCH["img"]), LABELS)
    (texts,) = seen
    assert {text.split()[0] for text in texts} == {"a", "the"} and len(set(texts)) == len(texts)
    assert loss.requires_grad


# -- heads ----------------------------------------------------------------------------------------


def test_a_zero_shot_head_is_the_mean_of_the_templates_texts_times_the_scale(make_trainer):
    trainer, frozen, _ = tuned(make_trainer, "FineTune", "TRAINER.FINETUNE.HEAD", "zero_shot")
    names = trainer.dm.dataset.classnames

    def rows(template):
        found = frozen.encode_texts([template.format(name.replace("_", " ")) for name in names])
        return torch.stack([x / x.norm() for x in found])

    agree(trainer.head.weight.double(), rows("a photo of a {}.") * frozen.logit_scale.exp())
    assert (trainer.head.bias == 0).all()
    trainer.dm.dataset.template = ["a {}.", "the {}, a thing."]
    trainer.build_models()
    mean = (rows("a {}.") + rows("the {}, a thing.")) / 2
    want = torch.stack([x / x.norm() for x in mean]) * frozen.logit_scale.exp()
    agree(trainer.head.weight.double(), want)


def test_the_head_sees_features_of_length_1():
    head = Head(4, 3)
    x = torch.randn(5, 4)
    torch.testing.assert_close(head(x), head(7 * x))


@pytest.mark.parametrize(
    "name, opts", [("LPFT", []), ("FineTune", ["TRAINER.FINETUNE.HEAD", "probe"])]
)
def test_a_head_starts_from_a_linear_probe_on_the_encoder_as_it_starts(make_trainer, name, opts):
    trainer = make_trainer(name, "INPUT.TRANSFORMS", ("normalize",), "OPTIM.LR", 1e-9, *opts)
    before = trainer.head.weight.clone()
    trainer.train()
    assert not torch.allclose(trainer.head.weight, before)
    # Every image of the training is told apart by it, without any learning rate to speak of.
    data = trainer.train_loader_x.dataset
    with torch.no_grad():
        logits = trainer.model(torch.stack([data[i]["img"] for i in range(len(data))]))
    labels = torch.tensor([item.label for item in data.data_source])
    assert (logits.argmax(1) == labels).all()


# -- one pass of each encoder ---------------------------------------------------------------------


class Counted:
    """Counts the passes of the image towers, of the tuned and of the frozen one."""

    def __init__(self, trainer):
        self.student = self.frozen = 0
        trainer.backbone.image_tower.register_forward_hook(lambda *_: self._add("student"))
        if trainer._frozen is not None:
            trainer._frozen.image_tower.register_forward_hook(lambda *_: self._add("frozen"))

    def _add(self, side):
        setattr(self, side, getattr(self, side) + 1)


@pytest.mark.parametrize(
    "name, regulariser, frozen",
    [
        ("FineTune", "", None),
        ("FineTune", "l2sp", None),
        ("FLYP", "", None),
        ("FineTune", "ldifs", 1),
        ("FDAFineTune", "", 1),
        ("ProxyFDAFineTune", "", 1),
    ],
)
def test_the_encoder_runs_once_in_a_step_and_the_frozen_one_where_it_is_needed(
    make_trainer, name, regulariser, frozen
):
    trainer, _, _ = tuned(make_trainer, name, f"{NODE}.REGULARISER", regulariser)
    if frozen is None:
        assert trainer._frozen is None
    calls = Counted(trainer)
    step(trainer)
    assert (calls.student, calls.frozen) == (1, frozen or 0)
    if frozen:
        assert not any(weight.requires_grad for weight in trainer._frozen.parameters())
        assert trainer._frozen.text_tower is None and not trainer._frozen.training


def test_gradient_checkpointing_changes_no_gradient(make_trainer):
    found = []
    for on in (False, True):
        opts = [f"{NODE}.REGULARISER", "ldifs", "MODEL.BACKBONE.GRAD_CHECKPOINTING", on]
        trainer, _, _ = tuned(make_trainer, "FineTune", *opts)
        assert trainer.backbone.image_tower.transformer.grad_checkpointing == on
        found.append(step(trainer)[1])
    torch.testing.assert_close(*found)


# -- the optimisers -------------------------------------------------------------------------------


def test_the_learning_rate_warms_up_and_goes_down_as_a_cosine(make_trainer):
    opts = ["OPTIM.MAX_EPOCH", 10, "TRAINER.FINETUNE.WARMUP_STEPS", 4]
    trainer, _, _ = tuned(make_trainer, "FineTune", *opts)
    assert len(trainer.train_loader_x) == 2
    rates = []
    for _ in range(20):
        rates.append(trainer.get_current_lr())
        step(trainer)
    for s, rate in enumerate(rates):
        if s < 4:
            want = 0.002 * (s + 1) / 4
        else:
            want = 0.002 * 0.5 * (1 + math.cos(math.pi * (s - 4) / 16))
        assert rate == pytest.approx(want)
    assert trainer.get_current_lr() == pytest.approx(0)


def test_a_short_run_warms_up_for_half_of_its_steps(make_trainer, capsys):
    trainer, _, _ = tuned(make_trainer, "FineTune", "OPTIM.MAX_EPOCH", 3)
    assert "Warm-up: 3 steps, half of all, in place of 500" in capsys.readouterr().out
    assert trainer.get_current_lr() == pytest.approx(0.002 / 3)
    assert warmup_of(1, 500) == 0 and factor(0, 1, 0) == 1.0 and factor(0, 0, 0) == 1.0


@pytest.mark.parametrize("bound", [0.0, 0.5, 1e6])
def test_the_gradient_of_encoder_and_head_together_is_cut_down(make_trainer, bound):
    plain, _, _ = tuned(make_trainer, "FineTune")
    step(plain)
    whole = torch.cat([weight.grad.flatten() for weight in plain._trained])
    assert 0.5 < whole.norm() < 1e6
    trainer, _, _ = tuned(make_trainer, "FineTune", "TRAINER.FINETUNE.CLIP_GRAD", bound)
    step(trainer)
    got = torch.cat([weight.grad.flatten() for weight in trainer._trained])
    want = whole * (0.5 / whole.norm() if bound == 0.5 else 1.0)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-7)


def test_the_generator_learns_by_adam_with_its_own_rate_and_no_bound(make_trainer):
    opts = [f"{NODE}.K", 3, f"{NODE}.GENERATOR_LR", 0.01, "TRAINER.FINETUNE.CLIP_GRAD", 1e-6]
    trainer, _, _ = tuned(make_trainer, "ProxyFDAFineTune", *opts)
    own = list(trainer.term.regulariser.parameters())
    before = [weight.detach().clone() for weight in own]
    step(trainer)
    for weight, start in zip(own, before):
        moved = (weight - start)[weight.grad.abs() > 1e-6].abs()
        torch.testing.assert_close(moved, torch.full_like(moved, 0.01), rtol=0.02, atol=1e-5)
    assert all(weight is not other for weight in own for other in trainer._trained)


def test_amp_bounds_the_gradient_and_not_its_multiple(make_trainer, monkeypatch):
    monkeypatch.setattr(finetune, "resolve_precision", lambda prec, device: prec)
    found = {}
    for prec in ("fp32", "amp"):
        opts = ["TRAINER.FINETUNE.PREC", prec, "TRAINER.FINETUNE.CLIP_GRAD", 0.5, f"{NODE}.K", 3]
        trainer, _, _ = tuned(make_trainer, "ProxyFDAFineTune", *opts)
        if prec == "amp":
            trainer.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        values, gradient = step(trainer)
        assert trainer.head.weight.dtype == torch.float32
        found[prec] = values["loss"], gradient
    assert found["amp"][0] == pytest.approx(found["fp32"][0], rel=0.02)
    a, b = found["amp"][1], found["fp32"][1]
    assert (a - b).norm() < 0.1 * b.norm()


def test_a_loss_that_is_not_finite_ends_the_run(make_trainer):
    trainer, _, _ = tuned(make_trainer, "FineTune", "TRAIN.PRINT_FREQ", 1)
    with torch.no_grad():
        trainer.head.weight.fill_(math.nan)
    with pytest.raises(NotFinite, match="loss is not finite in epoch 1, batch 1 .*PREC fp32"):
        trainer.train()


# -- what they are --------------------------------------------------------------------------------


def test_they_regularise_by_themselves_and_have_the_paper_s_forms():
    from proxyfda.integrations.dassl import RegularisedTrainer

    for host in ("FineTune", "LPFT", "FLYP"):
        for name in (host, f"FDA{host}", f"ProxyFDA{host}"):
            trainer = TRAINER_REGISTRY.get(name)
            assert not issubclass(trainer, RegularisedTrainer)
            assert (
                trainer.trained_regulariser
                == {"": "", "FDA": "fda", "ProxyFDA": "proxy_fda"}[name[: -len(host)]]
            )
