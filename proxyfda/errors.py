"""How a user's mistake is told: one sentence, not a stack of frames."""

from __future__ import annotations

import atexit
import linecache
import os
import signal
import sys
import traceback

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def is_told(error: BaseException) -> bool:
    """Whether our own code raised this on purpose, so that its message is written for the user.

    That is: the innermost frame is a ``raise`` statement of this repository, or the exception says
    so by an attribute ``told``.
    """
    if getattr(error, "told", False):
        return True
    frames = list(traceback.walk_tb(error.__traceback__))
    if not frames:
        return False
    frame, line = frames[-1]
    path = os.path.abspath(frame.f_code.co_filename)
    if not path.startswith(_ROOT + os.sep) or f"{os.sep}site-packages{os.sep}" in path:
        return False
    # A raise statement may span lines; which of them the frame names depends on Python's version.
    lines = range(line, max(line - 8, 0), -1)
    return any(linecache.getline(path, number).strip().startswith("raise ") for number in lines)


def sentence(error: BaseException) -> str:
    """The message of an error (``str`` of a ``KeyError`` would quote it)."""
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)


def tell_mistakes() -> None:
    """From now on an uncaught error of the user's ends the program with ``error: <sentence>``.

    For entry points. The exit code is 1; anything unforeseen keeps its traceback, and so does
    everything with ``PROXYFDA_TRACEBACK=1``. Ctrl-C ends with exit code 130 and a hint.
    """
    show = sys.excepthook

    def hook(kind, error, trace):
        if issubclass(kind, KeyboardInterrupt):
            print("\ninterrupted: run the same command again to go on", file=sys.stderr, flush=True)
            # As Python itself would, unless code of an extension runs at exit: then it gives 1.
            atexit._run_exitfuncs()
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)
        elif os.environ.get("PROXYFDA_TRACEBACK") == "1" or not is_told(error):
            show(kind, error, trace)
        else:
            print(f"error: {sentence(error)}", file=sys.stderr)

    sys.excepthook = hook
