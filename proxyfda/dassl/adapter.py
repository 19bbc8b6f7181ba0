"""Gives the trainer of an installed Dassl the hooks that the embedded engine's trainer has."""

from __future__ import annotations

from proxyfda.engine.loops import EpochLoop, EvaluationLoop

__all__ = ["with_hooks"]


def with_hooks(trainer: type) -> type:
    """A subclass of Dassl's `TrainerX` with the loops of the embedded engine.

    It adds `evaluate`, `last_result`, `end_of_epoch` and `check_step`; files, log lines and curves
    are those of Dassl. The class that is given stays as it is, and so do trainers that derive from
    it directly.
    """
    members = {"__doc__": trainer.__doc__, "__module__": __name__}
    return type(trainer.__name__, (EpochLoop, EvaluationLoop, trainer), members)
