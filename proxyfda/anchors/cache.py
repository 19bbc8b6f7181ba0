"""Tensors that are computed once and kept in a file."""

from __future__ import annotations

import hashlib
import os
from typing import Any, Callable, Dict, Iterable, Mapping, Union

import torch
from torch import Tensor, nn

from proxyfda.utils.files import write_atomically

__all__ = ["cached_tensor", "cached_tensors", "fingerprint"]


def fingerprint(weights: Union[nn.Module, Mapping[str, Tensor]], words: Iterable[str]) -> str:
    """A text that differs where the weights or the words differ.

    Of the weights it takes names, shapes, sums and sums of squares.

    Args:
        weights: a module, or tensors by name.
        words: what else matters.
    """
    digest = hashlib.sha256()
    found = weights.state_dict() if isinstance(weights, nn.Module) else weights
    for name, weight in found.items():
        values = weight.detach().double()
        numbers = torch.stack([values.sum(), values.square().sum()]).tolist()
        digest.update(f"{name} {tuple(weight.shape)} {numbers}\n".encode())
    for word in words:
        digest.update(f"{len(word)} {word}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def cached_tensor(path: str, key: str, compute: Callable[[], Tensor]) -> Tensor:
    """``compute()``, or what it gave before for the same key.

    A file that is damaged, of another key or cannot be written is no obstacle: the tensor is
    computed again.

    Args:
        path: the file; an empty path keeps nothing.
        key: what the tensor depends on, see :func:`fingerprint`.
        compute: gives the tensor.
    """
    return _cached(path, key, compute, lambda kept: isinstance(kept, Tensor))


def cached_tensors(
    path: str, key: str, compute: Callable[[], Dict[str, Tensor]]
) -> Dict[str, Tensor]:
    """The same for several tensors by name."""
    return _cached(path, key, compute, lambda kept: isinstance(kept, dict))


def _cached(path: str, key: str, compute: Callable[[], Any], fits: Callable[[Any], bool]) -> Any:
    if path and os.path.isfile(path):
        try:
            kept: Any = torch.load(path, map_location="cpu", weights_only=True)
            if not isinstance(kept, dict):
                raise TypeError(f"it holds a {type(kept).__name__}")
            found: Any = kept["value"] if kept["key"] == key else None
            if fits(found):
                return found
        except Exception as error:  # torch raises half a dozen kinds for a damaged file
            print(f"{path} cannot be read ({type(error).__name__}), so it is computed again")
    value = compute()
    if path:
        try:
            write_atomically(
                path, lambda partial: torch.save({"key": key, "value": value}, partial)
            )
        except (OSError, RuntimeError) as error:  # torch opens and writes the file itself
            print(f"{path} cannot be written ({error}), so the next run computes it again")
    return value
