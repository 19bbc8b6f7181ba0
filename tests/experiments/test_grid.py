"""Several settings in one pass against the same settings one by one."""

import sys

import pytest
import torch

import train
from proxyfda.experiments import grid, layout, record, sweep
from proxyfda.experiments import jobs as job_module
from proxyfda.experiments.jobs import DONE, FAILED, Job
from proxyfda.utils.errors import BadValue

P = "TRAINER.PROXYFDA."
SETTINGS = {
    "plain": ["CoOp", []],
    "pointwise": ["CoOp", ["--regulariser", "pointwise"], P + "WEIGHT", 3],
    "rkd": ["CoOp", ["--regulariser", "rkd"], P + "SPACES", "text,cross", P + "WEIGHT", 0.1],
    "fda-cross": ["FDACoOp", [], P + "SPACES", "cross", P + "K", 2, P + "WEIGHT", 0.5],
    "fda-lr": ["FDACoOp", [], P + "K", 3, P + "TAU", 0.2, "OPTIM.LR", 0.0005],
    "proxy_fda": ["ProxyFDACoOp", [], P + "K", 2],
    "l2sp": ["CoOp", ["--regulariser", "l2sp"], P + "WEIGHT", 30],
}


# Rounding grows with the steps: the random CLIP's loss is rough.
SMALL_STEPS = ["OPTIM.LR", 0.001, "OPTIM.MAX_EPOCH", 3]


def learned(folder, epoch=3):
    path = folder / "prompt_learner" / f"model.pth.tar-{epoch}"
    return torch.load(path, weights_only=False)["state_dict"]["ctx"]


def generators(folder, epoch=3):
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
    "initial words, two settings at a time": ["TRAINER.COOP.GRID_MEMORY", 5e-4],
    "random context, mined batches": [
        "TRAINER.COOP.CTX_INIT", "", "TRAINER.COOP.N_CTX", 3, "DATASET.NUM_SHOTS", 4,
        P + "M", 3, P + "N", 2, P + "MINING", True,
    ],
    "a context per class": ["TRAINER.COOP.CSC", True, "TRAINER.COOP.CTX_INIT", ""],
    "class in the middle, best epoch": [
        "TRAINER.COOP.CLASS_TOKEN_POSITION", "middle", "TEST.FINAL_MODEL", "best_val",
    ],
}  # fmt: skip


@pytest.mark.parametrize("words", OPTIONS.values(), ids=OPTIONS)
def test_a_grid_gives_what_single_runs_give(run, run_grid, tmp_path, words):
    names = SETTINGS if "TRAINER.COOP.GRID_MEMORY" in words else ("rkd", "proxy_fda", "fda-cross")
    several = {
        name: [trainer, *regulariser, *SMALL_STEPS, *own, *words]
        for name in names
        for trainer, regulariser, *own in [SETTINGS[name]]
    }
    found = run_grid(tmp_path / "grid", several)
    for name, (trainer, *own) in several.items():
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


FEW = {name: [*SETTINGS[name][0:1], *SETTINGS[name][1], *SETTINGS[name][2:]]
       for name in ("plain", "rkd", "proxy_fda")}  # fmt: skip


@pytest.mark.parametrize("stop", ["in an epoch", "between checkpoints", "at the first ones"])
def test_an_interrupted_grid_goes_on_as_if_nothing_had_happened(
    run_grid, tmp_path, monkeypatch, stop
):
    from trainers.coop import CoOp

    words = [*SMALL_STEPS, "TEST.FINAL_MODEL", "best_val"]
    whole = run_grid(tmp_path / "whole", FEW, *words)
    steps, saved = [], []
    forward_backward, save_model = CoOp.forward_backward, CoOp.save_model

    def counted_step(self, batch):
        steps.append(1)
        if stop == "in an epoch" and len(steps) == 40:
            raise KeyboardInterrupt
        return forward_backward(self, batch)

    def counted_save(self, epoch, directory, *args, **kwargs):
        saved.append(epoch)
        if (stop == "between checkpoints" and saved.count(1) > 2) or (
            stop == "at the first ones" and len(saved) > 2
        ):
            raise KeyboardInterrupt
        save_model(self, epoch, directory, *args, **kwargs)

    monkeypatch.setattr(CoOp, "forward_backward", counted_step)
    monkeypatch.setattr(CoOp, "save_model", counted_save)
    with pytest.raises(KeyboardInterrupt):
        run_grid(tmp_path / "cut", FEW, *words)
    monkeypatch.undo()
    assert len(steps) < 3 * 8 * 3
    found = run_grid(tmp_path / "cut", FEW, *words)
    for name in FEW:
        cut, uncut = (learned(tmp_path / kind / name) for kind in ("cut", "whole"))
        assert torch.equal(cut, uncut)
        assert found[name]["accuracy"] == whole[name]["accuracy"]


def test_a_grid_goes_on_from_single_runs_and_its_runs_evaluate_by_themselves(
    run, run_grid, tmp_path, images
):
    trainer, *words = FEW["rkd"]
    alone = run(tmp_path / "alone", trainer, *words, *SMALL_STEPS)
    with_two = {name: FEW[name] for name in ("plain", "rkd")}
    for name, (trainer, *own) in with_two.items():
        run(tmp_path / "grid" / name, trainer, *own, *SMALL_STEPS)
        folder = tmp_path / "grid" / name / "prompt_learner"
        (folder / "model.pth.tar-3").unlink()
        (folder / "checkpoint").write_text("model.pth.tar-2\n")
    found = run_grid(tmp_path / "grid", with_two, *SMALL_STEPS)
    difference = learned(tmp_path / "grid" / "rkd") - learned(tmp_path / "alone")
    assert 0 < difference.abs().max() < 1e-5  # the last epochs were not those of a single run
    again = run(
        tmp_path / "eval", trainer, "--eval-only", "--model-dir", tmp_path / "grid" / "rkd", *words
    )
    assert again["accuracy"] == found["rkd"]["accuracy"] == alone["accuracy"]


def test_images_are_encoded_once_for_all_settings(run_grid, tmp_path, monkeypatch):
    from proxyfda.backbones.clip import ImageEncoder

    seen, forward = [], ImageEncoder.forward

    def counted(self, images, *prompts):
        seen.append(len(images))
        return forward(self, images, *prompts)

    monkeypatch.setattr(ImageEncoder, "forward", counted)
    run_grid(tmp_path, FEW, "OPTIM.MAX_EPOCH", 2, "TEST.FINAL_MODEL", "best_val")
    train, val, test = 6 * 6, 12, 24
    assert sum(seen) == 2 * train + val + test


def test_a_setting_that_diverges_drops_out_and_the_others_go_on(run_grid, run, tmp_path):
    several = {"plain": FEW["plain"], "wild": ["CoOp", "OPTIM.LR", 1e30], "rkd": FEW["rkd"]}
    words = ["OPTIM.WARMUP_EPOCH", 0, "OPTIM.MAX_EPOCH", 2]
    found = run_grid(tmp_path / "grid", several, *words)
    assert "not finite" in str(found["wild"])
    assert not (tmp_path / "grid" / "wild" / layout.RESULT).exists()
    run(tmp_path / "alone", *FEW["rkd"], *words)
    difference = learned(tmp_path / "grid" / "rkd", 2) - learned(tmp_path / "alone", 2)
    assert difference.abs().max() < 1e-3
    assert found["plain"]["accuracy"] >= 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "a grid of no runs"),
        ({"a": ["CoOp"], "b": ["MaPLe"]}, "TRAINER.NAME is 'CoOp'"),
        ({"a": ["MaPLe"], "b": ["MaPLe"]}, "MaPLe cannot train several settings in one pass"),
        ({"a": ["CoOp"], "b": ["CoOp", "TRAINER.COOP.CSC", True]}, "TRAINER.COOP.CSC is False"),
        ({"a": ["CoOp"], "b": ["CoOp", "OPTIM.MAX_EPOCH", 2]}, "OPTIM.MAX_EPOCH is 4"),
        ({"a": ["CoOp"], "b": ["CoOp", "INPUT.TRANSFORMS", "('normalize',)"]}, "INPUT.TRANSFORMS"),
        (
            {"a": ["FDACoOp"], "b": ["FDACoOp", P + "M", 3, P + "N", 2]},
            "b on batches of 3 classes x 2 images",
        ),
        ({"a": ["CoOp"], "b": ["CoOp", "--no-train"]}, "has --no-train"),
        ({"a": ["CoOp"], "b": ["CoOp", "--resume", "x"]}, "has --resume x"),
        ({"a": ["CoOp"], "a/../a": ["CoOp"]}, "two runs of the grid have the output folder"),
        (
            {"a": ["CoOp", "--regulariser", "rkd", P + "SPACES", "image_words"]},
            "a uses TRAINER.PROXYFDA.WORDS",
        ),
        (
            {"a": ["CoOp", "--regulariser", "rkd", P + "MIXED", 4]},
            "a uses TRAINER.PROXYFDA.MIXED",
        ),
        ({"a": ["CoOp", "TRAINER.COOP.GRID_MEMORY", 0]}, "GRID_MEMORY is 0.0; give a number"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_go_together_is_refused_in_one_sentence(run_grid, tmp_path, settings, message):
    with pytest.raises(BadValue) as error:
        run_grid(tmp_path, settings)
    assert message in str(error.value) and "\n" not in str(error.value)


def grid_jobs(argv, top, settings):
    """A training and a test of it for each setting, as an experiment has them."""
    found = []
    for name, (trainer, *words) in settings.items():
        folder, other = str(top / name), str(top / f"{name}-test")
        flags = argv("-", trainer, *words)
        at = flags.index("--output-dir")
        del flags[at : at + 2]
        found.append(Job(f"{name}, train", folder, flags, entry="train", grid="all"))
        test = ["--eval-only", "--model-dir", folder, *flags]
        found.append(Job(f"{name}, test", other, test, after=folder, entry="train"))
    return found


def test_jobs_of_one_grid_run_in_one_pass_with_what_evaluates_them(argv, tmp_path, monkeypatch):
    calls, main_grid = [], train.main_grid
    monkeypatch.setattr(train, "main_grid", lambda runs: calls.append(len(runs)) or main_grid(runs))
    short = ["OPTIM.MAX_EPOCH", 1]
    jobs = grid_jobs(argv, tmp_path, {name: [*FEW[name], *short] for name in ("plain", "rkd")})
    assert sweep.run(jobs) == 0
    assert calls == [2] and all(job.complete for job in jobs)
    assert [sweep.run(jobs), calls] == [0, [2]]
    (tmp_path / "rkd" / layout.RESULT).unlink()
    assert [sweep.run(jobs), calls] == [0, [2, 1]]


def test_trainings_that_can_go_together_are_joined(argv, tmp_path):
    settings = {
        "plain": ["CoOp"],
        "rkd": ["CoOp", "--regulariser", "rkd"],
        "long": ["CoOp", "OPTIM.MAX_EPOCH", 9],
        "other seed": ["CoOp", "--seed", 7],
        "balanced": ["FDACoOp", P + "M", 3, P + "N", 2, P + "K", 3],
        "balanced too": ["FDACoOp", P + "M", 3, P + "N", 2, P + "K", 3, P + "WEIGHT", 2],
        "balanced by K": ["FDACoOp", P + "M", 3, P + "N", 2, P + "K", 2],
        "words": ["CoOp", "--regulariser", "rkd", P + "SPACES", "words"],
        "MaPLe": ["MaPLe"],
        "MaPLe too": ["MaPLe", "--regulariser", "rkd"],
    }
    jobs = grid_jobs(argv, tmp_path, settings)
    for job in jobs:
        job.grid = ""
    grid.join(jobs)
    together = {}
    for job in jobs:
        if job.grid:
            together.setdefault(job.grid, set()).add(job.name.split(",")[0])
    assert sorted(map(sorted, together.values())) == [
        ["balanced", "balanced too"],
        ["plain", "rkd"],
    ]


def test_jobs_share_the_fate_of_their_grid_or_fail_alone(argv, tmp_path, monkeypatch):
    calm = ["CoOp", "OPTIM.MAX_EPOCH", 1]
    wild = [*calm, "OPTIM.LR", 1e30, "OPTIM.WARMUP_EPOCH", 0]
    jobs = grid_jobs(argv, tmp_path / "one", {"calm": calm, "wild": wild})
    outcomes = job_module.run_chain(jobs, quiet=True)
    assert [outcome.status for outcome in outcomes] == [DONE, DONE, FAILED, FAILED]
    assert "not finite" in outcomes[2].why and outcomes[3].why == job_module.UNTRAINED
    jobs = grid_jobs(argv, tmp_path / "two", {"a": calm, "b": [*calm, "INPUT.SIZE", "(9, 9)"]})
    outcomes = job_module.run_chain(jobs, quiet=True)
    assert [outcome.status for outcome in outcomes] == [FAILED] * 4
    assert "INPUT.SIZE is (32, 32)" in outcomes[0].why

    def broken(self, batch):
        raise RuntimeError("a defect")

    monkeypatch.setattr("trainers.coop.CoOp.forward_backward", broken)
    jobs = grid_jobs(argv, tmp_path / "three", {"a": calm, "b": calm})
    outcomes = job_module.run_chain(jobs, quiet=True)
    assert all("a defect (see " in outcome.why for outcome in outcomes[::2])
    assert all("broken" in (tmp_path / "three" / x / layout.ERROR).read_text() for x in "ab")
