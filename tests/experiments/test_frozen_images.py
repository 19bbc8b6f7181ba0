"""Evaluation on image features that no prompt changes: how often images are encoded, and that the
numbers are those of an evaluation on the images themselves."""

import pytest
import torch

from proxyfda.backbones.clip import ImageEncoder
from proxyfda.experiments import layout
from trainers.base import CLIPTrainer

SHORT = ("DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 1, "TRAINER.COCOOP.PREC", "fp32")
BASE, NEW = (("DATASET.SUBSAMPLE_CLASSES", part) for part in ("base", "new"))


@pytest.fixture
def encoded(monkeypatch):
    """Numbers of images in the passes of the frozen image tower outside of training steps; those of
    training batches, which frozen anchors and mining need, are of 6 at most."""
    seen, encode = [], ImageEncoder.encode

    def counted(self, images):
        seen.extend([len(images)] if len(images) > 6 else [])
        return encode(self, images)

    monkeypatch.setattr(ImageEncoder, "encode", counted)
    return seen


def folder(top, part, trainer, seed):
    return top / "base2new" / part / "folder" / "shots_2" / trainer / "tiny" / f"seed{seed}"


def base2new(run, top, trainer, seed, *words):
    trained = folder(top, layout.TRAIN_BASE, trainer, seed)
    results = [run(trained, trainer, *words, *SHORT, *BASE, seed=seed)]
    evaluation = ("--eval-only", "--model-dir", trained)
    tested = folder(top, layout.TEST_NEW, trainer, seed)
    return [*results, run(tested, trainer, *evaluation, *words, *SHORT, *NEW, seed=seed)]


def numbers(results):
    return [(result["correct"], result["macro_f1"]) for result in results]


def test_base2new_of_three_trainers_and_seeds_encodes_every_test_image_once(run, tmp_path, encoded):
    for seed in (1, 2, 3):
        for trainer in ("CoOp", "FDACoOp", "ProxyFDACoOp"):
            base2new(run, tmp_path, trainer, seed)
    assert encoded == [12, 12]  # base and new; by itself each of the 18 runs would encode 12
    assert len(list((tmp_path / "features").glob("*.safetensors"))) == 2


@pytest.mark.parametrize("trainer", ["CoOp", "CoCoOp"])
def test_numbers_are_the_same_computed_read_not_kept_and_on_images(
    run, tmp_path, encoded, monkeypatch, trainer
):
    shared = ("PROBE.CACHE", tmp_path / "shared")
    computed = base2new(run, tmp_path / "computed", trainer, 1, *shared)
    assert encoded == [12, 12]
    read = base2new(run, tmp_path / "read", trainer, 1, *shared)
    assert encoded == [12, 12]
    alone = base2new(run, tmp_path / "alone", trainer, 1, "--no-cache")
    assert encoded == [12] * 4 and not (tmp_path / "alone" / "features").exists()
    monkeypatch.setattr(CLIPTrainer, "evaluation_batches", lambda self, loader: loader)
    images = base2new(run, tmp_path / "images", trainer, 1, "--no-cache")
    assert encoded == [12] * 4
    assert numbers(computed) == numbers(read) == numbers(alone) == numbers(images)


def test_validation_after_every_epoch_encodes_once_and_leaves_training_as_it_was(
    run, tmp_path, encoded, monkeypatch
):
    words = ("DATASET.NUM_SHOTS", 2, "TEST.FINAL_MODEL", "best_val", *BASE)
    ours = run(tmp_path / "ours", "CoOp", "--no-cache", *words)
    assert sum(encoded) == 12 if ours["split"] == "val" else 24
    monkeypatch.setattr(CLIPTrainer, "evaluation_batches", lambda self, loader: loader)
    assert numbers([run(tmp_path / "plain", "CoOp", *words)]) == numbers([ours])
    ours, plain = (
        torch.load(tmp_path / name / "prompt_learner/model.pth.tar-4", weights_only=True)
        for name in ("ours", "plain")
    )
    assert torch.equal(ours["state_dict"]["ctx"], plain["state_dict"]["ctx"])
    assert torch.equal(ours["rng"]["torch"], plain["rng"]["torch"])


def test_other_images_weights_batches_and_sizes_have_files_of_their_own(run, tmp_path, encoded):
    words = ("PROBE.CACHE", tmp_path / "shared", *SHORT)
    run(tmp_path / "a", "ZeroshotCLIP", *words)
    run(tmp_path / "b", "ZeroshotCLIP", *words)
    count = sum(encoded)
    run(tmp_path / "c", "ZeroshotCLIP", *words, "DATALOADER.TEST.BATCH_SIZE", 8)
    run(tmp_path / "d", "ZeroshotCLIP", *words, "INPUT.INTERPOLATION", "bilinear")
    assert sum(encoded) == 3 * count == 3 * 24


@pytest.mark.parametrize("trainer", ["MaPLe", "PromptSRC"])
def test_prompted_images_are_not_taken_for_frozen_ones(run, tmp_path, trainer):
    node = trainer.upper()
    words = (f"TRAINER.{node}.PREC", "fp32", *_shallow(node), *SHORT)
    run(folder(tmp_path, layout.TRAIN_BASE, trainer, 1), trainer, *words, *BASE)
    assert not (tmp_path / "features").exists()


def _shallow(node):
    names = ["PROMPT_DEPTH"] if node == "MAPLE" else ["PROMPT_DEPTH_VISION", "PROMPT_DEPTH_TEXT"]
    return [word for name in names for word in (f"TRAINER.{node}.{name}", 2)]


def test_a_bound_that_cannot_be_is_refused_before_the_training(run, tmp_path):
    with pytest.raises(ValueError, match="PROBE.CACHE_GB is 0"):
        run(tmp_path / "out", "CoOp", *SHORT, "PROBE.CACHE_GB", 0)
    assert not (tmp_path / "out").exists()
