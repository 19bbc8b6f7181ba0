"""Several settings in one pass against the same settings one by one."""

import sys

import pytest
import torch

import train
from proxyfda.experiments import jobs as job_module
from proxyfda.experiments import layout, record
from proxyfda.experiments.jobs import DONE, FAILED, Job
from proxyfda.utils.errors import BadValue

P = "TRAINER.PROXYFDA."
SETTINGS = {
    "plain": ["CoOp", []],
    "pointwise": ["CoOp", ["--regulariser", "pointwise"], P + "WEIGHT", 3],
    "rkd": ["CoOp", ["--regulariser", "rkd"], P + "SPACES", "text,cross"],
    "fda-cross": ["FDACoOp", [], P + "SPACES", "cross", P + "K", 2, P + "WEIGHT", 0.5],
    "fda-lr": ["FDACoOp", [], P + "K", 3, P + "TAU", 0.2, "OPTIM.LR", 0.002],
    "proxy_fda": ["ProxyFDACoOp", [], P + "K", 2],
    "l2sp": ["CoOp", ["--regulariser", "l2sp"], P + "WEIGHT", 30],
}


# Rounding grows with the steps: the random CLIP's loss is rough.
SMALL_STEPS = ["OPTIM.LR", 0.005]


def learned(folder, epoch=4):
    path = folder / "prompt_learner" / f"model.pth.tar-{epoch}"
    return torch.load(path, weights_only=False)["state_dict"]["ctx"]


def generators(folder, epoch=4):
    path = folder / "regulariser" / f"model.pth.tar-{epoch}"
    state = torch.load(path, weights_only=True)["state"]
    return {
        (space, name): value
        for space, own in state.items()
        for name, value in own["regulariser"].items()
    }


@pytest.fixture
def parsed(argv):
    """The command line of a setting, read."""
    return lambda folder, words, **more: train.parser().parse_args(argv(folder, *words, **more))


@pytest.fixture
def run_grid(parsed, monkeypatch):
    """Train settings in one pass, in folders of their own below one."""

    def call(top, settings, *words, **more):
        monkeypatch.setattr(sys, "stdout", sys.stdout)
        runs = [parsed(top / name, [*own, *words], **more) for name, own in settings.items()]
        return dict(zip(settings, train.main_grid(runs)))

    return call


OPTIONS = {
    "initial words": [],
    "random context, mined batches": [
        "TRAINER.COOP.CTX_INIT", "", "TRAINER.COOP.N_CTX", 3, "DATASET.NUM_SHOTS", 4,
        P + "M", 3, P + "N", 2, P + "MINING", True,
    ],
    "a context per class": ["TRAINER.COOP.CSC", True, "TRAINER.COOP.CTX_INIT", ""],
    "class in the middle, best epoch": [
        "TRAINER.COOP.CLASS_TOKEN_POSITION", "middle", "TEST.FINAL_MODEL", "best_val",
    ],
    "one setting at a time": ["TRAINER.COOP.GRID_MEMORY", 1e-6],
}  # fmt: skip


@pytest.mark.parametrize("words", OPTIONS.values(), ids=OPTIONS)
def test_a_grid_gives_what_single_runs_give(run, run_grid, tmp_path, words):
    names = SETTINGS if not words else ("rkd", "proxy_fda", "fda-cross")
    several = {
        name: [trainer, *regulariser, *SMALL_STEPS, *own, *words]
        for name in names
        for trainer, regulariser, *own in [SETTINGS[name]]
    }
    found = run_grid(tmp_path / "grid", several)
    for name, (trainer, *own) in several.items():
        DBG = True
        alone = run(tmp_path / "alone" / name, trainer, *own)
        ours, theirs = tmp_path / "grid" / name, tmp_path / "alone" / name
        assert (learned(ours) - learned(theirs)).abs().max() < 1e-5
        assert found[name]["accuracy"] == alone["accuracy"]
        assert found[name]["name"] == alone["name"]
        assert found[name]["regulariser"] == alone["regulariser"]
        assert found[name]["grid"] == len(several) and record.read(str(ours)) == found[name]
        for file in ("config.yaml", "tensorboard", "log.txt", "prompt_learner/checkpoint"):
            assert (ours / file).exists()
    moved = [(learned(tmp_path / "grid" / name) - learned(tmp_path / "grid" / "rkd")).norm()
             for name in several if name != "rkd"]  # fmt: skip
    assert min(moved) > 1e-3
    ours, theirs = (generators(tmp_path / kind / "proxy_fda") for kind in ("grid", "alone"))
    assert ours.keys() == theirs.keys() and len({space for space, _ in ours}) == 2
    # Adam divides by the size of the gradient: rounding of a tiny one is not tiny any more.
    assert all((ours[key] - theirs[key]).abs().max() < 1e-3 for key in ours)
