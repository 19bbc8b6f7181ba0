"""What a misspelt word was probably meant to be."""

from __future__ import annotations

import difflib
from typing import Iterable

__all__ = ["did_you_mean", "nearest"]


def nearest(word: object, choices: Iterable[object], cutoff: float = 0.6) -> str:
    """The choice most like ``word``, whatever the case; empty if none is alike.

    >>> nearest("Rn50", ["RN50", "ViT-B/16"])
    'RN50'
    """
    folded = {str(choice).lower(): str(choice) for choice in choices}
    close = difflib.get_close_matches(str(word).lower(), list(folded), n=1, cutoff=cutoff)
    return folded[close[0]] if close else ""


def did_you_mean(word: object, choices: Iterable[object], cutoff: float = 0.6) -> str:
    """``" (did you mean 'x'?)"`` for the nearest choice, or nothing.

    >>> did_you_mean("pointwize", ["fda", "pointwise"])
    " (did you mean 'pointwise'?)"
    >>> did_you_mean("x", ["fda", "pointwise"])
    ''
    """
    close = nearest(word, choices, cutoff)
    return f" (did you mean {close!r}?)" if close else ""
