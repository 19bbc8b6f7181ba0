"""The bundled CLIP: an ordinary open_clip model, as good as its card says."""

import json
import re
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file

import proxyfda.backbones.clip
from datasets.bundled.pretrain import encode_text, pretrain
from datasets.bundled.specs import ALL, TASKS
from datasets.bundled.world import vocabulary
from datasets.bundled.zeroshot import linear_probe, zero_shot

HERE = Path(proxyfda.backbones.clip.__file__).parent / "bundled"
CARD = json.loads((HERE / "zeroshot.json").read_text())


@pytest.fixture(scope="module")
def clip():
    return proxyfda.backbones.clip.load_clip("ViT-Bundled", "bundled")


def test_file_is_small_half_precision_and_fits_the_config():
    path = HERE / "ViT-Bundled.safetensors"
    assert path.stat().st_size < 4 * 2**20
    state = load_file(path)
    rows = state.pop("token_embedding.rows")
    assert rows.dtype == torch.int32 and len(rows) == len(state["token_embedding.weight"])
    assert {v.dtype for v in state.values()} == {torch.float16}
    assert all(v.isfinite().all() for v in state.values())
    model = open_clip.model.CLIP(**json.loads((HERE / "ViT-Bundled.json").read_text()))
    want = {k: v.shape for k, v in model.state_dict().items() if k != "token_embedding.weight"}
    del state["token_embedding.weight"]
    assert {k: v.shape for k, v in state.items()} == want


def test_every_word_of_every_class_has_its_row():
    rows = set(load_file(HERE / "ViT-Bundled.safetensors")["token_embedding.rows"].tolist())
    encode = open_clip.tokenizer.SimpleTokenizer().encode
    texts = [*vocabulary(), *(s.template.format(n) for s in ALL for n, _ in s.classes)]
    assert {t for text in texts for t in encode(text)} <= rows


def test_cut_text_gives_the_features_of_the_full_context(clip):
    tokens = clip.tokenizer(["a photo of a red striped star.", "otter"])
    cut = tokens[:, : int(tokens.argmax(1).max()) + 1]
    with torch.no_grad():
        full, short = clip.encode_text(tokens, normalize=True), encode_text(clip, cut)
    assert torch.allclose(full, short, atol=1e-5)


@pytest.mark.parametrize("spec", ALL, ids=lambda s: s.name)
def test_zero_shot_on_fresh_pictures_is_what_the_card_says(clip, spec):
    fresh = zero_shot(clip, spec, "fresh", count=15)
    assert list(fresh) == list(spec.groups)
    for name, value in fresh.items():
        assert abs(value - CARD[spec.folder]["test"][name]) < 13, (name, value)
        assert value > 2 * 100 / len(spec.groups[name]), "well above chance"
        assert value < 90, "well below ceiling"


@pytest.mark.parametrize("spec", TASKS, ids=lambda s: s.name)
def test_a_probe_learns_a_task_as_the_card_says(clip, spec):
    card = CARD[spec.folder]
    assert abs(linear_probe(clip, spec, ("val",))[0] - card["val"]["probe"]) < 2
    for split in ("val", "test"):
        assert 30 < card[split]["all"] < 90
        assert card[split]["all"] + 8 < card[split]["probe"] < 95, "something to learn"


def test_card_repeats_the_recorded_numbers():
    text = (HERE / "README.md").read_text()
    for name, entry in CARD.items():
        row = re.search(rf"^\| {name} \|(.+)\|$", text, re.M)
        assert row, f"no row for {name}"
        values = [float(v) for v in row[1].split("|")]
        want = [entry["classes"]]
        want += [value for split in ("val", "test") for value in entry[split].values()]
        assert values == want
    assert set(CARD) == {spec.folder for spec in ALL}


def test_pretraining_repeats_from_its_seed():
    first, facts = pretrain(3, steps=2, batch=8, lr=1e-3, weight_decay=0.1, pool=20)
    again, _ = pretrain(3, steps=2, batch=8, lr=1e-3, weight_decay=0.1, pool=20)
    assert first.keys() == again.keys() and all(torch.equal(first[k], again[k]) for k in first)
    stored = load_file(HERE / "ViT-Bundled.safetensors")
    assert {k: v.shape for k, v in first.items()} == {k: v.shape for k, v in stored.items()}
    assert facts["pairs"] == 16
