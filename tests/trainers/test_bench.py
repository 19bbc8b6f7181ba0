"""The benchmark script on the bundled CLIP: it runs, and measures what it says."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables(bench, monkeypatch, capsys):
    words = ["--backbone", "ViT-Bundled", "--classes", "3", "--batch", "2", "--eval-batch", "2"]
    words += [
        "--rounds",
        "1",
        "--cpu-time",
        "--what",
        "step,eval",
        "--opt",
        "TRAINER.MAPLE.PROMPT_DEPTH",
        "3",
    ]
    trainers = ["CoOp", "FDACoCoOp", "ProxyFDAMaPLe"]
    monkeypatch.setattr(sys, "argv", ["bench.py", *trainers, *words])
    assert bench.main() == 0
    out = capsys.readouterr().out
    for table in ("step / bare", "evaluation / bare"):
        rows = out.split(table)[1].split("\n\n")[0].splitlines()
        assert [row.split()[0] for row in rows if row and row[0].isalpha()] == trainers
        ratios = [float(row.split()[3]) for row in rows if row and row[0].isalpha()]
        assert all(value > 0.2 for value in ratios)


@pytest.mark.skipif(sys.platform != "linux", reason="resets the high-water mark through /proc")
def test_peak_memory_is_that_of_the_job():
    code = """
import bench, torch
def job():
    first = torch.ones(32 << 18)  # 32 MiB
    del first
    return torch.ones(64 << 18).sum()
print(bench.peak_memory(job))
"""
    # In a process of its own, as the benchmark does: what this one has freed would be used again.
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=SCRIPT.parent, capture_output=True, text=True, check=True
    )
    assert 60 < float(done.stdout.split()[-1]) < 110


def test_names_are_real_and_distinct(bench):
    names = bench.class_names(1200)
    assert len(set(names)) > 1150 and names[:1] == ["tench"]
