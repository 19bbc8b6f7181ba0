"""The config of a run: what is merged in which order, and how mistakes are reported."""

from pathlib import Path

import pytest
from yacs.config import CfgNode

import train
from proxyfda.dassl import Registry
from proxyfda.experiments import config as config_module
from proxyfda.experiments.config import load_config
from proxyfda.utils.errors import BadValue

ROOT = Path(train.__file__).parent


def test_a_missing_config_names_those_that_exist(tmp_path):
    args = train.parser().parse_args(
        ["--config-file", str(ROOT / "configs/trainers/CoOp/vit.yaml")]
    )
    with pytest.raises(
        FileNotFoundError, match="vit.yaml does not exist; the folder has .*rn50.yaml"
    ):
        load_config(args)


def test_later_settings_win(tmp_path, config):
    args = train.parser().parse_args(
        ["--config-file", str(config), "--trainer", "CoOp", "--seed", "3", "--root", "/a"]
        + ["DATASET.NAME", "ImageFolder", "DATASET.ROOT", "/b", "OPTIM.LR", "1.0"]
    )
    cfg = load_config(args)
    assert (cfg.OPTIM.LR, cfg.DATASET.ROOT, cfg.SEED) == (1.0, "/b", 3)
    assert cfg.OPTIM.MAX_EPOCH == 4  # of the file, over the default


def test_whole_numbers_serve_where_a_float_is_wanted(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("OPTIM: {LR: 1}\nTRAINER: {PROMPTSRC: {GPA_MEAN: 6}}\n")
    words = ["--trainer", "CoOp", "--config-file", str(path), "DATASET.NAME", "ImageFolder"]
    cfg = load_config(train.parser().parse_args([*words, "TRAINER.PROXYFDA.WEIGHT", "3"]))
    assert (cfg.OPTIM.LR, cfg.TRAINER.PROMPTSRC.GPA_MEAN, cfg.TRAINER.PROXYFDA.WEIGHT) == (1, 6, 3)


def args_of(*words):
    return train.parser().parse_args([*map(str, words)])


def load(*words):
    """The config of CoOp on a folder of images with more words of the command line."""
    return load_config(args_of("--trainer", "CoOp", *words, "DATASET.NAME", "ImageFolder"))


@pytest.fixture
def files(tmp_path):
    """Two config files that both say the learning rate."""
    first, second = tmp_path / "first.yaml", tmp_path / "second.yml"
    first.write_text("OPTIM: {LR: 0.1, MAX_EPOCH: 7}\n")
    second.write_text("OPTIM: {LR: 0.2}\n")
    return first, second


def test_config_files_are_merged_in_their_order(files):
    for order, rate in ((files, 0.2), (files[::-1], 0.1)):
        cfg = load("--config-file", *order)
        assert (rate, 7) == (cfg.OPTIM.LR, cfg.OPTIM.MAX_EPOCH)


@pytest.mark.parametrize("between", [(), ("--seed", "5")], ids=["at once", "after a flag"])
def test_options_may_follow_the_config_files(files, between):
    args = args_of("--config-file", *files, *between, "OPTIM.LR", "0.3", "DATASET.NUM_SHOTS", "-1")
    assert args.config_file == [str(path) for path in files]
    assert args.opts == ["OPTIM.LR", "0.3", "DATASET.NUM_SHOTS", "-1"]


def test_the_regulariser_is_an_option_of_the_config():
    assert load("--regulariser", "rkd").TRAINER.PROXYFDA.REGULARISER == "rkd"
    assert load("--regulariser", "none").TRAINER.PROXYFDA.REGULARISER == "none"
    assert load().TRAINER.PROXYFDA.REGULARISER == ""
    assert (
        load("--regulariser", "rkd", "TRAINER.PROXYFDA.REGULARISER", "kl").TRAINER.PROXYFDA[
            "REGULARISER"
        ]
        == "kl"
    )


def test_an_unknown_regulariser_is_reported_with_the_nearest():
    with pytest.raises(BadValue, match="--regulariser is 'rdk' .did you mean 'rkd'..; use one of"):
        load("--regulariser", "rdk")


@pytest.mark.parametrize(
    ("option", "value", "now"),
    [
        ("MODE", "pointwise", "give --regulariser pointwise$"),
        ("MODE", "proxy_fda", "give --regulariser proxy_fda$"),
        ("MODE", "sampler", "give --regulariser none with TRAINER.PROXYFDA.M and "),
        ("FORM", "paper", "give --regulariser fda$"),
        ("FORM", "regress", "give --regulariser rkd$"),
        ("FORM", "standardised", "give --regulariser fda with TRAINER.PROXYFDA.UNITS frozen$"),
        ("FORM", "other", "--regulariser kl for 'kl'"),
    ],
)
def test_an_option_that_has_gone_names_the_new_one(tmp_path, option, value, now):
    with pytest.raises(BadValue, match=f"sets TRAINER.PROXYFDA.{option} to '{value}'.*{now}"):
        load(f"TRAINER.PROXYFDA.{option}", value)
    path = tmp_path / "old.yaml"
    path.write_text(f"TRAINER: {{PROXYFDA: {{{option}: {value}}}}}\n")
    with pytest.raises(BadValue, match=f"^--config-file {path} sets .*{now}"):
        load("--config-file", path)


@pytest.mark.parametrize("which", ["TRAINER_REGISTRY", "DATASET_REGISTRY"])
def test_every_registered_class_adds_its_options(monkeypatch, which):
    class Mine:
        @classmethod
        def extend_cfg(cls, cfg):
            cfg.TRAINER.MINE = CfgNode({"DEPTH": 3})

    registry = Registry("MINE")
    registry.register(Mine)
    assert "MINE" not in config_module.default_config().TRAINER
    monkeypatch.setattr(config_module, which, registry)
    assert config_module.default_config().TRAINER.MINE.DEPTH == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("OPTIM: {LRR: 1}", ": 'OPTIM.LRR' is no option; did you mean OPTIM.LR"),
        ("OPTIM: {MAX_EPOCH: many}", ": OPTIM.MAX_EPOCH is 'many'; give a whole number of at"),
        ("OPTIM: {", " is not valid YAML"),
        ("OPTIM: 5", ": OPTIM is 5, but it is a group of options; give one, like OPTIM.NAME"),
        ("OPTIM: {LR: {A: 1}}", ": 'OPTIM.LR.A' is no option: OPTIM.LR is one"),
        ("OPTIM: {LR: 1}\nOPTIM: {MOMENTUM: 0}", " is not valid YAML .*OPTIM is given twice"),
        ("- LR", " holds no options"),
    ],
)
def test_mistakes_in_a_file_are_reported_with_its_name(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(BadValue, match=f"^--config-file {path}{message}"):
        load("--config-file", path)
