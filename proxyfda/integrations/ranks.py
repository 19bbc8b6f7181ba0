"""A regulariser's own parameters in a training by several processes."""

from __future__ import annotations

from typing import Any, List, Optional, Sequence

import torch
import torch.distributed
from torch import Tensor, nn

__all__ = ["OwnParameters"]


class OwnParameters:
    """Parameters outside of any ``DistributedDataParallel``, kept the same on all ranks as there.

    Args:
        parameters: the same on each rank.
        group: the process group; None: the default one, if there is one.
        average: whether there is anything to do.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], group: Any, average: bool) -> None:
        self._parameters, self._group = list(parameters), group
        self._average, self._alike = average, False

    @property
    def _several(self) -> bool:
        return bool(self._parameters) and self._average and _ranks(self._group) > 1

    def align(self) -> None:
        """Give all ranks the parameters of the first, once. Called on all ranks alike."""
        if self._alike or not self._several:
            return
        distributed: Any = torch.distributed
        source = 0 if self._group is None else distributed.get_global_rank(self._group, 0)
        for parameter in self._parameters:
            distributed.broadcast(parameter.data, source, group=self._group)
        self._alike = True

    def averaged(self, gradients: Sequence[Optional[Tensor]]) -> List[Optional[Tensor]]:
        """The mean over the ranks of gradients, by one message. Called on all ranks alike.

        Who has no gradient counts with zeros.
        """
        if not self._several:
            return list(gradients)
        given = [
            torch.zeros_like(parameter) if gradient is None else gradient
            for parameter, gradient in zip(self._parameters, gradients)
        ]
        flat = torch.cat([gradient.reshape(-1) for gradient in given])
        distributed: Any = torch.distributed
        distributed.all_reduce(flat, group=self._group)
        flat /= _ranks(self._group)
        parts = flat.split([gradient.numel() for gradient in given])
        return [part.view_as(gradient).to(gradient) for part, gradient in zip(parts, given)]


def _ranks(group: Any) -> int:
    distributed: Any = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return 1
    return int(distributed.get_world_size(group))
