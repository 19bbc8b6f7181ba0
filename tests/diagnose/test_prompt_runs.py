"""Runs that learned prompts, ours and upstream's, as models to look at."""

import csv
from pathlib import Path

import pytest
import torch
import yaml

import trainers  # noqa: F401  (registers the trainers)
from proxyfda.dassl import build_trainer
from proxyfda.diagnose.command import main
from proxyfda.diagnose.encoders import encode, load_encoder, pretrained_of
from proxyfda.diagnose.samples import read_sample
from proxyfda.experiments.config import default_config
from proxyfda.utils.errors import UserError
from proxyfda.utils.nested import plain
from trainers.checkpoints import to_upstream

pytest.importorskip("ot")
ROOT = Path(__file__).resolve().parents[2]
FRUITS = "configs/datasets/bundled_fruits.yaml"
LOG = """***************
** Arguments **
***************
trainer: {host}
************
** Config **
************
DATASET:
  NAME: Caltech101
  NUM_SHOTS: 16
INPUT:
  SIZE: (32, 32)
MODEL:
  BACKBONE:
    NAME: ViT-Bundled
    WEIGHTS: bundled
OPTIM:
  MAX_EPOCH: 5
SEED: 1
TRAINER:
  {node}:
    CTX_INIT: {words}
    N_CTX: 3
    {depth}PREC: fp16
  NAME: {host}
Collecting env info ...
"""  # as Dassl's train.py prints it
NODES = {"CoOp": "COOP", "CoCoOp": "COCOOP", "MaPLe": "MAPLE", "PromptSRC": "PROMPTSRC"}


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def trained(bundled_data):
    """``trained("MaPLe", ...)``: a trainer on the fruits whose prompts are not those of the
    start."""

    def make(host, *options):
        cfg = default_config()
        cfg.merge_from_file(f"configs/trainers/{host}/bundled.yaml")
        cfg.merge_from_file(FRUITS)
        cfg.merge_from_list(["DATASET.ROOT", str(bundled_data), "TRAINER.NAME", host, *options])
        torch.manual_seed(0)
        trainer = build_trainer(cfg)
        for parameter in trainer.model.prompt_learner.parameters():
            parameter.data += 0.5 * torch.randn(parameter.shape)
        trainer.set_model_mode("eval")
        return trainer

    return make


def our_folder(folder, trainer, name=""):
    """A folder as our runs leave it; ``name`` of a regularised form."""
    trainer.save_model(0, str(folder))
    config = plain(trainer.cfg)
    config["TRAINER"]["NAME"] = name or config["TRAINER"]["NAME"]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return str(folder)


def upstream_folder(folder, trainer, host):
    """A folder as upstream's runs leave it: checkpoints of fp16 under their names, and a log."""
    learner = trainer.model.prompt_learner
    whole = host in ("MaPLe", "PromptSRC")
    state = to_upstream(learner) if whole else learner.state_dict()
    below = folder / trainer.model_name
    below.mkdir(parents=True)
    frozen = {f"{'prompt_learner.' if whole else ''}token_prefix": torch.zeros(24, 1, 8)}
    content = {"state_dict": {**state, **frozen}, "epoch": 5}
    torch.save(content, below / "model.pth.tar-5")
    (below / "checkpoint").write_text("model.pth.tar-5\n")
    depth = "PROMPT_DEPTH: 3\n    " if host == "MaPLe" else ""
    words = trainer.cfg.TRAINER[NODES[host]].CTX_INIT
    log = LOG.format(host=host, node=NODES[host], words=words, depth=depth)
    (folder / "log.txt").write_text(log)
    return str(folder)


@pytest.mark.parametrize("host, images", [("CoOp", False), ("CoCoOp", False), ("MaPLe", True)])
@pytest.mark.parametrize("layout", ["ours", "upstream's"])
def test_features_and_guesses_are_those_of_the_trainer(
    host, images, layout, trained, bundled_data, tmp_path
):
    node = f"TRAINER.{NODES[host]}"
    trainer = trained(host, f"{node}.N_CTX", 3, f"{node}.CTX_INIT", "")
    make = our_folder(tmp_path, trainer) if layout == "ours" else None
    folder = make or upstream_folder(tmp_path, trainer, host)
    sample = read_sample(FRUITS, str(bundled_data), most=10)
    found = encode(load_encoder(folder), sample)
    before = encode(pretrained_of(folder), sample)
    (batch,) = sample.batches(pretrained_of(folder))
    with torch.no_grad():
        torch.testing.assert_close(found.features, trainer.model.encode_image(batch))
        assert torch.equal(found.guesses, trainer.model(batch).argmax(1))
    moved = (found.features - before.features).abs().max()
    assert (moved > 1e-2) if images else (moved < 1e-4)
    assert not torch.equal(found.guesses, before.guesses)
    assert ("with the tuned prompts of the image encoder" in found.note) == images
    assert ("image features are the frozen ones" in found.note) != images


def test_the_command_says_what_is_measured_and_shows_the_zero_shot_change(
    trained, bundled_data, tmp_path, capsys
):
    folder = tmp_path / "bundled_scenes" / "FDACoOp" / "bundled_16shots" / "seed1"
    trainer = trained("CoOp")
    model = our_folder(folder, trainer, "FDACoOp")
    words = ["--datasets", "bundled_fruits", "--root", str(bundled_data), "--no-figures"]
    assert main([model, *words, "--out", str(tmp_path / "out")]) == 0
    with open(tmp_path / "out" / "diagnose.csv", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["model"] == "FDACoOp" and float(row["overlap"]) == 1.0
    assert float(row["otdd"]) == pytest.approx(float(row["otdd_before"]))
    sample = read_sample(FRUITS, str(bundled_data))
    frozen = encode(pretrained_of(model), sample)
    right = 100 * (frozen.guesses == sample.labels).double().mean().item()
    assert float(row["zero_shot_before"]) == pytest.approx(right)
    assert row["zero_shot"] != row["zero_shot_before"]
    printed = capsys.readouterr().out
    assert "FDACoOp: the prompts are those of the texts, so that image features are" in printed


def test_contexts_of_other_classes_are_refused(trained, bundled_data, tmp_path):
    trainer = trained("CoOp", "TRAINER.COOP.CSC", True, "TRAINER.COOP.CTX_INIT", "")
    folder = our_folder(tmp_path, trainer)
    model = load_encoder(folder)
    sample = read_sample(FRUITS, str(bundled_data), most=10)
    assert len(encode(model, sample).guesses) == 10
    state = Path(folder) / "prompt_learner" / "model.pth.tar-1"
    content = torch.load(state, weights_only=True)
    content["state_dict"]["ctx"] = content["state_dict"]["ctx"][:5]
    torch.save(content, state)
    with pytest.raises(UserError, match="its contexts belong to 5 classes of their own"):
        encode(model, sample)


def _empty(folder):
    pass


def _log_alone(folder):
    (folder / "log.txt").write_text(LOG.format(host="CoOp", node="COOP", words="", depth=""))


def _unknown(folder):
    (folder / "log.txt").write_text(LOG.format(host="IVLP", node="IVLP", words="", depth=""))


def _torn_log(folder):
    (folder / "log.txt").write_text("** Arguments **\nTraceback")


@pytest.mark.parametrize(
    "fill, message",
    [
        (_empty, "has neither a config.yaml nor a log.txt that begins with a config"),
        (_torn_log, "has neither a config.yaml nor a log.txt that begins with a config"),
        (_log_alone, "a run of CoOp without checkpoints of prompt_learner"),
        (_unknown, "a run of IVLP, which is not registered"),
    ],
    ids=["empty", "torn", "untrained", "trainer"],
)
def test_what_is_no_run_is_one_sentence(fill, message, tmp_path):
    fill(tmp_path)
    with pytest.raises(UserError, match=message):
        load_encoder(str(tmp_path))
