"""How a user's mistake is told: one sentence, not a stack of frames."""

from __future__ import annotations

import linecache
import os
import sys
import traceback
from contextlib import contextmanager
from typing import Iterator

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def is_told(error: BaseException) -> bool:
    """Whether our own code raised this on purpose, so that its message is written for the user."""
    frames = list(traceback.walk_tb(error.__traceback__))
    if not frames:
        return False
    frame, line = frames[-1]
    path = os.path.abspath(frame.f_code.co_filename)
    if not path.startswith(_ROOT + os.sep) or f"{os.sep}.venv{os.sep}" in path:
        return False
    # A raise statement may span lines; the frame names its first or last, by Python version.
    around = [
        linecache.getline(path, number).strip() for number in range(line, max(line - 6, 0), -1)
    ]
    return any(text.startswith("raise ") for text in around)


def sentence(error: BaseException) -> str:
    """The message of an error (``KeyError`` would quote its own)."""
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)


@contextmanager
def one_sentence() -> Iterator[None]:
    """Turn a told error into ``error: <sentence>`` on stderr and exit code 2.

    Anything else keeps its traceback, and so does everything with ``PROXYFDA_TRACEBACK=1``.
    Ctrl-C ends with exit code 130.
    """
    try:
        yield
    except KeyboardInterrupt:
        print("\ninterrupted: run the same command again to go on", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if os.environ.get("PROXYFDA_TRACEBACK") == "1" or not is_told(error):
            raise
        print(f"error: {sentence(error)}", file=sys.stderr)
        sys.exit(2)
