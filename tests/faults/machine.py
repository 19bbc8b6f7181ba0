"""A child process whose file operations are counted, and stopped or refused at one of them.

Operations are those that change something below one folder: opening for writing, writing to such a
file (its second half is missing then; of many writes in a row the first three and every hundredth),
renaming, removing, making a folder. A log's lines and TensorBoard's curves do not count, since a
thread of their own writes them at any time.

The child is forked, so that what the tests have imported need not be imported again.
"""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import NamedTuple

import pytest

UNCOUNTED = ("log.txt", "tensorboard", "tfevents")
EVENTS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link")
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


class Child(NamedTuple):
    """How a child ended: exit code (minus the signal, if one ended it), what it printed, and the
    number of its file operations (None where it could not say it)."""

    code: int
    printed: str
    operations: int | None

    @property
    def sentence(self):
        """The one line that tells a user of an error."""
        lines = [line for line in self.printed.splitlines() if line.startswith("error: ")]
        assert "Traceback" not in self.printed and len(lines) == 1, self.printed
        return lines[0]


class Fault(NamedTuple):
    """What happens at which operation: ``kill``, the name of a signal, or of an ``errno``, which
    also all later operations end with."""

    what: str
    at: int


class _Machine:
    def __init__(self, below, fault):
        self._below, self._fault = str(below), fault
        self.count = 0

    def install(self):
        sys.addaudithook(self._watch)
        plain = io.open

        def opened(file, mode="r", *args, **more):
            found = plain(file, mode, *args, **more)
            writes = any(letter in mode for letter in "wax+")
            return _File(found, self) if writes and self._counts(file) else found

        io.open = opened
        __builtins__["open"] = opened

    def step(self, kind, half=lambda: None, counts=True):
        """Count an operation; ``half`` does the first half of it."""
        self.count += counts
        fault = self._fault
        if fault is None or self.count < fault.at:
            return
        if fault.what.startswith("E"):
            if fault.what == "ENOSPC" and kind not in ("open", "write", "os.mkdir", "os.link"):
                return  # a full disk lets files be removed and renamed
            half()
            raise OSError(getattr(errno, fault.what), os.strerror(getattr(errno, fault.what)))
        if self.count == fault.at:
            half()
            os.kill(
                os.getpid(), signal.SIGKILL if fault.what == "kill" else signal.Signals[fault.what]
            )

    def _counts(self, path):
        if not isinstance(path, (str, bytes, os.PathLike)):
            return False
        path = os.path.abspath(os.fsdecode(path))
        return path.startswith(self._below) and not any(name in path for name in UNCOUNTED)

    def _watch(self, event, args):
        if event == "open":
            path, mode, flags = args
            changes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
            if isinstance(flags, int) and flags & changes and self._counts(path):
                self.step("open")
        elif event in EVENTS and self._counts(args[0]):
            self.step(event)


class _File:
    """A file whose writes count."""

    def __init__(self, file, machine):
        self._file, self._machine, self._writes = file, machine, 0

    def write(self, data):
        def half():
            self._file.write(data[: len(data) // 2] if isinstance(data, (str, bytes)) else b"")
            self._file.flush()

        self._writes += 1
        self._machine.step("write", half, counts=self._writes <= 3 or self._writes % 100 == 0)
        return self._file.write(data)

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def __iter__(self):
        return iter(self._file)


def start(action, scratch, below=None, fault=None):
    """Call ``action`` in a forked child; returns a function that waits for it and gives a `Child`.

    Args:
        scratch: folder for what it prints.
        below: folder whose operations count.
        fault: a `Fault`, or None.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        _in_child(action, scratch / f"{os.getpid()}", below, fault)

    def wait():
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        report = scratch / f"{pid}.json"
        count = json.loads(report.read_text()) if report.exists() else None
        return Child(code, (scratch / f"{pid}.txt").read_text(errors="replace"), count)

    return wait


def run(action, scratch, below=None, fault=None):
    """The `Child` of ``action``, once it has ended."""
    return start(action, scratch, below, fault)()


def _in_child(action, report, below, fault):
    code = 1
    try:
        handle = os.open(f"{report}.txt", os.O_WRONLY | os.O_CREAT)
        for standard in (1, 2):
            os.dup2(handle, standard)
        sys.stdout = sys.stderr = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for name in ("SIGTERM", "SIGHUP"):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
        machine = _Machine(below or "/nowhere", fault)
        machine.install()
        try:
            code = action() or 0
        finally:
            machine._fault = None
            Path(f"{report}.json").write_text(json.dumps(machine.count))
    except KeyboardInterrupt:
        code = 130
    except BaseException as error:
        _tell(error)
    finally:
        sys.stdout.flush()
        os._exit(code if isinstance(code, int) else 0)


def _tell(error):
    """What a user of the command line would see."""
    from proxyfda.utils import errors

    sys.excepthook = lambda kind, error, trace: traceback.print_exception(kind, error, trace)
    errors.show_user_errors()
    sys.excepthook(type(error), error, error.__traceback__)
