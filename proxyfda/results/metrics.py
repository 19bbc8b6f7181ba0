"""Metrics of base-to-new generalisation, and of learning one task after another."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from proxyfda.utils.errors import BadValue

__all__ = ["average_accuracy", "backward_transfer", "forward_transfer", "harmonic_mean"]


def harmonic_mean(base, new):
    """H = 2 · base · new / (base + new), and 0 where both are 0.

    For a table, take H of the averages over datasets, as published tables do, not the average of
    H.

    Args:
        base: accuracy on base classes: a number, a tensor or an iterable of numbers.
        new: accuracy on new classes, of the same kind and length.

    Returns:
        A float for two numbers, a tensor (broadcast) if either is a tensor, otherwise a list.

    Raises:
        ValueError: negative accuracies, or iterables of unequal length.
    """
    if hasattr(base, "detach") or hasattr(new, "detach"):
        import torch

        base, new = torch.as_tensor(base), torch.as_tensor(new)
        if bool((base < 0).any()) or bool((new < 0).any()):
            raise BadValue("accuracies are below 0; give values of 0 or more.")
        if not torch.is_floating_point(base):
            base = base.to(torch.get_default_dtype())
        total = base + new
        h = 2.0 * base * new / total.masked_fill(total == 0, 1.0)
        return h.masked_fill(total == 0, 0.0)
    if hasattr(base, "__iter__") or hasattr(new, "__iter__"):
        base, new = list(base), list(new)
        if len(base) != len(new):
            raise BadValue(
                f"{len(base)} base accuracies meet {len(new)} new ones; give pairs of them."
            )
        return [harmonic_mean(b, n) for b, n in zip(base, new)]
    base, new = float(base), float(new)
    if base < 0 or new < 0:
        raise BadValue(f"accuracies are {base} and {new}; give values of 0 or more.")
    return 2.0 * base * new / (base + new) if base + new else 0.0


def average_accuracy(matrix: Sequence[Sequence[float]]) -> float:
    """Mean accuracy on all tasks of a row after the last one, in the unit of the matrix.

    Lopez-Paz & Ranzato, "Gradient Episodic Memory for Continual Learning", NeurIPS 2017, arXiv
    1706.08840.

    Args:
        matrix: T lists of T accuracies, ``matrix[i][j]`` on task ``j`` after training on ``i``.

    Raises:
        ValueError: the matrix is not square.

    >>> average_accuracy([[90, 40], [80, 70]])
    75.0
    """
    return statistics.fmean(_square(matrix)[-1])


def backward_transfer(matrix: Sequence[Sequence[float]]) -> float:
    """Mean change of the accuracy on earlier tasks, from right after each to after the last.

    Negative is forgetting. Definition, arguments and errors as for :func:`average_accuracy`.

    Raises:
        ValueError: fewer than two tasks.

    >>> backward_transfer([[90, 40], [80, 70]])
    -10.0
    """
    matrix = _several(matrix)
    last = matrix[-1]
    return statistics.fmean(last[j] - matrix[j][j] for j in range(len(matrix) - 1))


def forward_transfer(matrix: Sequence[Sequence[float]], reference: Sequence[float]) -> float:
    """Mean gain on tasks right before they are trained on, over a model that was trained on none.

    Definition as for :func:`average_accuracy`; there the reference is a model with random weights,
    here it is whatever is given: the pre-trained backbone in our tables.

    Args:
        matrix: as for :func:`average_accuracy`.
        reference: T accuracies of the model before the first task.

    Raises:
        ValueError: fewer than two tasks, or another number of references.

    >>> forward_transfer([[90, 40], [80, 70]], [50, 45])
    -5.0
    """
    matrix = _several(matrix)
    if len(reference) != len(matrix):
        raise BadValue(
            f"{len(matrix)} tasks meet {len(reference)} accuracies to compare with; give one each."
        )
    return statistics.fmean(matrix[j - 1][j] - reference[j] for j in range(1, len(matrix)))


def _square(matrix):
    if not len(matrix) or any(len(line) != len(matrix) for line in matrix):
        raise BadValue(
            f"the matrix of accuracies has {len(matrix)} lines of "
            f"{', '.join(str(len(line)) for line in matrix) or 'no'} numbers; give one line per "
            "task, with one number per task."
        )
    return matrix


def _several(matrix):
    if len(_square(matrix)) < 2:
        raise BadValue("there is 1 task; transfer needs two or more.")
    return matrix
