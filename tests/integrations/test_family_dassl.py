"""The plugin on hosts of the engine that differ from the ones it was first built with."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

import proxyfda
from proxyfda.anchors.host_weights import find_template
from proxyfda.utils.errors import BadType, BadValue, NotInstalled
from proxyfda.utils.templates import DEFAULT_TEMPLATE, TEMPLATES
from tests.integrations import dassl_hosts as hosts
from tests.integrations.dassl_hosts import first_batch, learnables

OLD = torch.__version__.startswith("1.")
ROOT = Path(__file__).resolve().parents[2]
proxyfda.register()


@pytest.mark.parametrize(
    "host",
    [
        "Listed",
        pytest.param("Keyworded", marks=pytest.mark.skipif(OLD, reason="hooks see no keywords")),
    ],
)
def test_images_are_found_in_lists_and_keywords(make, host):
    options = {"K": 3, "SPACES": ("image", "cross")}
    trainer, reference = make(f"FDA{host}", **options), make("FDACoupled", **options)
    got, want = (one.forward_backward(first_batch(one)) for one in (trainer, reference))
    assert {k: float(v) for k, v in got.items()} == {k: float(v) for k, v in want.items()}
    pairs = zip(learnables(trainer).values(), learnables(reference).values())
    assert all(torch.equal(a, b) for a, b in pairs)


def test_what_is_no_image_is_refused_with_what_to_give(make):
    trainer = make("FDACached", SPACES="image")
    with pytest.raises(BadType) as error:
        trainer.forward_backward(first_batch(trainer))
    for words in (
        "given a tensor [8, 3, 64] and no images [B, 3, H, W]",
        "SPACES text",
        "give froz",
    ):
        assert words in str(error.value)
    trainer = make("FDACached", SPACES="text")
    assert "loss_fda" in trainer.forward_backward(first_batch(trainer))


def test_a_callable_gets_images_in_training_and_in_mining(make):
    seen = []

    def images(trainer, batch):
        seen.append(tuple(batch.shape[1:]))
        return hosts.load_clip(8).visual(batch)

    given = proxyfda.make_trainer(hosts.Listed, "fda", frozen_image_features=images)
    trainer = make(given, SPACES="image", M=3, N=2, K=3, MINING=True)
    trainer.before_train()
    mined = len(seen)
    trainer.forward_backward(first_batch(trainer))
    assert mined > 0 and len(seen) == mined + 1 and set(seen) == {(3, 8, 8)}
    tokens = proxyfda.make_trainer(
        hosts.Cached,
        "fda",
        frozen_image_features=lambda trainer, tokens: images(trainer, tokens.view(-1, 3, 8, 8)),
    )
    trainer = make(tokens, SPACES="image")  # the same tokens, where nothing is mined
    assert "loss_fda" in trainer.forward_backward(first_batch(trainer))
    trainer = make(tokens, SPACES="image", M=3, N=2, K=3, MINING=True)
    trainer.before_train()
    with pytest.raises(BadType, match="MINING, but the image encoder is given none in training"):
        trainer.forward_backward(first_batch(trainer))


def test_classes_read_from_tokens_undo_any_order(make, monkeypatch):
    def tokenize(texts):
        """A full stop is a word of its own, as in CLIP, and so is each class name."""
        texts = [texts] if isinstance(texts, str) else texts
        rows = []
        for text in texts:
            words = text.replace(".", " .").split()
            word = [1 + sum(ord(c) * (3 + i) for i, c in enumerate(word)) % 37 for word in words]
            rows.append([38, *word, 39] + [0] * (hosts.LENGTH - 2 - len(word)))
        return torch.tensor(rows)

    monkeypatch.setattr(hosts.clip, "tokenize", tokenize)
    options = {"SPACES": ("text", "cross"), "K": 3, "WEIGHT": 2.5, "TEMPLATE": "a {}."}
    trainer = make("FDAPermuted", TEXT_CLASSES="tokens", **options)
    reference = make("FDAPlain", TEXT_CLASSES="label", **options)
    got, want = (one.forward_backward(first_batch(one)) for one in (trainer, reference))
    for name, value in want.items():
        assert float(got[name]) == pytest.approx(float(value), rel=1e-5)
    for name, parameter in learnables(reference).items():
        other = learnables(trainer)[name]
        torch.testing.assert_close(other.grad, parameter.grad, rtol=1e-4, atol=1e-6)


def test_tokens_without_a_tokeniser_are_refused(make, monkeypatch):
    monkeypatch.setattr("proxyfda.integrations.dassl.find_tokenize", lambda trainer: None)
    with pytest.raises(BadValue, match="TEXT_CLASSES is 'tokens', but the trainer's module has no"):
        make("FDAPermuted", TEXT_CLASSES="tokens")
    with pytest.raises(BadValue, match="TEXT_CLASSES is 'token'; .*did you mean 'tokens'"):
        make("FDAPermuted", TEXT_CLASSES="token")


@pytest.mark.parametrize(("host", "said"), [("OwnBatches", True), ("Coupled", False)])
def test_batches_without_effect_are_said_once(make, host, said, capsys):
    make(f"FDA{host}", M=3, N=2, K=3, output=host, epochs=2).train()
    note = (
        f"TRAINER.PROXYFDA.M 3, N 2 have no effect: FDA{host} takes its batches from elsewhere "
        "than self.train_loader_x; set M 0 and N 0, and the batches by its own options"
    )
    assert capsys.readouterr().out.count(note) == said


def test_datasets_of_the_family_have_their_prompt_without_a_table_of_the_host(monkeypatch):
    monkeypatch.setattr("proxyfda.anchors.host_weights._host_modules", lambda trainer: [])
    for name, template in (
        ("OxfordPets", "a photo of a {}, a type of pet."),
        ("DescribableTextures", "{} texture."),
        ("ImageNetSketch", "a photo of a {}."),
    ):
        assert find_template(hosts.Plain, object(), name) == template


def test_the_table_of_prompts_is_that_of_the_datasets():
    split = pytest.importorskip("datasets.split")
    found = {}
    for path in sorted((ROOT / "datasets").glob("*.py")):
        module = importlib.import_module(f"datasets.{path.stem}")
        for name, value in vars(module).items():
            own = isinstance(value, type) and issubclass(value, split.SplitDataset)
            if own and value.__module__ == module.__name__ and value.dataset_dir:
                found[name] = value.template
    assert set(TEMPLATES) < set(found)
    assert all(TEMPLATES.get(name, DEFAULT_TEMPLATE) == value for name, value in found.items())


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("dassl", r"cannot be imported \(.*dassl.*\); install Dassl.pytorch or put its folder on"),
        ("wilds", r"cannot be imported \(No module named 'wilds'\); install wilds, or import prox"),
    ],
)
def test_register_names_dassl_and_not_what_the_engine_in_its_place_lacks(
    missing, words, tmp_path, monkeypatch
):
    for name in ("dassl", "engine"):
        monkeypatch.delattr(proxyfda, name)
        monkeypatch.delitem(sys.modules, f"proxyfda.{name}")
    monkeypatch.setitem(sys.modules, "proxyfda.engine", None)  # as without numpy
    if missing == "dassl":
        monkeypatch.setitem(sys.modules, "dassl", None)
    else:
        for name in ("dassl", "dassl.engine"):
            monkeypatch.setitem(sys.modules, name, None)
            monkeypatch.delitem(sys.modules, name)
        (tmp_path / "dassl").mkdir()
        (tmp_path / "dassl" / "__init__.py").write_text("import wilds")
        monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(NotInstalled, match="proxyfda.register needs Dassl, which " + words):
        proxyfda.register()
