"""Signals, full and read-only disks, and two sweeps at once."""

import os
import signal
import subprocess

import machine
import pytest
from machine import Fault, forks
from scenes import left_in

pytestmark = forks
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


def spread(*few):
    """A parameter set for operations across a CoOp training; all but ``few`` are `long`."""
    return [
        pytest.param(at, marks=() if at in few else pytest.mark.long, id=f"operation {at}")
        for at in range(1, 48)
    ]


@pytest.fixture
def start_and_rerun(scene, tmp_path):
    """A CoOp training with a fault, then without; gives the faulty `Child`."""

    def call(fault, out=None):
        out = out or tmp_path / "out"
        expected, operations = scene.whole("CoOp")
        if fault.at > operations:
            pytest.skip(f"it has {operations} operations")
        child = machine.run(scene.of("CoOp", out), tmp_path, out, fault)
        call.left = [path.name for path in out.rglob("*")] if out.exists() else []
        again = machine.run(scene.of("CoOp", out), tmp_path, out)
        assert again.code == 0, again.printed
        assert left_in(out) == expected
        return child

    return call


@pytest.mark.parametrize("at", spread(20, 40))
@pytest.mark.parametrize("name", SIGNALS)
def test_interrupted(start_and_rerun, name, at):
    child = start_and_rerun(Fault(name, at))
    assert child.code == (130 if name == "SIGINT" else -signal.Signals[name]), child.printed


@pytest.mark.parametrize("at", spread(1, 14, 31))
def test_the_disk_is_full_from_then_on(start_and_rerun, at):
    child = start_and_rerun(Fault("ENOSPC", at))
    if child.code:  # where only the locks' notes were left to write, it has ended well
        assert child.code == 1 and "the disk is full; free some space there" in child.sentence
    assert not [name for name in start_and_rerun.left if name.endswith(".tmp")]


@pytest.mark.parametrize("what", ["EDQUOT", "EIO", "EROFS", "EACCES"])
@pytest.mark.parametrize("at", [1, pytest.param(12, marks=pytest.mark.long)])
def test_the_disk_refuses_everything_from_then_on(start_and_rerun, tmp_path, what, at):
    child = start_and_rerun(Fault(what, at))
    assert child.code == 1 and str(tmp_path / "out") in child.sentence
    assert "cannot be written" in child.sentence or "cannot be used" in child.sentence


@pytest.mark.parametrize("size", ["16k", pytest.param("120k", marks=pytest.mark.long)])
def test_a_small_disk(scene, tmp_path, size):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount")
    try:
        child = machine.run(scene.of("two models", disk / "out"), tmp_path)
        assert child.code == 1 and "the disk is full" in child.sentence, child.printed
        assert not list(disk.rglob("*.tmp"))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_file_where_a_folder_is_meant(scene, tmp_path):
    (tmp_path / "out").touch()
    for out in (tmp_path / "out", tmp_path / "out" / "below"):
        child = machine.run(scene.of("CoOp", out), tmp_path)
        assert child.code == 1 and str(out) in child.sentence and "file" in child.sentence
    assert (tmp_path / "out").read_bytes() == b""


@pytest.mark.skipif(hasattr(os, "getuid") and os.getuid() == 0, reason="root may write anything")
def test_a_folder_that_may_not_be_written(scene, tmp_path):
    (tmp_path / "parent").mkdir(mode=0o500)
    child = machine.run(scene.of("CoOp", tmp_path / "parent" / "out"), tmp_path)
    assert child.code == 1 and "you have no permission" in child.sentence


def test_two_sweeps_at_once(scene, tmp_path):
    expected, _ = scene.whole("sweep")
    out = tmp_path / "out"
    both = [machine.start(scene.of("sweep", out), tmp_path) for _ in range(2)]
    for child in [wait() for wait in both]:
        assert child.code == 0, child.printed
    assert left_in(out) == expected
