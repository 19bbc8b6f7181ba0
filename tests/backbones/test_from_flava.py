"""FLAVA: texts in the space of the images, and weights from folders, files and the hub."""

import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_backbones import flava_config
from transformers import BertTokenizer, FlavaForPreTraining, FlavaModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.flava.image_processing_flava import FLAVA_IMAGE_MEAN, FLAVA_IMAGE_STD

from proxyfda.backbones import from_flava, load_backbone

TEXTS = ["a photo of a cat.", "dogs", "A dog"]


@pytest.fixture
def folder(flava_folder, tmp_path):
    """A copy of the folder, to be changed."""
    return shutil.copytree(flava_folder, tmp_path / "flava")


@pytest.fixture(scope="module")
def library(flava_folder):
    return FlavaModel.from_pretrained(flava_folder).eval()


def test_texts_are_the_librarys_own(made, library, flava_folder):
    tokens = BertTokenizer.from_pretrained(flava_folder)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        out = library.get_text_features(**tokens)
    expected = getattr(out, "pooler_output", out)[:, 0]
    ours = made["FLAVA"].encode_texts(TEXTS)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    one_by_one = torch.cat([made["FLAVA"].encode_texts([text]) for text in TEXTS])
    torch.testing.assert_close(ours, one_by_one, rtol=0, atol=1e-5)
    torch.testing.assert_close(made["FLAVA"].encode_texts(iter(TEXTS), chunk=2), ours)
    torch.testing.assert_close(made["FLAVA"].logit_scale, library.logit_scale.detach())


def test_features_are_those_of_the_contrastive_loss(made, flava_folder):
    model = FlavaForPreTraining.from_pretrained(flava_folder).eval()
    tokens = BertTokenizer.from_pretrained(flava_folder)(TEXTS, padding=True, return_tensors="pt")
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        logits = model(
            **tokens, input_ids_masked=tokens["input_ids"], pixel_values=images,
            bool_masked_pos=torch.zeros(3, 16, dtype=torch.bool), return_loss=False,
        ).contrastive_logits_per_image  # fmt: skip
        backbone = made["FLAVA"]
        image = torch.nn.functional.normalize(backbone.encode(images), dim=1)
        text = torch.nn.functional.normalize(backbone.encode_texts(TEXTS), dim=1)
        ours = backbone.logit_scale.exp() * image @ text.T
    torch.testing.assert_close(ours, logits, rtol=1e-4, atol=1e-4)


def test_images_are_prepared_as_flavas_own(made):
    assert list(made["FLAVA"].image_mean) == list(FLAVA_IMAGE_MEAN) == list(OPENAI_CLIP_MEAN)
    assert list(made["FLAVA"].image_std) == list(FLAVA_IMAGE_STD) == list(OPENAI_CLIP_STD)
    assert made["FLAVA"].interpolation == "bicubic"


@pytest.mark.parametrize("form", ["safetensors", "torch", "of FlavaModel", "no config"])
def test_weights_from_a_file(form, folder, made, monkeypatch):
    file = folder / "model.safetensors"
    if form == "of FlavaModel":
        FlavaModel.from_pretrained(folder).save_pretrained(folder)
    if form == "torch":
        torch.save(load_file(file), folder / "flava.bin")
        file = folder / "flava.bin"
    if form == "no config":
        (folder / "config.json").unlink()
        monkeypatch.setattr(from_flava, "FlavaConfig", flava_config)
    torch.manual_seed(4)
    expected = torch.rand(2)
    torch.manual_seed(4)
    backbone = load_backbone("facebook/flava-full", str(file))
    assert torch.equal(torch.rand(2), expected), "loading moved what is drawn next"
    torch.testing.assert_close(backbone.state_dict(), made["FLAVA"].state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(backbone.encode_texts(TEXTS), made["FLAVA"].encode_texts(TEXTS))


def test_another_size_interpolates_positions_as_the_library_does(flava_folder, library):
    backbone = load_backbone("flava", str(flava_folder), image_size=48)
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        out = library.get_image_features(pixel_values=images, interpolate_pos_encoding=True)
    expected = getattr(out, "pooler_output", out)[:, 0]
    torch.testing.assert_close(backbone.encode(images), expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="flava cannot take images of 30 pixels; .* patches, 8"):
        load_backbone("flava", str(flava_folder), image_size=30)


def test_what_serves_pre_training_alone_is_left_out(made):
    names = [name for name, _ in made["FLAVA"].named_parameters()]
    assert not any("pooler" in name or "mask_token" in name or "mm" in name for name in names)


def test_texts_learn_when_thawed(made):
    backbone = copy.deepcopy(made["FLAVA"])
    assert not backbone.encode_texts(TEXTS).requires_grad
    backbone.text_tower.requires_grad_(True)
    backbone.encode_texts(TEXTS).sum().backward()
    assert all(weight.grad is not None for weight in backbone.text_tower.parameters())


def test_random_weights_are_the_same_each_time(monkeypatch, capsys):
    monkeypatch.setattr(from_flava, "FlavaConfig", flava_config)
    one, other = load_backbone("flava", "random"), load_backbone("flava", "random")
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)
    assert "Random weights for flava: nothing is pre-trained" in capsys.readouterr().out


def rewrite(folder, change):
    file = folder / "model.safetensors"
    state = load_file(file)
    change(state)
    save_file(state, file, {"format": "pt"})


MISSING = "flava.image_projection.weight"


@pytest.mark.parametrize("file", ["", "model.safetensors"], ids=["folder", "file"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop(MISSING), "fit flava.*image_projection.weight"),
        (lambda state: state.update({MISSING: torch.zeros(3, 3)}), "fit flava"),
    ],
    ids=["missing", "shape"],
)
def test_weights_that_do_not_fit(change, said, file, folder):
    rewrite(folder, change)
    with pytest.raises(ValueError, match=said):
        load_backbone("flava", str(folder / file))


@pytest.mark.parametrize("file", ["", "model.safetensors"], ids=["folder", "file"])
def test_weights_in_half_precision_are_trained_in_full(file, folder, made):
    rewrite(folder, lambda state: state.update({key: state[key].half() for key in state}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float16"}))
    backbone = load_backbone("flava", str(folder / file))
    assert {weight.dtype for weight in backbone.parameters()} == {torch.float32}
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(
        backbone.encode(images), made["FLAVA"].encode(images), rtol=1e-2, atol=1e-2
    )


def test_weights_that_are_not_used_may_be_missing(folder):
    rewrite(folder, lambda state: [state.pop(key) for key in list(state) if "multimodal" in key])
    load_backbone("flava", str(folder))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_without_a_file(name, folder):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"of flava has no {name}"):
        load_backbone("flava", str(folder))


@pytest.mark.parametrize(
    ("content", "said"),
    [(json.dumps({"model_type": "bert"}), "type 'bert' and not 'flava'"), ("{", "is damaged")],
)
def test_a_config_of_something_else(content, said, folder):
    (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match=said):
        load_backbone("flava", str(folder))


def test_damaged_weights(folder):
    (folder / "model.safetensors").write_bytes(b"garbage" * 99)
    for place in (folder, folder / "model.safetensors"):
        with pytest.raises(ValueError, match="damaged"):
            load_backbone("flava", str(place))


def test_texts_without_a_tokenizer_and_too_long_ones(folder, made):
    with pytest.raises(ValueError, match="has 16 tokens, FLAVA's text encoder takes 12"):
        made["FLAVA"].encode_texts(["dog", "cat " * 14])
    (folder / "vocab.txt").unlink()
    backbone = load_backbone("flava", str(folder))
    with pytest.raises(FileNotFoundError, match=f"vocab.txt in the folder {folder}.*put it into"):
        backbone.encode_texts(["a cat"])


def test_without_network_the_files_and_the_option_are_named(monkeypatch):
    monkeypatch.setattr(from_flava, "cached", lambda *a: None)
    monkeypatch.setattr(from_flava, "unreachable", lambda address: "no network")
    with pytest.raises(FileNotFoundError) as error:
        load_backbone("flava")
    for part in ("(no network)", "config.json", "vocab.txt of facebook/flava-full", "to that"):
        assert part in str(error.value)
    monkeypatch.setattr(from_flava, "FlavaConfig", flava_config)
    with pytest.raises(FileNotFoundError, match="vocab.txt in facebook/flava-full on the hub"):
        load_backbone("flava", "random").encode_texts(["a cat"])
