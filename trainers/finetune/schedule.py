"""The learning rate of each step: a linear warm-up, then a cosine down to 0."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

__all__ = ["build_schedule", "factor", "warmup_of"]


def warmup_of(steps: int, wanted: int) -> int:
    """Steps of warm-up in a run of a number of steps: at most half of them, so that a short run
    reaches its learning rate and comes down again (ours; published runs have 2,000 steps or more).

    >>> warmup_of(2000, 500), warmup_of(60, 500), warmup_of(60, 0)
    (500, 30, 0)
    """
    return min(wanted, steps // 2)


def factor(step: int, steps: int, warmup: int) -> float:
    """What the learning rate is multiplied by in a step, counted from 0.

    As in the published code of WiSE-FT, LDIFS and FLYP (``mlfoundations/wise-ft``,
    ``omegafragger/ldifs_code``, ``locuslab/FLYP``).

    >>> [round(factor(step, 6, 2), 3) for step in range(7)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146, 0.0]
    """
    if step < warmup:
        return (step + 1) / warmup
    done = min((step - warmup) / max(steps - warmup, 1), 1.0)
    return 0.5 * (1 + math.cos(math.pi * done))


def build_schedule(optimiser: Optimizer, steps: int, warmup: int) -> LambdaLR:
    """The schedule over a number of steps, to be stepped after each."""
    return LambdaLR(optimiser, lambda step: factor(step, steps, warmup))
