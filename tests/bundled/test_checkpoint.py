"""The bundled CLIPs: ordinary open_clip models, as good as their card says."""

import hashlib
import json
import random
import re
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file

import proxyfda.backbones.clip
from datasets.bundled import zeroshot
from datasets.bundled.build import RENDERED
from datasets.bundled.pretrain import WORLDS, encode_text, pretrain
from datasets.bundled.specs import TASKS
from datasets.bundled.zeroshot import linear_probe, zero_shot

HERE = Path(proxyfda.backbones.clip.__file__).parent / "bundled"
CARD = json.loads((HERE / "zeroshot.json").read_text())

each_world = pytest.mark.parametrize("world", WORLDS)


@pytest.fixture(scope="module")
def clips():
    return {world: proxyfda.backbones.clip.load_clip("ViT-Bundled", world) for world in WORLDS}


@each_world
def test_file_is_small_half_precision_and_fits_the_config(world):
    path = HERE / WORLDS[world].file
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


@each_world
def test_rows_of_tokens_are_those_of_the_vocabulary(world):
    rows = load_file(HERE / WORLDS[world].file)["token_embedding.rows"].tolist()
    encode = open_clip.tokenizer.SimpleTokenizer().encode
    used = {t for text in WORLDS[world].vocabulary() for t in encode(text)}
    assert rows == sorted(used | {49406, 49407})
    for spec in zeroshot.WORLDS[world]:
        for name, _ in spec.classes:
            assert set(encode(spec.template.format(name))) <= used


def test_each_world_has_weights_of_its_own(clips):
    one, other = (clips[world].visual.proj for world in WORLDS)
    assert one.shape == other.shape and not torch.equal(one, other)
    assert not any(p.requires_grad for clip in clips.values() for p in clip.parameters())


def test_cut_text_gives_the_features_of_the_full_context(clips):
    clip = clips["bundled"]
    tokens = clip.tokenizer(["a photo of a red striped star.", "otter"])
    cut = tokens[:, : int(tokens.argmax(1).max()) + 1]
    with torch.no_grad():
        full, short = clip.encode_text(tokens, normalize=True), encode_text(clip, cut)
    assert torch.allclose(full, short, atol=1e-5)


@pytest.mark.parametrize("folder", RENDERED)
def test_zero_shot_on_fresh_pictures_is_what_the_card_says(clips, folder):
    spec = RENDERED[folder]
    few = len(spec.classes) <= 24
    fresh = zero_shot(clips[folder.split("_")[0]], spec, "fresh", count=15 if few else 5)
    assert list(fresh) == list(spec.groups)
    for name, value in fresh.items():
        assert abs(value - CARD[folder]["test"][name]) < 13, (name, value)
        assert value > 1.5 * 100 / len(spec.groups[name]), "well above chance"
        assert value < 90, "well below ceiling"


def test_the_encoder_of_one_world_does_not_know_the_other(clips):
    other = zero_shot(clips["bundled"], RENDERED["atlas_creatures"], "fresh", count=2)
    right = zero_shot(clips["atlas"], RENDERED["atlas_creatures"], "fresh", count=2)
    assert all(other[half] < right[half] / 4 for half in right)


@pytest.mark.parametrize("spec", TASKS, ids=lambda s: s.name)
def test_a_probe_learns_a_task_as_the_card_says(clips, spec):
    card = CARD[spec.folder]
    assert abs(linear_probe(clips["bundled"], spec, ("val",))[0] - card["val"]["probe"]) < 2
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
    assert set(CARD) == set(RENDERED)


@each_world
def test_pretraining_repeats_from_its_seed(world):
    few = {"steps": 2, "batch": 8, "lr": 1e-3, "weight_decay": 0.1, "pool": 20}
    first, facts = pretrain(WORLDS[world], 3, **few)
    again, _ = pretrain(WORLDS[world], 3, **few)
    assert first.keys() == again.keys() and all(torch.equal(first[k], again[k]) for k in first)
    stored = load_file(HERE / WORLDS[world].file)
    assert {k: v.shape for k, v in first.items()} == {k: v.shape for k, v in stored.items()}
    assert facts["pairs"] == 16


# Of what the stored weights were trained on, which another stream of chance would not draw.
STREAMS = {"bundled": "0743b96f3c6b8259", "atlas": "e6c3054525aaffeb"}


@each_world
def test_scenes_and_captions_are_those_of_the_stored_weights(world):
    scenes, _ = WORLDS[world].draw(1200, 0)
    caption = WORLDS[world].captioner(random.Random(0))
    captions = [caption(scene, i % 3 == 0) for i, scene in enumerate(scenes)]
    digest = hashlib.sha256(json.dumps([scenes, captions]).encode()).hexdigest()[:16]
    assert digest == STREAMS[world]
