"""Where curves go, and that what there is not is refused before anything runs."""

import csv
import sys
import types

import pytest
from yacs.config import CfgNode

from proxyfda.engine import writers
from proxyfda.engine.writers import LOG, Writers, named_writers
from proxyfda.utils.errors import BadValue, NotInstalled


def config(words):
    return CfgNode({"SEED": 1, "LOG": {**LOG, "WRITERS": words}})


def rows(folder):
    with open(folder / "curves.csv", newline="") as file:
        return list(csv.reader(file))


def write(folder, *points, words="csv"):
    one = Writers(str(folder), config(words))
    for point in points:
        one.add_scalar(*point)
    one.close()


@pytest.fixture
def fake(monkeypatch):
    """A module that stands in for wandb and notes what it is given."""
    module = types.ModuleType("wandb")
    module.__spec__ = types.SimpleNamespace()
    module.runs = []

    class Run:
        def __init__(self, **given):
            self.given, self.points, self.over, self.finished = given, [], {}, False
            self.id = given["id"] or f"id{len(module.runs)}"

        def define_metric(self, name, step_metric):
            self.over[name] = step_metric

        def log(self, values):
            self.points.append(values)

        def finish(self):
            self.finished = True

    def init(**given):
        module.runs.append(Run(**given))
        return module.runs[-1]

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_csv_has_a_row_for_each_point_and_is_gone_on_with(tmp_path):
    write(tmp_path, ("train/loss", 1.5, 0), ("train/lr", 0.1, 0))
    write(tmp_path, ("train/loss", 1.25, 1))
    assert rows(tmp_path) == [
        ["tag", "step", "value"], ["train/loss", "0", "1.5"], ["train/lr", "0", "0.1"],
        ["train/loss", "1", "1.25"],
    ]  # fmt: skip


def test_half_a_row_of_a_run_that_was_killed_is_cut_off(tmp_path):
    write(tmp_path, ("train/loss", 1.5, 0))
    with open(tmp_path / "curves.csv", "a") as file:
        file.write("train/lo")
    write(tmp_path, ("train/loss", 1.25, 1))
    assert rows(tmp_path)[1:] == [["train/loss", "0", "1.5"], ["train/loss", "1", "1.25"]]


def test_wandb_gets_a_point_for_each_step(fake, tmp_path):
    write(
        tmp_path, ("train/loss", 1.5, 0), ("train/acc", 50.0, 0), ("train/loss", 1.0, 1),
        ("val/accuracy", 80.0, 0), words="wandb",
    )  # fmt: skip
    (run,) = fake.runs
    assert run.points == [
        {"train/step": 0, "train/loss": 1.5, "train/acc": 50.0},
        {"train/step": 1, "train/loss": 1.0},
        {"val/epoch": 0, "val/accuracy": 80.0},
    ]
    assert run.over["train/*"] == "train/step" and run.over["val/*"] == "val/epoch"
    assert run.finished and run.given["project"] == "proxyfda"
    assert run.given["config"] == {"SEED": 1, "LOG": {**LOG, "WRITERS": "wandb"}}
    assert type(run.given["config"]["LOG"]) is dict


def test_wandb_goes_on_with_the_run_of_the_folder(fake, tmp_path):
    write(tmp_path / "a", ("train/loss", 1.5, 0), words="wandb")
    write(tmp_path / "a", ("train/loss", 1.0, 1), words="wandb")
    write(tmp_path / "b", ("train/loss", 1.0, 1), words="wandb")
    assert [run.given["id"] for run in fake.runs] == [None, "id0", None]
    assert {run.given["resume"] for run in fake.runs} == {"allow"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [("", []), ("csv", ["csv"]), ("tensorboard,csv", ["tensorboard", "csv"]),
     (" csv  csv ", ["csv"])],
)  # fmt: skip
def test_names(words, expected):
    assert named_writers(words) == expected


def test_an_unknown_writer_is_refused_in_one_sentence():
    with pytest.raises(BadValue, match="there is no 'cvs' .did you mean 'csv'"):
        named_writers("tensorboard,cvs")


def test_wandb_that_is_not_installed_is_one_sentence(monkeypatch):
    monkeypatch.setattr(writers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NotInstalled, match="pip install wandb, or leave it out"):
        named_writers("csv,wandb")


def test_defaults_of_dassl_alone_mean_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    one = Writers(str(tmp_path), CfgNode({"SEED": 1}))
    one.add_scalar("train/loss", 1.0, 0)
    one.close()
    assert list((tmp_path / "tensorboard").iterdir())
