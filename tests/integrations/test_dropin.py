"""The plugin on hosts as they stand in other codebases: nothing added to them but registration."""

from types import SimpleNamespace

import pytest
import torch

import proxyfda
from proxyfda.anchors.host_weights import find_template
from proxyfda.dassl import TRAINER_REGISTRY, build_trainer, get_cfg_default, set_random_seed
from tests.integrations import dassl_hosts as hosts

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


@pytest.fixture
def make(tmp_path):
    """``make("ProxyFDAPlain", "TRAINER.PROXYFDA.K", 3, output="run")`` builds a trainer."""

    def build(name, *options, output="run", epochs=1):
        cfg = get_cfg_default()
        proxyfda.extend_cfg(cfg)
        (tmp_path / "data").mkdir(exist_ok=True)
        cfg.merge_from_list(
            ["TRAINER.NAME", name, "DATASET.NAME", "Pets", "DATASET.ROOT", str(tmp_path / "data"),
             "DATASET.NUM_SHOTS", 4, "OUTPUT_DIR", str(tmp_path / output), "USE_CUDA", False,
             "SEED", 1, "INPUT.SIZE", (8, 8), "INPUT.TRANSFORMS", ("random_flip", "normalize"),
             "DATALOADER.NUM_WORKERS", 0, "DATALOADER.TRAIN_X.BATCH_SIZE", 8, "TRAIN.PRINT_FREQ", 1,
             "OPTIM.NAME", "sgd", "OPTIM.LR", 0.05, "OPTIM.MAX_EPOCH", epochs, *options]
        )  # fmt: skip
        cfg.freeze()
        set_random_seed(cfg.SEED)
        return build_trainer(cfg)

    return build


def first_batch(trainer):
    torch.manual_seed(0)
    batch = next(iter(trainer.train_loader_x))
    trainer.batch_idx, trainer.num_batches, trainer.epoch = 0, 10, 0
    trainer.set_model_mode("train")
    return batch


def learnables(trainer):
    return {n: p for n, p in trainer._models["prompts"].named_parameters() if p.requires_grad}


def pristine_anchors(images):
    """Features of the CLIP that the hosts were built on, by its own forward pass."""
    clip = hosts.load_clip(8)
    names = [name.replace("_", " ") for name in hosts.CLASSNAMES]
    tokens = hosts.clip.tokenize([f"a photo of a {name}, a type of pet." for name in names])
    with torch.no_grad():
        return clip.visual(images), clip.encode_text(tokens)


def explicit_term(model, images, spaces, **options):
    """Proxy-free term, as a trainer of its own would add it to its loss."""
    features, texts = model.features(images)
    image_anchors, text_anchors = pristine_anchors(images)
    total = 0.0
    if "image" in spaces:
        total = total + proxyfda.fda_loss(features, image_anchors, **options)
    if "text" in spaces:
        losses = [proxyfda.fda_loss(text, text_anchors, **options) for text in texts]
        total = total + torch.stack(losses).mean()
    if "cross" in spaces:
        one = len(texts) == 1
        pairs = (
            [(features, image_anchors)] if one else zip(features.split(1), image_anchors.split(1))
        )
        losses = [
            proxyfda.fda_loss(rows, anchors, columns=text, column_anchors=text_anchors, **options)
            for (rows, anchors), text in zip(pairs, texts)
        ]
        total = total + torch.stack(losses).mean()
    return total


@pytest.mark.parametrize("form", ["paper", "match"])
@pytest.mark.parametrize("host", HOSTS)
def test_gradients_equal_those_of_the_explicit_sum(make, host, form):
    spaces = ("image", "text", "cross") if host in BOTH_SIDES else ("text", "cross")
    plain = make(host)
    batch = first_batch(plain)
    plain.optim.step = lambda: None
    plain.forward_backward(batch)
    names, own = zip(*learnables(plain).items())
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=host == "Amp"):
        term = explicit_term(plain.model, batch["img"], spaces, k=3, form=form)
    extra = torch.autograd.grad(2.5 * term, own, allow_unused=True)

    tuned = make(f"FDA{host}", "TRAINER.PROXYFDA.WEIGHT", 2.5, "TRAINER.PROXYFDA.K", 3,
                 "TRAINER.PROXYFDA.FORM", form, "TRAINER.PROXYFDA.SPACES", spaces)  # fmt: skip
    batch = first_batch(tuned)
    tuned.optim.step = lambda: None
    summary = tuned.forward_backward(batch)
    assert summary["loss_fda"] == pytest.approx(term.item(), rel=1e-3 if host == "Amp" else 1e-5)
    tolerance = {"rtol": 0.05, "atol": 5e-3} if host == "Amp" else {"rtol": 1e-4, "atol": 1e-6}
    for name, parameter, more in zip(names, own, extra):
        want = (0 if parameter.grad is None else parameter.grad) + (0 if more is None else more)
        got = learnables(tuned)[name].grad
        torch.testing.assert_close(got, want, msg=lambda m, n=name: f"{n}: {m}", **tolerance)


@pytest.mark.parametrize("host", HOSTS)
def test_weight_0_reproduces_the_hosts_run_bit_for_bit(make, host, capsys):
    logs, states = [], []
    for name, options in ((host, []), (f"ProxyFDA{host}", ["TRAINER.PROXYFDA.WEIGHT", 0])):
        trainer = make(name, *options, output=name)
        capsys.readouterr()
        trainer.train()
        lines = [
            line for line in capsys.readouterr().out.splitlines() if "loss" in line or "*" in line
        ]
        logs.append([line.split(" loss ")[-1].split(" eta ")[0] for line in lines])
        states.append(trainer.model.state_dict())
    assert len(logs[0]) > 3 and logs[0] == logs[1]
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


@pytest.mark.skipif(OLD, reason="its weights_only reads no numbers")
@pytest.mark.parametrize("host", HOSTS)
def test_checkpoints_go_both_ways(make, host, tmp_path):
    with_term = make(f"ProxyFDA{host}", "TRAINER.PROXYFDA.WEIGHT", 3, output="with")
    with_term.train()
    plain = make(host, output="plain")
    plain.train()
    reader = make(host, output="reader")
    reader.load_model(str(tmp_path / "with"), epoch=1)
    for name, value in learnables(with_term).items():
        assert torch.equal(learnables(reader)[name], value)
        assert not torch.equal(learnables(plain)[name], value)
    assert reader.test() == with_term.test()
    other = make(f"ProxyFDA{host}", output="other")
    other.load_model(str(tmp_path / "plain"), epoch=1)
    assert other.test() == plain.test()


@pytest.mark.parametrize("host", ["Plain", "Coupled"])
def test_a_resumed_generator_goes_on_where_it_was(make, host, tmp_path):
    first = make(f"ProxyFDA{host}")
    first.forward_backward(first_batch(first))
    first.save_model(0, str(tmp_path / "run"))
    path = tmp_path / "run" / "regulariser" / "model.pth.tar-1"
    again = make(f"ProxyFDA{host}")
    for name, parameter in learnables(first).items():
        learnables(again)[name].data.copy_(parameter)
    again._fda.load_state_dict(torch.load(path, weights_only=True))
    assert again.forward_backward(first_batch(again)) == first.forward_backward(first_batch(first))
    again._fda.load_state_dict(torch.load(path, weights_only=True))
    for optimiser in again._fda._optimisers.values():
        assert {int(state["step"]) for state in optimiser.state_dict()["state"].values()} == {1}


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
    make("ProxyFDAPlain", "TRAINER.PROXYFDA.TEMPLATE", "art of the {}.")
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
    options = ["TRAINER.PROXYFDA.SPACES", ("image", "cross")]
    trainer, reference = make("FDAGiven", *options), make("FDACoupled", *options)
    got, want = (t.forward_backward(first_batch(t)) for t in (trainer, reference))
    assert got == pytest.approx(want, rel=1e-5)
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
        (strange_encoder, "the image_encoder has not the parts conv1, class_embedding"),
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
    with pytest.raises(AttributeError, match="ProxyFDAZeroShot has no self.model that is trained"):
        make("ProxyFDAZeroShot")


@pytest.mark.parametrize("mining", [False, True], ids=["random", "mined"])
def test_balanced_batches_come_through_the_hosts_data_manager(make, mining):
    host = make("Plain")
    trainer = make("ProxyFDAPlain", "TRAINER.PROXYFDA.M", 3, "TRAINER.PROXYFDA.N", 2,
                   "TRAINER.PROXYFDA.MINING", mining)  # fmt: skip
    assert trainer.train_loader_x is trainer.dm.train_loader_x
    assert trainer.train_loader_x.dataset.transform == trainer.dm.train_loader_x.dataset.transform
    batches = [batch["label"] for batch in trainer.train_loader_x]
    for labels in batches:
        assert sorted(labels.bincount().tolist())[-3:] == [2, 2, 2]
        assert len(labels) == 6
    assert len(torch.cat(batches)) == len(host.dm.dataset.train_x) == 24
    trainer.train()


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


def test_the_mixin_by_hand(make):
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
