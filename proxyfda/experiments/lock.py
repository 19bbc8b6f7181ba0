"""One process per output folder.

The operating system holds the lock (``filelock``), so it ends with its process, however that ends.
A file beside it says who holds it; nothing but messages depends on that one.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator

from filelock import FileLock, Timeout

from proxyfda.utils.errors import Unusable, UserError
from proxyfda.utils.files import write_json

LOCK = "run.lock"
OWNER = "run.lock.json"
_held: dict[str, tuple[int, FileLock]] = {}  # folder -> process that locked it; a fork inherits it


class Busy(UserError, RuntimeError):
    """Another process works in the folder; it is free again when that process ends."""


@contextlib.contextmanager
def folder_lock(folder: str) -> Iterator[None]:
    """Hold a folder's lock; nothing happens if this process holds it already.

    Args:
        folder: made if it does not exist.

    Raises:
        Busy: another process has it.
        Unusable: the file system has no locks, or the folder cannot be written.
    """
    folder = os.path.abspath(folder)
    if _held.get(folder, (0, None))[0] == os.getpid():
        yield
        return
    os.makedirs(folder, exist_ok=True)
    lock = _acquire(folder)
    _held[folder] = (os.getpid(), lock)
    try:
        left_by = _owner(folder)
        if left_by:
            print(f"{folder} was left by {left_by}, which has ended: going on from there")
        me = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.ctime()}
        write_json(os.path.join(folder, OWNER), me)
        yield
    finally:
        if folder in _held:
            _release(folder)


def holder(folder: str) -> str:
    """Who works in the folder, in words; empty if nobody does."""
    path = os.path.join(folder, LOCK)
    if not os.path.exists(path):
        return ""
    try:
        with FileLock(path, timeout=0):
            return ""
    except Timeout:
        return _owner(folder) or "another process"


def release_all() -> None:
    """Give back every lock of this process, for those that leave without cleaning up."""
    for folder, (pid, _) in list(_held.items()):
        if pid == os.getpid():
            _release(folder)


def _acquire(folder: str) -> FileLock:
    path = os.path.join(folder, LOCK)
    lock = FileLock(path, timeout=0)
    while True:
        try:
            # Our own handle: a file that is open keeps its identity.
            with open(path, "a") as file:
                lock.acquire()
                # The one who had it may have removed the file since it was opened; a lock on a
                # file that nobody else finds excludes nobody.
                if os.path.exists(path) and os.path.samestat(
                    os.fstat(file.fileno()), os.stat(path)
                ):
                    return lock
            lock.release()
        except Timeout:
            who = _owner(folder) or "another process"
            raise Busy(f"{folder} is in use by {who}; wait for it or end it") from None
        except (NotImplementedError, OSError) as error:
            raise Unusable(
                f"{path} cannot be locked ({error}); use an output folder on a file system that "
                "has file locks and that you can write"
            ) from None


def _release(folder: str) -> None:
    _, lock = _held.pop(folder)
    for name in (OWNER, LOCK):
        # While it is held, see _acquire; Windows lets nobody remove an open file, so it stays.
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(folder, name))
    lock.release()


def _owner(folder: str) -> str:
    """Who wrote the file beside the lock, in words; empty if it says nothing."""
    try:
        with open(os.path.join(folder, OWNER), encoding="utf-8") as file:
            who = json.load(file)
        return f"process {who['pid']} on {who['host']} (since {who['since']})"
    except (OSError, ValueError, TypeError, KeyError):
        return ""
