"""The lock of an output folder."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from proxyfda.experiments import lock
from proxyfda.experiments.lock import LOCK, Busy, folder_lock, holder

HOLD = textwrap.dedent(
    """
    import sys, time
    from proxyfda.experiments.lock import folder_lock
    with folder_lock(sys.argv[1]):
        print("held", flush=True)
        sys.stdin.read()
    """
)


@pytest.fixture
def other(tmp_path):
    """Another process that holds a folder's lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "out")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=os.path.dirname(os.path.dirname(lock.__file__)),
    )
    assert process.stdout.readline().strip() == b"held"
    yield process
    process.kill()
    process.wait()


def write_lock(folder, **who):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LOCK).write_text(json.dumps(who))


def test_a_lock_is_there_inside_and_gone_outside(tmp_path):
    with folder_lock(tmp_path / "out"):
        assert (tmp_path / "out" / LOCK).exists()
        with folder_lock(tmp_path / "out"):  # the runner's, and train.py's within it
            pass
        assert (tmp_path / "out" / LOCK).exists()
    assert not (tmp_path / "out" / LOCK).exists()


def test_a_living_process_keeps_others_out(tmp_path, other):
    told = f"in use by process {other.pid} on .*wait for it or end it"
    with pytest.raises(Busy, match=told) as caught, folder_lock(tmp_path / "out"):
        pass
    assert caught.value.passing
    assert f"process {other.pid}" in holder(tmp_path / "out")
    other.stdin.close()
    other.wait(10)
    with folder_lock(tmp_path / "out"):
        pass


def test_the_lock_of_a_dead_process_is_taken_over_with_a_line(tmp_path, other, capsys):
    other.kill()
    other.wait()
    assert holder(tmp_path / "out") == ""
    with folder_lock(tmp_path / "out"):
        assert json.loads((tmp_path / "out" / LOCK).read_text())["pid"] == os.getpid()
    assert f"left by process {other.pid}" in capsys.readouterr().out
    assert not (tmp_path / "out" / LOCK).exists()


def test_a_process_id_used_again_does_not_count(tmp_path):
    who = json.loads(lock._me())
    write_lock(tmp_path / "out", **{**who, "born": "1"})
    with folder_lock(tmp_path / "out"):
        pass


def test_the_lock_of_another_machine_is_told_with_the_remedy(tmp_path):
    write_lock(tmp_path / "out", host="elsewhere", pid=1, since="yesterday")
    told = "on elsewhere .since yesterday.*remove .*run.lock"
    with pytest.raises(Busy, match=told) as caught, folder_lock(tmp_path / "out"):
        pass
    assert not caught.value.passing
    assert (tmp_path / "out" / LOCK).exists()


def test_a_damaged_lock_is_told_with_the_remedy(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / LOCK).write_text("{")
    os.utime(tmp_path / "out" / LOCK, (0, 0))
    with pytest.raises(Busy, match="an unknown process.*remove"), folder_lock(tmp_path / "out"):
        pass


def test_of_many_that_find_a_stale_lock_one_gets_it(tmp_path):
    write_lock(tmp_path / "out", host=lock.socket.gethostname(), pid=2**22 + 1, born="1")
    code = textwrap.dedent(
        """
        import sys
        from proxyfda.experiments.lock import Busy, folder_lock
        print("ready", flush=True)
        sys.stdin.readline()
        try:
            with folder_lock(sys.argv[1]):
                print("got it", flush=True)
                sys.stdin.readline()
        except Busy:
            print("busy", flush=True)
        """
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "out")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            cwd=os.path.dirname(os.path.dirname(lock.__file__)),
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
    said = []
    for process in processes:
        line = process.stdout.readline()
        said.append(process.stdout.readline() if "left by" in line else line)
    assert sorted(said) == ["busy\n"] * 3 + ["got it\n"]
    for process in processes:
        process.communicate("\n")
