"""Numbers on the command lines of the scripts that measure."""

from __future__ import annotations

import argparse

__all__ = ["count", "seeds"]


def count(text: str, least: int = 1) -> int:
    """The ``type`` of an argument that counts something.

    Raises:
        argparse.ArgumentTypeError: it is no whole number, or below ``least``.
    """
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(
            f"{text!r} is given; use whole numbers of at least {least}"
        )
    return int(text)


def seeds(text: str) -> list[int]:
    """The ``type`` of seeds joined by commas; raises as :func:`count` does."""
    return [count(word.strip(), least=0) for word in text.split(",")]
