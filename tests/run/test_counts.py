"""Numbers on the command lines of the scripts that measure."""

import subprocess
import sys
from argparse import ArgumentTypeError
from pathlib import Path

import pytest
from counts import count, seeds

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "x", "", "nan"])
def test_what_counts_nothing_is_refused(text):
    with pytest.raises(ArgumentTypeError, match="use whole numbers of at least 1"):
        count(text)


def test_seeds_begin_at_zero():
    assert seeds("0, 3") == [0, 3]
    with pytest.raises(ArgumentTypeError, match="'x' is given; use whole numbers of at least 0"):
        seeds("1,x")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bench_attach.py", "--batch", "0"], "--batch: '0' is given; use whole numbers of at"),
        (["vocabulary.py", "nowhere"], "error: there is no data.noun in nowhere; give the folder"),
        (["constants.py", "--features", "nowhere"], "error: --features: there is no file nowhere"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line(words, message):
    done = subprocess.run(
        [sys.executable, SCRIPTS / words[0], *words[1:]], capture_output=True, text=True
    )
    assert done.returncode and message in done.stderr and "Traceback" not in done.stderr
