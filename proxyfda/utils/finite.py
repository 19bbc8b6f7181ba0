"""Whether tensors hold only finite numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["all_finite"]


def all_finite(values: Tensor) -> bool:
    """Whether no value is infinite or no number; complex ones count by both parts.

    A sum with such a value is not finite, and takes a small part of the time of looking at each
    value by itself; that is left to sums that are not finite, as those of large values may be.
    """
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())
