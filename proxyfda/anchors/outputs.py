"""The features among what a module returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Union

from torch import Tensor

from proxyfda.utils.errors import BadType

__all__ = ["tensor_of"]


def tensor_of(output: Any, key: Union[int, str, None] = None, source: str = "the module") -> Tensor:
    """The tensor that a module returns, alone or among others.

    Args:
        output: a tensor, or a tuple, list, mapping (transformers' ``ModelOutput``) or object with
            attributes (a dataclass, a named tuple) with one.
        key: which: a position, or a key or the name of an attribute. None: the first.
        source: what returned it, for the error.

    Raises:
        BadType: there is none, or it is a single number, as the loss is that some models return.
    """
    found: Any = output
    if isinstance(key, str):
        found = output.get(key) if isinstance(output, Mapping) else getattr(output, key, None)
    elif not isinstance(output, Tensor):
        values = []
        if isinstance(output, Mapping):
            values = list(output.values())
        elif isinstance(output, (tuple, list)):
            values = list(output)
        elif hasattr(output, "__dict__"):
            values = list(vars(output).values())
        position = 0 if key is None else key
        found = values[position] if -len(values) <= position < len(values) else None
    if not isinstance(found, Tensor) or not found.dim():
        which = "first" if key is None else repr(key)
        what = f"a {type(found).__name__} and no tensor"
        if isinstance(found, Tensor):
            what = "a single number and no features"
        names = list(output) if isinstance(output, Mapping) else None
        raise BadType(
            f"{source} returned a {type(output).__name__} whose output {which} is {what}; name "
            "the one with the features by output="
            + (f", one of {', '.join(map(repr, names))}" if names else "")
        )
    return found
