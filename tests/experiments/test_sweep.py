"""Sweeps: what is run, skipped, waited for and reported."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import train
from proxyfda.experiments import protocols, sweep
from proxyfda.experiments.jobs import BUSY, DONE, FAILED, Job, Outcome
from proxyfda.experiments.lock import LOCK, Busy
from proxyfda.experiments.project import Project
from proxyfda.experiments.time_left import table
from proxyfda.utils.errors import BadValue

ROOT = Path(train.__file__).parent
FOLDER = str(ROOT / "configs/datasets/folder.yaml")
HOLD = """
import sys
from proxyfda.experiments.lock import folder_lock
with folder_lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def make_jobs(images, config, tmp_path):
    """Jobs of base2new on the tiny setting."""
    folder = tmp_path / "configs" / "trainers" / "CoOp"
    folder.mkdir(parents=True)
    (folder / "tiny.yaml").write_text(config.read_text())
    project = Project(str(tmp_path), entry="train")

    def make(*trainers, opts=(), seed=1):
        where = {"data": str(images), "output": str(tmp_path / "out"), "cfg": "tiny"}
        where["project"] = project
        opts = [*map(str, opts)]
        return [
            job
            for trainer in trainers
            for job in protocols.base2new_jobs(trainer, FOLDER, seed, shots=4, opts=opts, **where)
        ]

    return make


@pytest.fixture
def fake_jobs(images, config, tmp_path, monkeypatch):
    """Jobs that write their result at once; ``make.fail`` names folders whose job fails."""
    ran = []

    def fake_main(args):
        name = os.path.basename(args.output_dir)
        ran.append(name)
        if name in make.fail:
            raise BadValue(f"{name} went wrong")
        result = {"accuracy": 50.0, "time": {"run": 1.0}}
        Path(args.output_dir, "result.json").write_text(json.dumps(result))

    monkeypatch.setattr(train, "main", fake_main)
    words = ["--trainer", "CoOp", "--dataset-config-file", FOLDER]

    def make(*names, after=""):
        after = after and str(tmp_path / after)
        return [Job(name, str(tmp_path / name), list(words), after, "train") for name in names]

    make.fail, make.ran = (), ran
    return make


def stamps(jobs):
    return {job.folder: os.stat(job.folder + "/result.json").st_mtime_ns for job in jobs}


@pytest.fixture
def lock_for():
    """Lock a folder by another process, which is returned; ended by closing its input."""
    started = []

    def lock(folder):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(folder)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        started.append(process)
        assert process.stdout.readline().strip() == b"held"
        return process

    yield lock
    for process in started:
        process.kill()
        process.wait()


# -- a sweep ------------------------------------------------------------------------------------


def test_base2new_trains_tests_and_skips_what_is_complete(make_jobs, tmp_path, capsys):
    todo = make_jobs("ZeroshotCLIP", "CoOp", "FDACoOp")
    assert sweep.run(todo) == 0
    tail = "folder/shots_4/FDACoOp/tiny/seed1/result.json"
    base = json.loads((tmp_path / "out/base2new/train_base" / tail).read_text())
    new = json.loads((tmp_path / "out/base2new/test_new" / tail).read_text())
    assert (base["subsample"], new["subsample"]) == ("base", "new")
    assert base["total"] == new["total"] == 12
    assert not list((tmp_path / "out").rglob(LOCK))
    before = stamps(todo)
    capsys.readouterr()
    assert sweep.run(make_jobs("ZeroshotCLIP", "CoOp", "FDACoOp")) == 0
    assert "6 of 6 jobs are complete already" in capsys.readouterr().out
    assert stamps(todo) == before


@pytest.mark.parametrize("content", [None, "", '{"accuracy": 50.', "[]"], ids=repr)
def test_a_folder_without_a_whole_result_is_not_complete(fake_jobs, content):
    (job,) = fake_jobs("a")
    os.makedirs(job.folder)
    if content is not None:
        Path(job.folder, "result.json").write_text(content)
    assert not job.complete
    assert sweep.run([job]) == 0
    assert job.complete and fake_jobs.ran == ["a"]


def test_complete_jobs_of_another_config_are_not_taken_for_these(make_jobs, capsys):
    assert sweep.run(make_jobs("ZeroshotCLIP")) == 0
    assert sweep.run(make_jobs("ZeroshotCLIP", opts=("INPUT.INTERPOLATION", "bilinear"))) == 1
    assert "INTERPOLATION is 'bicubic' there and 'bilinear' here" in capsys.readouterr().err
    with pytest.raises(FileExistsError, match="INTERPOLATION is 'bicubic' there"):
        sweep.run(make_jobs("ZeroshotCLIP", opts=("INPUT.INTERPOLATION", "nearest")), strict=True)


def test_a_failing_job_is_reported_and_the_others_go_on(fake_jobs, capsys):
    fake_jobs.fail = ("train",)
    todo = fake_jobs("train") + fake_jobs("test", after="train") + fake_jobs("other")
    assert sweep.run(todo) == 1
    told = capsys.readouterr().err
    assert "error: train: train went wrong" in told
    assert "error: test: the training that it builds on failed" in told
    assert "2 of 3 jobs failed" in told
    assert fake_jobs.ran == ["train", "other"]
    fake_jobs.fail = ()
    assert sweep.run(todo) == 0
    assert fake_jobs.ran[2:] == ["train", "test"]


def test_an_unforeseen_error_leaves_its_traceback_until_the_job_succeeds(
    fake_jobs, monkeypatch, capsys
):
    (job,) = fake_jobs("a")
    good = train.main
    monkeypatch.setattr(train, "main", lambda args: [][1])
    assert sweep.run([job]) == 1
    report = Path(job.folder, "error.txt")
    assert f"IndexError: list index out of range (see {report})" in capsys.readouterr().err
    assert "Traceback" in report.read_text()
    monkeypatch.setattr(train, "main", good)
    assert sweep.run([job]) == 0 and not report.exists()


def test_a_wrong_option_is_reported_before_anything_runs(fake_jobs):
    todo = fake_jobs("a", "b")
    todo[1].flags += ["OPTIM.LRR", "1"]
    with pytest.raises(ValueError, match="'OPTIM.LRR' is no option"):
        sweep.run(todo)
    assert fake_jobs.ran == []


def test_a_dry_run_writes_nothing(make_jobs, tmp_path, capsys):
    assert sweep.run(make_jobs("CoOp"), dry_run=True) == 0
    printed = capsys.readouterr().out
    assert "to run: CoOp folder seed 1, train_base" in printed and "--eval-only" in printed
    assert not (tmp_path / "out").exists()


def test_progress_tells_the_time_left(tmp_path, capsys, monkeypatch):
    clock = itertools.count(0.0, 20.0)
    monkeypatch.setattr(sweep.time, "monotonic", lambda: next(clock))
    todo = [Job(n, str(tmp_path / n), ["--trainer", "CoOp"]) for n in ("a", "b", "c", "d")]
    progress = sweep._Progress(todo)
    progress.start(0)
    for job in todo[:2]:
        os.makedirs(job.folder)
        result = {"accuracy": 71.234, "time": {"build": 4, "run": 36}}
        Path(job.folder, "result.json").write_text(json.dumps(result))
    progress.stop()
    lines = capsys.readouterr().out.splitlines()
    # 40 s of work in the first 20 s, then 80 s in 40 s: two at a time, so 2 x 40 s take 40 s
    assert lines[0] == "[1 of 4] a: 71.23 % (0:00:40; about 0:01:00 left)"
    assert lines[1] == "[2 of 4] b: 71.23 % (0:00:40; about 0:00:40 left)"


def test_trainings_and_evaluations_are_timed_apart(tmp_path, capsys, monkeypatch):
    clock = itertools.count(0.0, 100.0)
    monkeypatch.setattr(sweep.time, "monotonic", lambda: next(clock))
    test = ["--trainer", "CoOp", "--eval-only"]
    flags = {"a": test[:2], "b": test[:2], "c": test[:2], "x": test, "y": test}
    todo = [Job(name, str(tmp_path / name), words) for name, words in flags.items()]
    progress = sweep._Progress(todo)
    progress.start(0)
    for name, seconds in (("a", 100), ("x", 10)):
        os.makedirs(tmp_path / name)
        result = {"accuracy": 50.0, "time": {"run": seconds}}
        (tmp_path / name / "result.json").write_text(json.dumps(result))
        progress._look()
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("about 0:03:20 left (trainings 0:03:20, evaluations not measured yet))")
    # 110 s of work in 200 s; two trainings of 100 s and an evaluation of 10 s are left
    assert second.endswith("about 0:06:22 left (trainings 0:06:04, evaluations 0:00:18))")
    kinds = {line.split()[0]: line.split()[1:] for line in table(todo, 2).splitlines()}
    assert kinds["trainings"] == ["1", "2", "0:01:40", "0:03:20"]
    assert kinds["evaluations"] == ["1", "1", "0:00:10", "0:00:10"]
    assert table(todo, 2).endswith("with 2 jobs at a time about 0:01:45")
    assert "not measured yet  ?" in table(todo[1:])


def test_a_line_of_progress_comes_before_the_next_job_begins(fake_jobs, capsys):
    assert sweep.run(fake_jobs("a", "b")) == 0
    lines = [line[:12] for line in capsys.readouterr().out.splitlines()]
    assert lines == ["== a", "[1 of 2] a: ", "== b", "[2 of 2] b: "]


def test_a_line_of_progress_does_not_break_into_a_job_of_this_process(
    fake_jobs, capsys, monkeypatch
):
    (done,) = fake_jobs("a")
    progress = sweep._Progress([done])
    os.makedirs(done.folder)
    Path(done.folder, "result.json").write_text('{"accuracy": 50.0}')
    told = []
    for running in (True, False):
        monkeypatch.setattr(sweep.InThisProcess, "running", running)
        stopped = iter([False, True])
        monkeypatch.setattr(progress._stopped, "wait", lambda _: next(stopped))  # noqa: B023
        progress._watch()
        told.append(capsys.readouterr().out)
    assert told[0] == "" and told[1].startswith("[1 of 1] a: 50.00 %")
    assert not sweep.InThisProcess.between


# -- two sweeps on one output folder ------------------------------------------------------------


def test_what_another_process_runs_is_waited_for_and_not_run_again(
    fake_jobs, monkeypatch, capsys, lock_for
):
    jobs = fake_jobs("train") + fake_jobs("test", after="train") + fake_jobs("other")
    folder = Path(jobs[0].folder)
    other = lock_for(folder)

    def end_the_other(seconds):
        assert fake_jobs.ran == ["other"]
        result = {"accuracy": 1.0, "time": {"run": 1.0}}
        (folder / "result.json").write_text(json.dumps(result))
        other.communicate()

    monkeypatch.setattr(sweep.time, "sleep", end_the_other)
    assert sweep.run(jobs) == 0
    assert fake_jobs.ran == ["other", "test"]
    assert f"waiting: {folder} is in use by process {other.pid}" in capsys.readouterr().out


def test_what_a_killed_process_left_is_run_at_once(fake_jobs, lock_for, capsys):
    (job,) = fake_jobs("a")
    other = lock_for(job.folder)
    other.kill()
    other.wait()
    assert sweep.run([job]) == 0
    assert f"left by process {other.pid}" in capsys.readouterr().out


def test_a_dry_run_tells_what_is_in_use(fake_jobs, lock_for, capsys):
    jobs = fake_jobs("a", "b")
    other = lock_for(jobs[0].folder)
    assert sweep.run(jobs, dry_run=True) == 0
    printed = capsys.readouterr().out
    assert f"in use by process {other.pid}" in printed and "to run: b" in printed
    assert not os.path.exists(jobs[1].folder)


def test_a_run_holds_the_lock_too(run, tmp_path, lock_for):
    other = lock_for(tmp_path / "out")
    before = sorted(os.listdir(tmp_path / "out"))
    with pytest.raises(Busy, match=f"in use by process {other.pid} "):
        run(tmp_path / "out", "ZeroshotCLIP", "--eval-only")
    assert sorted(os.listdir(tmp_path / "out")) == before


# -- chains and processes -----------------------------------------------------------------------


def test_chains_keep_a_training_and_its_tests_together():
    a, b = Job("a", "/a"), Job("b", "/b")
    tests = [Job(n, f"/{n}", after="/a") for n in ("a1", "a2")]
    orphan = Job("c1", "/c1", after="/c")  # its training is complete
    assert sweep._chains([a, tests[0], b, orphan, tests[1]]) == [[a, *tests], [b], [orphan]]


def test_of_a_dead_process_the_running_job_failed_and_the_rest_goes_on(tmp_path):
    done, running, rest = (Job(n, str(tmp_path / n), after="/t") for n in ("a", "b", "c"))
    os.makedirs(done.folder)
    Path(done.folder, "result.json").write_text('{"accuracy": 1.0}')
    outcomes = sweep._of_dead_process([done, running, rest], "killed")
    assert [o.status for o in outcomes] == [DONE, FAILED, BUSY]
    train = Job("t", "/t")
    outcomes = sweep._of_dead_process([train, running], "killed")
    assert outcomes == [Outcome(FAILED, "killed"), Outcome(FAILED, sweep.UNTRAINED)]


@pytest.mark.slow
def test_jobs_in_processes_of_their_own_give_the_same_numbers(make_jobs, tmp_path):
    todo = make_jobs("ProxyFDACoOp")
    assert sweep.run(todo, workers=2) == 0
    parallel = [job.result for job in todo]
    (tmp_path / "out").rename(tmp_path / "parallel")
    assert sweep.run(todo) == 0
    for job, other in zip(todo, parallel):
        assert job.result["correct"] == other["correct"]
