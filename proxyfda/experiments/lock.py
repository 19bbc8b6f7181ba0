"""One process per output folder.

The operating system holds the lock (``filelock``), so it ends with its process, however that ends.
Where the file system has no locks, as some network file systems, a lease that its holder keeps
fresh takes its place (:mod:`proxyfda.experiments.lease`). A file beside them says who holds it;
nothing but messages depends on that one.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shlex
import socket
import time
from collections.abc import Iterator

from filelock import FileLock, Timeout

from proxyfda.experiments.lease import Lease
from proxyfda.experiments.lease import held as leased
from proxyfda.utils.errors import UserError
from proxyfda.utils.files import write_json, writing

LOCK = "run.lock"
OWNER = "run.lock.json"
WAIT = 0.2  # seconds between looks at a lock that is waited for
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
# Folder -> process that locked it, as a fork inherits the dict, and its lock.
_held: dict[str, tuple[int, FileLock | Lease]] = {}


class Busy(UserError, RuntimeError):
    """Another process works in the folder; it is free again when that process ends."""


@contextlib.contextmanager
def folder_lock(folder: str, wait: bool = False) -> Iterator[None]:
    """Hold a folder's lock; nothing happens if this process holds it already.

    Args:
        folder: made if it does not exist.
        wait: until another process has given it back.

    Raises:
        Busy: another process has it.
        CannotWrite: the folder cannot be written.
    """
    folder = os.path.abspath(folder)
    if _held.get(folder, (0, None))[0] == os.getpid():
        yield
        return
    with writing(folder):
        os.makedirs(folder, exist_ok=True)
        lock = _wait_for(folder) if wait else _acquire(folder)
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
    if leased(folder):
        return _owner(folder) or "another process"
    if not os.path.exists(path):
        return ""
    try:
        with _file_lock(path):
            return ""
    except Timeout:
        return _owner(folder) or "another process"
    except (NotImplementedError, OSError):
        return ""  # no locks there, or nothing that we may write


def clear(folder: str) -> None:
    """Remove what a killed process has left of its lock; nothing happens while one holds it."""
    folder = os.path.abspath(folder)
    if any(os.path.exists(os.path.join(folder, name)) for name in (LOCK, OWNER)):
        with contextlib.suppress(Busy, OSError):
            _held[folder] = (os.getpid(), _acquire(folder))
            _release(folder)


def release_all() -> None:
    """Give back every lock of this process, for those that leave without cleaning up."""
    for folder, (pid, _) in list(_held.items()):
        if pid == os.getpid():
            _release(folder)


def _wait_for(folder: str) -> FileLock | Lease:
    told = False
    while True:
        try:
            return _acquire(folder)
        except Busy as error:
            if not told:
                print(f"waiting: {error}", flush=True)
            told = True
            time.sleep(WAIT)


def _acquire(folder: str) -> FileLock | Lease:
    path = os.path.join(folder, LOCK)
    lock = _file_lock(path)
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
            raise _busy(folder) from None
        except NotImplementedError:
            return _lease(folder)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return _lease(folder)


def _file_lock(path: str) -> FileLock:
    try:  # later versions would use a file that a killed process leaves for good
        return FileLock(path, timeout=0, fallback_to_soft=False)
    except TypeError:
        return FileLock(path, timeout=0)


def _lease(folder: str) -> Lease:
    lease = Lease(folder)
    if not lease.acquire():
        raise _busy(folder)
    return lease


def _busy(folder: str) -> Busy:
    who = _owner(folder) or "another process"
    return Busy(
        f"{folder} is in use by {who}; wait for it or end it (if its machine is gone for good: "
        f"rm {shlex.quote(os.path.join(folder, LOCK))}*)"
    )


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
