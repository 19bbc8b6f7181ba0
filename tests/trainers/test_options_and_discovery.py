"""Each trainer declares its own options, and is found by lying in the folder of trainers."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import trainers  # noqa: F401  (registers the trainers)
from proxyfda.dassl import TRAINER_REGISTRY, get_cfg_default
from proxyfda.experiments.config import default_config

ROOT = Path(__file__).resolve().parents[2]
# Upstream's defaults (those of memory are ours).
DEFAULTS = {
    "COOP": {"N_CTX": 16, "CSC": False, "CTX_INIT": "", "PREC": "fp16",
             "CLASS_TOKEN_POSITION": "end", "GRID_MEMORY": 4.0},
    "COCOOP": {"N_CTX": 16, "CTX_INIT": "", "PREC": "fp16", "MAX_MEMORY": 4.0},
    "MAPLE": {"N_CTX": 2, "CTX_INIT": "a photo of a", "PREC": "fp16", "PROMPT_DEPTH": 9},
    "PROMPTSRC": {"N_CTX_VISION": 4, "N_CTX_TEXT": 4, "CTX_INIT": "a photo of a", "PREC": "fp16",
                  "PROMPT_DEPTH_VISION": 9, "PROMPT_DEPTH_TEXT": 9, "TEXT_LOSS_WEIGHT": 25.0,
                  "IMAGE_LOSS_WEIGHT": 10.0, "GPA_MEAN": 15.0, "GPA_STD": 1.0},
}  # fmt: skip
NODES = {"CoOp": "COOP", "CoCoOp": "COCOOP", "MaPLe": "MAPLE", "PromptSRC": "PROMPTSRC"}


@pytest.mark.parametrize("prefix", ["", "FDA", "ProxyFDA"])
@pytest.mark.parametrize("name", NODES)
def test_a_trainer_adds_its_options_and_no_others(name, prefix):
    cfg = get_cfg_default()
    plain = set(cfg.TRAINER), set(cfg.MODEL.BACKBONE)
    TRAINER_REGISTRY.get(prefix + name).extend_cfg(cfg)
    node = NODES[name]
    assert dict(cfg.TRAINER[node]) == DEFAULTS[node]
    assert [type(value) for value in cfg.TRAINER[node].values()] == [
        type(value) for value in DEFAULTS[node].values()
    ]  # yacs compares types when it merges
    assert set(cfg.TRAINER) - plain[0] == {node}
    assert set(cfg.MODEL.BACKBONE) - plain[1] == {"WEIGHTS", "GRAD_CHECKPOINTING"}
    assert (cfg.MODEL.BACKBONE.WEIGHTS, cfg.MODEL.BACKBONE.GRAD_CHECKPOINTING) == ("openai", False)


@pytest.mark.parametrize("name", [*NODES, "ZeroshotCLIP"])
def test_options_that_are_set_already_stay(name):
    cfg = get_cfg_default()
    trainer = TRAINER_REGISTRY.get(name)
    trainer.extend_cfg(cfg)
    cfg.TRAINER[trainer.config_node].PREC = "amp"
    cfg.MODEL.BACKBONE.WEIGHTS = "mine.pt"
    before = cfg.clone()
    trainer.extend_cfg(cfg)
    assert cfg == before


def test_zero_shot_reads_the_precision_of_coop_whichever_comes_first():
    for names in (["ZeroshotCLIP", "CoOp"], ["CoOp", "ZeroshotCLIP2"]):
        cfg = get_cfg_default()
        for name in names:
            TRAINER_REGISTRY.get(name).extend_cfg(cfg)
        assert dict(cfg.TRAINER.COOP) == DEFAULTS["COOP"]
    cfg = get_cfg_default()
    TRAINER_REGISTRY.get("ZeroshotCLIP").extend_cfg(cfg)
    assert dict(cfg.TRAINER.COOP) == {"PREC": "fp16"}


def test_a_run_has_the_options_of_all_trainers():
    cfg = default_config()
    for node, options in DEFAULTS.items():
        assert dict(cfg.TRAINER[node]) == options


def test_a_config_without_the_node_is_refused_with_the_remedy():
    cfg = get_cfg_default()
    trainer = TRAINER_REGISTRY.get("CoCoOp")
    with pytest.raises(ValueError, match=r"no node TRAINER.COCOOP.*call CoCoOp.extend_cfg\(cfg\)"):
        trainer.check_cfg(trainer.__new__(trainer), cfg)


TOY = """
from proxyfda.dassl import TRAINER_REGISTRY
from trainers.base import PromptTrainer

@TRAINER_REGISTRY.register()
class Toy(PromptTrainer):
    config_node = "TOY"
    defaults = {"PREC": "fp32", "WIDTH": 3}

@TRAINER_REGISTRY.register()
class NothingToTrain(Toy):
    learns = False
"""


def test_a_module_in_the_folder_is_a_trainer_with_its_fda_forms(tmp_path):
    shutil.copytree(ROOT / "trainers", tmp_path / "trainers")
    (tmp_path / "trainers" / "toy.py").write_text(TOY)
    code = """
import datasets
import trainers
from proxyfda.dassl import TRAINER_REGISTRY
from proxyfda.experiments.config import default_config
cfg = default_config()
print(trainers.__file__)
print(*sorted(TRAINER_REGISTRY.registered_names()))
print(dict(cfg.TRAINER.TOY))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    file, names, options = done.stdout.splitlines()
    assert file == str(tmp_path / "trainers" / "__init__.py")
    hosts = ["Toy", *NODES]
    expected = [f"{prefix}{host}" for prefix in ("", "FDA", "ProxyFDA") for host in hosts]
    ours = [name for name in names.split() if re.search("|".join(hosts), name)]
    assert sorted(ours) == sorted(expected)
    assert {"NothingToTrain", "ZeroshotCLIP", "ZeroshotCLIP2"} <= set(names.split())
    assert not re.search("FDA(Zeroshot|Nothing|FDA|Proxy)", names)
    assert options == "{'PREC': 'fp32', 'WIDTH': 3}"
