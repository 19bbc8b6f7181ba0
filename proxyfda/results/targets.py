"""Files and folders that a command is to write: refused before any work where they cannot be.

What the system has against writing them later on, :func:`proxyfda.utils.files.writing` says.
"""

from __future__ import annotations

import os
import tempfile

from proxyfda.utils.errors import BadValue, CannotWrite, NotFound

__all__ = ["check_file", "check_folder"]


def check_file(flag: str, path: str) -> None:
    """Refuse a file that could not be written.

    Args:
        flag: the option that names it, for the message.

    Raises:
        BadValue: there is a folder of that name.
        NotFound: its folder does not exist.
        CannotWrite: its folder is a file, or takes no files.
    """
    if os.path.isdir(path):
        raise BadValue(f"{flag}: {path} is a folder; give the name of a file")
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.lexists(folder):
        raise NotFound(f"{flag}: the folder {os.path.dirname(path)} does not exist; make it first")
    _check_takes_files(flag, path, folder)


def check_folder(flag: str, path: str) -> None:
    """Refuse a folder that could not be made or written to; arguments as of :func:`check_file`.

    Raises:
        CannotWrite: it is a file or lies in one, or takes no files.
    """
    above = os.path.abspath(path)
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    _check_takes_files(flag, path, above)


def _check_takes_files(flag: str, path: str, folder: str) -> None:
    """Refuse ``path`` where no file can be made in ``folder``, by making one: rights alone do not
    tell of file systems that take none."""
    if not os.path.isdir(folder):
        raise CannotWrite(
            f"{flag}: {path} cannot be written, since {folder} is no folder; give another place"
        )
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CannotWrite(
            f"{flag}: {path} cannot be written, since {folder} takes no files "
            f"({error.strerror or error}); give another place"
        ) from None
