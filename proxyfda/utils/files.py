"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import re
import uuid
from typing import Any, Callable, Iterator, Optional

from proxyfda.utils.errors import UserError, refused_write

__all__ = [
    "remove_partial",
    "write_atomically",
    "write_binary",
    "write_json",
    "write_text",
    "writing",
]

_PARTIAL = re.compile(r".+\.[0-9a-f]{8}\.tmp")


@contextlib.contextmanager
def writing(path: str = "", *, within: str = "") -> Iterator[None]:
    """What the operating system has against writing meanwhile, as one sentence.

    Args:
        path: the file or folder that is written, if it is one.
        within: the folder that has it, named where the error names no file.

    Raises:
        CannotWrite: in place of its ``OSError``, see :func:`proxyfda.utils.errors.refused_write`.
    """
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        told = refused_write(error, str(path), str(within))
        if told is None:
            raise
        raise told from error


def write_atomically(path: str, write: Callable[[str], Any]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then move it there in one step.

    No reader ever sees half a file, two writers do not meet, and after an interruption the file
    that was there is still there.

    Args:
        path: the file; its folder is made if it does not exist.
        write: called with the name of the temporary file.

    Raises:
        CannotWrite: the disk is full or read-only, or the path cannot be one; see :func:`writing`.
    """
    partial = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
    with writing(path):
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        try:
            write(partial)
            os.replace(partial, path)
        finally:
            with contextlib.suppress(OSError):
                os.remove(partial)


def write_binary(path: str, save: Callable[[Any], Any]) -> None:
    """Let ``save`` write to a binary file, which then takes the name ``path``; atomically.

    Args:
        save: called with the file. ``torch.save`` and its like raise an error of their own where a
            write was refused or interrupted; here the first one is raised.

    Raises:
        CannotWrite: see :func:`write_atomically`.
    """

    def write(partial: str) -> None:
        with open(partial, "wb") as file:
            try:
                save(file)
            except Exception as error:
                raise _cause(error) from None

    write_atomically(path, write)


def _cause(error: BaseException) -> BaseException:
    """What an error came from, if a write was refused or the user has interrupted it."""
    found: Optional[BaseException] = error
    while found is not None and not isinstance(found, (OSError, KeyboardInterrupt, SystemExit)):
        found = found.__cause__ or found.__context__
    return error if found is None else found


def remove_partial(folder: str, of: str = "") -> None:
    """Remove what killed writers left below ``folder``; to be called while nobody writes there.

    Args:
        of: only what is of the files whose names begin so.
    """
    for top, _, names in os.walk(folder):
        for name in filter(_PARTIAL.fullmatch, names):
            if name.startswith(of):
                with contextlib.suppress(OSError):
                    os.remove(os.path.join(top, name))


def write_text(path: str, text: str) -> None:
    """Write a text file in UTF-8, atomically."""

    def write(partial: str) -> None:
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)

    write_atomically(path, write)


def write_json(path: str, content: Any, indent: Optional[int] = None) -> None:
    """Write a JSON file, atomically."""
    write_text(path, json.dumps(content, indent=indent) + "\n")
