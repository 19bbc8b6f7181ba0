"""Metrics of base-to-new generalisation."""

from __future__ import annotations

from proxyfda.utils.errors import BadValue

__all__ = ["harmonic_mean"]


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
