"""One process per output folder: a lock file in it names its holder.

A lock whose process has ended on this machine is taken over. Of another machine's process nothing
can be known, so that is told with the remedy. Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from typing import Dict, Iterator, Optional

from proxyfda.utils.errors import UserError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

LOCK = "run.lock"
_held: Dict[str, int] = {}  # path -> process that took it; a fork inherits the dict


class Busy(UserError, RuntimeError):
    """Another process has the folder.

    Attributes:
        passing: the holder runs on this machine, so the lock ends with it at the latest.
    """

    def __init__(self, message: str, passing: bool):
        super().__init__(message)
        self.passing = passing


@contextlib.contextmanager
def folder_lock(folder: str) -> Iterator[None]:
    """Hold a folder's lock; nothing happens if this process holds it already.

    Args:
        folder: made if it does not exist.

    Raises:
        Busy: another process has it.
    """
    path = os.path.join(os.path.abspath(folder), LOCK)
    if _held.get(path) == os.getpid():
        yield
        return
    os.makedirs(folder, exist_ok=True)
    _take(path)
    _held[path] = os.getpid()
    try:
        yield
    finally:
        _release(path)


def holder(folder: str) -> str:
    """Who works in the folder, in words; empty if nobody does, as far as is known."""
    try:
        with open(os.path.join(folder, LOCK)) as file:
            who = _parse(file.read())
    except OSError:
        return ""
    return "" if who and _alive(who) is False else _words(who)


def release_all() -> None:
    """Give back every lock of this process, for those that leave without cleaning up."""
    for path, pid in list(_held.items()):
        if pid == os.getpid():
            _release(path)


def _release(path: str) -> None:
    _held.pop(path, None)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _take(path: str) -> None:
    while True:
        try:
            with open(path, "x") as file:
                file.write(_me())
            return
        except FileExistsError:
            if _take_over(path):
                return


def _take_over(path: str) -> bool:
    """Whether the lock of an ended process is ours now; false if it is gone, so try again."""
    try:
        file = open(path, "r+")  # noqa: SIM115
    except FileNotFoundError:
        return False
    with file:
        if fcntl:
            # Of several that find the lock stale, one takes it: the others read its name next.
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            if not os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return False
        except FileNotFoundError:
            return False
        who = _parse(file.read())
        alive = _alive(who) if who else None
        folder = os.path.dirname(path)
        if who is None and time.time() - os.path.getmtime(path) < 60:
            raise Busy(f"{folder} is just being taken by another process; wait for it", True)
        if alive is None:
            raise Busy(
                f"{folder} is in use by {_words(who)}, which cannot be looked after from "
                f"{socket.gethostname()}; wait for it, or if it has ended, remove {path}",
                False,
            )
        if alive:
            raise Busy(f"{folder} is in use by {_words(who)}; wait for it or end it", True)
        file.seek(0)
        file.truncate()
        file.write(_me())
    print(f"{folder} was left by {_words(who)}, which has ended: going on from there")
    return True


def _me() -> str:
    pid = os.getpid()
    return json.dumps(
        {"host": socket.gethostname(), "pid": pid, "born": _born(pid), "since": time.ctime()}
    )


def _parse(text: str) -> Optional[Dict]:
    try:
        who = json.loads(text)
        return who if {"host", "pid"} <= set(who) else None
    except (ValueError, TypeError):
        return None


def _words(who: Optional[Dict]) -> str:
    if who is None:
        return "an unknown process"
    return f"process {who['pid']} on {who['host']} (since {who.get('since', 'unknown')})"


def _alive(who: Dict) -> Optional[bool]:
    """Whether the process runs; ``None`` where that cannot be known."""
    if who["host"] != socket.gethostname() or os.name != "posix":
        return None
    try:
        os.kill(who["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    # Process ids are used again, also after a restart of the machine: compare the birth as well.
    return who.get("born") == _born(who["pid"])


def _born(pid: int) -> Optional[str]:
    """When a process started, in the system's ticks, where the system tells."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
