"""open_clip's models beyond plain CLIP, which need no prompts: towers of timm, SigLIP, CoCa."""

import copy

import open_clip
import pytest
import torch
from open_clip.timm_model import TimmModel
from safetensors.torch import save_file

from proxyfda.backbones import load_backbone
from proxyfda.backbones.clip import loading

TEXTS = ["a photo of a cat.", "a dog"]
VISION = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16}
TEXT = {"width": 64, "heads": 1, "layers": 2}
TIMM = {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear"}
SIGLIP = {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}
CONFIGS = {
    "SigLIP": {
        "vision_cfg": {**TIMM, "image_size": 160},
        "text_cfg": {**TEXT, **SIGLIP},
        "custom_text": True,
        "init_logit_bias": -10,
    },
    "CLIPA": {"vision_cfg": VISION, "text_cfg": {**TEXT, **SIGLIP}},
    "CoCa": {
        "vision_cfg": {**VISION, "attentional_pool": True, "output_tokens": True,
                       "attn_pooler_heads": 2, "attn_pooler_queries": 4},
        "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {"width": 64, "heads": 1, "layers": 1},
        "custom_text": True,
    },
    "timm's ResNet": {
        "vision_cfg": {"timm_model_name": "test_resnet", "timm_pool": "avg", "image_size": 64},
        "text_cfg": TEXT,
        "custom_text": True,
    },
}  # fmt: skip


@pytest.fixture(params=CONFIGS)
def pair(request, monkeypatch, tmp_path):
    """One of these as a backbone, and as the library alone makes it."""
    config = {"embed_dim": 32, **CONFIGS[request.param]}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Test", config)
    library = open_clip.create_model("Test")
    if hasattr(library, "text_decoder"):  # whose projection CoCa leaves as memory happens to be
        torch.nn.init.zeros_(library.text_decoder.text_projection)
    state = {key: value.contiguous() for key, value in library.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    return load_backbone("Test", str(tmp_path / "model.safetensors")), library.eval()


def test_features_and_texts_are_open_clips(pair):
    backbone, library = pair
    images = torch.randn(2, 3, backbone.image_size, backbone.image_size)
    with torch.no_grad():
        torch.testing.assert_close(
            backbone.encode(images), library.encode_image(images, normalize=False)
        )
        tokens = open_clip.get_tokenizer("Test")(TEXTS)
        torch.testing.assert_close(
            backbone.encode_texts(TEXTS), library.encode_text(tokens, normalize=False)
        )
    assert backbone.output_dim == 32 and backbone.has_texts
    assert not any(weight.requires_grad for weight in backbone.text_tower.parameters())
    names = {name for name, _ in backbone.text_tower.named_parameters()}
    assert not any("visual" in name or "decoder" in name for name in names)


def test_slices_come_from_either_kind_of_tower(pair):
    backbone, _ = pair
    size = backbone.image_size
    backbone.eval()  # a ResNet's batch statistics
    images = torch.randn(2, 3, size, size)
    features, slices = backbone.with_layers(images)
    torch.testing.assert_close(features, backbone(images))
    assert len(slices) > 2 and all(layer.dim() == 3 for layer in slices)
    slices[1].sum().backward()
    assert any(weight.grad is not None for weight in backbone.image_tower.parameters())


def test_texts_of_these_learn_when_thawed(pair):
    backbone, _ = pair
    assert not backbone.encode_texts(TEXTS).requires_grad
    backbone.text_tower.requires_grad_(True)
    backbone.encode_texts(TEXTS).square().sum().backward()
    grads = [weight.grad for weight in backbone.text_tower.parameters() if weight.dim() > 1]
    assert sum(grad is not None and bool(grad.any()) for grad in grads) > 5


def test_clips_texts_learn_when_thawed_down_to_the_embedding(made):
    backbone = copy.deepcopy(made["CLIP"])
    expected = backbone.encode_texts(TEXTS)
    assert not expected.requires_grad
    backbone.text_tower.requires_grad_(True)
    features = backbone.encode_texts(TEXTS)
    torch.testing.assert_close(features, expected)
    features.sum().backward()
    assert backbone.text_tower.token_embedding.weight.grad.abs().sum() > 0
    assert not backbone.text_tower.encode(TEXTS).requires_grad


def test_slices_of_a_tower_with_the_sequence_first(made):
    backbone = copy.deepcopy(made["CLIP"])
    images = torch.randn(2, 3, 32, 32)
    expected = backbone.with_layers(images)[1]
    transformer = backbone.image_tower.transformer
    transformer.batch_first = False
    for block in transformer.resblocks:
        block.attn.batch_first = False
    for ours, other in zip(backbone.with_layers(images)[1], expected):
        torch.testing.assert_close(ours, other)


def openai_resnet(path):
    vision = {"image_size": 64, "layers": [1, 2, 1, 1], "width": 16, "patch_size": None}
    model = open_clip.CLIP(32, vision, {"width": 64, "heads": 1, "layers": 1}, quick_gelu=True)
    torch.save(model.state_dict(), path)
    return model.eval()


def test_openais_resnets_give_their_stem_and_layers(tmp_path):
    library = openai_resnet(tmp_path / "rn.pt")
    backbone = load_backbone("RN50", str(tmp_path / "rn.pt")).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features, slices = backbone.with_layers(images)
        torch.testing.assert_close(features, library.encode_image(images))
        x, maps = images, []
        for stage in ("stem", "layer1", "layer2", "layer3", "layer4"):
            x = getattr(library.visual, stage)(x)
            maps.append(x.reshape(2, x.shape[1], -1).permute(0, 2, 1))
    for ours, expected in zip(slices, maps):
        torch.testing.assert_close(ours, expected)
    assert len(slices) == 5
    with pytest.raises(AttributeError, match="RN50 has no gradient checkpointing; set MODEL"):
        backbone.set_grad_checkpointing()
    backbone.set_grad_checkpointing(False)


def test_another_size_resizes_the_positions_as_open_clip_does(tiny_state, tmp_path, capsys):
    state = {k: v for k, v in tiny_state.items() if k not in loading.OPENAI_META}
    torch.save(state, tmp_path / "clip.pt")
    backbone = load_backbone("ViT-B/16", str(tmp_path / "clip.pt"), image_size=48)
    vision = {"image_size": 48, "layers": 3, "width": 64, "patch_size": 16}
    library = open_clip.CLIP(32, vision, {"width": 64, "heads": 1, "layers": 3}, quick_gelu=True)
    open_clip.model.resize_pos_embed(state, library)
    library.load_state_dict(state)
    images = torch.randn(2, 3, 48, 48)
    torch.testing.assert_close(backbone.encode(images), library.eval().encode_image(images))
    assert backbone.image_size == 48
    assert "ViT-B/16 takes images of 48 instead of 32 pixels" in capsys.readouterr().out


def test_a_tower_of_timm_takes_another_size_as_well(monkeypatch):
    config = {"embed_dim": 32, **CONFIGS["SigLIP"]}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Test", config)
    backbone = load_backbone("Test", "random", image_size=96)
    assert isinstance(backbone.image_tower, TimmModel) and backbone.image_size == 96
    assert backbone.encode(torch.randn(1, 3, 96, 96)).shape == (1, 32)


def test_how_images_are_prepared_follows_the_tag(tiny_state, tmp_path, monkeypatch):
    torch.save(tiny_state, tmp_path / "clip.pt")
    config = {"embed_dim": 32, "vision_cfg": {**VISION, "layers": 3},
              "text_cfg": {**TEXT, "layers": 3}}  # fmt: skip
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Test", config)
    tag = {"mean": (0.5, 0.5, 0.5), "std": (0.4, 0.4, 0.4), "interpolation": "bilinear"}
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda arch, weights: tag)
    monkeypatch.setattr(loading, "download", lambda *a: tmp_path / "clip.pt")
    backbone = load_backbone("Test", "some_tag")
    assert (backbone.image_mean, backbone.image_std) == (tag["mean"], tag["std"])
    assert backbone.interpolation == "bilinear"


def test_a_tokenizer_of_the_hub_is_missed_when_texts_come(monkeypatch):
    config = {"embed_dim": 32, **CONFIGS["SigLIP"]}
    config["text_cfg"] = {**config["text_cfg"], "hf_tokenizer_name": "some/tokenizer"}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Test", config)

    def offline(name):
        raise OSError("no network\nand more")

    monkeypatch.setattr(open_clip, "get_tokenizer", offline)
    backbone = load_backbone("Test", "random")
    assert backbone.has_texts
    with pytest.raises(FileNotFoundError, match="tokenizer some/tokenizer of Test .*no network"):
        backbone.encode_texts(TEXTS)


def test_a_text_tower_of_hugging_face_needs_its_config(monkeypatch):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a, **k: None)
    monkeypatch.setattr(loading, "unreachable", lambda address: "no network")
    with pytest.raises(FileNotFoundError, match="text tower roberta-base of Hugging Face cannot"):
        load_backbone("roberta-ViT-B-32", "random")


def test_the_bundled_one_needs_no_weights_named_and_takes_another_size():
    backbone = load_backbone("ViT-Bundled", image_size=64)  # its file is in half precision
    assert (backbone.weights, backbone.image_size) == ("bundled", 64)
    assert backbone.image_tower.positional_embedding.shape[0] == 65
