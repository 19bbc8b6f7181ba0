"""The plugin on stand-in hosts: gradients against an explicit sum, options, state."""

import copy

import pytest
import torch

import proxyfda
from proxyfda.integrations.dassl import make_trainer
from tests.integrations import hosts

FORMS = ("paper", "match")


def explicit_gradients(host, batch, spaces, weight, **options):
    """Back-propagate task loss + λ·L through the whole graph, as a trainer of its own would."""
    model = host.model
    ctx, vis = model.prompt_learner["ctx"], model.prompt_learner["vis"]
    frozen_images = model.image_encoder(batch["img"]).detach()
    frozen_texts = model.text_encoder(model.names).detach()
    if isinstance(model, hosts.ConditionalPrompts):
        images = model.image_encoder(batch["img"])
        texts = [model.text_encoder(model.names, ctx * image) for image in images]
    else:
        tuned = isinstance(model, hosts.BothPrompts)
        images = model.image_encoder(batch["img"], vis if tuned else None)
        texts = [model.text_encoder(model.names, ctx)]
    loss = host.task_loss(batch)
    for space in spaces:
        if space == "image":
            loss = loss + weight * proxyfda.fda_loss(images, frozen_images, **options)
        elif space == "text":
            terms = [proxyfda.fda_loss(text, frozen_texts, **options) for text in texts]
            loss = loss + weight * torch.stack(terms).mean()
        else:
            pairs = (
                [(images, frozen_images)]
                if len(texts) == 1
                else list(zip(images.split(1), frozen_images.split(1)))
            )
            terms = [
                proxyfda.fda_loss(
                    rows, row_anchors, columns=text, column_anchors=frozen_texts, **options
                )
                for (rows, row_anchors), text in zip(pairs, texts)
            ]
            loss = loss + weight * torch.stack(terms).mean()
    return torch.autograd.grad(loss, [ctx, vis], allow_unused=True)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("host", "spaces"),
    [
        (hosts.CoOpLike, ("cross",)),
        (hosts.CoOpLike, ("text",)),
        (hosts.CoOpLike, ("text", "cross")),
        (hosts.ScaledCoOpLike, ("cross",)),
        (hosts.CoCoOpLike, ("cross",)),
        (hosts.CoCoOpLike, ("text", "cross")),
        (hosts.MaPLeLike, ("image",)),
        (hosts.MaPLeLike, ("image", "text", "cross")),
        (hosts.PromptSRCLike, ("image", "cross")),
    ],
    ids=lambda value: getattr(value, "__name__", None) or "+".join(value),
)
def test_gradients_equal_those_of_the_explicit_sum(host, spaces, form):
    batch = hosts.make_batch()
    options = {"k": 3, "form": form}
    cfg = hosts.make_cfg(SPACES=spaces, WEIGHT=2.5, K=3, FORM=form, M=0, N=0)
    trainer = make_trainer(host, "fda")(cfg)
    expected = explicit_gradients(host(cfg), batch, spaces, 2.5, **options)
    summary = trainer.forward_backward(batch)
    scale = 1024.0 if host.scaled else 1.0
    for name, want in zip(("ctx", "vis"), expected):
        got = trainer.model.prompt_learner[name].grad
        if want is None:
            assert got is None
        else:
            torch.testing.assert_close(got / scale, want, rtol=4e-6, atol=1e-6)
    assert set(summary) == {"loss", "loss_fda"}
    assert summary["loss_fda"] > 0 or form == "match"


def test_the_term_changes_the_gradient():
    batch = hosts.make_batch()
    plain = hosts.CoOpLike(hosts.make_cfg())
    plain.forward_backward(batch)
    tuned = make_trainer(hosts.CoOpLike, "fda")(hosts.make_cfg(M=0, N=0, K=3))
    tuned.forward_backward(batch)
    gap = plain.model.prompt_learner["ctx"].grad - tuned.model.prompt_learner["ctx"].grad
    assert gap.abs().max() > 1e-3


@pytest.mark.parametrize("off", [{"WEIGHT": 0.0}, {"ENABLED": False}], ids=["weight0", "disabled"])
def test_turned_off_the_host_runs_bit_for_bit(off):
    batch = hosts.make_batch()
    plain = hosts.CoOpLike(hosts.make_cfg())
    term_off = make_trainer(hosts.CoOpLike)(hosts.make_cfg(**off))
    assert plain.forward_backward(batch) == term_off.forward_backward(batch)
    assert torch.equal(
        plain.model.prompt_learner["ctx"].grad, term_off.model.prompt_learner["ctx"].grad
    )


def test_frozen_image_features_are_their_own_anchors():
    trainer = make_trainer(hosts.CoOpLike, "fda")(hosts.make_cfg(M=0, N=0, SPACES=("cross",)))
    trainer.forward_backward(hosts.make_batch())
    assert trainer.captured_frozen == 0


@pytest.mark.parametrize(
    ("host", "spaces"),
    [(hosts.CoOpLike, ("text", "cross")), (hosts.MaPLeLike, ("image",))],
    ids=["frozen", "tuned"],
)
def test_default_spaces_follow_the_image_encoder(host, spaces):
    batch = hosts.make_batch()
    default = make_trainer(host, "fda")(hosts.make_cfg(M=0, N=0))
    named = make_trainer(host, "fda")(hosts.make_cfg(M=0, N=0, SPACES=spaces))
    assert default.forward_backward(batch) == named.forward_backward(batch)


def test_image_space_alone_is_refused_for_a_frozen_image_encoder():
    trainer = make_trainer(hosts.CoOpLike, "fda")(hosts.make_cfg(M=0, N=0, SPACES=("image",)))
    with pytest.raises(ValueError, match="no gradient reaches the prompts; use cross or text"):
        trainer.forward_backward(hosts.make_batch())


def test_proxy_gradients_stay_apart():
    batch = hosts.make_batch()
    trainer = make_trainer(hosts.MaPLeLike)(hosts.make_cfg(M=0, N=0, SPACES=("image", "cross")))
    summary = trainer.forward_backward(batch)
    assert set(summary) == {"loss", "loss_fda", "loss_proxy"}
    before = {
        space: [p.clone() for p in generator.parameters()]
        for space, generator in trainer._fda.generators.items()
    }
    assert set(before) == {"image", "cross"}
    trainer.forward_backward(batch)
    for space, weights in before.items():
        after = list(trainer._fda.generators[space].parameters())
        assert any(not torch.equal(old, new) for old, new in zip(weights, after))
    assert all(p.grad is None for e in (trainer.model.image_encoder,) for p in e.parameters())


def test_generator_leaves_the_global_random_stream_alone():
    trainer = make_trainer(hosts.CoOpLike)(hosts.make_cfg(M=0, N=0))
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    trainer.forward_backward(hosts.make_batch())
    assert torch.equal(torch.rand(3), expected)


def test_generator_state_round_trip():
    batch = hosts.make_batch()
    cfg = hosts.make_cfg(M=0, N=0)
    first = make_trainer(hosts.CoOpLike)(cfg)
    first.forward_backward(batch)
    state = copy.deepcopy(first._fda.state_dict())
    second = make_trainer(hosts.CoOpLike)(cfg)
    second._fda.load_state_dict(state)
    assert first.forward_backward(batch) == second.forward_backward(batch)


def test_pointwise_mode_is_the_pull_to_the_frozen_features():
    batch = hosts.make_batch()
    trainer = make_trainer(hosts.CoOpLike)(hosts.make_cfg(MODE="pointwise", M=0, N=0, WEIGHT=3.0))
    trainer.forward_backward(batch)
    host = hosts.CoOpLike(hosts.make_cfg())
    model = host.model
    tuned = model.text_encoder(model.names, model.prompt_learner["ctx"])
    cosines = torch.cosine_similarity(tuned, model.text_encoder(model.names))
    total = host.task_loss(batch) + 3.0 * (1 - cosines).mean()
    (want,) = torch.autograd.grad(total, [model.prompt_learner["ctx"]])
    torch.testing.assert_close(trainer.model.prompt_learner["ctx"].grad, want, rtol=1e-5, atol=1e-6)


def test_a_model_with_other_names_takes_a_mapping():
    class Renamed(hosts.CoOpLike):
        def build_model(self):
            super().build_model()
            self.model.visual = self.model.image_encoder
            del self.model.image_encoder
            self.model.__class__ = type("M", (hosts.Model,), {"forward": _renamed_forward})

    def _renamed_forward(self, x):
        texts = self.text_encoder(self.names, self.prompt_learner["ctx"])
        return self.logits(self.visual(x), texts)

    trainer_class = make_trainer(Renamed, "fda")
    with pytest.raises(AttributeError, match="no module 'image_encoder'.*set fda_modules"):
        trainer_class(hosts.make_cfg(M=0, N=0))
    trainer_class.fda_modules = {"image_encoder": "visual", "text_encoder": "text_encoder"}
    summary = trainer_class(hosts.make_cfg(M=0, N=0)).forward_backward(hosts.make_batch())
    assert summary["loss_fda"] > 0


def test_several_devices_are_refused():
    class Spread(hosts.CoOpLike):
        def build_model(self):
            super().build_model()
            self.model = torch.nn.DataParallel(self.model)
            self.model.device_ids = [0, 1]

    with pytest.raises(RuntimeError, match="spread over 2; make one visible"):
        make_trainer(Spread)(hosts.make_cfg(M=0, N=0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"FORM": "papper"}, "FORM is 'papper'.*did you mean 'paper'"),
        ({"SPACES": ("imag",)}, "SPACES.*did you mean 'image'"),
        ({"MODE": "proxy"}, "MODE is 'proxy'"),
        ({"WEIGHT": -1.0}, "WEIGHT is -1.0"),
        ({"WEIGHT": float("nan")}, "WEIGHT is nan"),
        ({"K": 0}, "K is 0"),
        ({"TAU": 0.0}, "TAU is 0.0"),
        ({"M": 4, "N": 0}, "M is 4; with N 0"),
        ({"M": 0, "N": 0, "MINING": True}, "MINING is True; .* set M and N"),
        ({"PROXY_RATIO": 0.0}, "PROXY_RATIO is 0.0"),
        ({"MODE": "pointwise", "SPACES": ("cross",)}, "use image or text"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_bad_options_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(hosts.CoOpLike)(hosts.make_cfg(**options))


def test_an_infinite_term_stops_with_epoch_batch_and_name():
    trainer = make_trainer(hosts.CoOpLike, "fda")(hosts.make_cfg(M=0, N=0, K=3, SPACES=("cross",)))
    trainer.epoch, trainer.batch_idx = 2, 4
    trainer.model.prompt_learner["ctx"].data[0] = float("nan")
    with pytest.raises(FloatingPointError, match="loss_fda is nan in epoch 3, batch 5"):
        trainer.forward_backward(hosts.make_batch())


@pytest.mark.parametrize("around", ["encoder", "more"])
@pytest.mark.parametrize("kept", [1, 0], ids=["some", "all"])
def test_recomputed_activations_are_not_captured_twice(around, kept, monkeypatch):
    monkeypatch.setattr(hosts.RecomputedPrompts, "around", around)
    monkeypatch.setattr(hosts.RecomputedPrompts, "kept", kept)
    batch = hosts.make_batch()
    cfg = hosts.make_cfg(SPACES=("text", "cross"), K=3, WEIGHT=2.5)
    expected = make_trainer(hosts.CoCoOpLike)(cfg)
    recomputed = make_trainer(hosts.CheckpointedLike)(cfg)
    wanted, summary = expected.forward_backward(batch), recomputed.forward_backward(batch)
    assert summary == pytest.approx(wanted, rel=1e-5)
    torch.testing.assert_close(
        recomputed.model.prompt_learner["ctx"].grad,
        expected.model.prompt_learner["ctx"].grad,
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("around", ["encoder", "more"])
@pytest.mark.parametrize("kept", [1, 0], ids=["some", "all"])
def test_reentrant_checkpoints_are_refused(around, kept, monkeypatch):
    monkeypatch.setattr(hosts.RecomputedPrompts, "around", around)
    monkeypatch.setattr(hosts.RecomputedPrompts, "kept", kept)
    monkeypatch.setattr(hosts.RecomputedPrompts, "reentrant", True)
    trainer = make_trainer(hosts.CheckpointedLike)(hosts.make_cfg(SPACES=("text",)))
    with pytest.raises(RuntimeError, match="text_encoder runs inside a reentrant checkpoint"):
        trainer.forward_backward(hosts.make_batch())


def test_frozen_image_features_are_asked_for_once_per_step():
    cfg = hosts.make_cfg(SPACES=("image", "cross"))
    trainer = make_trainer(hosts.MaPLeLike)(cfg)
    for step in (1, 2):
        trainer.forward_backward(hosts.make_batch())
        assert trainer.captured_frozen == step
