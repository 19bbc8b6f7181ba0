"""A user's mistakes: exceptions whose message is one sentence for the user, and how it is shown."""

from __future__ import annotations

import atexit
import errno
import os
import signal
import sys
from typing import Optional

__all__ = [
    "AlreadyExists",
    "BadModel",
    "BadType",
    "BadValue",
    "CannotWrite",
    "NotFinite",
    "NotFound",
    "NotInstalled",
    "Unusable",
    "UserError",
    "refused_write",
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


class CannotWrite(UserError, OSError):
    """A file or folder that the operating system does not let be written."""


class NotInstalled(UserError, ImportError):
    """A library that is needed and cannot be imported."""


class NotFinite(UserError, FloatingPointError):
    """A loss or a weight that is infinite or no number."""


_ELSEWHERE = "choose a folder that you can write"
# What stands in the way of writing -> the end of the sentence that names the file.
_REFUSED = {
    errno.ENOSPC: "the disk is full; free some space there, or choose a folder on another disk",
    errno.EDQUOT: "your quota of that disk is used up; free some of it, or choose another disk",
    errno.EFBIG: "it would be larger than a file may be there (ulimit -f); choose another disk",
    errno.EROFS: f"that file system is read-only; {_ELSEWHERE}",
}
# The same where reading may be meant as well.
_UNUSABLE = {
    errno.EACCES: f"you have no permission; change its rights, or {_ELSEWHERE}",
    errno.EPERM: f"you have no permission; change its rights, or {_ELSEWHERE}",
    errno.EIO: "the disk reports an error; choose a folder on another disk",
}
# The same where a path was chosen to be written to; elsewhere these may be a defect of ours.
_MISTAKEN = {
    errno.ENOTDIR: "a part of its path is a file; choose a folder, or move that file away",
    errno.EEXIST: "a file is where a folder is meant; choose a folder, or move that file away",
    errno.EISDIR: "a folder is where a file is meant; choose another name, or move it away",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ELOOP: "a link in its path leads to itself; choose a folder",
}


def refused_write(error: OSError, path: str = "", within: str = "") -> Optional[CannotWrite]:
    """What keeps a file from being written, as one sentence; None if it is something else.

    Args:
        error: of the operating system.
        path: what was to be written; without it the file that the error names.
        within: the folder that was written to, where the error names no file.
    """
    code = error.errno or 0
    file = path or error.filename or within or "a file"
    if path or code in _REFUSED:
        why = {**_REFUSED, **_UNUSABLE, **(_MISTAKEN if path else {})}.get(code)
        return CannotWrite(f"{file} cannot be written: {why}") if why else None
    return CannotWrite(f"{file} cannot be used: {_UNUSABLE[code]}") if code in _UNUSABLE else None


def sentence(error: BaseException) -> str:
    """The message of an error (``str`` of a ``KeyError`` would quote it)."""
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)


def show_user_errors() -> None:
    """From now on an uncaught :class:`UserError` ends the program with ``error: <sentence>``.

    For entry points. A full or read-only disk is told in the same way (:func:`refused_write`). The
    exit code is 1; every other exception keeps its traceback, and so does everything with
    ``PROXYFDA_TRACEBACK=1``. Ctrl-C ends with exit code 130 and a hint.
    """
    show = sys.excepthook

    def hook(kind, error, trace):  # type: ignore[no-untyped-def]
        told = error if isinstance(error, UserError) else None
        if isinstance(error, OSError):
            told = told or refused_write(error)
        if issubclass(kind, KeyboardInterrupt):
            print("\ninterrupted: run the same command again to go on", file=sys.stderr, flush=True)
            # As Python itself would, unless code of an extension runs at exit: then it gives 1.
            atexit._run_exitfuncs()
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)
        elif os.environ.get("PROXYFDA_TRACEBACK") != "1" and told is not None:
            print(f"error: {sentence(told)}", file=sys.stderr)
        else:
            show(kind, error, trace)

    sys.excepthook = hook
