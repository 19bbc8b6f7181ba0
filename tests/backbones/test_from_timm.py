"""timm's models: convolutional ones, and weights from files and from the hub."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from tiny_backbones import DINOV2, MAE, TINY

from proxyfda.backbones import from_timm, load_backbone
from proxyfda.backbones.from_timm import TimmBackbone
from proxyfda.backbones.image import slice_positions

CONVOLUTIONAL = ["test_resnet", "test_convnext", "test_efficientnet"]


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_stages_of_convolutional_networks(name):
    backbone = load_backbone(f"timm:{name}", "random", image_size=64).eval()
    model = timm.create_model(name, num_classes=0).eval()
    model.load_state_dict(backbone.image_tower.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features, slices = backbone.with_layers(images)
        torch.testing.assert_close(features, model(images))
        torch.testing.assert_close(backbone(images), model(images))
        maps = model.forward_intermediates(images, intermediates_only=True)
    assert features.shape == (2, backbone.output_dim)
    assert len(slices) == len(maps) >= 4
    for ours, expected in zip(slices, maps):
        batch, channels, height, width = expected.shape
        assert ours.shape == (batch, height * width, channels)
        torch.testing.assert_close(ours[:, width + 1], expected[:, :, 1, 1])


def test_slices_of_other_transformers_are_their_blocks():
    backbone = load_backbone("timm:test_vit3", "random")
    blocks = backbone.image_tower.blocks
    outputs = {}
    for number, block in enumerate(blocks, 1):
        block.register_forward_hook(lambda m, a, out, n=number: outputs.update({n: out}))
    _, slices = backbone.eval().with_layers(torch.randn(1, 3, *[backbone.image_size] * 2))
    for position, ours in zip(slice_positions(len(blocks))[1:], slices[1:]):
        assert torch.equal(ours, outputs[position])


@pytest.mark.parametrize(
    ("shape", "expected"), [((2, 3, 3, 8), (2, 9, 8)), ((2, 8, 3, 3), (2, 9, 8)), ((2, 9, 8),) * 2]
)
def test_maps_of_blocks_become_tokens(shape, expected):
    model = type("Model", (), {"num_features": 8})
    assert from_timm.tokens_of_timm(torch.zeros(shape), model).shape == expected


def test_a_model_that_gives_no_layers_says_so(monkeypatch):
    backbone = load_backbone("timm:test_resnet", "random")
    monkeypatch.delattr(timm.models.ResNet, "forward_intermediates")
    with pytest.raises(AttributeError, match="test_resnet gives no outputs of its layers"):
        backbone.with_layers(torch.randn(1, 3, 64, 64))


@pytest.mark.parametrize("form", ["safetensors", "torch", "as MAE's own", "with a classifier"])
def test_weights_from_a_file(form, made, tmp_path):
    state = {k: v.clone() for k, v in made["MAE"].image_tower.state_dict().items()}
    if form == "with a classifier":
        state["head.weight"], state["head.bias"] = torch.zeros(5, 32), torch.zeros(5)
    file = tmp_path / f"mae.{'safetensors' if form == 'safetensors' else 'pth'}"
    if form == "safetensors":
        save_file(state, file)
    else:
        torch.save({"model": state} if form == "as MAE's own" else state, file)
    torch.manual_seed(4)
    expected = torch.rand(2)
    torch.manual_seed(4)
    backbone = TimmBackbone(MAE, str(file), 32, **TINY)
    assert torch.equal(torch.rand(2), expected), "loading moved what is drawn next"
    loaded = backbone.image_tower.state_dict()
    torch.testing.assert_close(loaded, made["MAE"].image_tower.state_dict(), rtol=0, atol=0)
    assert backbone.image_tower.pretrained_cfg["state_dict"] is None


def test_positions_are_resized_as_timm_does(tmp_path):
    large = TimmBackbone(DINOV2, "random", 56, **TINY)
    file = tmp_path / "dinov2.safetensors"
    save_file(large.image_tower.state_dict(), file)
    backbone = TimmBackbone(DINOV2, str(file), 28, **TINY)
    library = timm.create_model(
        DINOV2[len("timm:") :], pretrained=True, pretrained_cfg_overlay={"file": str(file)},
        img_size=28, num_classes=0, **TINY,
    )  # fmt: skip
    assert library.pos_embed.shape[1] < large.image_tower.pos_embed.shape[1]
    images = torch.randn(2, 3, 28, 28)
    torch.testing.assert_close(backbone.encode(images), library.eval()(images))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("norm.bias"), "does not fit .*missing: norm.bias; set MODEL"),
        (lambda state: state.update(extra=torch.zeros(1)), "does not fit .*unexpected: extra"),
        (
            lambda state: state.update({"norm.bias": torch.zeros(3)}),
            r"does not fit .*norm.bias is \(3,\) instead of \(32,\)",
        ),
        (lambda state: state.clear(), "holds no weights"),
    ],
    ids=["missing", "unexpected", "shape", "empty"],
)
def test_a_file_that_does_not_fit(change, said, made, tmp_path):
    state = dict(made["MAE"].image_tower.state_dict())
    change(state)
    torch.save(state, tmp_path / "mae.pth")
    with pytest.raises(ValueError, match=said):
        TimmBackbone(MAE, str(tmp_path / "mae.pth"), 32, **TINY)


def test_files_are_not_unpickled(tmp_path):
    torch.save({"weights": torch.nn.Linear(2, 2)}, tmp_path / "mae.pth")
    with pytest.raises(ValueError, match="is damaged or not a checkpoint of this model"):
        TimmBackbone(MAE, str(tmp_path / "mae.pth"), 32, **TINY)
    with pytest.raises(ValueError, match="is a folder; set MODEL.BACKBONE.WEIGHTS to the file"):
        TimmBackbone(MAE, str(tmp_path), 32, **TINY)


def test_the_hubs_file_in_the_cache_is_used(made, tmp_path, monkeypatch):
    save_file(made["MAE"].image_tower.state_dict(), tmp_path / "model.safetensors")
    asked = []

    def cached(repo, files):
        asked.append((repo, files))
        return tmp_path / "model.safetensors"

    monkeypatch.setattr(from_timm, "cached", cached)
    backbone = TimmBackbone(MAE, "", 32, **TINY)
    assert asked[0][0] == "timm/vit_base_patch16_224.mae" and backbone.weights == "hub"
    loaded = backbone.image_tower.state_dict()
    torch.testing.assert_close(loaded, made["MAE"].image_tower.state_dict(), rtol=0, atol=0)


def test_without_network_the_file_and_the_option_are_named(monkeypatch):
    monkeypatch.setattr(from_timm, "cached", lambda *a: None)
    monkeypatch.setattr(from_timm, "unreachable", lambda address: "no network")
    with pytest.raises(FileNotFoundError) as error:
        load_backbone(DINOV2)
    place = "timm/vit_base_patch14_dinov2.lvd142m/resolve/main/model.safetensors"
    for part in (f"weights of {DINOV2} could", "(no network)", place, "MODEL.BACKBONE.WEIGHTS"):
        assert part in str(error.value)
    with pytest.raises(FileNotFoundError, match="timm has none"):
        load_backbone("timm:vit_base_patch16_xp_224")


def test_a_model_built_for_one_size_refuses_another(monkeypatch):
    made_by = timm.create_model

    def without_sizes(name, **options):
        if "img_size" in options:
            raise TypeError("unexpected keyword argument 'img_size'")
        return made_by(name, **options)

    monkeypatch.setattr(timm, "create_model", without_sizes)
    assert load_backbone("timm:test_vit", "random", image_size=160).image_size == 160
    with pytest.raises(ValueError, match="takes images of 160 pixels, not of 64; set INPUT.SIZE"):
        load_backbone("timm:test_vit", "random", image_size=64)
