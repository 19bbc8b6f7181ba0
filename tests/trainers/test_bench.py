"""The benchmark script on the bundled CLIP: it runs, and measures what it says."""

import importlib.util
import json
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


@pytest.fixture
def study(bench, monkeypatch, tmp_path):
    """Run a study with what a checkout's run would take and leave, in place of running it."""
    import bench_study

    calls = []

    def timed(root, words, threads):
        calls.append((root, words))
        output = Path(words[words.index("--output") + 1], "base2new", "run")
        output.mkdir(parents=True)
        ours = root == str(SCRIPT.parent.parent)
        (output / "result.json").write_text(json.dumps({"accuracy": 50.0 if ours else 50.25}))
        return (10.0, 8.0) if ours else (20.0, 24.0)

    def run(*words):
        argv = ["bench.py", "CoOp", "FDACoOp", "--study", "--backbone", "ViT-Bundled"]
        argv += ["--classes", "3", "--shots", "2", "--tested", "1", "--rounds", "2", *words]
        monkeypatch.setattr(sys, "argv", argv)
        monkeypatch.setattr(bench_study, "timed", timed)
        return bench.main(), calls

    return run


def test_a_study_takes_turns_with_another_checkout(study, capsys, tmp_path):
    other = tmp_path / "other"
    (other / "scripts").mkdir(parents=True)
    (other / "scripts" / "run.py").write_text("")
    code, calls = study("--against", str(other))
    here = str(SCRIPT.parent.parent)
    assert code == 0 and [root for root, _ in calls] == [here, str(other), str(other), here]
    for _, words in calls:
        assert words[:2] == ["base2new", "CoOp,FDACoOp"] and words[4] == "2"
    assert len({tuple(words[:-1]) for _, words in calls}) == 1  # all but the folder of the output
    text = capsys.readouterr().out
    assert next(line for line in text.splitlines() if "against" in line).split()[1:] == [
        "20.0", "24.0", "2.00", "3.00",
    ]  # fmt: skip
    assert "accuracies of 1 runs differ by at most 0.25 points" in text


def test_what_a_study_cannot_be_is_one_sentence(study, bench, tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="holds no scripts/run.py; give the folder of a"):
        study("--against", str(tmp_path))
    for words, message in (
        (["--classes", "1"], "use at least 2"),
        (["--shots", "0"], "at least 1"),
    ):
        with pytest.raises(SystemExit):
            study(*words)
        assert message in capsys.readouterr().err


def test_images_of_a_study_are_the_same_every_time(bench, tmp_path):
    from bench_study import write_images

    for name in ("a", "b"):
        write_images(str(tmp_path / name), 2, 2, 1, 32)
    first, second = (
        {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*.jpg")}
        for name in ("a", "b")
    )
    assert first == second and len(set(first.values())) == 6
