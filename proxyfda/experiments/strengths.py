"""How strongly a method of tuning end to end holds back, and the rule by which that is chosen.

The strength is λ for a method with a regulariser and α, the share of the tuned weights, for
WiSE-FT; other methods have none. All are chosen by one rule, on validation images alone, for every
tuned dataset by itself:

    Of the values whose validation accuracy on the tuned dataset is within one point of the plain
    fine-tuning's, or above it, the one that forgets least. If none is, the most accurate one.

Accuracies are those of linear probes, means over the seeds of the choice. What is forgotten is
measured as Δ_LP on validation images: the mean over the *other* datasets of the probe's accuracy on
the tuned encoder minus that on the pre-trained one. Of equal values the more accurate one (or, if
none is within one point, the one that forgets less) is taken, then the first of the list. The rule
is ours: the sources publish neither λ by dataset nor how it was found.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import yaml

from proxyfda.experiments.project import Project
from proxyfda.names import NONE, WISE_FT, split_run_name
from proxyfda.utils.errors import BadValue, NotFound

__all__ = ["MARGIN", "Strengths", "Tried", "check_values", "choose", "measure", "strengths_of"]

MARGIN = 1.0
"""Points of validation accuracy below the plain fine-tuning that a value may cost."""
WEIGHT, ALPHA = "weight", "alpha"
_SYMBOLS = {WEIGHT: "λ", ALPHA: "α"}
_DIGITS = 9  # of points: means in another order differ by less


# -- what there is to choose from -----------------------------------------------------------------


@dataclass(frozen=True)
class Strengths:
    """What can be set of a method.

    Attributes:
        kind: ``weight`` (λ) or ``alpha``.
        default: the published value, or ours.
        values: to choose from.
    """

    kind: str
    default: str
    values: tuple[str, ...]

    @property
    def symbol(self) -> str:
        """What tables call it."""
        return _SYMBOLS[self.kind]


def kind_of(run: str) -> str:
    """What can be set of a run: ``weight``, ``alpha``, or nothing (empty).

    >>> kind_of("WiSEFT"), kind_of("FDAFineTune"), kind_of("LPFT")
    ('alpha', 'weight', '')
    """
    host, regulariser = split_run_name(run)
    if host == WISE_FT:
        return ALPHA
    return WEIGHT if regulariser not in ("", NONE) else ""


def strengths_of(run: str, project: Project, values: Sequence[str] = ()) -> Strengths | None:
    """What can be set of a run, from ``configs/finetune``; ``None`` where there is nothing.

    Args:
        values: in place of those of the file.

    Raises:
        BadValue: an α outside of 0 to 1, a λ that is not above 0, one that is named twice, or a
            file that is no grid.
        NotFound: there is no file.
    """
    kind = kind_of(run)
    if not kind:
        return None
    host, regulariser = split_run_name(run)
    path = project.strengths("wise_ft" if host == WISE_FT else regulariser)
    default, listed = _read(path, kind)
    given = tuple(_number(kind, word) for word in values)
    for word in given:
        if given.count(word) > 1:
            raise BadValue(f"{_SYMBOLS[kind]} {word} is named twice; name each value once")
    return Strengths(kind, default, given or listed)


def check_values(kind: str, values: Sequence[str]) -> None:
    """Refuse words that are no strengths of this kind, whether or not a method takes them.

    Raises:
        BadValue: see :func:`strengths_of`.
    """
    for word in values:
        _number(kind, word)


def _read(path: str, kind: str) -> tuple[str, tuple[str, ...]]:
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.safe_load(file)
    except FileNotFoundError:
        raise NotFound(f"{path} does not exist; give {_SYMBOLS[kind]} by hand") from None
    except yaml.YAMLError as error:
        raise BadValue(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    try:
        default, values = content["default"], content["values"]
        found = tuple(_number(kind, value) for value in values)
        return _number(kind, default), found
    except (KeyError, TypeError):
        raise BadValue(
            f"{path} is no list of {_SYMBOLS[kind]}; give it default: VALUE and values: [V1, V2]"
        ) from None


def _number(kind: str, word: object) -> str:
    """A value in one spelling, so that 3.0 and 3 are one folder."""
    try:
        value = float(word)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        value = math.nan
    if kind == ALPHA and not 0 <= value <= 1:
        raise BadValue(f"α is {word}; use numbers from 0 (pre-trained) to 1 (tuned)")
    if kind == WEIGHT and not (math.isfinite(value) and value > 0):
        raise BadValue(f"λ is {word}; use finite numbers above 0 (naive is λ 0)")
    return f"{value:.12g}"


# -- what they gave -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tried:
    """What a value gave on validation images.

    Attributes:
        value: λ or α, as a word; empty for the plain fine-tuning.
        accuracy: of the linear probe on the tuned dataset, in percent.
        delta: Δ_LP over the other datasets, in points.
    """

    value: str
    accuracy: float
    delta: float


def measure(
    value: str,
    dataset: str,
    tuned: Sequence[Mapping[str, Mapping]],
    pretrained: Mapping[str, Mapping],
) -> Tried:
    """What a value gave, from the probes of its runs.

    Args:
        dataset: the one that was tuned on.
        tuned: ``probes`` of the ``result.json`` of each seed: by dataset, with ``linear_probe``.
        pretrained: the same of the backbone as it was pre-trained.

    >>> before = {"a": {"linear_probe": 50.0}, "b": {"linear_probe": 80.0}}
    >>> after = {"a": {"linear_probe": 90.0}, "b": {"linear_probe": 77.5}}
    >>> measure("3", "a", [after], before)
    Tried(value='3', accuracy=90.0, delta=-2.5)
    """
    accuracy = statistics.fmean(probes[dataset]["linear_probe"] for probes in tuned)
    delta = statistics.fmean(
        probes[other]["linear_probe"] - pretrained[other]["linear_probe"]
        for probes in tuned
        for other in probes
        if other != dataset
    )
    return Tried(value, accuracy, delta)


def choose(tried: Sequence[Tried], naive: float, margin: float = MARGIN) -> Tried:
    """The rule of this module.

    Args:
        tried: at least one value.
        naive: validation accuracy of the plain fine-tuning, in percent.
        margin: in points.

    >>> tried = [Tried("1", 90.0, -3.0), Tried("3", 89.2, -1.0), Tried("10", 84.0, 0.5)]
    >>> choose(tried, naive=90.1).value, choose(tried, naive=99.0).value
    ('3', '1')
    """
    near = [one for one in tried if round(one.accuracy - naive + margin, _DIGITS) >= 0]
    if near:
        return max(near, key=lambda one: (round(one.delta, _DIGITS), round(one.accuracy, _DIGITS)))
    return max(tried, key=lambda one: (round(one.accuracy, _DIGITS), round(one.delta, _DIGITS)))
