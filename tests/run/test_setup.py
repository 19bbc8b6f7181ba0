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


SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("*.sh") if path.name != "setup.sh")


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_says_what_a_script_is_for_and_sets_nothing_up(tmp_path, script):
    stub = tmp_path / "python3"  # the only Python, which has nothing
    stub.write_text("#!/bin/sh\nexit 1\n")
    stub.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    environment.pop("PYTHON", None)
    done = subprocess.run(
        ["bash", f"scripts/{script}", "--help"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    name = "bundled.sh" if script == "quickstart.sh" else script
    first = (ROOT / "scripts" / name).read_text().splitlines()[1]
    assert done.returncode == 0 and first[2:] in done.stdout, done.stderr
    assert "Setting up" not in done.stdout and "set -euo" not in done.stdout
