"""A user's mistakes: exceptions whose message is one sentence for the user, and how it is shown."""

from __future__ import annotations

import atexit
import os
import signal
import sys

__all__ = [
    "AlreadyExists",
    "BadModel",
    "BadType",
    "BadValue",
    "NotFinite",
    "NotFound",
    "NotInstalled",
    "Unusable",
    "UserError",
    "sentence",
    "show_user_errors",
]


class UserError(Exception):
    """What the user can put right: the message names the thing, the value and the remedy.

    Every error of ours that is meant for the user is of a subclass, and also of the built-in kind
    that Python code would expect (``except ValueError`` catches :class:`BadValue`). Anything else
    that is raised is a defect, ours or a library's, and keeps its traceback.
    """


class BadValue(UserError, ValueError):
    """An option, argument or file content that cannot work."""


class BadType(UserError, TypeError):
    """An object of a kind that cannot serve."""


class BadModel(UserError, AttributeError):
    """A model or trainer lacks a part that is needed."""


class Unusable(UserError, RuntimeError):
    """What was asked for cannot be done in this state or with these parts together."""


class NotFound(UserError, FileNotFoundError):
    """A file or folder that is not there."""


class AlreadyExists(UserError, FileExistsError):
    """A file or folder that is there already and would be overwritten."""


class NotInstalled(UserError, ImportError):
    """A library that is needed and cannot be imported."""


class NotFinite(UserError, FloatingPointError):
    """A loss or a weight that is infinite or no number."""


def sentence(error: BaseException) -> str:
    """The message of an error (``str`` of a ``KeyError`` would quote it)."""
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)


def show_user_errors() -> None:
    """From now on an uncaught :class:`UserError` ends the program with ``error: <sentence>``.

    For entry points. The exit code is 1; every other exception keeps its traceback, and so does
    everything with ``PROXYFDA_TRACEBACK=1``. Ctrl-C ends with exit code 130 and a hint.
    """
    show = sys.excepthook

    def hook(kind, error, trace):  # type: ignore[no-untyped-def]
        if issubclass(kind, KeyboardInterrupt):
            print("\ninterrupted: run the same command again to go on", file=sys.stderr, flush=True)
            # As Python itself would, unless code of an extension runs at exit: then it gives 1.
            atexit._run_exitfuncs()
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)
        elif os.environ.get("PROXYFDA_TRACEBACK") != "1" and isinstance(error, UserError):
            print(f"error: {sentence(error)}", file=sys.stderr)
        else:
            show(kind, error, trace)

    sys.excepthook = hook
