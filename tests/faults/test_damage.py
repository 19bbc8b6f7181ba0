"""Damaged, foreign and not finite files: told in one sentence, and gone around where possible."""

import json
import math
import os
import shutil
import sys
import zipfile

import pytest
import torch
from scenes import EPOCHS, Scenes, left_in

import proxyfda.experiments.run
from proxyfda.dassl import TRAINER_REGISTRY
from proxyfda.experiments.jobs import Job
from proxyfda.experiments.lock import LOCK, OWNER
from proxyfda.utils.errors import NotFinite, UserError, sentence

NAN, INF = float("nan"), float("inf")


class Foreign:
    """An object of a class that no checkpoint needs."""

    def __reduce__(self):
        return print, ("run",)


def changed(path, **parts):
    """Put other values into a checkpoint; a callable is given the former one."""
    content = torch.load(path, weights_only=True)
    for key, value in parts.items():
        content[key] = value(content[key]) if callable(value) else value
    torch.save(content, path)


def spoil_weights(value):
    return lambda state: {key: torch.full_like(old, value) for key, old in state.items()}


def spoil_moment(optimizer):
    state = {0: {"momentum_buffer": torch.zeros(3)}}
    return {**optimizer, "state": state}


DAMAGE = {
    "NaN": lambda path: changed(path, state_dict=spoil_weights(NAN)),
    "infinite": lambda path: changed(path, state_dict=spoil_weights(INF)),
    "no weights": lambda path: changed(path, state_dict=None),
    "weights of texts": lambda path: changed(path, state_dict={"ctx": "x"}),
    "epoch 0": lambda path: changed(path, epoch=0),
    "epoch of another file": lambda path: changed(path, epoch=7),
    "epoch in words": lambda path: changed(path, epoch="two"),
    "optimizer": lambda path: changed(path, optimizer={"state": 1, "param_groups": []}),
    "optimizer list": lambda path: changed(path, optimizer=[1]),
    "momentum": lambda path: changed(path, optimizer=spoil_moment),
    "schedule": lambda path: changed(path, scheduler={"last_epoch": "x"}),
    "schedule without end": lambda path: changed(path, scheduler={"_step_count": 10**12}),
    "generators": lambda path: changed(path, rng={"python": 1}),
    "a generator": lambda path: changed(path, rng=lambda rng: {**rng, "torch": torch.zeros(3)}),
    "extra": lambda path: changed(path, extra=[1]),
    "a list": lambda path: torch.save([1, 2], path),
    "a tensor": lambda path: torch.save(torch.zeros(2), path),
    "a foreign object": lambda path: torch.save({"state_dict": Foreign(), "epoch": 2}, path),
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-900]),
    "first half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "text": lambda path: path.write_text("hello"),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "missing": lambda path: path.unlink(),
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What an undisturbed training leaves, and its folder as it was after the last epoch."""
    return {}


@pytest.fixture
def trained(run, tmp_path, whole, tmp_path_factory):
    """A finished CoOp training without its result, so that it goes on; what it was in `left`."""
    if not whole:
        whole["folder"] = tmp_path_factory.mktemp("trained") / "out"
        run(whole["folder"], "CoOp", *EPOCHS)
        whole["left"] = left_in(whole["folder"])
    out = tmp_path / "out"
    shutil.copytree(whole["folder"], out)
    (out / "result.json").unlink()
    return out


@pytest.mark.parametrize("kind", DAMAGE)
def test_training_goes_on_from_the_last_sound_checkpoint(run, trained, whole, capsys, kind):
    DAMAGE[kind](trained / "prompt_learner" / "model.pth.tar-2")
    if kind == "a folder":  # not ours to remove
        with pytest.raises(UserError, match="tar-2 cannot be written: a folder is where"):
            run(trained, "CoOp", *EPOCHS)
        return
    capsys.readouterr()
    run(trained, "CoOp", *EPOCHS)
    printed = capsys.readouterr().out
    assert "Previous epoch: 1" in printed and "weights_only" not in printed
    assert ("Not going on from model.pth.tar-2: " in printed) == (kind != "missing")
    assert left_in(trained) == expected(whole, trained)


def expected(whole, folder):
    return json.loads(json.dumps(whole["left"]).replace(str(whole["folder"]), str(folder)))


def test_without_any_sound_checkpoint_it_starts_anew(run, trained, whole, capsys):
    for epoch in (1, 2):
        DAMAGE["NaN"](trained / "prompt_learner" / f"model.pth.tar-{epoch}")
    run(trained, "CoOp", *EPOCHS)
    assert "train from scratch" in capsys.readouterr().out
    assert left_in(trained) == expected(whole, trained)


@pytest.mark.parametrize("content", ["", "model.pth.tar-9\n", "\0\xff", "../../x\n"], ids=repr)
def test_a_damaged_pointer(run, trained, whole, content):
    (trained / "prompt_learner" / "checkpoint").write_text(content, encoding="latin-1")
    run(trained, "CoOp", *EPOCHS)
    assert left_in(trained) == expected(whole, trained)


WEIGHTS = [
    "NaN", "infinite", "no weights", "weights of texts", "a list", "a tensor", "a foreign object",
    "empty", "truncated", "first half", "text", "a folder", "missing",
]  # fmt: skip


@pytest.mark.parametrize("kind", WEIGHTS)
def test_evaluating_a_damaged_checkpoint_is_one_sentence(run, trained, tmp_path, kind):
    path = trained / "prompt_learner" / "model.pth.tar-2"
    DAMAGE[kind](path)
    args = ("--eval-only", "--model-dir", trained, "--load-epoch", 2, *EPOCHS)
    with pytest.raises(UserError) as caught:
        run(tmp_path / "tested", "CoOp", *args)
    told = sentence(caught.value)
    assert str(path) in told and "\n" not in told and "weights_only" not in told
    assert not (tmp_path / "tested" / "result.json").exists()


def test_a_compressed_archive_is_not_unpacked(run, trained, capsys):
    path = trained / "prompt_learner" / "model.pth.tar-2"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10_000_000)
        archive.writestr("archive/version", "3")
    run(trained, "CoOp", *EPOCHS)
    assert "compressed archive" in capsys.readouterr().out


REGULARISERS = {
    "empty": lambda path: path.write_bytes(b""),
    "a list": lambda path: torch.save([1], path),
    "a foreign object": lambda path: torch.save({"name": "x", "state": Foreign()}, path),
    "NaN": lambda path: changed(path, state=nan_tensors),
}


def nan_tensors(state):
    if isinstance(state, dict):
        return {key: nan_tensors(value) for key, value in state.items()}
    spoil = isinstance(state, torch.Tensor) and state.is_floating_point()
    return torch.full_like(state, NAN) if spoil else state


@pytest.mark.parametrize("kind", REGULARISERS)
def test_a_damaged_state_of_the_proxies_generator(run, tmp_path, capsys, kind):
    out = tmp_path / "out"
    run(out, "ProxyFDACoOp", *EPOCHS)
    before = left_in(out)
    (out / "result.json").unlink()
    REGULARISERS[kind](out / "regulariser" / "model.pth.tar-2")
    capsys.readouterr()
    run(out, "ProxyFDACoOp", *EPOCHS)
    printed = capsys.readouterr().out
    assert "regulariser/model.pth.tar-2 cannot be read" in printed and "weights_only" not in printed
    assert left_in(out) == before


@pytest.mark.parametrize("kind", ["NaN", "truncated"])
def test_a_damaged_best_model_is_not_kept_for_the_best(run, tmp_path, kind):
    words = (*EPOCHS, "TEST.FINAL_MODEL", "best_val")
    out = tmp_path / "out"
    run(out, "CoOp", *words)
    before = left_in(out)
    (out / "result.json").unlink()
    DAMAGE[kind](out / "prompt_learner" / "model-best.pth.tar")
    run(out, "CoOp", *words)
    assert left_in(out) == before


# -- not finite ---------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_backbone_that_is_not_finite_is_refused(run, tmp_path, tiny_state, value):
    state = {key: old.clone() for key, old in tiny_state.items()}
    state["visual.proj"][0, 0] = value
    torch.save(state, tmp_path / "bad.pt")
    for words in (EPOCHS, ("--eval-only",)):
        with pytest.raises(UserError, match=r"bad.pt has weights that are infinite or NaN \("):
            trainer = "ZeroshotCLIP" if "--eval-only" in words else "CoOp"
            weights = ("MODEL.BACKBONE.WEIGHTS", tmp_path / "bad.pt")
            run(tmp_path / "out", trainer, *words, *weights)
    assert not (tmp_path / "out" / "result.json").exists()


@pytest.mark.parametrize("final", ["last_step", "best_val"])
def test_a_gradient_that_is_not_finite_in_the_last_step(run, tmp_path, monkeypatch, final):
    cls = TRAINER_REGISTRY.get("CoOp")
    update = cls.update

    def spoilt(self):
        if self.epoch == 1 and self.batch_idx == self.num_batches - 1:
            self.model.prompt_learner.ctx.grad.fill_(NAN)
        update(self)

    monkeypatch.setattr(cls, "update", spoilt)
    out = tmp_path / "out"
    with pytest.raises(FloatingPointError, match="epoch 2 has weights|outputs on the val set"):
        run(out, "CoOp", *EPOCHS, "TEST.FINAL_MODEL", final)
    assert not (out / "result.json").exists()
    assert not (out / "prompt_learner" / "model.pth.tar-2").exists()
    monkeypatch.undo()
    run(out, "CoOp", *EPOCHS, "TEST.FINAL_MODEL", final)


def test_outputs_that_are_not_finite_are_not_counted(run, tmp_path, monkeypatch):
    cls = TRAINER_REGISTRY.get("ZeroshotCLIP")
    monkeypatch.setattr(cls, "model_inference", lambda self, x: torch.full((len(x), 6), INF))
    with pytest.raises(FloatingPointError, match="on the test set, so it is not evaluated"):
        run(tmp_path / "out", "ZeroshotCLIP", "--eval-only")
    assert not (tmp_path / "out" / "result.json").exists()


# -- --resume -----------------------------------------------------------------------------------

RESUME = {
    "missing": ("nowhere", (), "does not exist; give the output folder of a training"),
    "empty": ("empty", (), "has no checkpoint; give the output folder"),
    "a file": ("out/config.yaml", (), "is a file; give"),
    "of a model": ("out/prompt_learner", (), r"is the folder of a model.*give the run's: .*/out$"),
    "of another trainer": ("out", ("--regulariser", "rkd"), "of CoOp and this is CoOp with rkd"),
    "past the end": ("out", ("OPTIM.MAX_EPOCH", 1), "is of epoch 2, past OPTIM.MAX_EPOCH 1"),
    "evaluating": ("out", ("--eval-only", "--model-dir", "out"), "is for training, not for --eval"),
}


@pytest.mark.parametrize("kind", RESUME)
def test_what_cannot_be_resumed_is_refused(run, trained, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    folder, words, message = RESUME[kind]
    with pytest.raises(UserError, match=message) as caught:
        flags, options = (words, ()) if str(words[:1]).startswith("('--") else ((), words)
        run(tmp_path / "new", "CoOp", "--resume", folder, *flags, *EPOCHS, *options)
    assert "\n" not in sentence(caught.value)
    assert not list(tmp_path.glob("new/prompt_learner/*"))


def test_a_run_is_resumed_elsewhere_to_the_same_end(run, trained, whole, tmp_path):
    DAMAGE["NaN"](trained / "prompt_learner" / "model.pth.tar-2")
    run(tmp_path / "new", "CoOp", "--resume", trained, *EPOCHS)
    name = "prompt_learner/model.pth.tar-2"
    assert left_in(tmp_path / "new")[name] == whole["left"][name]


def test_nothing_sound_to_resume_is_refused(run, trained, tmp_path):
    for epoch in (1, 2):
        DAMAGE["empty"](trained / "prompt_learner" / f"model.pth.tar-{epoch}")
    with pytest.raises(FileNotFoundError, match="has no checkpoint to go on from"):
        run(tmp_path / "new", "CoOp", "--resume", trained, *EPOCHS)


# -- folders ------------------------------------------------------------------------------------


def test_curves_of_a_training_that_came_to_nothing_stay_with_its_log(run, tmp_path, monkeypatch):
    def diverges(trainer, batch):
        raise NotFinite("the loss is infinite; use a lower OPTIM.LR")

    out = tmp_path / "out"
    monkeypatch.setattr(TRAINER_REGISTRY.get("CoOp"), "forward_backward", diverges)
    with pytest.raises(NotFinite):
        run(out, "CoOp", *EPOCHS, "LOG.WRITERS", "csv")
    assert {"curves.csv", "log.txt"} <= set(os.listdir(out))


def test_a_run_that_was_not_built_claims_nothing(run, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with pytest.raises(UserError):
        run(out, "CoOp", *EPOCHS, "MODEL.BACKBONE.WEIGHTS", "/nowhere.pt")
    assert not list(out.iterdir())  # as it was

    def interrupted(cfg):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(proxyfda.experiments.run, "build_trainer", interrupted)
        run(out, "CoOp", "OPTIM.MAX_EPOCH", "7")
    (out / "curves.csv").write_text("tag,step,value\n")
    (out / "wandb-id").write_text("of the other run")
    assert "MAX_EPOCH: 7" in (out / "config.yaml").read_text()
    run(out, "CoOp", *EPOCHS)
    assert "MAX_EPOCH: 7" not in (out / "config.yaml").read_text()
    assert not {"curves.csv", "wandb-id"} & set(os.listdir(out))
    with pytest.raises(FileExistsError, match="MODEL.INIT_WEIGHTS is '' there and 'x.pt' here"):
        run(out, "CoOp", *EPOCHS, "MODEL.INIT_WEIGHTS", "x.pt")


CONFIGS = ["", "{", "[1]", "7", "a: b: c", "1: 2", "\0", "&a [*a]"]


@pytest.mark.parametrize("content", CONFIGS, ids=repr)
def test_a_damaged_config_beside_work_is_told_and_kept(run, trained, content):
    (trained / "config.yaml").write_text(content)
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="config.yaml is damaged .* restore it") as caught:
        run(trained, "CoOp", *EPOCHS)
    assert "\n" not in sentence(caught.value)
    assert before == {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}


@pytest.fixture
def jobs(argv, images, config, tmp_path):
    """A call of a finished sweep in ``out``, and its folders."""
    scenes = Scenes(argv, images, config, tmp_path / "projects")
    out = tmp_path / "sweep"
    stdout = sys.stdout
    assert scenes.sweep(out) == 0
    sys.stdout = stdout
    return lambda: scenes.sweep(out), sorted(path.parent for path in out.rglob("result.json"))


def test_one_damaged_config_fails_its_own_job_alone(jobs, capsys):
    again, folders = jobs
    (folders[0] / "config.yaml").write_text("{")
    for folder in folders[1:]:
        (folder / "result.json").unlink()
    assert again() == 1
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(told) == 2 and "is damaged" in told[0] and "1 of 4 jobs failed" in told[1]
    assert all((folder / "result.json").exists() for folder in folders)


RESULTS = ["", "[]", "null", '{"accuracy": null}', '{"accuracy": "x"}', '{"accuracy": NaN}',
           '{"accuracy": [1]}', '{"accuracy": 50', '{"accuracy": true}', "[" * 99_999,
           '{"accuracy": 50, "time": {"run": "x"}}', '{"accuracy": 101}', "\0"]  # fmt: skip


@pytest.mark.parametrize("content", RESULTS, ids=lambda text: repr(text[:40]))
def test_a_damaged_result_does_not_count(trained, content):
    (trained / "result.json").write_text(content)
    job = Job("a", str(trained), [], entry="train")
    assert not job.complete and job.damage.startswith(f"{trained}/result.json ")
    assert "\n" not in job.damage


def test_a_sweep_says_which_result_does_not_count(jobs, capsys):
    again, folders = jobs
    good = json.loads((folders[0] / "result.json").read_text())
    (folders[0] / "result.json").write_text(json.dumps({**good, "accuracy": math.nan}))
    capsys.readouterr()
    assert again() == 0
    assert f"{folders[0]}/result.json has accuracy nan; " in capsys.readouterr().out
    assert json.loads((folders[0] / "result.json").read_text())["accuracy"] == good["accuracy"]


def test_locks_do_not_stay_in_completed_folders(jobs):
    again, folders = jobs
    (folders[0] / LOCK).touch()
    (folders[1] / OWNER).write_text('{"pid": 1, "host": "gone", "since": "then"}')
    assert again() == 0
    assert not [path for folder in folders for path in folder.glob("run.lock*")]
