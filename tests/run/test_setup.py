"""scripts/setup.sh: what a requirements file asks for, with those that it takes in."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def in_setup(command, **variables):
    """Run a command of bash after setup.sh, with this Python as the one chosen by hand."""
    environment = {**os.environ, "PYTHON": sys.executable, **variables}
    line = f"source scripts/setup.sh; {command}"
    return subprocess.run(
        ["bash", "-c", line], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_lines_of_files_taken_in_are_among_them():
    found = in_setup('_requirement_lines "$ROOT/requirements-dev.txt"').stdout.split("\n")
    assert set((ROOT / "requirements.txt").read_text().split("\n")) <= set(found)
    assert "nbmake>=1.5" in found and not any(line.startswith("-r") for line in found)


@pytest.mark.parametrize(
    "lines, there",
    [
        ("torch>=1\npytest[x] ; python_version > '3'\n# none\n", True),
        ("-r other.txt\ntorch", False),
        ("no-such-package>=1", False),
    ],
    ids=["all there", "missing in a file taken in", "missing"],
)
def test_a_python_is_judged_by_all_lines(tmp_path, lines, there):
    (tmp_path / "wanted.txt").write_text(lines)
    (tmp_path / "other.txt").write_text("no-such-package")
    wanted = os.path.relpath(tmp_path / "wanted.txt", ROOT)
    done = in_setup('_has_requirements "$PYTHON"', REQUIREMENTS=wanted)
    assert (done.returncode == 0) is there, done.stderr


def test_without_a_word_the_list_is_the_short_one():
    assert in_setup('echo "$_REQUIREMENTS"').stdout.strip() == str(ROOT / "requirements.txt")
