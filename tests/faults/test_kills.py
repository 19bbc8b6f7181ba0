"""Runs that are killed at any file operation: rerun, they end in the same numbers."""

import os
import random
import signal

import machine
import pytest
from machine import Fault, forks
from scenes import left_in

SEED = int(os.environ.get("FAULTS_SEED", "1"))
# At least the number of operations of each scene, and how many of them the short form takes.
POINTS = {
    "CoOp": (55, 4),
    "best model": (105, 2),
    "two models": (120, 1),
    "grid": (110, 2),
    "sweep": (185, 1),
}

pytestmark = forks


def points():
    """A parameter set for each operation of each scene; what a seed draws is not `long`."""
    for name, (most, few) in POINTS.items():
        drawn = random.Random(f"{SEED} {name}").sample(range(1, most + 1), few)
        for at in range(1, most + 1):
            marks = () if at in drawn else pytest.mark.long
            yield pytest.param(name, at, marks=marks, id=f"{name} {at}")


@pytest.mark.parametrize("name", POINTS)
def test_no_operation_is_left_out(scene, name):
    operations = scene.whole(name)[1]
    print(name, operations)
    assert operations <= POINTS[name][0]


@pytest.mark.parametrize(("name", "at"), list(points()))
def test_killed(scene, name, at, tmp_path):
    expected, operations = scene.whole(name)
    if at > operations:
        pytest.skip(f"it has {operations} operations")
    out = tmp_path / "out"
    child = machine.run(scene.of(name, out), tmp_path, out, Fault("kill", at))
    assert child.code == -signal.SIGKILL, child.printed
    again = machine.run(scene.of(name, out), tmp_path, out)
    assert again.code == 0, again.printed
    assert left_in(out) == expected
