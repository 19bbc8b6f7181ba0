"""The plugin on hosts as they stand in other codebases: nothing added to them but registration."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch

import proxyfda
from proxyfda import regularisers
from proxyfda.anchors.host_weights import find_template
from proxyfda.dassl import TRAINER_REGISTRY, get_cfg_default
from tests.integrations import dassl_hosts as hosts
from tests.integrations.dassl_hosts import first_batch, learnables, pristine_anchors

OLD = not hasattr(torch.amp, "GradScaler")
HOSTS = [
    "Plain",
    pytest.param("Amp", marks=pytest.mark.skipif(OLD, reason="no autocast on the CPU")),
    "Conditional",
    "Coupled",
    "Consistent",
    "TwoBackward",
]
BOTH_SIDES = {"Coupled", "Consistent", "TwoBackward"}
proxyfda.register()


LOSSES = {
    "fda": partial(proxyfda.fda_loss, k=3),
    "proxy_fda": lambda *args, **more: proxyfda.proxy_fda_loss(
        *args, proxyfda.ProxyGenerator(hosts.DIM, seed=1), k=3, **more
    )[0],
    "rkd": proxyfda.rkd_loss,
    "match": partial(regularisers.match_loss, k=3),
    "kl": regularisers.kl_loss,
    "correlation": regularisers.correlation_loss,
    "pointwise": proxyfda.pointwise_loss,
    "ldifs": proxyfda.ldifs_loss,
}


def explicit_term(model, images, spaces, loss):
    """The term as a trainer of its own would add it to its loss."""
    features, texts = model.features(images)
    image_anchors, text_anchors = pristine_anchors(images)
    total = 0.0
    if "image" in spaces:
        total = total + loss(features, image_anchors)
    if "text" in spaces:
        total = total + torch.stack([loss(text, text_anchors) for text in texts]).mean()
    if "cross" in spaces:
        one = len(texts) == 1
        pairs = (
            [(features, image_anchors)] if one else zip(features.split(1), image_anchors.split(1))
        )
        losses = [
            loss(rows, anchors, columns=text, column_anchors=text_anchors)
            for (rows, anchors), text in zip(pairs, texts)
        ]
        total = total + torch.stack(losses).mean()
    return total


def assert_gradients_of_the_sum(make, host, trainer, spaces, loss, weight):
    """A step of ``trainer`` has the gradients of the host's own plus weight times the loss."""
    plain = make(getattr(hosts, host))
    batch = first_batch(plain)
    plain.optim.step = lambda: None
    plain.forward_backward(batch)
    names, own = zip(*learnables(plain).items())
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=host == "Amp"):
        term = explicit_term(plain.model, batch["img"], spaces, loss)
    extra = torch.autograd.grad(weight * term, own, allow_unused=True)
    batch = first_batch(trainer)
    trainer.optim.step = lambda: None
    summary = trainer.forward_backward(batch)
    (logged,) = (name for name in summary if name not in ("loss", "loss_proxy"))
    assert summary[logged] == pytest.approx(term.item(), rel=1e-3 if host == "Amp" else 1e-4)
    tolerance = {"rtol": 0.05, "atol": 5e-3} if host == "Amp" else {"rtol": 1e-3, "atol": 2e-6}
    for name, parameter, more in zip(names, own, extra):
        want = (0 if parameter.grad is None else parameter.grad) + (0 if more is None else more)
        got = learnables(trainer)[name].grad
        torch.testing.assert_close(got, want, msg=lambda m, n=name: f"{n}: {m}", **tolerance)
    moved = [more.abs().max().item() for more in extra if more is not None]
    assert max(moved) > 1e-4  # the term is felt


@pytest.mark.parametrize("units", ["cosine", "frozen"])
@pytest.mark.parametrize("host", HOSTS)
def test_gradients_equal_those_of_the_explicit_sum(make, host, units):
    spaces = ("image", "text", "cross") if host in BOTH_SIDES else ("text", "cross")
    given = {"CONSTANTS": "given", "UNITS": units}
    trainer = make(f"FDA{host}", WEIGHT=2.5, K=3, SPACES=spaces, **given)
    loss = partial(proxyfda.fda_loss, k=3, units=units)
    assert_gradients_of_the_sum(make, host, trainer, spaces, loss, 2.5)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("host", ["Plain", "Conditional", "Coupled"])
def test_the_host_under_its_own_name_takes_any_regulariser(make, host, name):
    relations = regularisers.find(name).kind == "relations"
    spaces = ("text", "cross") if relations else ("text",)
    if host == "Coupled":
        spaces = ("image", *spaces)
    given = {"CONSTANTS": "given"} if "fda" in name else {}
    trainer = make(host, REGULARISER=name, WEIGHT=2.5, K=3, SPACES=spaces, **given)
    assert type(trainer).__name__ == host and type(trainer) is not getattr(hosts, host)
    assert_gradients_of_the_sum(make, host, trainer, spaces, LOSSES[name], 2.5)


def test_l2sp_pulls_all_that_the_host_trains(make):
    trainer, plain = make("Coupled", REGULARISER="l2sp", WEIGHT=2.5), make(hosts.Coupled)
    moved = {}
    for one in (trainer, plain):
        for number, (name, parameter) in enumerate(learnables(one).items()):
            moved[name] = torch.full_like(parameter, 0.01 * (number + 1))
            parameter.data.add_(moved[name])
        one.optim.step = lambda: None
        summary = one.forward_backward(first_batch(one))
        if one is trainer:
            squares = sum(shift.square().sum().item() for shift in moved.values())
            assert summary["loss_l2sp"] == pytest.approx(squares, rel=1e-3)
    for name, parameter in learnables(plain).items():
        want = (0 if parameter.grad is None else parameter.grad) + 2.5 * 2 * moved[name]
        torch.testing.assert_close(learnables(trainer)[name].grad, want, rtol=1e-4, atol=1e-5)


def run_of(trainer, capsys):
    """Losses and results in the log of a whole run, and the weights after it."""
    capsys.readouterr()
    trainer.train()
    lines = [line for line in capsys.readouterr().out.splitlines() if "loss" in line or "*" in line]
    log = [line.split(" loss ")[-1].split(" eta ")[0] for line in lines]
    return log, trainer.model.state_dict()


@pytest.mark.parametrize("way", ["weight-0", "disabled", "own-name", "none"])
@pytest.mark.parametrize("host", HOSTS)
def test_without_a_term_the_hosts_run_is_reproduced_bit_for_bit(make, host, way, capsys):
    log, weights = run_of(make(getattr(hosts, host), output="plain"), capsys)
    trainer = {
        "weight-0": lambda: make(f"ProxyFDA{host}", WEIGHT=0),
        "disabled": lambda: make(f"FDA{host}", ENABLED=False, M=3, N=2),
        "own-name": lambda: make(host),
        "none": lambda: make(host, REGULARISER="none"),
    }[way]()
    same_log, same_weights = run_of(trainer, capsys)
    assert len(log) > 3 and log == same_log
    for name, value in weights.items():
        assert torch.equal(value, same_weights[name]), name


@pytest.mark.skipif(OLD, reason="its weights_only reads no numbers")
@pytest.mark.parametrize("host", HOSTS)
def test_checkpoints_go_both_ways(make, host, tmp_path):
    with_term = make(f"ProxyFDA{host}", WEIGHT=3, output="with")
    with_term.train()
    plain = make(getattr(hosts, host), output="plain")
    plain.train()
    reader = make(getattr(hosts, host), output="reader")
    reader.load_model(str(tmp_path / "with"), epoch=1)
    for name, value in learnables(with_term).items():
        assert torch.equal(learnables(reader)[name], value)
        assert not torch.equal(learnables(plain)[name], value)
    assert reader.test() == with_term.test()
    other = make(f"ProxyFDA{host}", output="other")
    other.load_model(str(tmp_path / "plain"), epoch=1)
    assert other.test() == plain.test()


@pytest.mark.parametrize("constants", ["derived", "learned"])
def test_a_resumed_run_has_the_constants_of_one_that_was_never_stopped(make, constants):
    options = {"WEIGHT": 3, "K": 3, "GENERATOR_LR": 0.05, "CONSTANTS": constants}
    whole = make("FDAPlain", output="whole", epochs=2, **options)
    whole.train()
    make("FDAPlain", "TRAIN.CHECKPOINT_FREQ", 1, output="parts", **options).train()
    again = make("FDAPlain", output="parts", epochs=2, **options)
    again.train()
    for name, value in learnables(whole).items():
        assert torch.equal(learnables(again)[name], value), name
    for space, regulariser in whole._spaces.regularisers.items():
        values = again._spaces.regularisers[space].constants.values()
        assert values == regulariser.constants.values(), space


@pytest.mark.parametrize("host", ["Plain", "Coupled"])
def test_a_resumed_run_ends_as_one_that_was_never_stopped(make, host, tmp_path, capsys):
    options = {"WEIGHT": 3, "K": 3, "GENERATOR_LR": 0.05}
    whole = make(f"ProxyFDA{host}", output="whole", epochs=2, **options)
    whole.train()
    make(f"ProxyFDA{host}", "TRAIN.CHECKPOINT_FREQ", 1, output="parts", **options).train()
    again = make(f"ProxyFDA{host}", output="parts", epochs=2, **options)
    capsys.readouterr()
    again.train()
    assert "No state of" not in capsys.readouterr().out
    for name, value in learnables(whole).items():
        assert torch.equal(learnables(again)[name], value), name
    want, got = (trainer._spaces.state_dict() for trainer in (whole, again))
    assert len(want) > 10 and want.keys() == got.keys()
    assert all(torch.equal(want[name], got[name]) for name in want)
    for space, state in again._spaces.saved_state().items():
        steps = {int(numbers["step"]) for numbers in state["optimiser"].values()}
        assert steps == {2 * whole.num_batches}, space
    shown = torch.load(tmp_path / "whole" / "regulariser" / "model.pth.tar-2", weights_only=True)
    assert shown["name"] == "proxy_fda"
    assert set(shown["state"]) == set(whole._spaces.regularisers)


def test_a_run_without_the_regularisers_file_starts_it_anew_and_says_so(make, capsys):
    make(hosts.Plain, output="run").train()
    again = make("ProxyFDAPlain", output="run", epochs=2)
    capsys.readouterr()
    again.train()
    assert "No state of proxy_fda at " in capsys.readouterr().out
    plain = make("FDAPlain", CONSTANTS="given", output="run", epochs=3)
    plain.train()  # without derived constants FDA has no state to miss
    assert "No state of" not in capsys.readouterr().out
    make("FDAPlain", output="run", epochs=4).train()
    assert "No state of fda at " in capsys.readouterr().out
    make("ProxyFDAPlain", output="run", epochs=5).train()
    capsys.readouterr()
    make("Plain", REGULARISER="l2sp", output="run", epochs=6).train()  # the file is another's
    assert "No state of l2sp at " in capsys.readouterr().out


def test_l2sp_resumes_with_its_starting_weights(make, capsys):
    first = make("Coupled", REGULARISER="l2sp", WEIGHT=0.01)
    starts = {name: value.clone() for name, value in first._weights_term.state_dict().items()}
    first.train()
    again = make("Coupled", REGULARISER="l2sp", WEIGHT=0.01, epochs=2)
    for parameter in learnables(again).values():  # as if the model were built on other numbers
        parameter.data.add_(1.0)
    again._weights_term = type(again._weights_term)(learnables(again).values())
    again.before_train()
    assert again.start_epoch == 1
    resumed = again._weights_term.state_dict()
    assert len(starts) == len(learnables(first)) > 2
    assert all(torch.equal(resumed[name], start) for name, start in starts.items())
    got = again.forward_backward(first_batch(again))["loss_l2sp"]
    squares = sum(
        (value.detach() - start).square().sum().item()
        for value, start in zip(learnables(first).values(), starts.values())
    )
    assert got == pytest.approx(squares, rel=1e-4) and squares > 0


@pytest.mark.parametrize("host", ["Plain", "Coupled", "Consistent"])
def test_frozen_features_are_those_of_the_clip_the_host_was_built_on(make, host):
    trainer = make(f"FDA{host}")
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    want_images, want_texts = pristine_anchors(images)
    clip = trainer._frozen_clip
    weights = {id(p) for p in trainer.model.parameters()}
    assert all(id(p) in weights for p in clip._image.transformer.parameters())
    torch.testing.assert_close(clip.image_features(images), want_images)
    torch.testing.assert_close(clip.text_features(), want_texts)


def test_tuned_weights_are_copied_before_training(make):
    class Unfrozen(hosts.Plain):
        def build_model(self):
            super().build_model()
            self.model.image_encoder.ln_post.requires_grad_(True)
            self.model.text_encoder.transformer.requires_grad_(True)

    TRAINER_REGISTRY.register(Unfrozen, force=True)
    proxyfda.register(Unfrozen)
    trainer = make("FDAUnfrozen")
    images = torch.randn(3, 3, 8, 8)
    want = pristine_anchors(images)
    with torch.no_grad():
        trainer.model.image_encoder.ln_post.weight.mul_(2)
        for parameter in trainer.model.text_encoder.transformer.parameters():
            parameter.add_(0.1)
    torch.testing.assert_close(trainer._frozen_clip.image_features(images), want[0])
    torch.testing.assert_close(trainer._frozen_clip.text_features(), want[1])


def test_what_was_found_is_printed(make, capsys):
    make("ProxyFDAPlain")
    assert 'for texts like "a photo of a abyssinian, a type of pet."' in capsys.readouterr().out
    make("ProxyFDAPlain", TEMPLATE="art of the {}.")
    assert 'for texts like "art of the abyssinian."' in capsys.readouterr().out


def test_a_host_with_other_names_takes_a_mapping(make):
    class Renamed(hosts.Coupled):
        def build_model(self):
            super().build_model()
            self.model.towers = torch.nn.ModuleDict({"vision": self.model.image_encoder})
            del self.model.image_encoder
            self.model.__dict__["image_encoder"] = self.model.towers["vision"]

    TRAINER_REGISTRY.register(Renamed, force=True)
    proxyfda.register(Renamed)
    with pytest.raises(AttributeError, match="no module 'image_encoder'.*give modules to proxyfda"):
        make("FDARenamed")
    mapped = proxyfda.make_trainer(Renamed, "fda", modules={"image_encoder": "towers.vision"})
    TRAINER_REGISTRY.register(mapped, force=True)
    trainer = make("FDARenamed")
    reference = make("FDACoupled")
    got, want = (t.forward_backward(first_batch(t)) for t in (trainer, reference))
    assert got == want
    with pytest.raises(ValueError, match="modules has the key 'visual'; use any of image_encoder"):
        proxyfda.make_trainer(Renamed, modules={"visual": "towers.vision"})


def test_one_device_behind_data_parallel(make, monkeypatch):
    reference = make("ProxyFDACoupled")
    want = reference.forward_backward(first_batch(reference))
    monkeypatch.setattr(hosts.Coupled, "wrap", staticmethod(torch.nn.DataParallel))
    trainer = make("ProxyFDACoupled")
    assert isinstance(trainer.model, torch.nn.DataParallel)
    assert trainer.forward_backward(first_batch(trainer)) == want


def test_anchors_from_callables(make):
    class Given(hosts.Coupled):
        pass

    calls = []

    def texts(trainer):
        calls.append(type(trainer).__name__)
        return pristine_anchors(torch.zeros(1, 3, 8, 8))[1]

    def images(trainer, batch):
        calls.append(tuple(batch.shape))
        return pristine_anchors(batch)[0]

    given = proxyfda.make_trainer(
        Given, "fda", frozen_text_features=texts, frozen_image_features=images
    )
    TRAINER_REGISTRY.register(given, force=True)
    options = {"SPACES": ("image", "cross")}
    trainer, reference = make("FDAGiven", **options), make("FDACoupled", **options)
    got, want = (t.forward_backward(first_batch(t)) for t in (trainer, reference))
    for name, value in want.items():
        assert float(got[name]) == pytest.approx(float(value), rel=1e-5)
    assert sorted(map(str, calls)) == ["(8, 3, 8, 8)", "FDAGiven"]


def strange_parameter(model):
    model.image_encoder.transformer.scale = torch.nn.Parameter(torch.ones(1), requires_grad=False)


def strange_encoder(model):
    model.image_encoder.transformer.resblocks[0].requires_grad_(True)
    del model.image_encoder.ln_post
    model.image_encoder.ln_post = None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (strange_parameter, "Visual has a frozen parameter transformer.scale that CLIP does not"),
        (strange_encoder, "the image_encoder lacks one of the parts conv1, class_embedding"),
    ],
    ids=["parameter", "parts"],
)
def test_what_cannot_be_rebuilt_is_refused_with_the_remedy(make, change, words):
    class Strange(hosts.Consistent):
        def build_model(self):
            super().build_model()
            change(self.model)

    TRAINER_REGISTRY.register(Strange, force=True)
    TRAINER_REGISTRY.register(proxyfda.make_trainer(Strange, "fda"), force=True)
    trainer = make("FDAStrange")
    with pytest.raises(ValueError, match=words + ".*give frozen_image_features to proxyfda"):
        trainer._frozen_clip.image_features(torch.zeros(2, 3, 8, 8))


def test_an_image_encoder_of_another_kind_serves_as_it_is_while_frozen(make):
    trainer = make("FDAPlain")
    frozen = trainer._frozen_clip
    frozen._image = None
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(frozen.image_features(images), pristine_anchors(images)[0])


def test_without_token_embedding_or_tokeniser_the_remedy_is_named(make, monkeypatch):
    monkeypatch.setattr("proxyfda.integrations.dassl.find_tokenize", lambda trainer: None)
    trainer = make("FDAPlain")
    with pytest.raises(ValueError, match="has no clip.tokenize; give frozen_text_features"):
        trainer.forward_backward(first_batch(trainer))
    frozen = type(trainer._frozen_clip)(
        trainer.model.image_encoder, trainer.model.text_encoder, [], hosts.clip.tokenize, ["a"]
    )
    with pytest.raises(ValueError, match="no token embedding was called.*frozen_text_features"):
        frozen.text_features()


def test_a_trainer_without_a_model_is_told_so(make):
    class ZeroShot(hosts.Host):
        def build_model(self):
            self.clip_model = hosts.load_clip(8)

    TRAINER_REGISTRY.register(ZeroShot, force=True)
    proxyfda.register(ZeroShot)
    with pytest.raises(AttributeError, match="ProxyFDAZeroShot has no model that is trained"):
        make("ProxyFDAZeroShot")


def test_dassls_own_trainers_are_left_alone_and_names_are_added_once():
    class Vanilla(hosts.Plain):
        pass

    class Mine(hosts.Plain):
        pass

    Vanilla.__module__ = "dassl.engine.dg.vanilla"
    for cls in (Vanilla, Mine):
        TRAINER_REGISTRY.register(cls, force=True)
    added = proxyfda.register()
    assert {"FDAMine", "ProxyFDAMine"} <= set(added) and "FDAVanilla" not in added
    assert proxyfda.register() == []
    assert proxyfda.register(Vanilla) == ["FDAVanilla", "ProxyFDAVanilla"]


def test_the_class_by_hand(make):
    class ByHand(proxyfda.RegularisedTrainer, hosts.Plain):
        trained_regulariser = "fda"

    TRAINER_REGISTRY.register(ByHand, force=True)
    by_hand, registered = make("ByHand"), make("FDAPlain")
    got, want = (t.forward_backward(first_batch(t)) for t in (by_hand, registered))
    assert got == want


def test_whole_numbers_and_lists_of_spaces_need_no_notation(tmp_path):
    cfg = get_cfg_default()
    proxyfda.extend_cfg(cfg)
    cfg.merge_from_list(["TRAINER.PROXYFDA.WEIGHT", "3", "TRAINER.PROXYFDA.SPACES", "text,cross"])
    assert cfg.TRAINER.PROXYFDA.WEIGHT == 3.0 and isinstance(cfg.TRAINER.PROXYFDA.WEIGHT, float)
    assert cfg.TRAINER.PROXYFDA.SPACES == ("text", "cross")
    path = tmp_path / "options.yaml"
    path.write_text("TRAINER: {PROXYFDA: {WEIGHT: 2, SPACES: image, K: 4}}")
    cfg.merge_from_file(str(path))
    assert cfg.TRAINER.PROXYFDA.WEIGHT == 2.0 and cfg.TRAINER.PROXYFDA.SPACES == ("image",)
    with pytest.raises(ValueError, match="OPTIM.LR"):  # the host's own options stay strict
        cfg.merge_from_list(["OPTIM.LR", "3"])
    with pytest.raises(ValueError, match="PROXYFDA.K"):
        cfg.merge_from_list(["TRAINER.PROXYFDA.K", "3.5"])


@pytest.mark.parametrize(
    ("table", "own", "found"),
    [
        ({"Pets": "a {} here."}, None, "a {} here."),
        ({"Pets": "X X X X {}."}, None, "a photo of a {}."),
        ({"Cars": "a {} here."}, None, "a photo of a {}."),
        ({"Pets": "a {} here."}, "my {}", "my {}"),
    ],
    ids=["table", "placeholders", "other-dataset", "of-the-dataset"],
)
def test_the_hand_written_prompt(monkeypatch, table, own, found):
    monkeypatch.setattr(hosts, "CUSTOM_TEMPLATES", table)
    # other test modules of this package may have tables as well
    monkeypatch.setattr("proxyfda.anchors.host_weights._host_modules", lambda trainer: [hosts])
    assert find_template(hosts.Plain, SimpleNamespace(template=own), "Pets") == found


def test_the_backward_pass_that_takes_the_term_can_be_chosen(make):
    def gradient_of_each_pass(trainer):
        found, ctx = [], trainer.model.prompt_learner.ctx
        batch = first_batch(trainer)
        with trainer._capture.step(lambda: 1.0):
            loss = trainer.model(batch["img"], batch["label"])
            for _ in range(2):
                ctx.grad = None
                loss.backward(retain_graph=True)
                found.append(ctx.grad.clone())
        return found

    second = proxyfda.make_trainer(hosts.Coupled, "fda", backward_pass=2)
    TRAINER_REGISTRY.register(second, force=True)
    plain_first, term_second = gradient_of_each_pass(make("FDACoupled"))
    TRAINER_REGISTRY.register(proxyfda.make_trainer(hosts.Coupled, "fda"), force=True)
    term_first, plain_second = gradient_of_each_pass(make("FDACoupled"))
    assert torch.equal(plain_first, plain_second) and torch.equal(term_first, term_second)
    assert not torch.equal(plain_first, term_first)


def test_where_the_engine_brings_values_over_a_step_reads_nothing(make):
    trainer = make("ProxyFDACoupled")
    summary = trainer.forward_backward(first_batch(trainer))
    assert all(isinstance(summary[name], torch.Tensor) for name in ("loss_fda", "loss_proxy"))
    sound = {name: float(value) for name, value in summary.items()}
    trainer.check_step(3, sound)
    with pytest.raises(FloatingPointError, match="loss_proxy is inf in epoch 1, batch 4"):
        trainer.check_step(3, {**sound, "loss_proxy": float("inf")})
