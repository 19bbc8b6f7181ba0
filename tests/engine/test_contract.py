"""The life of a run on either engine: what Dassl's users rely on, and what Dassl gets wrong.

The same scenario runs on the embedded engine always and on the original Dassl where it can be
imported (put its folder on PYTHONPATH). Expected values are written down here or computed from
Python's own `random` and the closed form of the cosine; none comes from an engine.
"""

import importlib.util
import json
import math
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
NUMBER = r"[\d.]+ \([\d.]+\)"


@pytest.fixture(scope="module", params=["embedded", "dassl"])
def run(request, tmp_path_factory):
    """Folder, report and console output of the scenario on one engine."""
    if request.param == "dassl" and importlib.util.find_spec("dassl") is None:
        pytest.skip("Dassl is not importable")
    folder = tmp_path_factory.mktemp(request.param)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, str(HERE / "scenario.py"), str(folder)],
        env={**os.environ, "PROXYFDA_ENGINE": request.param, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((folder / "report.json").read_text())
    assert report["engine"] == request.param
    return folder, report, done


def log_of(folder, run):
    return (folder / run / "log.txt").read_text().splitlines()


def resumed_log_of(folder, run):
    (path,) = (folder / run).glob("log.txt-????-??-??-??-??-??")
    return path.read_text().splitlines()


def test_the_choice_of_engine_is_printed_once(run):
    _, report, done = run
    assert len(re.findall(rf"^Engine: {report['engine']}", done.stdout, re.M)) == 1


def test_progress_bars_go_to_stderr_only(run):
    folder, _, done = run
    assert "3/3" in done.stderr
    assert not any("it/s" in line for line in log_of(folder, "full"))


def test_few_shot_sampling_follows_python_random(run):
    _, report, _ = run
    random.seed(1)
    for split, key in (("train", "train_x"), ("val", "val")):
        expected = []
        for name in ("red", "green", "blue"):
            expected += random.sample([f"{split}_{name}_{i}.png" for i in range(6)], 4)
        assert report[key] == expected
    assert report["classnames"] == ["red", "green", "blue"]


def test_batch_keys(run):
    assert run[1]["batch_keys"] == ["domain", "img", "impath", "index", "label"]


def test_learning_rates(run):
    cosine = [0.001 * (1 + math.cos(math.pi * epoch / 10)) for epoch in range(9)]
    assert run[1]["full"]["rates"] == pytest.approx([1e-5, *cosine], rel=1e-12)


def test_training_lines(run):
    lines = [line for line in log_of(run[0], "full") if line.startswith("epoch [")]
    assert len(lines) == 30
    for number, line in enumerate(lines):
        epoch, batch = divmod(number, 3)
        assert re.fullmatch(
            rf"epoch \[{epoch + 1}/10\] batch \[{batch + 1}/3\] time {NUMBER} data {NUMBER} "
            rf"loss {NUMBER} acc {NUMBER} lr \d\.\d{{4}}e-\d\d eta 0:00:\d\d",
            line,
        )
    assert " lr 1.0000e-05 " in lines[0]
    assert " lr 2.0000e-03 " in lines[2]  # read after the schedule's step


def test_lines_around_training(run):
    folder, report, _ = run
    text = "\n".join(log_of(folder, "full"))
    data = {
        "dassl": [
            "Building transform_train\n+ random resized crop (size=(8, 8), scale=(0.08, 1.0))",
            "Building transform_test\n+ resize the smaller edge to 8\n+ 8x8 center crop",
            "---------  -------\nDataset    Colours\n# classes  3\n# train_x  12\n# val      12\n"
            "# test     18\n---------  -------",
        ],
        "embedded": [
            "transform_train: random resized crop (size=(8, 8), scale=(0.08, 1.0)), ",
            "transform_test: resize the smaller edge to 8, 8x8 center crop, ",
            "Dataset Colours: 3 classes, 12 images in train_x, 12 images in val, 18 images in test",
        ],
    }
    order = [
        "Loading trainer: Linear",
        "Loading dataset: Colours",
        "Creating a 4-shot dataset",
        *data[report["engine"]],
        "Loading evaluator: Classification",
        "No checkpoint found, train from scratch",
        f"Initialize tensorboard (log_dir={folder / 'full' / 'tensorboard'})",
        "epoch [1/10]",
        f"Checkpoint saved to {folder / 'full' / 'linear' / 'model.pth.tar-10'}",
        "Finish training\nDeploy the last-epoch model\nEvaluate on the *test* set\n=> result",
        "Elapsed: 0:00:0",
    ]
    places = [text.find(piece) for piece in order]
    assert -1 not in places
    assert places == sorted(places)


@pytest.mark.parametrize("name", ["full", "evaluation"])
def test_evaluation_block(run, name):
    folder, report, _ = run
    state = report[name]
    lines = log_of(folder, name)
    start = len(lines) - lines[::-1].index("=> result") - 1
    accuracy = 100 * state["correct"] / 18
    assert lines[start + 1 : start + 5] == [
        "* total: 18",
        f"* correct: {state['correct']}",
        f"* accuracy: {accuracy:.1f}%",
        f"* error: {100 - accuracy:.1f}%",
    ]
    assert re.fullmatch(r"\* macro_f1: \d+\.\d%", lines[start + 5])
    assert lines[start + 6] == "=> per-class result"
    counts = []
    for label, name_ in enumerate(("red", "green", "blue")):
        pattern = rf"\* class: {label} \({name_}\)\ttotal: 6\tcorrect: (\d)\tacc: (\d+\.\d)%"
        count, percent = re.fullmatch(pattern, lines[start + 7 + label]).groups()
        assert float(percent) == pytest.approx(int(count) / 0.06, abs=0.05)
        counts.append(int(count))
    assert sum(counts) == state["correct"]
    assert lines[start + 10] == f"* average: {accuracy:.1f}%"  # classes of equal size
    assert lines[start + 11] == f"Confusion matrix is saved to {folder / name / 'cmat.pt'}"


def test_files_of_a_run(run):
    folder = run[0]
    assert sorted(p.name for p in (folder / "full").iterdir()) == [
        "cmat.pt",
        "linear",
        "log.txt",
        "tensorboard",
    ]
    assert sorted(p.name for p in (folder / "full" / "linear").iterdir()) == [
        "checkpoint",
        "model.pth.tar-10",
    ]
    assert (folder / "full" / "linear" / "checkpoint").read_text() == "model.pth.tar-10\n"
    assert sorted(p.name for p in (folder / "cut" / "linear").iterdir()) == [
        "checkpoint",
        "model.pth.tar-10",
        "model.pth.tar-2",
        "model.pth.tar-4",
        "model.pth.tar-6",
        "model.pth.tar-8",
    ]


def test_checkpoints_load_as_plain_data(run):
    saved = torch.load(run[0] / "full" / "linear" / "model.pth.tar-10", weights_only=True)
    assert {"state_dict", "epoch", "optimizer", "scheduler", "val_result"} <= set(saved)
    assert saved["epoch"] == 10
    assert saved["extra"] == {"seen": 120}
    assert list(saved["state_dict"]) == ["2.weight", "2.bias"]


def test_tensorboard_curves(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run[0] / "full" / "tensorboard"))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == [
        "test/accuracy",
        "test/error_rate",
        "test/macro_f1",
        "test/perclass_accuracy",
        "train/acc",
        "train/loss",
        "train/lr",
    ]
    assert len(events.Scalars("train/loss")) == 30


@pytest.mark.parametrize(
    ("whole", "cut", "repeated"),
    [
        pytest.param("full", "cut", 4, id="checkpoint_every_second_epoch"),
        pytest.param("best", "best_cut", 4, id="best_val"),
    ],
)
def test_an_interrupted_run_ends_as_if_it_had_not_been(run, whole, cut, repeated):
    folder, report, _ = run
    expected, resumed = report[whole], report[cut]
    for key in ("weights", "seen", "best_result", "correct"):
        assert resumed[key] == expected[key], key
    assert resumed["rates"] == expected["rates"][repeated:]
    assert resumed["val_results"] == expected["val_results"][repeated:]
    log = resumed_log_of(folder, cut)
    assert f"Found checkpoint at {folder / cut} (will resume training)" in log
    assert f"Previous epoch: {repeated}" in log

    def losses(lines):
        found = [re.match(r"(epoch .*?) time .* (loss .*) eta", line) for line in lines]
        return [match.groups() for match in found if match]

    assert losses(log) == losses(log_of(folder, whole))[3 * repeated :]


def test_best_model_is_deployed(run):
    folder, report, _ = run
    path = folder / "best" / "linear" / "model-best.pth.tar"
    saved = torch.load(path, weights_only=True)
    results = report["best"]["val_results"]
    assert saved["epoch"] == results.index(max(results)) + 1
    assert saved["val_result"] == report["best"]["best_result"] == max(results)
    log = log_of(folder, "best")
    at = log.index("Deploy the model with the best val performance")
    line = f'Loading weights to linear from "{path}" (epoch = {saved["epoch"]})'
    assert log[at + 1] == line


def test_evaluation_without_an_epoch_takes_the_last_checkpoint(run):
    folder, report, _ = run
    assert report["evaluation"]["weights"] == report["full"]["weights"]
    assert report["evaluation"]["correct"] == report["full"]["correct"]
    assert report["accuracy"] == 100 * report["full"]["correct"] / 18
    (line,) = (line for line in log_of(folder, "evaluation") if line.startswith("No model-best"))
    assert line.endswith("taking the last checkpoint saved: model.pth.tar-10")


def test_a_loss_that_is_not_finite_stops_the_run(run):
    assert "epoch 2, batch 1 " in run[1]["nan"]
