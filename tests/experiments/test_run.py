"""A run, on a tiny random CLIP and a folder of noise images."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import ANY

import pytest
import torch
import yaml

import train
from proxyfda import sampling as sampler
from proxyfda.dassl import TRAINER_REGISTRY
from proxyfda.experiments import record
from proxyfda.experiments.config import load_config
from proxyfda.experiments.run import check_output, claim_output
from proxyfda.results import collect, summarise_accuracy

ROOT = Path(train.__file__).parent


def checkpoint(folder, epoch):
    return torch.load(folder / "prompt_learner" / f"model.pth.tar-{epoch}", weights_only=True)


def learned(folder, epoch=4):
    return checkpoint(folder, epoch)["state_dict"]["ctx"]


BASE = ("DATASET.NUM_SHOTS", 4, "DATASET.SUBSAMPLE_CLASSES", "base")


def test_a_run_leaves_its_result(run, tmp_path):
    result = run(tmp_path / "out", "ProxyFDACoOp", *BASE)
    stored = json.loads((tmp_path / "out" / "result.json").read_text())
    assert stored == result == record.read(str(tmp_path / "out"))
    assert stored["total"] == 12 and stored["accuracy"] == 100 * stored["correct"] / 12
    assert (stored["trainer"], stored["config"]) == ("ProxyFDACoOp", "tiny")
    assert (stored["shots"], stored["seed"], stored["subsample"]) == (4, 1, "base")
    assert stored["cfg"]["TRAINER"]["PROXYFDA"]["WEIGHT"] > 0
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "loss_fda" in log and "loss_proxy" in log and "=> result" in log


def test_the_same_seed_gives_the_same_prompt_and_another_seed_another(run, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(tmp_path / name, "ProxyFDACoOp", *BASE, seed=seed)
    first, again, other = (learned(tmp_path / name) for name in "abc")
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("trainer", ["CoOp", "ProxyFDACoOp"])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(run, tmp_path, monkeypatch, trainer):
    mined = ("TRAINER.PROXYFDA.MINING", True, "TRAINER.PROXYFDA.M", 2, "TRAINER.PROXYFDA.N", 2)
    run(tmp_path / "whole", trainer, *BASE, *mined)
    cls = TRAINER_REGISTRY.get(trainer)
    step = cls.forward_backward

    def interrupted(self, batch):
        if self.epoch == 2 and self.batch_idx == 1:
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(cls, "forward_backward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", trainer, *BASE, *mined)
    assert not (tmp_path / "parts" / "result.json").exists()
    monkeypatch.setattr(cls, "forward_backward", step)
    run(tmp_path / "parts", trainer, *BASE, *mined)
    assert torch.equal(learned(tmp_path / "whole"), learned(tmp_path / "parts"))


def test_weight_zero_is_the_plain_trainer_bit_for_bit(run, tmp_path):
    run(tmp_path / "plain", "CoOp", *BASE)
    run(tmp_path / "off", "ProxyFDACoOp", *BASE, "TRAINER.PROXYFDA.WEIGHT", 0.0)
    assert torch.equal(learned(tmp_path / "plain"), learned(tmp_path / "off"))


@pytest.mark.parametrize(
    ("saver", "loader"), [("CoOp", "ProxyFDACoOp"), ("ProxyFDACoOp", "CoOp")], ids=lambda v: v
)
def test_plain_and_proxy_fda_load_each_others_prompts(run, tmp_path, saver, loader):
    trained = run(tmp_path / "trained", saver, *BASE)
    again = run(
        tmp_path / "again", loader, "--eval-only", "--model-dir", tmp_path / "trained", *BASE
    )
    assert again["accuracy"] == trained["accuracy"]


def test_the_sampler_replaces_the_batches(run, tmp_path, monkeypatch):
    batches = []
    original = sampler.ClassBalancedBatchSampler.__iter__

    def watched(self):
        for batch in original(self):
            batches.append(batch)
            yield batch

    monkeypatch.setattr(sampler.ClassBalancedBatchSampler, "__iter__", watched)
    words = ("--regulariser", "none", *BASE, "TRAINER.PROXYFDA.M", 3, "TRAINER.PROXYFDA.N", 2)
    result = run(tmp_path / "out", "CoOp", *words)
    assert result and batches and all(len(batch) == 6 for batch in batches)
    assert "loss_fda" not in (tmp_path / "out" / "log.txt").read_text()


def test_an_output_folder_of_another_config_is_refused_untouched(run, tmp_path):
    run(tmp_path / "out", "CoOp", *BASE)
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    with pytest.raises(FileExistsError, match="OPTIM.LR is 0.05 there and 0.01 here"):
        run(tmp_path / "out", "CoOp", *BASE, "OPTIM.LR", 0.01)
    assert before == {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}


def test_options_that_the_regulariser_in_use_does_not_look_at_make_no_other_run(run, tmp_path):
    words = (*BASE, "OPTIM.MAX_EPOCH", 1)
    run(tmp_path / "out", "CoOp", *words)
    more = ("TRAINER.PROXYFDA.CONSTANTS", "given", "TRAINER.PROXYFDA.TAU", 0.2)
    assert run(tmp_path / "out", "CoOp", *words, *more)
    with pytest.raises(FileExistsError, match="PROXYFDA.REGULARISER is '' there and 'rkd' here"):
        run(tmp_path / "out", "CoOp", "--regulariser", "rkd", *words)


def test_the_config_of_a_run_has_what_stands_for_the_defaults_of_the_regulariser(run, tmp_path):
    words = (*BASE, "OPTIM.MAX_EPOCH", 1)
    result = run(tmp_path / "out", "FDACoOp", *words)
    stored = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["TRAINER"]["PROXYFDA"]
    for node in (stored, result["cfg"]["TRAINER"]["PROXYFDA"]):
        assert (node["WEIGHT"], node["CONSTANTS"]) == (0.3, "derived")
    described = result["regulariser"]
    assert (described["weight"], described["options"]["constants"]) == (0.3, "derived")
    said = ("TRAINER.PROXYFDA.WEIGHT", 0.3, "TRAINER.PROXYFDA.CONSTANTS", "derived")
    assert run(tmp_path / "out", "FDACoOp", *words, *said)  # the same run
    with pytest.raises(FileExistsError, match="CONSTANTS is 'derived' there and 'given' here"):
        run(tmp_path / "out", "FDACoOp", *words, "TRAINER.PROXYFDA.CONSTANTS", "given")


def test_it_is_one_run_whether_the_trainer_or_the_config_names_the_regulariser(run, tmp_path):
    words = (*BASE, "OPTIM.MAX_EPOCH", 1)
    first = run(tmp_path / "out", "FDACoOp", *words)
    assert run(tmp_path / "out", "FDACoOp", "--regulariser", "fda", *words) == {
        **first, "time": ANY, "cfg": ANY,
    }  # fmt: skip
    with pytest.raises(FileExistsError, match="TRAINER.NAME is 'FDACoOp' there and 'CoOp' here"):
        run(tmp_path / "out", "CoOp", *words)


@pytest.mark.parametrize(("trainer", "workers"), [("CoOp", (0, 2)), ("ProxyFDACoOp", (2, 1))])
def test_the_number_of_workers_changes_nothing(run, tmp_path, monkeypatch, trainer, workers):
    """Also where it is another one when a run goes on."""
    words = (*BASE, "OPTIM.MAX_EPOCH", 3, "TEST.FINAL_MODEL", "best_val")
    balanced = ("TRAINER.PROXYFDA.M", 2, "TRAINER.PROXYFDA.N", 2)
    words += balanced if trainer != "CoOp" else ()
    run(tmp_path / "whole", trainer, *words)
    cls = TRAINER_REGISTRY.get(trainer)
    step = cls.forward_backward

    def interrupted(self, batch):
        if self.epoch == 1:
            raise KeyboardInterrupt
        return step(self, batch)

    first, then = (("DATALOADER.NUM_WORKERS", number) for number in workers)
    with monkeypatch.context() as patch:
        patch.setattr(cls, "forward_backward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "parts", trainer, *words, *first)
    run(tmp_path / "parts", trainer, *words, *then)
    ours, theirs = (checkpoint(tmp_path / name, 3) for name in ("parts", "whole"))
    assert torch.equal(ours["state_dict"]["ctx"], theirs["state_dict"]["ctx"])
    assert torch.equal(ours["rng"]["torch"], theirs["rng"]["torch"])
    log = (tmp_path / "whole" / "log.txt").read_text()
    assert "random resized crop" in log  # else there is nothing to depend on workers


def test_the_result_says_what_was_run(run, tmp_path, tiny_file):
    words = (*BASE, "OPTIM.MAX_EPOCH", 1)
    result = run(tmp_path / "out", "ProxyFDACoOp", "--protocol", "base2new", *words)
    assert (result["protocol"], result["source"], result["target"]) == (
        "base2new", "folder", "folder",
    )  # fmt: skip
    assert result["backbone"] == {
        "name": "ViT-B/16", "weights": str(tiny_file), "bytes": os.path.getsize(tiny_file),
    }  # fmt: skip
    assert (result["name"], result["regulariser"]["name"]) == ("ProxyFDACoOp", "proxy_fda")
    zero = run(tmp_path / "zero", "ZeroshotCLIP", "--eval-only", *words)
    assert (zero["source"], zero["regulariser"], zero["protocol"]) == (None, None, None)


def test_the_protocol_is_that_of_the_folder_where_none_is_given(run, tmp_path):
    out = tmp_path / "folder" / "CoOp" / "tiny_2shots" / "seed1"
    words = ("DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 1)
    assert run(out, "CoOp", *words)["protocol"] == "fewshot"


def test_an_evaluation_keeps_its_source_whatever_the_logs_are_called(run, tmp_path):
    words = ("DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 1)
    trained = tmp_path / "folder" / "CoOp" / "tiny_2shots" / "seed1"
    tested = tmp_path / "evaluation" / "CoOp" / "tiny_2shots" / "scenes" / "seed1"
    run(trained, "CoOp", *words)
    again = ("--eval-only", "--model-dir", trained, "DATASET.NUM_SHOTS", -1, *words[2:])
    assert run(tested, "CoOp", *again)["source"] == "folder"
    before = summarise_accuracy(collect(tmp_path))["cross_dataset"]
    assert [(row.dataset, row.source) for row in before.rows] == [
        ("folder", True), ("scenes", False),
    ]  # fmt: skip
    run(tested, "CoOp", *again)
    (tested / "log.txt").rename(tested / "log.txt-old")
    assert summarise_accuracy(collect(tmp_path))["cross_dataset"] == before


def test_the_source_of_a_training_without_result_is_in_its_config(run, tmp_path):
    words = ("DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 1)
    run(tmp_path / "trained", "CoOp", *words, "TEST.NO_TEST", True)
    assert not (tmp_path / "trained" / "result.json").exists()
    again = ("--eval-only", "--model-dir", tmp_path / "trained", *words)
    assert run(tmp_path / "tested", "CoOp", *again)["source"] == "folder"


def test_an_evaluation_belongs_to_the_dataset_that_its_prompt_was_trained_on(tmp_path, config):
    words = ["--config-file", str(config), "--trainer", "CoOp", "--eval-only"]
    words += ["--output-dir", str(tmp_path / "out"), "DATASET.NAME", "ImageFolder"]

    def arguments(source):
        if source:
            (tmp_path / source).mkdir()
            (tmp_path / source / "config.yaml").write_text(f"source: {source}")
        folder = str(tmp_path / (source or "moved"))
        args = train.parser().parse_args([*words[:4], "--model-dir", folder, *words[4:]])
        return args, load_config(args)

    mine = arguments("fruits")
    claim_output(*mine)
    (tmp_path / "out" / "result.json").touch()
    check_output(*mine)
    check_output(*arguments(""))
    with pytest.raises(FileExistsError, match="source is 'fruits' there and 'scenes' here"):
        check_output(*arguments("scenes"))


@pytest.mark.parametrize(
    ("trainer", "words", "message"),
    [
        ("CoOpp", (), "CoOpp.*CoOp"),
        ("CoOp", ("OPTIM.LRR", 1), "'OPTIM.LRR' is no option; did you mean OPTIM.LR"),
        ("CoOp", ("OPTIM.LR",), "come in pairs KEY VALUE"),
        ("CoOp", ("OPTIM.MAX_EPOCH", "many"), "OPTIM.MAX_EPOCH is .many.; give a whole number"),
        ("CoOp", ("TRAINER.COOP.PREC", "fp23"), "PREC is 'fp23'"),
        ("CoOp", ("MODEL.BACKBONE.NAME", "ViT-B/61"), "ViT-B/61"),
        ("CoOp", ("MODEL.BACKBONE.WEIGHTS", "/nowhere/clip.pt"), "/nowhere/clip.pt"),
        ("CoOp", ("DATASET.NAME", "EuroSAAT"), "EuroSAAT"),
        ("CoOp", ("DATASET.ROOT", "/nowhere"), "/nowhere"),
        ("CoOp", ("DATASET.NUM_SHOTS", 0), "NUM_SHOTS"),
        ("CoOp", ("DATASET.SUBSAMPLE_CLASSES", "old"), "old"),
        ("ProxyFDACoOp", ("TRAINER.PROXYFDA.K", 0), "TRAINER.PROXYFDA.K is 0"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else None,
)
def test_wrong_options_are_reported_in_one_sentence(run, tmp_path, trainer, words, message):
    with pytest.raises((ValueError, KeyError, FileNotFoundError), match=message) as caught:
        run(tmp_path / "out", trainer, *words)
    from proxyfda.utils.errors import UserError, sentence

    assert isinstance(caught.value, UserError)
    assert "\n" not in sentence(caught.value)
    assert not (tmp_path / "out" / "result.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--eval-only",), "--eval-only of CoOp needs --model-dir"),
        (("--eval-only", "--model-dir", "nowhere"), "--model-dir nowhere does not exist"),
        (("--eval-only", "--model-dir", "{out}"), "--output-dir and --model-dir are both"),
        (("--model-dir", "{out}"), "is for --eval-only and --probe; to go on from a checkpoint"),
    ],
    ids=["none", "missing", "the output folder", "in training"],
)
def test_wrong_model_folders_are_reported_and_nothing_is_written(run, tmp_path, words, message):
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(out, "CoOp", *(word.format(out=out) for word in words))
    assert os.listdir(out) == []


def test_the_same_command_again_trains_nothing_and_gives_the_same(run, tmp_path, capsys):
    first = run(tmp_path / "out", "CoOp", *BASE)
    prompt = learned(tmp_path / "out")
    capsys.readouterr()
    assert run(tmp_path / "out", "CoOp", *BASE)["accuracy"] == first["accuracy"]
    assert "epoch [" not in capsys.readouterr().out
    assert torch.equal(learned(tmp_path / "out"), prompt)


def test_a_run_without_seed_and_shots_says_so(run, tmp_path, capsys):
    run(tmp_path / "out", "CoOp", "OPTIM.MAX_EPOCH", 1, seed=-1)
    printed = capsys.readouterr().out
    assert "No --seed is given" in printed
    assert "DATASET.NUM_SHOTS is -1: training on all training images" in printed


def test_an_infinite_loss_stops_the_run(run, tmp_path):
    with pytest.raises(FloatingPointError, match="epoch [1-4], batch [1-9]"):
        run(tmp_path / "out", "CoOp", *BASE, "OPTIM.LR", 1e30)
    assert not (tmp_path / "out" / "result.json").exists()


@pytest.mark.slow
def test_the_command_line_ends_with_one_sentence_and_an_exit_code(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--trainer", "CoOp", "DATASET.NAME", "Nothing"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PROXYFDA_ENGINE": "embedded"},
    )
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].startswith("error: ") and "Traceback" not in done.stderr


# -- its log and its curves -----------------------------------------------------------------------


def test_a_log_is_short_before_the_first_epoch_and_says_where_the_config_is(run, tmp_path):
    run(tmp_path / "out", "ProxyFDACoOp", *BASE)
    lines = (tmp_path / "out" / "log.txt").read_text().splitlines()
    first = next(place for place, line in enumerate(lines) if line.startswith("epoch [1/"))
    assert first <= 20
    (said,) = (line for line in lines if "config in" in line)
    assert str(tmp_path / "out" / "config.yaml") in said
    assert "PIXEL_MEAN" in (tmp_path / "out" / "config.yaml").read_text()
    assert torch.__version__ in (tmp_path / "out" / "environment.txt").read_text()


def test_a_run_has_one_log_which_is_gone_on_with(run, tmp_path):
    run(tmp_path / "out", "CoOp", *BASE)
    before = (tmp_path / "out" / "log.txt").read_text()
    run(tmp_path / "out", "CoOp", *BASE)
    assert [path.name for path in (tmp_path / "out").glob("log.txt*")] == ["log.txt"]
    after = (tmp_path / "out" / "log.txt").read_text()
    assert after.startswith(before)
    assert re.search(r"^== The run goes on, \d{4}-\d\d-\d\d ", after[len(before) :], re.M)


def test_curves_go_where_the_option_says_and_it_is_no_other_run(run, tmp_path):
    run(tmp_path / "out", "CoOp", *BASE, "OPTIM.MAX_EPOCH", 1, "LOG.WRITERS", "csv")
    assert not (tmp_path / "out" / "tensorboard").exists()
    assert "train/loss,0," in (tmp_path / "out" / "curves.csv").read_text()
    run(tmp_path / "out", "CoOp", *BASE, "OPTIM.MAX_EPOCH", 1, "LOG.WRITERS", "")


def test_an_unknown_writer_is_refused_before_anything_is_written(run, tmp_path):
    with pytest.raises(ValueError, match="LOG.WRITERS is 'tensorbord'.*did you mean"):
        run(tmp_path / "out", "CoOp", *BASE, "LOG.WRITERS", "tensorbord")
    assert not (tmp_path / "out").exists()
