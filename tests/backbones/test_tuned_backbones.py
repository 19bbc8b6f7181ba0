"""What is tuned end to end: four libraries' models against their own features and layers."""

import copy

import open_clip
import pytest
import timm
import torch
from tiny_backbones import DINOV2, MAE, SIZE, TINY

from proxyfda import regularisers
from proxyfda.backbones import Backbone, load_backbone
from proxyfda.backbones.clip import load_clip
from proxyfda.backbones.image import slice_positions

EXACT = {"rtol": 0, "atol": 1e-5}


def clip_reference(backbone, images, tiny_file):
    visual = load_clip("ViT-B/32", str(tiny_file)).visual
    found = visual.forward_intermediates(images, output_fmt="NLC", output_extra_tokens=True)
    inner = zip(found["image_intermediates_prefix"], found["image_intermediates"])
    return visual(images), [visual._embeds(images), *(torch.cat(parts, 1) for parts in inner)]


def timm_reference(backbone, images, tiny_file):
    model = timm.create_model(
        backbone.name[len("timm:") :], num_classes=0, img_size=backbone.image_size, **TINY
    ).eval()
    model.load_state_dict(backbone.image_tower.state_dict())
    features = model.forward_head(model.forward_features(images), pre_logits=True)
    found = model.forward_intermediates(
        images, intermediates_only=True, return_prefix_tokens=True, output_fmt="NLC"
    )
    first = model.norm_pre(model._pos_embed(model.patch_embed(images)))
    return features, [first, *(torch.cat([prefix, rest], 1) for rest, prefix in found)]


@pytest.fixture
def reference(request, backbone, images, tiny_file):
    """Features and all layers by the library alone."""
    with torch.no_grad():
        if backbone.name == "flava":
            from transformers import FlavaModel

            model = FlavaModel.from_pretrained(backbone.weights).eval()
            out = model.get_image_features(pixel_values=images)  # a tensor before transformers 5
            features = getattr(out, "pooler_output", out)[:, 0]
            layers = model.image_model(images, output_hidden_states=True).hidden_states
            return features, list(layers)
        make = timm_reference if backbone.name.startswith("timm:") else clip_reference
        return make(backbone, images, tiny_file)


def test_features_are_the_librarys_own(backbone, images, reference):
    features, _ = reference
    assert isinstance(backbone, Backbone)
    assert features.shape == (len(images), backbone.output_dim) and features.std() > 1e-3
    torch.testing.assert_close(backbone(images), features, **EXACT)
    torch.testing.assert_close(backbone.encode(images), features, **EXACT)


def test_slices_are_the_librarys_own(backbone, images, reference):
    _, layers = reference
    passes = []
    backbone.image_tower.register_forward_hook(lambda *_: passes.append(1))
    features, slices = backbone.with_layers(images)
    wanted = [layers[i] for i in slice_positions(len(layers) - 1)]
    assert len(slices) == len(wanted) >= 4 and len(passes) <= 1
    for ours, expected in zip(slices, wanted):
        torch.testing.assert_close(ours, expected, **EXACT)
    assert torch.equal(features, backbone(images))
    assert not any(block._forward_hooks for block in backbone.blocks())


@pytest.mark.parametrize("name", regularisers.names())
def test_every_regulariser_reaches_the_tower(name, backbone, images):
    kind = regularisers.find(name)
    with torch.no_grad():
        anchors = backbone.with_layers(images)
    tower = list(backbone.image_tower.parameters())
    regulariser = (
        kind(backbone.image_tower)
        if kind.kind == "weights"
        else regularisers.create(
            name, backbone.output_dim, **({"k": 3} if "fda" in name or name == "match" else {})
        )
    )
    with torch.no_grad():
        for number, weight in enumerate(tower):
            noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(number))
            weight.add_(0.05 * noise)
    tuned = backbone.with_layers(images)
    layer = int(name == "ldifs")
    regulariser(tuned[layer], anchors[layer]).backward()
    assert all(weight.grad is not None for weight in tower) or name == "ldifs"
    assert sum(weight.grad is not None and bool(weight.grad.any()) for weight in tower) > 10
    assert backbone.text_tower is None or all(
        weight.grad is None for weight in backbone.text_tower.parameters()
    )


def test_the_image_tower_is_trained_and_the_texts_are_frozen(backbone):
    assert all(weight.requires_grad for weight in backbone.image_tower.parameters())
    assert backbone.training and backbone.image_tower.training
    assert backbone.has_texts == (not backbone.name.startswith("timm:"))
    if backbone.has_texts:
        assert not any(weight.requires_grad for weight in backbone.text_tower.parameters())
        assert not any(module.training for module in backbone.text_tower.modules())
        inside = {id(weight) for weight in backbone.image_tower.parameters()}
        assert not inside & {id(weight) for weight in backbone.text_tower.parameters()}
        assert backbone.logit_scale.shape == () and backbone.logit_scale > 2
        assert "logit_scale" in backbone.state_dict()
    else:
        assert backbone.logit_scale is None
        with pytest.raises(AttributeError, match="has no text encoder"):
            backbone.encode_texts(["a cat"])


@pytest.mark.parametrize("training", [True, False])
def test_encode_leaves_modes_and_gradients_alone(training, backbone, images):
    backbone.train(training)
    tower = backbone.image_tower
    inner = next(module for module in tower.modules() if module is not tower)
    inner.eval()
    backbone(images).sum().backward()
    modes = {name: module.training for name, module in backbone.named_modules()}
    grads = {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}
    seen = []
    handle = tower.register_forward_hook(lambda module, *_: seen.append(module.training))
    if backbone.name.startswith("timm:"):
        handle = tower.norm.register_forward_hook(lambda m, *_: seen.append(m.training))
    features = backbone.encode(images)
    handle.remove()
    assert not features.requires_grad and seen == [False]
    assert {name: module.training for name, module in backbone.named_modules()} == modes
    after = {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}
    assert after.keys() == grads.keys() and all(torch.equal(after[k], grads[k]) for k in grads)


def trained(backbone, images):
    """Outputs and gradients of a step on features and slices, and how much was kept for it."""
    backbone.zero_grad()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        features, slices = backbone.with_layers(images)
    (features.sum() + sum(layer.square().sum() for layer in slices)).backward()
    grads = [weight.grad.clone() for weight in backbone.image_tower.parameters()]
    return [features, *slices, *grads], len(kept)


def test_gradient_checkpointing_keeps_less_and_changes_no_number(backbone, images):
    expected, plain = trained(backbone, images)
    for on, fewer in ((True, True), (False, False)):
        backbone.set_grad_checkpointing(on)
        numbers, kept = trained(backbone, images)
        assert (kept < plain) is fewer
        for one, other in zip(numbers, expected):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_state_dict_of_the_tower_brings_a_tuned_one_back(backbone, images):
    state = copy.deepcopy(backbone.image_tower.state_dict())
    before = backbone.encode(images)
    with torch.no_grad():
        for weight in backbone.image_tower.parameters():
            weight.mul_(1.1)
    assert not torch.allclose(backbone.encode(images), before)
    backbone.image_tower.load_state_dict(state)
    assert torch.equal(backbone.encode(images), before)


def test_full_size_names_are_known_to_their_libraries():
    from transformers import FlavaConfig

    for name, size in ((DINOV2, 518), (MAE, 224)):
        config = timm.models.get_pretrained_cfg(name[len("timm:") :])
        assert config.hf_hub_id == f"timm/{name[len('timm:') :]}" and config.num_classes == 0
        assert config.input_size == (3, size, size)
    assert open_clip.get_pretrained_cfg("ViT-B-32", "openai")["quick_gelu"]
    assert open_clip.get_pretrained_cfg("ViT-B-32", "laion2b_s34b_b79k")
    flava = FlavaConfig()
    assert flava.image_config.image_size == 224 and flava.image_config.num_hidden_layers == 12
    assert flava.projection_dim == 768


@pytest.mark.parametrize("name", [DINOV2, MAE])
def test_images_are_prepared_as_timm_says(name, made):
    backbone = made["DINOv2" if name == DINOV2 else "MAE"]
    assert backbone.image_mean == (0.485, 0.456, 0.406)
    assert backbone.image_std == (0.229, 0.224, 0.225)
    assert backbone.interpolation == "bicubic"
    assert backbone.image_size == (SIZE if name == DINOV2 else 32)


@pytest.mark.parametrize(
    ("name", "weights", "size", "error", "said"),
    [
        ("vit_base_patch16_224.mae", "hub", None, ValueError, "mean 'timm:vit_base_patch16_224.ma"),
        ("VIT-B/23", "openai", None, ValueError, "unknown backbone.*did you mean 'ViT-B/32'"),
        ("flave", "hub", None, ValueError, "unknown backbone 'flave' .did you mean 'flava'"),
        ("timm:resnet81", "hub", None, ValueError, "no model 'resnet81' .did you mean 'timm:res"),
        ("timm:resnet18.a1_in1", "hub", None, ValueError, "no weights 'a1_in1' of resnet18 .did"),
        ("timm:resnet18", "openai", None, ValueError, "has no weights 'openai'; .* is hub, random"),
        ("timm:resnet18", "no/such.pt", None, FileNotFoundError, "file no/such.pt does not exist"),
        ("flava", "openai", None, ValueError, "flava has no weights 'openai'; .* is hub, random"),
        ("flava", "no/such", None, FileNotFoundError, "the weights no/such do not exist"),
        (
            "ViT-Bundled",
            "bundled",
            30,
            ValueError,
            "cannot take images of 30 pixels; .* patches, 8",
        ),
        ("timm:test_vit", "random", 30, ValueError, "cannot take images of 30 pixels; .* 16"),
        ("timm:test_vit", "random", 0, ValueError, "images of 0 pixels are asked for"),
        ("RN50", "random", 64, ValueError, "RN50 takes images of 224 pixels, not of 64"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_a_sentence(name, weights, size, error, said):
    with pytest.raises(error, match=said):
        load_backbone(name, weights, image_size=size)


@pytest.mark.parametrize("name", ["ViT-Bundled", "timm:test_vit"])
def test_random_weights_are_the_same_each_time_and_announced(name, capsys):
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    one = load_backbone(name, "random")
    assert torch.equal(torch.rand(2), expected)
    assert f"Random weights for {name}: nothing is pre-trained" in capsys.readouterr().out
    other = load_backbone(name, "random")
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)
    assert one.weights == "random"


@pytest.mark.parametrize(
    ("module", "name", "said"),
    [
        ("timm", "timm:test_vit", r"proxyfda\[timm\]"),
        ("transformers", "flava", r"proxyfda\[flava\]"),
    ],
)
def test_a_missing_library_is_said_with_what_to_install(module, name, said, monkeypatch):
    import sys

    for loaded in list(sys.modules):
        if loaded == module or loaded.startswith(f"proxyfda.backbones.from_{name[:4]}"):
            monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.delitem(sys.modules, "proxyfda.backbones.from_flava", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=said):
        load_backbone(name, "random")
