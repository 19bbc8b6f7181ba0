"""load_clip: what each kind of file gives, and what is said about those that give nothing."""

import json
import warnings

import open_clip
import pytest
import torch
from open_clip.transformer import LayerNormFp32, QuickGELU
from safetensors.torch import save_file
from torch import nn

from proxyfda.backbones.clip import (
    ImageEncoder,
    TextEncoder,
    architectures,
    load_clip,
    loading,
    resolve_precision,
)

TEST_CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 64, "patch_size": 16},
    "text_cfg": {"width": 64, "heads": 1, "layers": 3},
}


@pytest.fixture
def named(monkeypatch):
    """Makes the tiny architecture known to open_clip as ViT-Test, with changes to its config."""

    def add(text_cfg=(), **changes):
        config = {**TEST_CONFIG, **changes}
        config["text_cfg"] = {**config["text_cfg"], **dict(text_cfg)}
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-Test", config)

    return add


def without_meta(state):
    return {k: v for k, v in state.items() if k not in loading.OPENAI_META}


def activation(clip):
    return type(clip.visual.transformer.resblocks[0].mlp.gelu)


def torchscript_archive(state, path):
    """A TorchScript module whose state dict is ``state``, as OpenAI's downloads are."""
    root = nn.Module()
    for name, value in state.items():
        module, parts = root, name.split(".")
        for part in parts[:-1]:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module._modules[part]
        if value.is_floating_point():
            module.register_parameter(parts[-1], nn.Parameter(value.half(), requires_grad=False))
        else:
            module.register_buffer(parts[-1], value)
    root.forward = lambda x: x
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, OpenAI's files are not
        torch.jit.trace(root, torch.zeros(1), check_trace=False).save(str(path))


def same_features(clip, other):
    images = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)
    text = ["a photo of a cat.", "a dog"]
    for one, two in (
        (ImageEncoder(clip)(images), ImageEncoder(other)(images)),
        (TextEncoder(clip).encode(text), TextEncoder(other).encode(text)),
    ):
        torch.testing.assert_close(one, two)
    return True


@pytest.fixture(scope="module")
def tiny(tiny_file):
    return load_clip("ViT-B/16", str(tiny_file))


def test_openai_state_dict_brings_its_architecture(tiny, tiny_file, capsys):
    clip = load_clip("ViT-B/16", str(tiny_file))
    assert "ViT of width 64, 3 layers, patch 16, 32 pixels" in capsys.readouterr().out
    assert activation(clip) is QuickGELU
    assert not clip.training and not any(p.requires_grad for p in clip.parameters())
    assert clip.tokenizer(["a"]).shape == (1, 77)
    assert same_features(clip, tiny)


@pytest.mark.parametrize("wrap", ["plain", "state_dict entry", "module prefix"])
def test_openai_names_mean_quickgelu_without_meta_entries(wrap, tiny, tiny_state, tmp_path, capsys):
    state = without_meta(tiny_state)
    if wrap == "state_dict entry":
        state = {"epoch": 3, "state_dict": state}
    if wrap == "module prefix":
        state = {f"module.{k}": v for k, v in state.items()}
    torch.save(state, tmp_path / "clip.pt")
    clip = load_clip("ViT-B/16", str(tmp_path / "clip.pt"))
    assert activation(clip) is QuickGELU and same_features(clip, tiny)
    assert "Activation QuickGELU, by the name ViT-B/16" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["ViT-B/32", "ViT-B-32"])
def test_torchscript_archive(name, tiny, tiny_state, tmp_path):
    torchscript_archive(tiny_state, tmp_path / "ViT-B-32.pt")
    clip = load_clip(name, str(tmp_path / "ViT-B-32.pt"))
    assert activation(clip) is QuickGELU and same_features(clip, tiny)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("quick", [False, True], ids=["gelu", "quickgelu"])
def test_file_of_a_named_open_clip_model(suffix, quick, tiny, tiny_state, tmp_path, named):
    named(quick_gelu=quick)
    path, state = tmp_path / f"clip.{suffix}", without_meta(tiny_state)
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    clip = load_clip("ViT-Test", str(path))
    assert activation(clip) is (QuickGELU if quick else nn.GELU)
    torch.testing.assert_close(clip.state_dict(), tiny.state_dict())


def test_model_with_a_text_tower_of_its_own(tiny, tiny_file, tiny_state, tmp_path, named):
    named(custom_text=True, quick_gelu=True)
    torch.save(without_meta(tiny_state), tmp_path / "clip.pt")
    clip = load_clip("ViT-Test", str(tmp_path / "clip.pt"))
    assert isinstance(clip, open_clip.CustomTextCLIP) and same_features(clip, tiny)


def test_compact_token_embedding(tiny, tiny_state, tmp_path, named):
    named(quick_gelu=True)
    kept = torch.unique(tiny.tokenizer(["a photo of a cat.", "a dog"])).int()
    state = {k: v.half() for k, v in without_meta(tiny_state).items()}
    state["token_embedding.rows"] = kept
    state["token_embedding.weight"] = state["token_embedding.weight"][kept.long()].clone()
    save_file(state, tmp_path / "clip.safetensors")
    clip = load_clip("ViT-Test", str(tmp_path / "clip.safetensors"))
    assert same_features(clip, tiny)
    full, rows = clip.token_embedding.weight, tiny.token_embedding.weight[kept.long()]
    assert full.shape == (49408, 64)
    torch.testing.assert_close(full[kept.long()], rows)
    dropped = torch.ones(49408, dtype=torch.bool)
    dropped[kept.long()] = False
    torch.testing.assert_close(full[dropped], rows.mean(0).expand(int(dropped.sum()), -1))


def test_resnet_in_openai_layout_is_read_off_its_shapes(tmp_path):
    vision = {"image_size": 64, "layers": [1, 2, 1, 1], "width": 16, "patch_size": None}
    config = {**TEST_CONFIG, "vision_cfg": vision, "quick_gelu": True}
    made = open_clip.CLIP(**config).eval()
    torch.save(made.state_dict(), tmp_path / "rn.pt")
    clip = load_clip("RN50", str(tmp_path / "rn.pt"))
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(ImageEncoder(clip)(images), made.encode_image(images))
    with pytest.raises(ValueError, match="no tokens to prompt; use a ViT"):
        ImageEncoder(clip)(images, torch.zeros(2, 16))


def test_half_precision_keeps_norms_in_fp32_and_agrees(tiny, tiny_state):
    state = without_meta(tiny_state)
    clip = loading.build(architectures.openai_config(state, "file"), "fp16")
    clip.load_state_dict(state)
    clip.eval()
    norms = [m for m in clip.modules() if isinstance(m, nn.LayerNorm)]
    assert norms and all(isinstance(m, LayerNormFp32) for m in norms)
    assert {m.weight.dtype for m in norms} == {torch.float32}
    text, image = TextEncoder(clip), ImageEncoder(clip)
    assert text.dtype == image.dtype == torch.float16
    tokens = tiny.tokenizer(["a photo of a cat.", "a dog"])
    context = torch.zeros(2, 64, requires_grad=True)
    deep = torch.zeros(2, 64, requires_grad=True)
    features = text(text.embed(tokens), tokens, [deep])
    assert features.dtype == torch.float16
    expected = TextEncoder(tiny)(text.embed(tokens), tokens, [deep])
    torch.testing.assert_close(features.float(), expected, rtol=1e-2, atol=1e-2)
    out = image(torch.rand(2, 3, 32, 32), context, [deep])
    (out.sum() + features.sum()).backward()
    assert context.grad.dtype == deep.grad.dtype == torch.float32
    assert torch.isfinite(context.grad).all() and context.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("prec", "device", "expected"),
    [("fp32", "cpu", "fp32"), ("fp16", "cpu", "fp32"), ("amp", "cpu", "fp32"),
     ("fp16", "cuda:0", "fp16"), ("amp", "cuda", "amp"), ("bf16", "cpu", "bf16")],
)  # fmt: skip
def test_precision_follows_the_device(prec, device, expected, capsys):
    assert resolve_precision(prec, device) == expected
    said = capsys.readouterr().out
    assert (prec in said and said.count("\n") == 1) if prec != expected else said == ""


@pytest.mark.parametrize(("capability", "slow"), [((7, 5), True), ((8, 0), False)])
def test_bf16_is_said_to_be_slow_where_a_gpu_emulates_it(capability, slow, monkeypatch, capsys):
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_precision("bf16", "cuda") == "bf16"
    assert ("emulated" in capsys.readouterr().out) == slow


def test_unknown_precision():
    with pytest.raises(ValueError, match="unknown precision 'fp61'.*did you mean 'fp16'"):
        resolve_precision("fp61", "cpu")


@pytest.mark.parametrize(
    ("name", "weights", "error", "said"),
    [
        ("ViT-B/61", "openai", ValueError, "unknown backbone 'ViT-B/61' .did you mean 'ViT-B/16'"),
        ("ViT-B/16", "opnai", ValueError, "no weights 'opnai' .did you mean 'openai'"),
        ("ViT-B/16", "no/such.pt", FileNotFoundError, "weights file no/such.pt does not exist"),
        ("ViT-B/16", "bundled", ValueError, "'bundled' belongs to ViT-Bundled, not to ViT-B/16"),
        ("ViT-B/16", "atlas", ValueError, "'atlas' belongs to ViT-Bundled, not to ViT-B/16"),
        ("ViT-Bundled", "atlsa", ValueError, "has no weights 'atlsa' .did you mean 'atlas'"),
        ("ViT-B-16-SigLIP", "webli", ValueError, "SigLIP cannot be prompted: .*not causal"),
        ("coca_ViT-B-32", "openai", ValueError, "coca_ViT-B-32 cannot be prompted: CoCa"),
        ("roberta-ViT-B-32", "x", ValueError, "cannot be prompted: .*Hugging Face's roberta-base"),
    ],
)
def test_names_that_cannot_be_loaded(name, weights, error, said):
    with pytest.raises(error, match=said):
        load_clip(name, weights)


def test_bundled_model_takes_only_bundled_weights(monkeypatch, tmp_path):
    (tmp_path / "ViT-Bundled.json").write_text(json.dumps(TEST_CONFIG))
    monkeypatch.setattr(architectures, "BUNDLED_DIR", tmp_path)
    monkeypatch.setattr(loading, "BUNDLED_DIR", tmp_path)
    with pytest.raises(ValueError, match="set MODEL.BACKBONE.WEIGHTS to bundled or atlas"):
        load_clip("ViT-Bundled")
    for weights, file in (("bundled", "ViT-Bundled"), ("atlas", "ViT-Bundled-atlas")):
        with pytest.raises(FileNotFoundError, match=f"{file}.safetensors are missing"):
            load_clip("ViT-Bundled", weights)


@pytest.mark.parametrize("name", ["RN50", "RN101"])
def test_a_file_of_another_kind_than_its_name_is_refused(name, tiny_file):
    said = f"holds ViT of width 64.* and not {name} .ResNet of width 64.*set MODEL.BACKBONE.NAME"
    with pytest.raises(ValueError, match=said):
        load_clip(name, str(tiny_file))


@pytest.mark.parametrize(
    ("name", "held"), [("ViT-B/16", "ViT-B/32"), ("ViT-L/14", "RN50"), ("ViT-B/16", "ViT-Bundled")]
)
def test_a_file_of_another_known_model_is_called_by_that(name, held, tmp_path):
    config, found = architectures.model_config_of(name), architectures.model_config_of(held)
    with pytest.raises(ValueError, match=f"holds {held} .*set MODEL.BACKBONE.NAME to {held}"):
        architectures.refuse_another_architecture(name, config, found, tmp_path / "clip.pt")


def test_what_prompts_images_is_known_by_the_name():
    names = ("RN50", "ViT-B-16-SigLIP", "ViT-B/16", "ViT-Bundled", "nothing")
    found = [architectures.prompts_no_images(name) for name in names]
    assert found == [True, True, False, False, False]


def test_the_bundled_model_names_the_weights_that_it_has():
    said = "has no weights 'x'; set .*WEIGHTS to bundled, atlas or a file"
    with pytest.raises(ValueError, match=said):
        load_clip("ViT-Bundled", "x")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("content", [b"", b"\x80garbage" * 99], ids=["empty", "garbage"])
def test_damaged_file(suffix, content, tmp_path):
    path = tmp_path / f"clip.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged or not a CLIP checkpoint"):
        load_clip("ViT-B/16", str(path))


def test_truncated_file(tiny_file, tmp_path):
    path = tmp_path / "clip.pt"
    path.write_bytes(tiny_file.read_bytes()[:100_000])
    with pytest.raises(ValueError, match="is damaged"):
        load_clip("ViT-B/16", str(path))


def test_file_that_does_not_fit(tiny_state, tmp_path, named):
    named()
    state = without_meta(tiny_state)
    state["extra"] = state.pop("ln_final.bias")
    state["visual.proj"] = torch.zeros(64, 16)
    torch.save(state, tmp_path / "clip.pt")
    with pytest.raises(ValueError) as error:
        load_clip("ViT-Test", str(tmp_path / "clip.pt"))
    for part in ("missing: ln_final.bias", "unexpected: extra", "(64, 16) instead of (64, 32)"):
        assert part in str(error.value)


def test_file_without_weights(tmp_path):
    torch.save({"note": "nothing"}, tmp_path / "clip.pt")
    with pytest.raises(ValueError, match="holds no weights"):
        load_clip("ViT-B/16", str(tmp_path / "clip.pt"))


@pytest.mark.parametrize(
    ("name", "weights", "said"),
    [
        ("ViT-B/16", "openai", "to the path of the file."),
        ("ViT-B-16", "openai", "of the file and MODEL.BACKBONE.NAME to ViT-B-16-quickgelu."),
        ("ViT-B/16", "laion400m_e32", "of the file and MODEL.BACKBONE.NAME to ViT-B-16."),
    ],
)
def test_without_network_the_file_and_the_option_are_named(
    name, weights, said, monkeypatch, tmp_path
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a, **k: None)
    monkeypatch.setattr(loading, "unreachable", lambda address: "no network")
    with pytest.raises(FileNotFoundError) as error:
        load_clip(name, weights)
    repo = f"timm/vit_base_patch16_clip_224.{weights}/resolve/main/open_clip_model.safetensors"
    for part in (f"{weights!r} of {name} could", repo, ".pt", "set MODEL.BACKBONE.WEIGHTS", said):
        assert part in str(error.value)


def test_openais_download_in_the_cache_is_used(tiny, tiny_state, monkeypatch, tmp_path, named):
    named()
    cache = tmp_path / ".cache" / "clip"
    cache.mkdir(parents=True)
    torchscript_archive(tiny_state, cache / "ViT-Test.pt")
    monkeypatch.setenv("HOME", str(tmp_path))
    tag = {"url": "https://example.org/ViT-Test.pt", "quick_gelu": True}
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda arch, weights: tag)
    clip = load_clip("ViT-Test", "openai")
    assert activation(clip) is QuickGELU and same_features(clip, tiny)


@pytest.mark.parametrize(
    ("quick_tag", "expected"), [(True, QuickGELU), (False, nn.GELU)], ids=["quick", "not quick"]
)
def test_activation_follows_the_tag_not_the_name(
    quick_tag, expected, tiny_state, tmp_path, monkeypatch, named
):
    named(quick_gelu=not quick_tag)
    path = tmp_path / "clip.pt"
    torch.save(without_meta(tiny_state), path)
    tag = {"quick_gelu": True} if quick_tag else {"mean": (0.5, 0.5, 0.5)}
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda arch, weights: tag)
    monkeypatch.setattr(loading, "download", lambda *a: path)
    clip = load_clip("ViT-Test", "some_tag")
    assert activation(clip) is expected
    assert clip.visual.image_mean == tag.get("mean", open_clip.OPENAI_DATASET_MEAN)


def test_loading_leaves_the_random_stream_alone(tiny_file):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    load_clip("ViT-B/16", str(tiny_file))
    assert torch.equal(torch.rand(2), expected)
