"""The folder of a run: what counts as work in it, and what a run of another config finds."""

import os

import pytest
import yaml

from proxyfda.engine.writers import LEFT
from proxyfda.experiments import layout
from proxyfda.experiments.folders import claim, holds_work, refuse_another
from proxyfda.experiments.lock import LOCK, OWNER
from proxyfda.utils.errors import AlreadyExists

BEGINNINGS = [
    layout.CONFIG, layout.ENVIRONMENT, layout.ERROR, layout.LOG, f"{layout.LOG}-2026-01-01",
    f"{layout.TENSORBOARD}/events", *LEFT[:-1], f"{LEFT[-1]}/run-1/files", LOCK, OWNER,
    "model/half.pth.0123abcd.tmp",
]  # fmt: skip


def put(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("theirs")


def changed():
    return ["SEED"], {"SEED": 1}, {"SEED": 2}


@pytest.mark.parametrize("name", BEGINNINGS[:-1])
def test_what_a_run_begins_with_is_no_work(tmp_path, name):
    put(tmp_path, name)
    assert not holds_work(str(tmp_path))
    refuse_another(str(tmp_path), changed)


@pytest.mark.parametrize("name", ["result.json", "model/model.pth.tar-1", "notes.txt", "log.txts"])
def test_what_a_new_run_would_not_write_is_work(tmp_path, name):
    put(tmp_path, *BEGINNINGS, name)
    assert holds_work(str(tmp_path))
    with pytest.raises(AlreadyExists, match="SEED is 1 there and 2 here.; choose another"):
        claim(str(tmp_path), {"SEED": 2}, changed)
    assert (tmp_path / layout.LOG).read_text() == "theirs"


def test_a_run_appends_to_nothing_of_another_one(tmp_path):
    put(tmp_path, *BEGINNINGS[:-1])
    claim(str(tmp_path), {"SEED": 2}, changed)
    assert yaml.safe_load((tmp_path / layout.CONFIG).read_text()) == {"SEED": 2}
    names = os.listdir(tmp_path)
    for name in (layout.LOG, layout.TENSORBOARD, *LEFT):
        assert name not in names and any(one.startswith(f"{name}-20") for one in names)


def test_the_same_run_goes_on_with_its_log_and_curves_and_without_half_files(tmp_path):
    put(tmp_path, *BEGINNINGS, "model/model.pth.tar-1")
    claim(str(tmp_path), {"SEED": 2}, lambda: ([], {"SEED": 2}, {"SEED": 2}))
    assert {layout.LOG, *LEFT} <= set(os.listdir(tmp_path))
    assert os.listdir(tmp_path / "model") == ["model.pth.tar-1"]
