"""The lock of an output folder."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from proxyfda.experiments import lock
from proxyfda.experiments.lock import LOCK, OWNER, Busy, folder_lock, holder

ROOT = Path(lock.__file__).parents[2]
HOLD = textwrap.dedent(
    """
    import sys
    from proxyfda.experiments.lock import folder_lock
    with folder_lock(sys.argv[1]):
        print("held", flush=True)
        sys.stdin.read()
    """
)


def start(code, folder):
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        cwd=ROOT,
    )


@pytest.fixture
def other(tmp_path):
    """Another process that holds a folder's lock."""
    process = start(HOLD, tmp_path / "out")
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_lock_is_there_inside_and_gone_outside(tmp_path):
    with folder_lock(tmp_path / "out"):
        assert (tmp_path / "out" / LOCK).exists()
        with folder_lock(tmp_path / "out"):  # the sweep's, and the run's within it
            pass
        assert (tmp_path / "out" / LOCK).exists()
    assert os.listdir(tmp_path / "out") == []


def test_an_error_inside_gives_the_lock_back(tmp_path):
    with pytest.raises(KeyError), folder_lock(tmp_path / "out"):
        raise KeyError
    assert os.listdir(tmp_path / "out") == []


def test_a_living_process_keeps_others_out(tmp_path, other):
    message = f"in use by process {other.pid} on .* .since .*; wait for it or end it"
    with pytest.raises(Busy, match=message), folder_lock(tmp_path / "out"):
        pass
    assert f"process {other.pid}" in holder(tmp_path / "out")
    other.communicate()
    with folder_lock(tmp_path / "out"):
        pass


def test_the_holder_is_not_known_where_nothing_says_it(tmp_path, other):
    (tmp_path / "out" / OWNER).unlink()
    with pytest.raises(Busy, match="in use by another process"), folder_lock(tmp_path / "out"):
        pass
    assert holder(tmp_path / "out") == "another process"


def test_the_lock_of_a_killed_process_is_free_and_a_line_says_so(tmp_path, other, capsys):
    other.kill()
    other.wait()
    assert (tmp_path / "out" / LOCK).exists() and holder(tmp_path / "out") == ""
    with folder_lock(tmp_path / "out"):
        pass
    assert f"left by process {other.pid}" in capsys.readouterr().out
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}'], ids=repr)
@pytest.mark.parametrize("name", [LOCK, OWNER])
def test_an_empty_or_damaged_file_keeps_nobody_out(tmp_path, name, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text(content)
    assert holder(tmp_path / "out") == ""
    with folder_lock(tmp_path / "out"):
        pass
    assert os.listdir(tmp_path / "out") == []


def test_all_locks_are_given_back_at_once(tmp_path):
    with folder_lock(tmp_path / "a"):
        lock.release_all()
        assert os.listdir(tmp_path / "a") == [] and holder(tmp_path / "a") == ""


def test_a_lock_on_a_removed_file_is_not_taken_for_one(tmp_path, monkeypatch):
    """The holder may remove the file between our opening and our locking of it."""
    path, tries = tmp_path / "out" / LOCK, []

    class Late(lock.FileLock):
        def acquire(self, *args, **more):
            found = super().acquire(*args, **more)
            tries.append(path)
            if len(tries) == 1:
                path.unlink()
            return found

    monkeypatch.setattr(lock, "FileLock", Late)
    with folder_lock(tmp_path / "out"):
        monkeypatch.undo()
        assert len(tries) == 2 and path.exists()
        assert str(os.getpid()) in holder(tmp_path / "out")


def test_of_many_at_once_one_gets_it(tmp_path):
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
    processes = [start(code, tmp_path / "out") for _ in range(4)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
    assert sorted(process.stdout.readline() for process in processes) == ["busy\n"] * 3 + [
        "got it\n"
    ]
    for process in processes:
        process.communicate("\n")
    assert os.listdir(tmp_path / "out") == []
