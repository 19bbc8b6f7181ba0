"""train.py --probe on two bundled datasets with few images, of a tiny random CLIP."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

import train
from datasets.bundled.build import render_dataset
from datasets.bundled.specs import SPECS
from proxyfda.backbones import ImageBackbone, load_backbone
from proxyfda.engine.checkpoint import save_checkpoint
from proxyfda.experiments import features, probing, record
from proxyfda.experiments.config import load_config
from proxyfda.experiments.tuned import interpolated, load_tuned

NAMES = ("bundled_fruits", "bundled_banners")


@pytest.fixture(autouse=True)
def forget_images(monkeypatch):
    monkeypatch.setattr(features, "_kept", {})


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Data root with two datasets, few images of each class."""
    folder = tmp_path_factory.mktemp("bundled")
    for spec in SPECS:
        if spec.folder in NAMES:
            render_dataset(spec, folder, {"train": 3, "val": 1, "test": 1})
    return folder


def dataset_file(name):
    return str(train.__file__).replace("train.py", f"configs/datasets/{name}.yaml")


FEW = ["PROBE.STRENGTHS", "(0.01, 0.001)"]  # takes less time
PROBED = ",".join(map(dataset_file, NAMES))


@pytest.fixture
def probe(root, config, monkeypatch):
    """Call train.main with --probe as the command line does; gives its result."""

    def call(output, *words, files=PROBED, with_config=True):
        monkeypatch.setattr(sys, "stdout", sys.stdout)  # the run's logger replaces it
        argv = ["--root", str(root), "--output-dir", str(output), "--probe", files]
        argv += ["--config-file", str(config)] if with_config else []
        flags = [str(word) for word in words]
        keys = [] if any(str(word).startswith("PROBE.S") for word in words) else FEW
        return train.main(train.parser().parse_args([*argv, *flags, *keys]))

    return call


@pytest.fixture
def tuned(tmp_path, config, tiny_file):
    """Folder of a FineTune run that has changed every weight of the image tower a little."""
    folder = tmp_path / "tuned"
    argv = ["--trainer", "FineTune", "--config-file", str(config), "--output-dir", str(folder)]
    argv += ["--dataset-config-file", dataset_file("bundled_fruits")]
    from proxyfda.utils.nested import plain

    cfg = plain(load_config(train.parser().parse_args(argv)))
    folder.mkdir()
    said = {"task": "train", "source": "bundled_fruits", **cfg}
    (folder / "config.yaml").write_text(yaml.safe_dump(said))
    tower = load_backbone("ViT-B/16", str(tiny_file)).image_tower
    generator = torch.Generator().manual_seed(0)
    state = {
        name: value + 0.1 * torch.randn(value.shape, generator=generator)
        for name, value in tower.state_dict().items()
    }
    save_checkpoint({"state_dict": state, "epoch": 4}, str(folder / "image_encoder"))
    return folder


def weights(folder):
    path = folder / "image_encoder" / "model.pth.tar-4"
    return torch.load(path, weights_only=True)["state_dict"]


def probes_of(result, field="linear_probe"):
    return {name: found[field] for name, found in result["probes"].items()}


# -- weights --------------------------------------------------------------------------------------


def test_weights_in_between_are_the_naive_average(tuned, tiny_file):
    before = load_backbone("ViT-B/16", str(tiny_file)).image_tower.state_dict()
    after = weights(tuned)
    for alpha in (0.0, 0.5, 1.0):
        found = load_tuned(str(tuned), alpha).image_tower.state_dict()
        for name, value in found.items():
            expected = (1 - alpha) * before[name] + alpha * after[name]
            assert torch.equal(value, expected), name


def test_whole_numbers_are_those_of_the_nearer_one():
    sets = {"n": torch.tensor(3)}, {"n": torch.tensor(8)}
    assert [int(interpolated(*sets, alpha)["n"]) for alpha in (0, 0.4, 0.6, 1)] == [3, 3, 8, 8]


def test_the_text_tower_comes_too_where_it_was_tuned(tuned, tiny_file):
    texts = load_backbone("ViT-B/16", str(tiny_file)).text_tower.state_dict()
    changed = {name: value + 1 for name, value in texts.items()}
    save_checkpoint({"state_dict": changed, "epoch": 4}, str(tuned / "text_encoder"))
    found = load_tuned(str(tuned)).text_tower.state_dict()
    assert all(torch.equal(found[name], changed[name]) for name in changed)


def test_alpha_0_has_the_features_of_the_pre_trained_backbone(tuned, tiny_file):
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    pretrained = load_backbone("ViT-B/16", str(tiny_file)).encode(images)
    assert torch.equal(load_tuned(str(tuned), 0.0).encode(images), pretrained)
    assert not torch.equal(load_tuned(str(tuned), 1.0).encode(images), pretrained)


# -- the command ----------------------------------------------------------------------------------


def test_the_result_has_a_probe_of_each_dataset_and_a_second_run_encodes_nothing(
    probe, tmp_path, monkeypatch
):
    folder = tmp_path / "out" / "finetune" / "probe_test" / "pretrained" / "Pretrained" / "tiny"
    result = probe(folder / "seed1")
    assert result == record.read(str(folder / "seed1"))
    assert (result["name"], result["alpha"], result["protocol"]) == ("Pretrained", 0.0, "finetune")
    assert list(result["probes"]) == list(NAMES)
    for found in result["probes"].values():
        assert found["classes"] == 24 and found["images"] == 24
        assert set(found) == {"linear_probe", "zero_shot", "strength", "classes", "images"}
    assert result["accuracy"] == pytest.approx(sum(probes_of(result).values()) / 2)
    assert len(list((tmp_path / "out" / "features").glob("*.safetensors"))) >= 6
    # The same features serve other runs of the output.
    monkeypatch.setattr(ImageBackbone, "encode", lambda *_: pytest.fail("encoded again"))
    again = probe(folder / "seed2")
    assert again["probes"] == result["probes"]
    assert "held out" not in (folder / "seed2" / "log.txt").read_text()


def test_a_dataset_that_says_where_it_lies_is_read_there_beside_others(probe, images, tmp_path):
    path = tmp_path / "birds.yaml"
    path.write_text(f"DATASET: {{NAME: ImageFolder, ROOT: {images}}}\n")
    result = probe(tmp_path / "out", files=f"{path},{dataset_file(NAMES[0])}")
    assert {name: found["images"] for name, found in result["probes"].items()} == {
        "birds": 24,
        "bundled_fruits": 24,
    }


def test_zero_shot_is_that_of_the_trainer_without_training(probe, root, config, tmp_path):
    if not load_backbone("ViT-Bundled", "bundled").has_texts:
        pytest.fail("the bundled CLIP has no texts")
    bundled = ["MODEL.BACKBONE.NAME", "ViT-Bundled", "MODEL.BACKBONE.WEIGHTS", "bundled"]
    found = probe(tmp_path / "probes", "--no-cache", *bundled)
    argv = ["--root", str(root), "--trainer", "ZeroshotCLIP", "--config-file", str(config)]
    argv += ["--dataset-config-file", dataset_file("bundled_fruits"), "--eval-only"]
    argv += ["--output-dir", str(tmp_path / "zero"), *bundled, "INPUT.PIXEL_MEAN"]
    argv += ["[0.48145466, 0.4578275, 0.40821073]", "INPUT.PIXEL_STD"]
    argv += ["[0.26862954, 0.26130258, 0.27577711]"]
    trained = train.main(train.parser().parse_args(argv))
    assert found["probes"]["bundled_fruits"]["zero_shot"] == trained["accuracy"] > 20


def test_alpha_0_and_1_are_pre_trained_and_tuned(probe, tuned, tmp_path):
    before = probe(tmp_path / "before")
    after = {
        alpha: probe(tmp_path / f"{alpha}", "--model-dir", tuned, "--alpha", alpha, with_config=a)
        for alpha, a in ((0, True), (0.5, False), (1, True))
    }
    assert after[0]["probes"] == before["probes"] != after[1]["probes"]
    assert after[0.5]["backbone"] == before["backbone"]
    names = [(found["name"], found["alpha"]) for found in after.values()]
    assert names == [("WiSEFT", 0.0), ("WiSEFT", 0.5), ("FineTune", 1.0)]
    assert after[1]["accuracy"] == after[1]["probes"]["bundled_fruits"]["linear_probe"]
    assert (after[1]["source"], after[1]["target"], after[1]["epoch"]) == (
        "bundled_fruits", "bundled_fruits", 4,
    )  # fmt: skip


def test_with_split_val_no_test_image_is_encoded(probe, root, tmp_path, monkeypatch, capsys):
    seen = []
    of = features.Features.of

    def watched(self, items):
        seen.extend(item.impath for item in items)
        return of(self, items)

    monkeypatch.setattr(features.Features, "of", watched)
    result = probe(tmp_path / "val", "TEST.SPLIT", "val")
    tested = {path for path in root.rglob("*.png") if path.name.startswith("test")}
    assert result["split"] == "val" and seen and tested and not tested & set(map(Path, seen))
    assert (
        "bundled_fruits: 7 of 72 training images are held out (seed 0)" in capsys.readouterr().out
    )


def test_an_interrupted_run_goes_on_from_what_is_kept(probe, tmp_path, monkeypatch):
    whole = probe(tmp_path / "whole", "--no-cache")
    encode, calls = ImageBackbone.encode, []

    def interrupted(self, images):
        calls.append(len(images))
        if len(calls) == 6:
            raise KeyboardInterrupt
        return encode(self, images)

    monkeypatch.setattr(ImageBackbone, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        probe(tmp_path / "parts")
    assert not (tmp_path / "parts" / "result.json").exists()
    assert probe(tmp_path / "parts")["probes"] == whole["probes"]


def test_a_folder_of_other_probes_is_refused(probe, tmp_path):
    probe(tmp_path / "out", files=dataset_file("bundled_fruits"))
    with pytest.raises(FileExistsError, match="probes is"):
        probe(tmp_path / "out")


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--alpha", 1.5, "--model-dir", "TUNED"], "--alpha is 1.5; use a number from 0"),
        (["--alpha", "nan", "--model-dir", "TUNED"], "--alpha is nan"),
        (["--alpha", 0.5], "--alpha 0.5 needs --model-dir"),
        (["--eval-only"], "--eval-only does not go with --probe"),
        (["--model-dir", "nowhere"], "--model-dir nowhere does not exist"),
        (["--model-dir", "EMPTY"], "has no config.yaml; give the output folder of a FineTune run"),
        (["--model-dir", "TUNED", "--load-epoch", 3], "Model not found"),
        (["--model-dir", "TUNED", "--trainer", "CoOp"], "holds a run of FineTune, not of CoOp"),
        (["--model-dir", "TUNED", "MODEL.BACKBONE.NAME", "RN50"], "has MODEL.BACKBONE.NAME"),
        (["PROBE.RECIPE", "ldif"], "did you mean 'ldifs'"),
        (["PROBE.STRENGTHS", "(0.0,)"], r"PROBE.STRENGTHS is \(0.0,\)"),
        (["TEST.SPLIT", "train"], "TEST.SPLIT is 'train'"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(map(str, value)),
)
def test_bad_flags_are_one_sentence_and_write_nothing(probe, tuned, tmp_path, words, sentence):
    (tmp_path / "empty").mkdir()
    places = {"TUNED": str(tuned), "EMPTY": str(tmp_path / "empty")}
    words = [places.get(word, word) for word in words]
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        probe(tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "files, sentence",
    [
        ("nowhere.yaml", "--probe nowhere.yaml does not exist"),
        (f"{PROBED},{dataset_file('bundled_fruits')}", "names bundled_fruits twice"),
        (",", "give config files of datasets joined by commas"),
    ],
    ids=["missing", "twice", "none"],
)
def test_bad_datasets_are_one_sentence(probe, tmp_path, files, sentence):
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        probe(tmp_path / "out", files=files)


def test_flags_of_probes_without_probes_are_refused(tmp_path):
    for words, flag in ((["--alpha", "0.5"], "--alpha"),):
        with pytest.raises(ValueError, match=f"{flag} is for --probe"):
            train.main(train.parser().parse_args(words))


def test_runs_that_tune_no_encoder_or_have_stopped_or_are_damaged_are_refused(
    probe, tuned, tmp_path
):
    said = yaml.safe_load((tuned / "config.yaml").read_text())
    said["OPTIM"]["MAX_EPOCH"] = 9
    (tuned / "config.yaml").write_text(yaml.safe_dump(said))
    with pytest.raises(ValueError, match="has stopped after epoch 4 of 9"):
        probe(tmp_path / "out", "--model-dir", tuned)
    probe(tmp_path / "asked", "--model-dir", tuned, "--load-epoch", 4)
    path = tuned / "image_encoder" / "model.pth.tar-4"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        probe(tmp_path / "damaged", "--model-dir", tuned, "--load-epoch", 4)
    save_checkpoint({"state_dict": {"w": torch.ones(1)}, "epoch": 4}, str(path.parent))
    with pytest.raises(ValueError, match="does not fit the backbone of its run"):
        probe(tmp_path / "other", "--model-dir", tuned, "--load-epoch", 4)
    (tuned / "image_encoder").rename(tuned / "prompt_learner")
    with pytest.raises(ValueError, match="without checkpoints of an image_encoder"):
        probe(tmp_path / "out", "--model-dir", tuned)


@pytest.mark.parametrize(
    "classes, test, sentence",
    [(1, "b", "birds has one class"), (2, "a", "birds has only test images")],
    ids=["one class", "test images alone"],
)
def test_datasets_that_cannot_be_probed_are_refused(classes, test, sentence):
    train_x, tested = ([SimpleNamespace(impath=path)] for path in ("a", test))
    dataset = SimpleNamespace(num_classes=classes, train_x=train_x, test=tested)
    with pytest.raises(ValueError, match=sentence):
        probing._check_dataset("birds", dataset)


def test_a_dataset_without_validation_images_holds_some_out(probe, images, tmp_path, capsys):
    # Class folders draw their own validation images where they have none, so that has to be off.
    from datasets import ImageFolder

    found = ImageFolder.parts
    try:
        ImageFolder.parts = lambda self: {**found(self), "val": []}
        probe(tmp_path / "out", "--root", images, files=dataset_file("folder"))
    finally:
        ImageFolder.parts = found
    out = capsys.readouterr().out
    assert "training images are held out (seed 0): they choose the strength" in out


def test_the_record_refuses_wrong_probes_and_alpha(probe, tmp_path):
    result = probe(tmp_path / "out", files=dataset_file("bundled_fruits"))
    good = json.loads(json.dumps(result["probes"]["bundled_fruits"]))
    with pytest.raises(ValueError, match="has probes {}"):
        record.check({**result, "probes": {}})
    for bad in ({**good, "linear_probe": 101}, {**good, "images": 0}, 1):
        with pytest.raises(ValueError, match="has the probe .* of a$"):
            record.check({**result, "probes": {"b": good, "a": bad}})
    with pytest.raises(ValueError, match="has alpha 2"):
        record.check({**result, "alpha": 2})
