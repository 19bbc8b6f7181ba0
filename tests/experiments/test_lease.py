"""The lease that takes the place of a lock on file systems that have none."""

import errno
import os
import time

import pytest

from proxyfda.experiments import lease, lock
from proxyfda.experiments.lease import LEASE, Lease
from proxyfda.experiments.lock import Busy, folder_lock, holder


@pytest.fixture(params=["ENOLCK", "ENOSYS", "EOPNOTSUPP"])
def without_locks(request, monkeypatch):
    """A file system that refuses to lock."""

    class Refused(lock.FileLock):
        def acquire(self, *args, **more):
            code = getattr(errno, request.param)
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(lock, "FileLock", Refused)


def aged(path, seconds):
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_a_folder_is_held_by_one_and_left_as_it_was(without_locks, tmp_path):
    with folder_lock(tmp_path):
        assert (tmp_path / LEASE).exists() and str(os.getpid()) in holder(tmp_path)
        assert not Lease(tmp_path).acquire()
    assert os.listdir(tmp_path) == [] and holder(tmp_path) == ""


def test_another_holder_is_named_with_the_command_that_clears_it(without_locks, tmp_path):
    assert Lease(tmp_path).acquire()
    told = rf"if its machine is gone for good: rm {tmp_path}/run.lock\*\)"
    with pytest.raises(Busy, match=told), folder_lock(tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "0" * 32, "../../etc\n", "\0"], ids=repr)
def test_a_holder_that_has_died_is_followed(without_locks, tmp_path, content):
    (tmp_path / LEASE).write_text(content)
    aged(tmp_path / LEASE, lease.EXPIRES - 30)
    with pytest.raises(Busy), folder_lock(tmp_path):
        pass
    aged(tmp_path / LEASE, lease.EXPIRES + 30)
    assert holder(tmp_path) == ""
    with folder_lock(tmp_path):
        assert (tmp_path / LEASE).read_text() != content
    assert os.listdir(tmp_path) == []


def test_of_two_that_follow_one_gets_it(tmp_path, monkeypatch):
    (tmp_path / LEASE).write_text("dead")
    aged(tmp_path / LEASE, lease.EXPIRES + 30)
    late, quick, looked = Lease(tmp_path), Lease(tmp_path), []
    expired = lease._has_expired

    def slow(path):  # the quick one takes over between the late one's look and its taking over
        found = expired(path)
        if not looked:
            looked.append(path)
            assert quick.acquire()
        return found

    monkeypatch.setattr(lease, "_has_expired", slow)
    assert not late.acquire()
    assert (tmp_path / LEASE).read_text() == quick._me and os.listdir(tmp_path) == [LEASE]


def test_a_holder_keeps_it_fresh_and_gives_back_only_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 0.01)
    mine = Lease(tmp_path)
    assert mine.acquire()
    aged(tmp_path / LEASE, lease.EXPIRES + 30)
    for _ in range(500):
        time.sleep(0.01)
        if lease.held(tmp_path):
            break
    assert lease.held(tmp_path)
    (tmp_path / LEASE).write_text("another's")
    mine.release()
    assert (tmp_path / LEASE).read_text() == "another's"
