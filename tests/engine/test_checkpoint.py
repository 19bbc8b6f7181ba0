"""Checkpoints: whole or not at all, read without running their content, found by simple rules."""

import os
import pathlib

import pytest
import torch
from torch.optim import lr_scheduler as schedules

from proxyfda.engine import (
    SimpleTrainer,
    TrainerBase,
    build_lr_scheduler,
    build_optimizer,
    find_checkpoint,
    get_cfg_default,
    load_checkpoint,
    load_pretrained_weights,
    resume_from_checkpoint,
    save_checkpoint,
)


def make(epochs=10, warmup=1):
    cfg = get_cfg_default().OPTIM
    cfg.update({"NAME": "sgd", "LR": 0.002, "LR_SCHEDULER": "cosine", "MAX_EPOCH": epochs})
    cfg.update({"WARMUP_EPOCH": warmup, "WARMUP_TYPE": "constant"})
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 2)
    optimizer = build_optimizer(model, cfg)
    return model, optimizer, build_lr_scheduler(optimizer, cfg)


def train(model, optimizer, scheduler, epochs):
    """Steps of SGD; returns the learning rate of each."""
    rates = []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.zero_grad()
        model(torch.ones(1, 2)).square().sum().backward()
        optimizer.step()
        scheduler.step()
    return rates


def state(model, optimizer, scheduler, epoch, schedule_state=None):
    return {
        "state_dict": model.state_dict(),
        "epoch": epoch,
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict() if schedule_state is None else schedule_state,
        "val_result": None,
    }


def pickled_object_state(scheduler):
    """A warm-up schedule's state as the original Dassl saves it: the inner one as an object."""
    plain = {k: v for k, v in vars(scheduler).items() if k not in ("optimizer", "successor")}
    return {**plain, "successor": scheduler.successor}


@pytest.mark.parametrize("origin", ["ours", "dassl", "dassl_without_warmup"])
def test_resuming_continues_the_learning_rate(origin, tmp_path):
    warmup = 0 if origin == "dassl_without_warmup" else 1
    parts = make(warmup=warmup)
    before = train(*parts, 4)
    saved = pickled_object_state(parts[2]) if origin == "dassl" else None
    save_checkpoint(state(*parts, 4, saved), tmp_path)
    if origin == "dassl":  # torch itself refuses such a file
        with pytest.raises(Exception, match="CosineAnnealingLR"):
            torch.load(tmp_path / "model.pth.tar-4", weights_only=True)
    after = train(*parts, 6)
    assert len({*before, *after}) > 8

    model, optimizer, scheduler = make(warmup=warmup)
    assert resume_from_checkpoint(tmp_path, model, optimizer, scheduler) == 4
    assert train(model, optimizer, scheduler, 6) == after
    for ours, theirs in zip(model.parameters(), parts[0].parameters()):
        assert torch.equal(ours, theirs)


def test_the_length_of_the_schedule_comes_from_the_config(tmp_path):
    parts = make(epochs=10)
    train(*parts, 4)
    save_checkpoint(state(*parts, 4), tmp_path)
    longer = make(epochs=20)
    resume_from_checkpoint(tmp_path, *longer)
    assert train(*longer, 16) == train(*make(epochs=20), 20)[4:]


def test_model_alone_can_be_resumed(tmp_path):
    parts = make()
    train(*parts, 2)
    save_checkpoint({"state_dict": parts[0].state_dict(), "epoch": 2}, tmp_path)
    model, optimizer, scheduler = make()
    assert resume_from_checkpoint(tmp_path, model, optimizer, scheduler) == 2
    assert torch.equal(model.weight, parts[0].weight)


class RunsCode:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def test_objects_in_a_checkpoint_are_not_run(tmp_path):
    marker = tmp_path / "ran"
    path = tmp_path / "model.pth.tar-1"
    weights = {"w": torch.ones(2)}
    payload = RunsCode(eval, f"__import__('pathlib').Path({str(marker)!r}).touch()")
    torch.save({"state_dict": weights, "epoch": 1, "scheduler": {"successor": payload}}, path)
    loaded = load_checkpoint(path)
    assert torch.equal(loaded["state_dict"]["w"], weights["w"])
    assert not marker.exists()


def test_system_calls_in_a_checkpoint_are_refused(tmp_path):
    marker = tmp_path / "ran"
    path = tmp_path / "model.pth.tar-1"
    torch.save({"epoch": 1, "scheduler": RunsCode(os.system, f"touch {marker}")}, path)
    with pytest.raises(ValueError, match=r"model.pth.tar-1.*would run or build posix.system"):
        load_checkpoint(path)
    assert not marker.exists()


def spoiled_file(kind, path):
    torch.save({"state_dict": {"w": torch.ones(1000)}}, path)
    content = {"empty": b"", "text": b"hello world", "truncated": path.read_bytes()[:700]}
    path.write_bytes(content[kind])


@pytest.mark.parametrize("kind", ["empty", "text", "truncated"])
def test_spoiled_files_are_named_in_one_sentence(kind, tmp_path):
    path = tmp_path / "model.pth.tar-3"
    spoiled_file(kind, path)
    with pytest.raises(ValueError, match="model.pth.tar-3") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value) and "delete it" in str(caught.value)


@pytest.mark.parametrize("path", [None, "", "nowhere/model.pth.tar-3"])
def test_missing_files(path):
    with pytest.raises(FileNotFoundError):
        load_checkpoint(path)


@pytest.mark.parametrize("fails_at", ["save", "replace"])
def test_an_interrupted_write_leaves_the_previous_checkpoint(fails_at, tmp_path, monkeypatch):
    weights = {"state_dict": {"w": torch.zeros(3)}}
    save_checkpoint({**weights, "epoch": 1}, tmp_path)

    def half_a_file(obj, file):
        file.write(b"half")
        raise KeyboardInterrupt

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if fails_at == "save":
            patch.setattr(torch, "save", half_a_file)
        else:
            patch.setattr(os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint({**weights, "epoch": 2}, tmp_path)
        with pytest.raises(KeyboardInterrupt):  # overwriting is as safe
            save_checkpoint({**weights, "epoch": 1}, tmp_path)
    assert (tmp_path / "checkpoint").read_text() == "model.pth.tar-1\n"
    assert load_checkpoint(tmp_path / "model.pth.tar-1")["epoch"] == 1
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint", "model.pth.tar-1"}
    save_checkpoint({**weights, "epoch": 2}, tmp_path)
    assert load_checkpoint(find_checkpoint(tmp_path.parent, tmp_path.name))["epoch"] == 2


def test_the_pointer_is_written_once_the_checkpoint_is_in_place(tmp_path, monkeypatch):
    moved, replace = [], os.replace

    def recorded(source, target):
        moved.append(pathlib.Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", recorded)
    save_checkpoint({"state_dict": {}, "epoch": 3}, tmp_path, is_best=True)
    assert moved == ["model.pth.tar-3", "checkpoint", "model-best.pth.tar"]


@pytest.mark.parametrize("interrupted", [False, True])
def test_continuing_elsewhere_brings_the_best_model_along(interrupted, tmp_path, monkeypatch):
    trainer = SimpleTrainer.__new__(SimpleTrainer)
    TrainerBase.__init__(trainer)
    trainer.register_model("linear", torch.nn.Linear(2, 2))
    trainer.output_dir, trainer.start_epoch = str(tmp_path / "new"), 3
    source = tmp_path / "old" / "linear" / "model-best.pth.tar"
    save_checkpoint({"state_dict": {}, "epoch": 2}, source.parent, model_name=source.name)
    target = tmp_path / "new" / "linear" / "model-best.pth.tar"
    if interrupted:
        monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            trainer._keep_best_of(str(tmp_path / "old"))
        assert list(target.parent.iterdir()) == []  # half a copy would count as the best model
    else:
        trainer._keep_best_of(str(tmp_path / "old"))
        assert target.read_bytes() == source.read_bytes()
        target.write_bytes(b"better")
        trainer._keep_best_of(str(tmp_path / "old"))
        assert target.read_bytes() == b"better"


def test_what_a_killed_process_left_behind_is_no_checkpoint(tmp_path):
    folder = tmp_path / "prompt_learner"
    save_checkpoint({"state_dict": {}, "epoch": 1}, folder)
    (folder / "model.pth.tar-2.0123abcd.tmp").write_bytes(b"half")
    (folder / "model-best.pth.tar.0123abcd.tmp").write_bytes(b"half")
    found = find_checkpoint(tmp_path, "prompt_learner")
    assert found == str(folder / "model.pth.tar-1")
    with pytest.raises(FileNotFoundError, match=r"\(there: model.pth.tar-1\)"):
        find_checkpoint(tmp_path, "prompt_learner", 2)
    assert resume_from_checkpoint(folder, torch.nn.Sequential()) == 1


def test_saving_strips_the_data_parallel_prefix_and_copies_the_best(tmp_path):
    weights = {"module.w": torch.ones(1)}
    given = {"state_dict": weights, "epoch": 3}
    save_checkpoint(given, tmp_path, is_best=True)
    assert given["state_dict"] is weights
    for name in ("model.pth.tar-3", "model-best.pth.tar"):
        assert list(load_checkpoint(tmp_path / name)["state_dict"]) == ["w"]


def test_finding_a_checkpoint(tmp_path, capsys):
    folder = tmp_path / "prompt_learner"
    for epoch in (1, 2):
        save_checkpoint({"state_dict": {}, "epoch": epoch}, folder)
    capsys.readouterr()
    assert find_checkpoint(tmp_path, "prompt_learner", 1) == str(folder / "model.pth.tar-1")
    assert capsys.readouterr().out == ""
    assert find_checkpoint(tmp_path, "prompt_learner") == str(folder / "model.pth.tar-2")
    assert "model.pth.tar-2" in capsys.readouterr().out
    save_checkpoint({"state_dict": {}, "epoch": 1}, folder, model_name="model-best.pth.tar")
    assert find_checkpoint(tmp_path, "prompt_learner") == str(folder / "model-best.pth.tar")
    with pytest.raises(FileNotFoundError, match=r"model.pth.tar-7.*model.pth.tar-1"):
        find_checkpoint(tmp_path, "prompt_learner", 7)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        find_checkpoint(tmp_path / "elsewhere", "prompt_learner")


def test_pretrained_weights_load_where_they_fit(tmp_path):
    path = tmp_path / "weights"
    model = torch.nn.Linear(2, 2)
    torch.save({"module.weight": torch.ones(2, 2), "bias": torch.ones(5)}, path)
    bias = model.bias.clone()
    load_pretrained_weights(model, path)
    assert torch.equal(model.weight, torch.ones(2, 2)) and torch.equal(model.bias, bias)
    torch.save({"state_dict": {"other": torch.ones(1)}}, path)
    with pytest.raises(ValueError, match="Nothing in"):
        load_pretrained_weights(model, path)


def test_a_checkpoint_of_another_model_is_refused_in_one_sentence(tmp_path):
    save_checkpoint({"state_dict": {"other": torch.ones(1)}, "epoch": 1}, tmp_path)
    with pytest.raises(ValueError, match="do not fit the model") as caught:
        resume_from_checkpoint(tmp_path, torch.nn.Linear(2, 2))
    assert "\n" not in str(caught.value)


def test_the_inner_schedule_is_really_an_object_in_the_dassl_case():
    assert isinstance(pickled_object_state(make()[2])["successor"], schedules.CosineAnnealingLR)
