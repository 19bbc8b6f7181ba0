"""A look at the features during training, every so many batches."""

from __future__ import annotations

from typing import Any, Callable, Dict, Optional

from torch import Tensor

from proxyfda.diagnostics.drift import l2_drift
from proxyfda.diagnostics.overlap import neighbour_overlap
from proxyfda.utils.errors import BadType, BadValue

__all__ = ["Monitor", "check_monitor"]


def check_monitor(monitor: Any) -> Optional[Monitor]:
    """The monitor, or None for none.

    Raises:
        BadType: it is something else.
    """
    if not (monitor is None or isinstance(monitor, Monitor)):
        raise BadType(
            f"monitor is a {type(monitor).__name__}; give a proxyfda.diagnostics.Monitor, such as "
            "Monitor(writer.add_scalar)."
        )
    return monitor


class Monitor:
    """Writes how far a batch's features are from their frozen ones, for ``attach(monitor=...)``.

    ``<prefix>overlap`` is :func:`~proxyfda.diagnostics.neighbour_overlap` within the batch, and
    ``<prefix>drift`` :func:`~proxyfda.diagnostics.l2_drift` of unit features. Both come from what
    the regulariser was given, without gradient, so that only every ``every``-th batch costs
    anything, about a millisecond. Batches differ: overlap within 64 images is not that of a whole
    dataset, and only its course says something.

    Args:
        write: called with name, value and number of the batch from 0, such as ``add_scalar`` of
            TensorBoard's ``SummaryWriter``.
        every: batches from one look to the next; the first batch is looked at.
        k: neighbours, as of ``neighbour_overlap``.
        prefix: of the names.

    Attributes:
        last: values of the last look by name, without the prefix.
        batches: that were counted so far.

    Raises:
        BadType: ``write`` cannot be called.
        BadValue: ``every`` or ``k`` is below 1.

    >>> import torch
    >>> monitor = Monitor(print, every=2)
    >>> x = torch.eye(4)
    >>> for _ in range(3):
    ...     if monitor.due():
    ...         monitor.look(x, x)
    features/overlap 1.0 0
    features/drift 0.0 0
    features/overlap 1.0 2
    features/drift 0.0 2
    """

    def __init__(
        self,
        write: Callable[[str, float, int], Any],
        every: int = 50,
        k: int = 8,
        prefix: str = "features/",
    ) -> None:
        if not callable(write):
            raise BadType(
                f"write is a {type(write).__name__}; give a function of name, value and step, such "
                "as add_scalar of a SummaryWriter."
            )
        for name, value in (("every", every), ("k", k)):
            if value < 1:
                raise BadValue(f"{name} is {value!r}; use at least 1.")
        self.write, self.every, self.k, self.prefix = write, every, k, prefix
        self.last: Dict[str, float] = {}
        self.batches = 0

    def due(self) -> bool:
        """Count a batch, and say whether it is looked at."""
        self.batches += 1
        return (self.batches - 1) % self.every == 0

    def look(self, features: Tensor, anchors: Tensor) -> None:
        """Write the measures of a batch.

        Args:
            features, anchors: [N, ...], tuned and frozen; what a sample has is one vector.
        """
        x, y = (given.detach().reshape(len(given), -1) for given in (features, anchors))
        self.last = {
            "overlap": neighbour_overlap(x, y, self.k),
            "drift": l2_drift(x, y, unit=True),
        }
        for name, value in self.last.items():
            self.write(self.prefix + name, value, self.batches - 1)
