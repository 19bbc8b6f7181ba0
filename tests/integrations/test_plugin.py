"""The plugin on stand-in hosts: gradients against an explicit sum, options, state."""

import copy
from functools import partial

import pytest
import torch

import proxyfda
from proxyfda import regularisers
from proxyfda.integrations.dassl import make_trainer
from tests.integrations import hosts

SEED = 1  # that of the stand-in hosts' config


def proxies_of(loss):
    """Its first scalar, with a generator like the plugin's."""

    def first(*args, **kwargs):
        return loss(*args, proxyfda.ProxyGenerator(hosts.DIM, seed=SEED), **kwargs)[0]

    return first


RELATIONS = {
    "fda": partial(proxyfda.fda_loss, k=3),
    "fda-frozen": partial(proxyfda.fda_loss, k=3, units="frozen"),
    "proxy_fda": partial(proxies_of(proxyfda.proxy_fda_loss), k=3),
    "rkd": proxyfda.rkd_loss,
    "match": partial(regularisers.match_loss, k=3),
    "kl": regularisers.kl_loss,
    "correlation": regularisers.correlation_loss,
}
FEATURES = {
    "pointwise": lambda x, y: (1 - torch.cosine_similarity(x, y)).mean(),
    "ldifs": lambda x, y: (
        (x / x.norm(dim=1, keepdim=True) - y / y.norm(dim=1, keepdim=True)).square().mean()
    ),
}


def options_of(name):
    """The regulariser's name and options in the config."""
    name, _, units = name.partition("-")
    return {"REGULARISER": name, "K": 3, **({"UNITS": units} if units else {})}


def trainer_of(host, name, **options):
    """The host under its own name, with a regulariser that the config asks for."""
    return make_trainer(host, "")(hosts.make_cfg(**options_of(name), **options))


def explicit_gradients(host, batch, spaces, weight, loss):
    """Back-propagate task loss + λ R through the whole graph, as a trainer of its own would."""
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
    total = host.task_loss(batch)
    for space in spaces:
        if space == "image":
            term = loss(images, frozen_images)
        elif space == "text":
            term = torch.stack([loss(text, frozen_texts) for text in texts]).mean()
        elif len(texts) == 1:
            term = loss(images, frozen_images, columns=texts[0], column_anchors=frozen_texts)
        else:
            pairs = zip(images.split(1), frozen_images.split(1), texts)
            term = torch.stack(
                [
                    loss(row, anchor, columns=text, column_anchors=frozen_texts)
                    for row, anchor, text in pairs
                ]
            ).mean()
        total = total + weight * term
    return torch.autograd.grad(total, [ctx, vis], allow_unused=True)


def assert_same_gradients(trainer, expected):
    scale = 1024.0 if trainer.scaled else 1.0
    for name, want in zip(("ctx", "vis"), expected):
        got = trainer.model.prompt_learner[name].grad
        if want is None:
            assert got is None
        else:
            torch.testing.assert_close(got / scale, want, rtol=1e-5, atol=1e-6)


CASES = [
    (hosts.CoOpLike, ("cross",)),
    (hosts.CoOpLike, ("text",)),
    (hosts.CoOpLike, ("text", "cross")),
    (hosts.ScaledCoOpLike, ("cross",)),
    (hosts.CoCoOpLike, ("cross",)),
    (hosts.CoCoOpLike, ("text", "cross")),
    (hosts.MaPLeLike, ("image",)),
    (hosts.MaPLeLike, ("image", "text", "cross")),
    (hosts.PromptSRCLike, ("image", "cross")),
]


def readable(value):
    return getattr(value, "__name__", None) or ("+".join(value) if value else "default")


@pytest.mark.parametrize("name", RELATIONS)
@pytest.mark.parametrize(("host", "spaces"), CASES, ids=readable)
def test_gradients_equal_those_of_the_explicit_sum(host, spaces, name):
    batch = hosts.make_batch()
    trainer = trainer_of(host, name, SPACES=spaces, WEIGHT=2.5)
    expected = explicit_gradients(host(trainer.cfg), batch, spaces, 2.5, RELATIONS[name])
    summary = trainer.forward_backward(batch)
    assert_same_gradients(trainer, expected)
    logged = "loss_" + options_of(name)["REGULARISER"].replace("proxy_", "")
    assert set(summary) == {"loss", logged} | ({"loss_proxy"} if "proxy" in name else set())
    assert summary[logged] > 0


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize(
    ("host", "spaces"),
    [
        (hosts.CoOpLike, ()),
        (hosts.CoCoOpLike, ("text",)),
        (hosts.MaPLeLike, ()),
        (hosts.MaPLeLike, ("image", "text")),
    ],
    ids=readable,
)
def test_pulls_to_the_frozen_features_equal_the_explicit_sum(host, spaces, name):
    batch = hosts.make_batch()
    trainer = trainer_of(host, name, SPACES=spaces, WEIGHT=2.5)
    acted_on = spaces or (("image",) if host is hosts.MaPLeLike else ("text",))
    expected = explicit_gradients(host(trainer.cfg), batch, acted_on, 2.5, FEATURES[name])
    summary = trainer.forward_backward(batch)
    assert_same_gradients(trainer, expected)
    assert set(summary) == {"loss", f"loss_{name}"} and summary[f"loss_{name}"] > 0


@pytest.mark.parametrize("host", [hosts.CoOpLike, hosts.ScaledCoOpLike], ids=readable)
def test_l2sp_adds_the_way_back_to_the_starting_weights(host):
    batch = hosts.make_batch()
    trainer, plain = trainer_of(host, "l2sp", WEIGHT=2.5), host(hosts.make_cfg())
    start = trainer.model.prompt_learner["ctx"].detach().clone()
    for model in (trainer.model, plain.model):
        with torch.no_grad():
            model.prompt_learner["ctx"].add_(torch.arange(hosts.DIM) / 10)
    plain.forward_backward(batch)
    summary = trainer.forward_backward(batch)
    moved = trainer.model.prompt_learner["ctx"].detach() - start
    scale = 1024.0 if host.scaled else 1.0
    want = plain.model.prompt_learner["ctx"].grad / scale + 2.5 * 2 * moved
    torch.testing.assert_close(
        trainer.model.prompt_learner["ctx"].grad / scale, want, rtol=1e-5, atol=1e-6
    )
    assert summary["loss_l2sp"] == pytest.approx(moved.square().sum().item())


def test_l2sp_without_trained_weights_is_refused():
    class Untrained(hosts.CoOpLike):
        def build_model(self):
            super().build_model()
            self.model.requires_grad_(False)

    with pytest.raises(AttributeError, match="no weight of Untrained's model is trained"):
        trainer_of(Untrained, "l2sp")


def test_the_term_changes_the_gradient():
    batch = hosts.make_batch()
    plain = hosts.CoOpLike(hosts.make_cfg())
    plain.forward_backward(batch)
    tuned = make_trainer(hosts.CoOpLike, "fda")(hosts.make_cfg(K=3))
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
    trainer = make_trainer(hosts.CoOpLike, "fda")(hosts.make_cfg(SPACES=("cross",)))
    trainer.forward_backward(hosts.make_batch())
    assert trainer.captured_frozen == 0


@pytest.mark.parametrize(
    ("host", "spaces"),
    [(hosts.CoOpLike, ("text", "cross")), (hosts.MaPLeLike, ("image",))],
    ids=["frozen", "tuned"],
)
def test_default_spaces_follow_the_image_encoder(host, spaces):
    batch = hosts.make_batch()
    default = make_trainer(host, "fda")(hosts.make_cfg())
    named = make_trainer(host, "fda")(hosts.make_cfg(SPACES=spaces))
    assert default.forward_backward(batch) == named.forward_backward(batch)


def test_image_space_alone_is_refused_for_a_frozen_image_encoder():
    trainer = make_trainer(hosts.CoOpLike, "fda")(hosts.make_cfg(SPACES=("image",)))
    with pytest.raises(ValueError, match="no gradient reaches the prompts; use cross or text"):
        trainer.forward_backward(hosts.make_batch())


def test_the_generator_learns_from_its_own_loss_alone():
    batch = hosts.make_batch()
    spaces = ("image", "cross")
    trainer, heavy = (
        make_trainer(hosts.MaPLeLike)(hosts.make_cfg(SPACES=spaces, WEIGHT=weight, K=3))
        for weight in (1.0, 7.0)
    )
    summary = trainer.forward_backward(batch)
    assert set(summary) == {"loss", "loss_fda", "loss_proxy"}
    heavy.forward_backward(batch)
    started = proxyfda.ProxyGenerator(hosts.DIM, seed=SEED).state_dict()
    assert set(trainer._spaces.regularisers) == set(spaces)
    for space in spaces:
        learned = trainer._spaces.regularisers[space].generator.state_dict()
        weighted = heavy._spaces.regularisers[space].generator.state_dict()
        assert any(not torch.equal(started[name], learned[name]) for name in started)
        # λ is the model's; and the task's loss reaches no proxies.
        assert all(torch.equal(learned[name], weighted[name]) for name in learned)


def test_the_regulariser_leaves_no_gradient_on_frozen_and_captured_tensors():
    class Watching(hosts.MaPLeLike):
        def build_model(self):
            super().build_model()
            self.encoder_weight = self.model.image_encoder.net[0].weight
            self.encoder_weight.requires_grad_(True)

    batch = hosts.make_batch()
    plain = Watching(hosts.make_cfg())
    plain.forward_backward(batch)
    trainer = make_trainer(Watching)(hosts.make_cfg(SPACES=("text",), K=3))
    trainer.forward_backward(batch)
    # A term on texts alone changes nothing on the image side, and the generator's loss nothing.
    assert torch.equal(trainer.encoder_weight.grad, plain.encoder_weight.grad)
    assert plain.encoder_weight.grad.abs().max() > 0


def test_the_first_step_leaves_all_random_generators_alone(monkeypatch):
    trainer = make_trainer(hosts.MaPLeLike)(hosts.make_cfg(SPACES=("image", "text", "cross")))
    before = torch.get_rng_state()

    def touched(*args, **kwargs):
        raise AssertionError("a random generator that is not the plugin's was seeded or read")

    for owner, name in (
        (torch, "manual_seed"),
        (torch.random, "manual_seed"),
        (torch.random, "fork_rng"),
        (torch.cuda, "manual_seed"),
        (torch.cuda, "manual_seed_all"),
        (torch.cuda, "set_rng_state"),
        (torch.cuda, "set_rng_state_all"),
    ):
        monkeypatch.setattr(owner, name, touched)
    trainer.forward_backward(hosts.make_batch())
    assert set(trainer._spaces.regularisers) == {"image", "text", "cross"}
    assert torch.equal(torch.get_rng_state(), before)


def test_a_generator_starts_from_the_seed_of_the_run():
    def first_weights(**options):
        trainer = make_trainer(hosts.CoOpLike)(hosts.make_cfg(GENERATOR_LR=1e-30, **options))
        trainer.forward_backward(hosts.make_batch())
        return trainer._spaces.regularisers["text"].generator.down.weight

    assert torch.equal(first_weights(), proxyfda.ProxyGenerator(hosts.DIM, seed=1).down.weight)
    own = proxyfda.ProxyGenerator(hosts.DIM, seed=5).down.weight
    assert torch.equal(first_weights(PROXY_SEED=5), own)


@pytest.mark.parametrize(
    ("option", "value"), [("PROXY_RATIO", 1.0), ("ALPHA", 0.0)], ids=["ratio", "alpha"]
)
def test_options_of_proxies_count_from_the_first_step(option, value):
    batch = hosts.make_batch()
    base = {"SPACES": ("image",), "K": 3}
    given = make_trainer(hosts.MaPLeLike)(hosts.make_cfg(**base, **{option: value}))
    model = hosts.MaPLeLike(hosts.make_cfg()).model
    ratio = value if option == "PROXY_RATIO" else 0.4
    _, want = proxyfda.proxy_fda_loss(
        model.image_encoder(batch["img"], model.prompt_learner["vis"]).detach(),
        model.image_encoder(batch["img"]).detach(),
        proxyfda.ProxyGenerator(hosts.DIM, ratio, seed=SEED),
        k=3,
        alpha=value if option == "ALPHA" else 1.0,
    )
    assert given.forward_backward(batch)["loss_proxy"] == pytest.approx(want.item(), rel=1e-5)
    default = make_trainer(hosts.MaPLeLike)(hosts.make_cfg(**base)).forward_backward(batch)
    assert default["loss_proxy"] != pytest.approx(want.item(), rel=1e-5)


@pytest.mark.parametrize("rate", [1e-3, 0.05])
def test_the_generator_steps_at_its_own_rate(rate):
    trainer = make_trainer(hosts.CoOpLike)(hosts.make_cfg(GENERATOR_LR=rate, SPACES=("text",), K=2))
    trainer.forward_backward(hosts.make_batch())
    started = proxyfda.ProxyGenerator(hosts.DIM, seed=SEED).down.weight
    moved = (trainer._spaces.regularisers["text"].generator.down.weight - started).abs().max()
    # Adam's first step is the rate, whatever the gradient.
    assert moved.item() == pytest.approx(rate, rel=0.01)


def everything(spaces):
    """Weights of the generators and numbers of their optimisers, as one list."""
    found = []
    for space, state in spaces.saved_state().items():
        found += [value.clone() for value in state["regulariser"].values()]
        for numbers in state["optimiser"].values():
            found += [torch.as_tensor(value).clone() for value in numbers.values()]
        assert space in ("image", "text", "cross")
    return found


def test_a_batch_with_nothing_to_align_leaves_the_generator_and_its_optimiser_alone():
    trainer = make_trainer(hosts.MaPLeLike)(hosts.make_cfg(SPACES=("image",), K=3))
    small = {name: value[:3] for name, value in hosts.make_batch().items()}
    assert trainer.forward_backward(small)["loss_proxy"] == 0.0
    started = proxyfda.ProxyGenerator(hosts.DIM, seed=SEED).down.weight
    assert torch.equal(trainer._spaces.regularisers["image"].generator.down.weight, started)
    trainer.forward_backward(hosts.make_batch())
    weight = trainer._spaces.regularisers["image"].generator.down.weight
    assert not torch.equal(weight, started)
    learned = [value for value in everything(trainer._spaces) if value.is_floating_point()]
    summary = trainer.forward_backward(small)
    assert summary["loss_fda"] == summary["loss_proxy"] == 0.0
    after = [value for value in everything(trainer._spaces) if value.is_floating_point()]
    assert len(learned) > 20 and all(map(torch.equal, learned, after))


def test_a_space_that_comes_into_use_later_trains_its_generator_too():
    trainer = make_trainer(hosts.MaPLeLike)(hosts.make_cfg(SPACES=("image", "text"), K=3))
    vis = trainer.model.prompt_learner["vis"].requires_grad_(False)
    trainer.forward_backward(hosts.make_batch())
    assert list(trainer._spaces.regularisers) == ["text"]
    vis.requires_grad_(True)
    trainer.forward_backward(hosts.make_batch())
    started = proxyfda.ProxyGenerator(hosts.DIM, seed=SEED).down.weight
    for space in ("text", "image"):
        generator = trainer._spaces.regularisers[space].generator
        assert not torch.equal(generator.down.weight, started), space


def test_generator_state_round_trip():
    batch = hosts.make_batch()
    cfg = hosts.make_cfg(GENERATOR_LR=0.05, K=3)
    first = make_trainer(hosts.CoOpLike)(cfg)
    fresh = first.forward_backward(batch)
    state = copy.deepcopy(first._spaces.saved_state())
    second = make_trainer(hosts.CoOpLike)(cfg)
    second._spaces.restore_state(state)
    assert set(second._spaces.saved_state()) == {"text", "cross"}  # also before the first step
    for _ in range(2):  # the second step depends on the optimiser's state
        want, got = first.forward_backward(batch), second.forward_backward(batch)
        assert got == want and got["loss_proxy"] != fresh["loss_proxy"]


@pytest.mark.parametrize("constants", ["derived", "learned"])
def test_constants_of_eq2_round_trip(constants):
    batches = [hosts.make_batch(seed) for seed in range(4)]
    cfg = hosts.make_cfg(CONSTANTS=constants, SPACES=("text", "cross"), K=3, GENERATOR_LR=0.05)
    first = make_trainer(hosts.CoOpLike, "fda")(cfg)
    for batch in batches[:2]:
        summary = first.forward_backward(batch)
    assert ("loss_constants" in summary) == (constants == "learned")
    state = copy.deepcopy(first._spaces.saved_state())
    second = make_trainer(hosts.CoOpLike, "fda")(cfg)
    second.model.load_state_dict(first.model.state_dict())
    second.optim.load_state_dict(copy.deepcopy(first.optim.state_dict()))
    second._spaces.restore_state(state)
    for batch in batches[2:]:
        assert second.forward_backward(batch) == first.forward_backward(batch)
    both = [t._spaces.regularisers[space] for t in (first, second) for space in ("text", "cross")]
    values = [tuple(map(float, regulariser.constants.values())) for regulariser in both]
    assert values[:2] == values[2:] and values[0] != values[1]  # each space has its own
    if constants == "learned":
        boundaries = [regulariser.constants.boundary.item() for regulariser in both[:2]]
        assert all(0.05 < abs(boundary - 1.0) <= 0.21 for boundary in boundaries)  # 4 steps of Adam


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
    with pytest.raises(AttributeError, match="no module 'image_encoder'.*set regularised_modules"):
        trainer_class(hosts.make_cfg())
    trainer_class.regularised_modules = {"image_encoder": "visual", "text_encoder": "text_encoder"}
    summary = trainer_class(hosts.make_cfg()).forward_backward(hosts.make_batch())
    assert summary["loss_fda"] > 0


def test_several_devices_are_refused():
    class Spread(hosts.CoOpLike):
        def build_model(self):
            super().build_model()
            self.model = torch.nn.DataParallel(self.model)
            self.model.device_ids = [0, 1]

    with pytest.raises(RuntimeError, match="spread over 2; make one visible"):
        make_trainer(Spread)(hosts.make_cfg())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"SPACES": ("imag",)}, "SPACES.*did you mean 'image'"),
        ({"REGULARISER": "pointwize"}, "REGULARISER is 'pointwize'.*did you mean 'pointwise'"),
        (
            {"WEIGHT": -2.0},
            "WEIGHT is -2.0; use a finite λ of at least 0 .*, or -1 .the regulariser's own",
        ),
        ({"WEIGHT": float("nan")}, "WEIGHT is nan"),
        ({"K": 0}, "TRAINER.PROXYFDA.K is 0; a neighbourhood needs"),
        ({"TAU": 0.0}, "TRAINER.PROXYFDA.TAU is 0.0; use"),
        ({"UNITS": "cosin"}, "TRAINER.PROXYFDA.UNITS is 'cosin'; use one of cosine, frozen"),
        ({"M": 4, "N": 0}, "M is 4; with N 0"),
        ({"M": 0, "N": 0, "MINING": True}, "MINING is True; .* set M and N"),
        ({"REGULARISER": "proxy_fda", "PROXY_RATIO": 0.0}, "PROXYFDA.PROXY_RATIO is 0.0"),
        ({"REGULARISER": "proxy_fda", "GENERATOR_LR": 0.0}, "PROXYFDA.GENERATOR_LR is 0.0"),
        ({"REGULARISER": "pointwise", "SPACES": ("cross",)}, "use any of image, text, words"),
        ({"REGULARISER": "l2sp", "SPACES": ("text",)}, "l2sp acts on weights: leave SPACES empty"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_bad_options_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(hosts.CoOpLike, "")(hosts.make_cfg(**{"REGULARISER": "fda", **options}))


def test_options_of_a_regulariser_that_is_not_in_use_are_not_looked_at():
    make_trainer(hosts.CoOpLike, "")(hosts.make_cfg(REGULARISER="rkd", K=0, TAU=-1.0))


def test_an_infinite_term_stops_with_epoch_batch_and_name():
    trainer = make_trainer(hosts.CoOpLike, "fda")(hosts.make_cfg(K=3, SPACES=("cross",)))
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
