"""Lists as users type them into one word of a command line: joined by commas or blanks."""

from __future__ import annotations

import re
from typing import List

from proxyfda.utils.errors import BadValue

__all__ = ["listed", "whole_numbers"]


def listed(text: str) -> List[str]:
    """The words of a list.

    >>> listed("CoOp, MaPLe  CoCoOp,")
    ['CoOp', 'MaPLe', 'CoCoOp']
    """
    return [word for word in re.split(r"[,\s]+", text) if word]


def whole_numbers(name: str, text: str) -> List[int]:
    """The whole numbers of a list, of which there is at least one.

    Args:
        name: what they are, for the message.

    Raises:
        BadValue: something else is among them, or nothing.

    >>> whole_numbers("SEEDS", "1,2 3")
    [1, 2, 3]
    """
    try:
        numbers = [int(word) for word in listed(text)]
    except ValueError:
        numbers = []
    if not numbers:
        raise BadValue(f"{name} is {text!r}; give a whole number, or several joined by commas")
    return numbers
