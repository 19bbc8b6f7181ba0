"""Launchers: processes of this machine, Ray and Slurm."""

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from proxyfda.experiments import launchers

ROOT = Path(__file__).resolve().parents[2]


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


@pytest.mark.parametrize("leave", [True, False], ids=["given-back", "left"])
def test_a_worker_that_is_ended_leaves_no_semaphore_behind(leave):
    code = (
        "import multiprocessing, os\n"
        "from proxyfda.experiments import launchers\n"
        "multiprocessing.set_start_method('spawn')\n"
        "lock = multiprocessing.RLock()  # as of a progress bar\n"
        + ("launchers._leave()" if leave else "os._exit(1)")
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert ("leaked semaphore" in done.stderr) != leave


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
def test_a_worker_that_is_ended_takes_those_that_read_images_along():
    code = (
        "import multiprocessing, time\n"
        "from proxyfda.experiments import launchers\n"
        "child = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,))\n"
        "child.start()\n"
        "print(child.pid, flush=True)\n"
        "launchers._leave()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT, timeout=60
    )
    stat = Path(f"/proc/{int(done.stdout)}/stat")
    # Gone, or waiting for the system to take it away.
    deadline = time.monotonic() + 20
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline, "it is still there"
        time.sleep(0.05)


def test_processes_of_a_worker_do_not_see_ctrl_c_from_the_first_one_on():
    code = (
        "import multiprocessing, re, signal, time\n"
        "from pathlib import Path\n"
        "from proxyfda.experiments import launchers\n"
        "if __name__ == '__main__':\n"
        "    launchers._leave_interrupts_to_parent()\n"
        "    child = multiprocessing.get_context('spawn').Process(target=time.sleep, args=(9,))\n"
        "    child.start()\n"
        "    status = Path(f'/proc/{child.pid}/status').read_text()\n"
        "    blocked = int(re.search(r'SigBlk:\\s*(\\w+)', status)[1], 16)\n"
        "    child.kill()\n"
        "    print(blocked >> (signal.SIGINT - 1) & 1)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "1", done.stderr
