"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from typing import Any, Callable, Optional

__all__ = ["write_atomically", "write_json", "write_text"]


def write_atomically(path: str, write: Callable[[str], Any]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then move it there in one step.

    No reader ever sees half a file, two writers do not meet, and after an interruption the file
    that was there is still there.

    Args:
        path: the file; its folder is made if it does not exist.
        write: called with the name of the temporary file.
    """
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    partial = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(partial)


def write_text(path: str, text: str) -> None:
    """Write a text file in UTF-8, atomically."""

    def write(partial: str) -> None:
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)

    write_atomically(path, write)


def write_json(path: str, content: Any, indent: Optional[int] = None) -> None:
    """Write a JSON file, atomically."""
    write_text(path, json.dumps(content, indent=indent) + "\n")
