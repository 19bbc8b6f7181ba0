"""Methods that were run on the same datasets with the same seeds, compared run by run.

What a method gave is a mapping of a run, that is of dataset and seed, to its accuracy on base and
on new classes in percent. Differences are taken between runs of one key, so that what is easy about
a dataset and lucky about a seed falls out; their error is the standard error of their mean.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence

from proxyfda.results.metrics import harmonic_mean

__all__ = [
    "Found",
    "averages",
    "base",
    "failing",
    "gaps",
    "mean_and_error",
    "new",
    "tells_apart",
    "tells_apart_text",
    "written",
]

Found = Mapping[tuple[str, int], tuple[float, float]]
"""(dataset, seed) -> accuracy on base and on new classes."""

CLEAR = 2
"""Standard errors by which two methods have to differ to be told apart."""


def base(base_accuracy: float, new_accuracy: float) -> float:
    """Accuracy on base classes of a run."""
    return base_accuracy


def new(base_accuracy: float, new_accuracy: float) -> float:
    """Accuracy on new classes of a run."""
    return new_accuracy


def mean_and_error(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and its standard error, from the sample's standard deviation (n - 1).

    Returns:
        ``None`` for what there are too few values for: one has no error, none has no mean.

    >>> mean_and_error([1.0, 3.0]), mean_and_error([1.0]), mean_and_error([])
    ((2.0, 1.0), (1.0, None), (None, None))
    """
    if not values:
        return None, None
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return statistics.fmean(values), error


def written(values: Sequence[float]) -> str:
    """Mean and standard error of differences; of one value the mean alone, of none nothing.

    >>> written([1.0, 3.0]), written([1.0]), written([])
    ('+2.0 ± 1.0', '+1.0', '')
    """
    mean, error = mean_and_error(values)
    if mean is None:
        return ""
    return f"{mean:+.1f}" if error is None else f"{mean:+.1f} ± {error:.1f}"


def gaps(found: Found, reference: Found, number: Callable[[float, float], float]) -> list[float]:
    """Run by run, how much more a method has than the reference, in points.

    Args:
        number: of base and new accuracy: :func:`base`, :func:`new`, or
            :func:`~proxyfda.results.metrics.harmonic_mean`.

    Returns:
        One number per run that both have.
    """
    return [number(*found[run]) - number(*reference[run]) for run in found if run in reference]


def averages(found: Found) -> list[str]:
    """Mean base and new accuracy, and the mean of the runs' harmonic means, as cells."""
    values = [
        statistics.fmean(number(*pair) for pair in found.values())
        for number in (base, new, harmonic_mean)
    ]
    return [f"{value:.1f}" for value in values]


# -- what may be claimed --------------------------------------------------------------------------


def failing(found: Found, plain: Found, references: Mapping[str, Found], runs: int) -> list[str]:
    """What stands against the claim that a method helps; empty where it may be made.

    H has to lie above that of every reference by more than two standard errors of the paired
    differences, base accuracy not below that of the plain trainer by more than one, and no run of
    the method, of the plain trainer and of a reference may be missing.

    Args:
        found, plain: what the method and the plain trainer gave.
        references: by name, what its H is compared with.
        runs: that each of them has when it is complete.

    Returns:
        One phrase per condition that fails, or per method with missing runs.
    """
    there = {"the setting": found, "plain": plain, **references}
    missing = {name: runs - len(one) for name, one in there.items() if len(one) < runs}
    if missing:
        return [f"{count} of {runs} runs of {name} are missing" for name, count in missing.items()]
    against = []
    for name, reference in references.items():
        values = gaps(found, reference, harmonic_mean)
        mean, error = mean_and_error(values)
        if mean is None or error is None:
            against.append(f"H - {name} has no standard error with {len(values)} run")
        elif not mean > CLEAR * error:
            against.append(f"H - {name} is {written(values)}, not above {CLEAR} standard errors")
    values = gaps(found, plain, base)
    mean, error = mean_and_error(values)
    if mean is not None and error is not None and mean < -error:
        against.append(f"base - plain is {written(values)}, lower by more than a standard error")
    return against


# -- power ----------------------------------------------------------------------------------------


def tells_apart(methods: Mapping[str, Found]) -> dict[tuple[str, str], float]:
    """The smallest difference in H that the runs tell apart, by pairs of methods, in points.

    That is two standard errors of the mean of the paired differences. Pairs with fewer than two
    runs in common, which have no error, are left out.
    """
    found = {}
    for one, other in itertools.combinations(methods, 2):
        _, error = mean_and_error(gaps(methods[one], methods[other], harmonic_mean))
        if error is not None:
            found[one, other] = CLEAR * error
    return found


def tells_apart_text(methods: Mapping[str, Found]) -> str:
    """A line on :func:`tells_apart`: its median over pairs, the least and the most."""
    found = tells_apart(methods)
    if not found:
        return "No two methods have two runs in common, so none can be told apart."
    least, most = min(found, key=found.__getitem__), max(found, key=found.__getitem__)
    runs = max(map(len, methods.values()))
    return (
        f"Told apart at {CLEAR} standard errors ({runs} runs): differences in H of "
        f"{statistics.median(found.values()):.2f} (median over {len(found)} pairs; from "
        f"{found[least]:.2f} for {' | '.join(least)} to {found[most]:.2f} for {' | '.join(most)})"
    )
