"""Features that are compared row by row."""

from __future__ import annotations

from typing import Any, Tuple

import torch
from torch import Tensor

from proxyfda.neighbours.cosines import check_features
from proxyfda.utils.errors import BadValue

__all__ = ["paired"]


def paired(x: Any, y: Any) -> Tuple[Tensor, Tensor]:
    """Features of the same samples, [N, d] and [N, d'], as tensors on one device without gradient.

    Raises:
        BadValue: no matrices, or of unequal length.
    """
    first, second = torch.as_tensor(x).detach(), torch.as_tensor(y).detach()
    for name, features in (("x", first), ("y", second)):
        check_features(name, features)
    if len(first) != len(second):
        raise BadValue(
            f"x has {len(first)} rows and y {len(second)}; give features of the same samples."
        )
    return first, second.to(first.device)
