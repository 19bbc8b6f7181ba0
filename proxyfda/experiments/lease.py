"""A lock for file systems that have none: a file that its holder keeps fresh.

A holder that dies, on whatever machine, stops refreshing it; after :data:`EXPIRES` seconds another
one takes it over. Ages are by the clock of the file system, which all machines share.
"""

from __future__ import annotations

import contextlib
import os
import threading
import uuid

LEASE = "run.lock.lease"
BEAT = 15.0  # seconds between refreshments
EXPIRES = 120.0  # seconds without one after which the holder is taken for dead


class Lease:
    """A lease on a folder.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: str):
        self._path = os.path.join(folder, LEASE)
        self._me = uuid.uuid4().hex
        self._ended = threading.Event()

    def acquire(self) -> bool:
        """Take it if it is free or has expired; whether it is ours now."""
        if not self._create(self._path) and not self._take_over():
            return False
        threading.Thread(target=self._refresh, daemon=True).start()
        return True

    def release(self) -> None:
        """Give it back."""
        self._ended.set()
        if _content(self._path) == self._me:
            with contextlib.suppress(OSError):
                os.unlink(self._path)

    def _create(self, path: str) -> bool:
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return False
        with os.fdopen(handle, "w") as file:
            file.write(self._me)
        return True

    def _take_over(self) -> bool:
        holder = _content(self._path)
        if not _has_expired(self._path):
            return False
        # One at a time may replace this holder; whoever comes late finds another one.
        turn = f"{self._path}.{holder or 'empty'}"
        if not self._create(turn):
            if _has_expired(turn):  # its writer has died in turn
                os.unlink(turn)
            return False
        try:
            if _content(self._path) != holder:
                return False
            os.unlink(self._path)
            return self._create(self._path)
        finally:
            os.unlink(turn)

    def _refresh(self) -> None:
        while not self._ended.wait(BEAT):
            with contextlib.suppress(OSError):
                if _content(self._path) == self._me:
                    os.utime(self._path)


def held(folder: str) -> bool:
    """Whether somebody has a lease on the folder that has not expired."""
    path = os.path.join(folder, LEASE)
    return os.path.exists(path) and not _has_expired(path)


def _content(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(32).replace("/", "").replace("\0", "")
    except OSError:
        return ""


def _has_expired(path: str) -> bool:
    probe = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with open(probe, "w"):
            now = os.stat(probe).st_mtime
        return now - os.stat(path).st_mtime > EXPIRES
    except FileNotFoundError:
        return False
    finally:
        with contextlib.suppress(OSError):
            os.unlink(probe)
