"""What a term does to the image encoder in the Trainer."""

from contextlib import ExitStack

import pytest
import torch

pytest.importorskip("transformers")

from datasets.bundled.git_model import FOLDER
from datasets.image_text import Example
from proxyfda.utils.errors import BadValue
from trainers.image_to_text import tuning
from trainers.image_to_text.data import Part, Rendered
from trainers.image_to_text.models import ImageToText
from trainers.image_to_text.tuning import MODEL, tune

SETTINGS = {"epochs": 1, "batch_size": 32, "lr": 1e-3, "seed": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def part():
    return Rendered("vqa", count=1).part("banners", "train")


@pytest.fixture(scope="module")
def before():
    return ImageToText.load(FOLDER)


def moved(folder, part, before, **settings):
    """How far features and weights of the image encoder have gone."""
    model = ImageToText.load(FOLDER)
    tune(model, part, str(folder), **SETTINGS, **settings)
    images = part.images[:16]
    features = (model.features(images) - before.features(images)).square().sum().item()
    pairs = zip(model.vision.parameters(), before.vision.parameters())
    return features, sum((a - b).square().sum().item() for a, b in pairs)


def test_terms_hold_back_what_they_are_on(tmp_path, part, before):
    plain = moved(tmp_path / "plain", part, before)
    pulled = moved(tmp_path / "pulled", part, before, regulariser="pointwise", weight=100.0)
    light = moved(tmp_path / "light", part, before, regulariser="l2sp", weight=1e-3)
    heavy = moved(tmp_path / "heavy", part, before, regulariser="l2sp", weight=100.0)
    layers = moved(tmp_path / "layers", part, before, regulariser="ldifs", weight=1e4)
    assert pulled[0] < 0.3 * plain[0]  # features
    assert layers[0] < 0.3 * plain[0]
    assert heavy[1] < light[1]  # weights
    assert light[1] == pytest.approx(plain[1], rel=0.2)


def test_the_same_seed_tunes_the_same_model_and_writes_it(tmp_path, part, before):
    first = moved(tmp_path / "a", part, before, regulariser="proxy_fda")
    again = moved(tmp_path / "b", part, before, regulariser="proxy_fda", loader_workers=1)
    assert first == again
    written = ImageToText.load(tmp_path / "a" / MODEL)
    images = part.images[:16]
    drift = (written.features(images) - before.features(images)).square().sum().item()
    assert drift == pytest.approx(first[0], rel=1e-5)


def test_a_broken_image_is_one_sentence_from_a_worker_as_well(tmp_path):
    (tmp_path / "half.png").write_bytes(b"half")
    part = Part([Example(str(tmp_path / "half.png"), ("a red fruit",))])
    with pytest.raises(BadValue, match="^the image .*half.png cannot be read [^\n]*$"):
        tune(ImageToText.load(FOLDER), part, str(tmp_path), **SETTINGS, loader_workers=1)


def test_every_caption_is_an_example_with_its_own_picture():
    source = Rendered("captioning", count=1)
    part = source.part("scenes", "test")
    each = part.to_train_on()
    assert len(each.examples) == 5 * len(part.examples)
    assert each.picture.tolist() == [i for i in range(len(part.examples)) for _ in range(5)]
    assert torch.equal(each.pixels([7])[0], part.images[1])
    assert each.examples[7].texts == (part.examples[1].texts[2],)


@pytest.mark.parametrize("name", ["fda", "proxy_fda"])
def test_eq2_is_literal_as_it_was_measured(name, monkeypatch):
    made = []
    monkeypatch.setattr(tuning, "attach_to_trainer", lambda *args, **more: made.append(args[2]))
    with ExitStack() as during:
        tuning._regularise(None, ImageToText.load(FOLDER, "cpu"), name, 1.0, during)
    options = made[0].options
    assert (options.constants, options.tau, options.bias) == ("given", 0.1, 10.0)
