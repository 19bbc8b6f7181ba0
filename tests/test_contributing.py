"""The worked examples of CONTRIBUTING.md, in a copy of the repository."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = dict(
    re.findall(
        r"<!-- file: (\S+) -->\n```python\n(.*?)```",
        (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"),
        re.DOTALL,
    )
)
PARTS = ("proxyfda", "trainers", "datasets", "configs", "train.py", "pyproject.toml")


@pytest.fixture
def copy(tmp_path):
    """A copy of what is needed, with the files of the examples added."""
    for part in PARTS:
        source, target = ROOT / part, tmp_path / part
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, target)
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def run(copy, *command):
    done = subprocess.run(
        [sys.executable, *command], cwd=copy, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_the_examples_are_there():
    assert sorted(FILES) == [
        "proxyfda/regularisers/centre.py",
        "tests/regularisers/test_centre.py",
        "trainers/smooth_coop.py",
    ]


@pytest.mark.slow
def test_a_regulariser_is_one_file_and_one_test(copy):
    run(copy, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", ".", "tests/regularisers")
    run(copy, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", ".", "--doctest-modules",
        "proxyfda/regularisers/centre.py")  # fmt: skip


@pytest.mark.slow
def test_both_examples_train_together(copy, bundled_data):
    config = copy / "configs" / "trainers" / "CoOp" / "bundled.yaml"
    own = copy / "configs" / "trainers" / "SmoothCoOp" / "bundled.yaml"
    own.parent.mkdir()
    own.write_text(config.read_text().replace("COOP:", "SMOOTHCOOP:"))
    out = run(
        copy, "train.py", "--root", str(bundled_data), "--seed", "1", "--trainer", "SmoothCoOp",
        "--regulariser", "centre", "--config-file", str(own), "--dataset-config-file",
        "configs/datasets/bundled_fruits.yaml", "--output-dir", "out", "DATASET.NUM_SHOTS", "1",
        "OPTIM.MAX_EPOCH", "1", "TRAIN.PRINT_FREQ", "1", "TRAINER.PROXYFDA.POWER", "1.0",
        "TRAINER.SMOOTHCOOP.SMOOTHING", "0.2", "TEST.NO_TEST", "True",
    )  # fmt: skip
    assert "loss_centre" in out
