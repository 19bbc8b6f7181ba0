"""The runner: sweeps, launchers, protocols and the command line."""

import itertools
import json
import multiprocessing
import os
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import run as command_line
import yaml
from runner import launchers, protocols, sweep
from runner.job import BUSY, DONE, FAILED, Job, Outcome

import train
from proxyfda.experiments import lock
from proxyfda.experiments.lock import LOCK
from proxyfda.results import plain_trainer

ROOT = Path(train.__file__).parent
FOLDER = str(ROOT / "configs/datasets/folder.yaml")


@pytest.fixture
def make_jobs(images, config, tmp_path, monkeypatch):
    """Jobs of base2new on the tiny setting."""
    folder = tmp_path / "configs" / "trainers" / "CoOp"
    folder.mkdir(parents=True)
    (folder / "tiny.yaml").write_text(config.read_text())
    monkeypatch.setattr(protocols, "CONFIGS", str(tmp_path / "configs"))

    def make(*trainers, opts=(), seed=1):
        where = {"data": str(images), "output": str(tmp_path / "out"), "cfg": "tiny"}
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
            raise ValueError(f"{name} went wrong")
        result = {"accuracy": 50.0, "time": {"run": 1.0}}
        Path(args.output_dir, "result.json").write_text(json.dumps(result))

    monkeypatch.setattr(train, "main", fake_main)
    words = ["--trainer", "CoOp", "--dataset-config-file", FOLDER]

    def make(*names, after=""):
        after = after and str(tmp_path / after)
        return [Job(name, str(tmp_path / name), list(words), after) for name in names]

    make.fail, make.ran = (), ran
    return make


def stamps(jobs):
    return {job.folder: os.stat(job.folder + "/result.json").st_mtime_ns for job in jobs}


def lock_for(folder, pid):
    """Lock a folder in the name of another process of this machine."""
    who = {"host": socket.gethostname(), "pid": pid, "born": lock._born(pid), "since": "now"}
    (folder / LOCK).write_text(json.dumps(who))


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


def test_a_failing_job_is_told_and_the_others_go_on(fake_jobs, capsys):
    fake_jobs.fail = ("train",)
    todo = fake_jobs("train") + fake_jobs("test", after="train") + fake_jobs("other")
    assert sweep.run(todo) == 1
    told = capsys.readouterr().err
    assert "error: train: train went wrong" in told
    assert "error: test: the training that it evaluates failed" in told
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


def test_a_wrong_option_is_told_before_anything_runs(fake_jobs):
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


# -- two sweeps on one output folder ------------------------------------------------------------


def test_what_another_process_runs_is_waited_for_and_not_run_again(fake_jobs, monkeypatch, capsys):
    jobs = fake_jobs("train") + fake_jobs("test", after="train") + fake_jobs("other")
    folder = Path(jobs[0].folder)
    folder.mkdir()
    sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    lock_for(folder, sleeper.pid)

    def end_the_other(seconds):
        assert fake_jobs.ran == ["other"]
        result = {"accuracy": 1.0, "time": {"run": 1.0}}
        (folder / "result.json").write_text(json.dumps(result))
        (folder / LOCK).unlink()

    monkeypatch.setattr(sweep.time, "sleep", end_the_other)
    assert sweep.run(jobs) == 0
    assert fake_jobs.ran == ["other", "test"]
    assert f"waiting: {folder} is in use by process {sleeper.pid}" in capsys.readouterr().out
    sleeper.communicate(b"\n")


def test_what_another_machine_runs_is_a_failure_with_the_remedy(fake_jobs, capsys):
    jobs = fake_jobs("a", "b")
    os.makedirs(jobs[0].folder)
    Path(jobs[0].folder, LOCK).write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    assert sweep.run(jobs) == 1
    assert "on elsewhere" in (told := capsys.readouterr().err) and "remove" in told
    assert fake_jobs.ran == ["b"]


def test_train_py_holds_the_lock_too(run, tmp_path):
    (tmp_path / "out").mkdir()
    lock_for(tmp_path / "out", os.getppid())
    with pytest.raises(lock.Busy, match=f"in use by process {os.getppid()} "):
        run(tmp_path / "out", "ZeroshotCLIP", "--eval-only")
    assert os.listdir(tmp_path / "out") == [LOCK]


# -- launchers ----------------------------------------------------------------------------------


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


class Deadly:
    """Ends the process that unpickles it, as a kernel out of memory would."""

    def __reduce__(self):
        return os._exit, (9,)


class Endless:
    """Keeps the process that unpickles it busy, as a training would."""

    def __reduce__(self):
        return time.sleep, (600,)


def test_closing_a_launcher_ends_its_processes_at_once():
    ended = launchers.local([[], [Endless()], [Endless()], [Endless()]], ["0"], 2)
    assert next(ended) == ([], [])
    started = time.monotonic()
    ended.close()
    while multiprocessing.active_children():
        assert time.monotonic() - started < 60  # on a busy machine; they sleep for 600
        time.sleep(0.05)


def test_a_process_that_dies_is_told_and_replaced():
    ended = list(launchers.local([[Deadly()], []], ["0"], 1))
    assert sorted(str(outcome) for _, outcome in ended) == [
        "[]",
        "its process died (killed, or out of memory)",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [("one", "--devices is 'one'"), ("0", "finds no GPU; use --devices cpu")],
    ids=["no number", "no GPU"],
)
def test_wrong_devices_are_told(monkeypatch, words, message):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert launchers.local_devices("") == launchers.local_devices("cpu") == ["cpu"]
    with pytest.raises(ValueError, match=message):
        launchers.local_devices(words)


def test_gpus_are_those_that_can_be_seen(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert launchers.local_devices("") == ["0", "1"]
    assert launchers.local_devices("1") == ["1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert launchers.local_devices("") == ["3", "5"]


@pytest.mark.slow
def test_ray_runs_chains_and_tells_of_processes_that_die():
    pytest.importorskip("ray")
    ended = list(launchers.on_ray([[], [Deadly()]], {"gpus": 0, "cpus": 0.5}))
    assert ([], []) in ended
    (told,) = [outcome for _, outcome in ended if isinstance(outcome, str)]
    assert told.startswith("its Ray task ended (WorkerCrashedError")


@pytest.mark.slow
def test_submitit_runs_chains_and_tells_of_processes_that_die(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", "")  # is set for the tasks
    options = {"cluster": "local", "gpus_per_node": 0}
    ended = list(launchers.on_slurm([[], [Deadly()]], options, str(tmp_path)))
    assert ([], []) in ended
    (told,) = [outcome for _, outcome in ended if isinstance(outcome, str)]
    assert "its Slurm job" in told and str(tmp_path) in told


@pytest.mark.parametrize(("launcher", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_launcher_that_is_not_installed_names_the_remedy(monkeypatch, launcher, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"--launcher {launcher} needs .*pip install {package}"):
        launch = launchers.on_ray if launcher == "ray" else launchers.on_slurm
        list(launch([], {}, *(["/nowhere"] if launcher == "slurm" else [])))


# -- protocols ----------------------------------------------------------------------------------

WHERE = {"data": "/data", "output": "/out"}


def folders(jobs):
    return [os.path.relpath(job.folder, "/out") for job in jobs]


def test_base2new_has_the_family_s_folders():
    jobs = protocols.base2new_jobs("CoOp", "eurosat", 2, **WHERE)
    tail = "eurosat/shots_16/CoOp/vit_b16_ctxv1/seed2"
    assert folders(jobs) == [f"base2new/train_base/{tail}", f"base2new/test_new/{tail}"]
    assert jobs[1].after == jobs[0].folder
    assert jobs[1].flags[jobs[1].flags.index("--model-dir") + 1] == jobs[0].folder


def test_transfer_trains_once_and_has_the_family_s_folders():
    jobs = protocols.transfer_jobs("MaPLe", "imagenet", ["eurosat", "dtd"], 1, **WHERE)
    cfg = "vit_b16_c2_ep5_batch4_2ctx_cross_datasets_16shots"
    assert folders(jobs) == [
        f"imagenet/MaPLe/{cfg}/seed1",
        f"evaluation/MaPLe/{cfg}/eurosat/seed1",
        f"evaluation/MaPLe/{cfg}/dtd/seed1",
    ]
    assert {job.after for job in jobs[1:]} == {jobs[0].folder}
    again = protocols.transfer_jobs("MaPLe", "imagenet", protocols.SHIFTED, 1, **WHERE)
    assert again[0] == jobs[0]


def test_zero_shot_runs_are_the_same_in_all_protocols_of_all_classes():
    jobs = protocols.zeroshot_jobs("dtd", **WHERE)
    assert folders(jobs) == ["ZeroshotCLIP/vit_b16/dtd"]
    assert protocols.fewshot_jobs("ZeroshotCLIP", "dtd", 3, shots=4, **WHERE) == jobs
    transfer = protocols.transfer_jobs("ZeroshotCLIP", "imagenet", ["dtd"], 2, **WHERE)
    assert transfer[1:] == jobs


@pytest.mark.parametrize(
    ("trainer", "dataset", "shots", "config"),
    [
        ("CoOp", "dtd", 1, "vit_b16_ep50"),
        ("CoOp", "dtd", 2, "vit_b16_ep100"),
        ("CoOp", "dtd", 4, "vit_b16_ep100"),
        ("ProxyFDACoOp", "dtd", 8, "vit_b16"),
        ("CoOp", "imagenet", 16, "vit_b16_ep50"),
        ("PromptSRC", "dtd", 16, "vit_b16_c2_ep50_batch4_4+4ctx_few_shot_gpa45"),
        ("PromptSRC", "food101", 1, "vit_b16_c2_ep50_batch4_4+4ctx_few_shot"),
        ("FDAMaPLe", "dtd", 4, "vit_b16_c2_ep20_batch64_2ctx"),
    ],
    ids=lambda value: str(value),
)
def test_few_shot_configs_follow_the_papers(trainer, dataset, shots, config):
    (job,) = protocols.fewshot_jobs(trainer, dataset, 1, shots=shots, **WHERE)
    assert folders([job]) == [f"{dataset}/{trainer}/{config}_{shots}shots/seed1"]


@pytest.mark.parametrize(
    ("dataset", "mean", "std"),
    [("caltech101", 30, 30), ("sun397", 30, 30), ("eurosat", 45, 5), ("oxford_flowers", 45, 5)],
)
def test_promptsrc_s_few_shot_aggregation_depends_on_the_dataset(dataset, mean, std):
    (job,) = protocols.fewshot_jobs("PromptSRC", dataset, 1, shots=1, **WHERE)
    cfg = train.setup_cfg(train.parser().parse_args(job.argv))
    assert (mean, std) == (cfg.TRAINER.PROMPTSRC.GPA_MEAN, cfg.TRAINER.PROMPTSRC.GPA_STD)
    assert cfg.OPTIM.MAX_EPOCH == 50


@pytest.mark.parametrize("host", ["CoOp", "CoCoOp", "MaPLe", "PromptSRC"])
@pytest.mark.parametrize("prefix", ["", "FDA", "ProxyFDA"], ids=["plain", "FDA", "ProxyFDA"])
def test_every_default_config_exists_and_merges(host, prefix):
    trainer = prefix + host
    jobs = {}
    for dataset, shots in itertools.product(["imagenet", "eurosat", "bundled_fruits"], [1, 2, 16]):
        for first, *_ in (
            protocols.base2new_jobs(trainer, dataset, 1, shots=shots, **WHERE),
            protocols.fewshot_jobs(trainer, dataset, 1, shots=shots, **WHERE),
            protocols.transfer_jobs(trainer, dataset, ["dtd"], 1, shots=shots, **WHERE),
        ):
            jobs[first.flags[first.flags.index("--config-file") + 1]] = first
    for job in jobs.values():
        cfg = train.setup_cfg(train.parser().parse_args(job.argv))
        assert cfg.TRAINER.NAME in job.name


def test_defaults_name_protocols_and_trainers_that_there_are():
    table = yaml.safe_load((ROOT / "configs/defaults.yaml").read_text())
    assert set(table) == {"base2new", "fewshot", "transfer", "zeroshot"}
    names = {plain_trainer(name)[1] for trainers in table.values() for name in trainers}
    assert names <= {"CoOp", "CoCoOp", "MaPLe", "PromptSRC", "ZeroshotCLIP", "ZeroshotCLIP2"}


def test_a_dataset_config_with_a_root_keeps_it(tmp_path):
    path = tmp_path / "birds.yaml"
    path.write_text("DATASET: {NAME: ImageFolder, ROOT: /my/birds}\n")
    (job,) = protocols.zeroshot_jobs(str(path), **WHERE)
    assert folders([job]) == ["ZeroshotCLIP/vit_b16/birds"]
    cfg = train.setup_cfg(train.parser().parse_args(job.argv))
    assert cfg.DATASET.ROOT == "/my/birds"


def test_the_user_s_options_come_after_those_of_the_table_and_before_the_classes():
    opts = ["TRAINER.PROMPTSRC.GPA_MEAN", "7", "DATASET.SUBSAMPLE_CLASSES", "all"]
    (job,) = protocols.fewshot_jobs("PromptSRC", "dtd", 1, shots=1, opts=opts, **WHERE)
    assert train.setup_cfg(train.parser().parse_args(job.argv)).TRAINER.PROMPTSRC.GPA_MEAN == 7
    base, new = protocols.base2new_jobs("CoOp", "dtd", 1, opts=opts, **WHERE)
    cfg = train.setup_cfg(train.parser().parse_args(new.argv))
    assert cfg.DATASET.SUBSAMPLE_CLASSES == "new"


# -- the command line ---------------------------------------------------------------------------


@pytest.fixture
def dry(monkeypatch, tmp_path, capsys):
    """Names and commands that a command line would run, and its exit code."""
    for name in command_line.HELP:
        monkeypatch.delenv(name, raising=False)

    def call(*words, data="/data"):
        argv = [*words, "--output", str(tmp_path / "my output"), "--dry-run"]
        code = command_line.main(argv + (["--data", data] if data else []))
        lines = capsys.readouterr().out.splitlines()
        assert not (tmp_path / "my output").exists()
        names = [line.partition(": ")[2] for line in lines if not line.startswith(" ")][:-1]
        return code, names, [shlex.split(line) for line in lines if line.startswith(" ")]

    return call


def test_base2new_all_has_eleven_datasets_and_three_seeds(dry):
    code, names, commands = dry("base2new_all", "MaPLe")
    assert code == 0 and len(names) == 11 * 3 * 2
    assert {word.split()[1] for word in names} == set(protocols.BENCHMARKS)
    assert commands[0][1] == str(ROOT / "train.py")
    assert f"{os.sep}my output{os.sep}" in commands[0][commands[0].index("--output-dir") + 1]


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (["base2new", "CoOp,FDACoOp", "dtd", "1,2", "4"], 8),
        (["base2new_all", "CoOp,ZeroshotCLIP", "--datasets", "bundled"], 4 * (3 * 2 + 2)),
        (["fewshot", "CoOp"], 11 * 5 * 3),
        (["fewshot", "CoOp", "dtd"], 5 * 3),
        (["fewshot", "CoOp", "dtd", "1,16", "OPTIM.MAX_EPOCH", "1", "--seeds", "1"], 2),
        (["cross_dataset", "CoOp"], 3 * 11),
        (["domain_generalization", "CoOp", "16"], 3 * 5),
        (["domain_generalization", "ZeroshotCLIP"], 5),
        (["cross_dataset", "CoOp", "--source", "bundled_fruits", "--seeds", "1 2"], 2 * 4),
        (["cross_dataset", "CoOp", "--source", "dtd", "--targets", "eurosat,dtd"], 3 * 2),
        (["zeroshot"], 11),
        (["zeroshot", "dtd,eurosat", "INPUT.SIZE", "(32, 32)"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_scripts_run_so_many_jobs(dry, words, count):
    assert len(dry(*words)[1]) == count


def test_environment_variables_serve_for_flags(dry, monkeypatch):
    monkeypatch.setenv("DATASETS", "bundled_fruits, bundled_scenes")
    monkeypatch.setenv("SEEDS", "4")
    monkeypatch.setenv("LABEL", "mine")
    _, names, commands = dry("base2new_all", "CoOp", data="")
    assert len(names) == 4 and "seed 4 (mine)" in names[0]
    assert commands[0][commands[0].index("--root") + 1] == str(ROOT / "data")
    assert "/CoOp/mine/seed4" in " ".join(commands[0])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["base2new", "CoOp", "nothing", "1"], "no dataset 'nothing'; use one of"),
        (["base2new", "CoOp", "folder", "one"], "SEED is 'one'"),
        (["base2new", "CoOp", "folder"], "SEEDS is not given; the usage is base2new.sh TRAINER"),
        (["base2new", "CoOp", "folder", "1", "0"], "SHOTS is 0"),
        (["base2new", "CoOp", "folder", "1", "--cfg", "vit"], "no config 'vit' for trainer 'CoOp'"),
        (["base2new", "CoOp", "folder", "1", "--fast"], "'--fast' is no option"),
        (["base2new", "CoOp", "folder", "1", "4", "more"], "'more' is one word too many"),
        (["base2new", "Coop", "folder", "1"], "no default config of 'Coop'"),
        (["base2new", "CoOp", "folder", "1", "OPTIM.LRR", "1"], "'OPTIM.LRR' is no option"),
        (["base2new", "CoOp", "folder", "1", "OPTIM.LR"], "come in pairs"),
        (["base2new_all"], "TRAINER is not given"),
        (["base2new_all", "CoOp", "eurosat"], "'eurosat' is one word too many"),
        (["zeroshot", "--workers", "0"], "--workers is 0"),
        (["zeroshot", "--launcher", "pbs"], "--launcher is 'pbs'; use local, ray or slurm"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_words_for_the_script_are_told(dry, tmp_path, words, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        dry(*words, data=str(tmp_path))


def test_a_missing_data_folder_is_told(dry):
    with pytest.raises(ValueError, match="DATA=/path/to/datasets"):
        dry("zeroshot", "dtd", data="")
