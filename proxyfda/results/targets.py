"""Files and folders that a command is to write: refused before any work where they cannot be."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from proxyfda.utils.errors import BadValue, CannotWrite, NotFound, UserError
from proxyfda.utils.files import write_text

__all__ = ["check_file", "check_folder", "write", "writing"]


def check_file(flag: str, path: str) -> None:
    """Refuse a file that could not be written.

    Args:
        flag: the option that names it, for the message.

    Raises:
        BadValue: there is a folder of that name.
        NotFound: its folder does not exist.
        CannotWrite: its folder is a file, or may not be written to.
    """
    if os.path.isdir(path):
        raise BadValue(f"{flag}: {path} is a folder; give the name of a file")
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.lexists(folder):
        raise NotFound(f"{flag}: the folder {os.path.dirname(path)} does not exist; make it first")
    if not os.path.isdir(folder):
        raise CannotWrite(f"{flag}: {path} cannot be written, since {folder} is no folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise CannotWrite(
            f"{flag}: {path} cannot be written, since you may not write to {folder}; give another "
            "place"
        )


def check_folder(flag: str, path: str) -> None:
    """Refuse a folder that could not be made or written to; arguments as of :func:`check_file`.

    Raises:
        CannotWrite: it is a file or lies in one, or may not be written to.
    """
    above = os.path.abspath(path)
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    if not os.path.isdir(above):
        raise CannotWrite(
            f"{flag}: {path} cannot be made, since {above} is no folder; give another"
        )
    if not os.access(above, os.W_OK | os.X_OK):
        raise CannotWrite(
            f"{flag}: {path} cannot be used, since you may not write to {above}; give another place"
        )


@contextlib.contextmanager
def writing(flag: str, path: str) -> Iterator[None]:
    """What the system says against writing becomes a sentence.

    Raises:
        CannotWrite: naming the path and what the system says, such as that the disk is full.
    """
    try:
        yield
    except UserError:
        raise  # it is a sentence already
    except OSError as error:
        raise CannotWrite(
            f"{flag}: {path} cannot be written ({error.strerror or error}); nothing is left of it"
        ) from None


def write(flag: str, path: str, text: str) -> None:
    """Write a text file as a whole or not at all.

    Raises:
        CannotWrite: see :func:`writing`.
    """
    with writing(flag, path):
        write_text(path, text)
