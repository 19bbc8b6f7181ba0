"""The rule by which λ and α are chosen, and the values that there are."""

import itertools
from pathlib import Path

import pytest
import torch

import train
from proxyfda.experiments.project import Project
from proxyfda.experiments.strengths import MARGIN, Tried, choose, kind_of, measure, strengths_of
from proxyfda.names import METHODS

PROJECT = Project(str(Path(train.__file__).parent), entry="train")


def naive_choice(tried, accuracy):
    """The rule as it is written, one value after the other."""
    best = None
    near = [one for one in tried if one.accuracy >= accuracy - MARGIN]
    for one in near or tried:
        if best is None:
            best = one
            continue
        ours, theirs = (one.delta, one.accuracy), (best.delta, best.accuracy)
        if not near:
            ours, theirs = ours[::-1], theirs[::-1]
        if ours[0] > theirs[0] or (ours[0] == theirs[0] and ours[1] > theirs[1]):
            best = one
    return best


@pytest.mark.parametrize("naive", [70.0, 72.0, 74.0, 75.0, 99.0])
def test_the_choice_is_that_of_a_search_by_hand(naive):
    generator = torch.Generator().manual_seed(int(naive))
    for _ in range(200):
        # Whole numbers, so that ties and exact margins are frequent.
        numbers = torch.randint(0, 5, (4, 2), generator=generator).tolist()
        tried = [Tried(str(i), 70.0 + a, float(d)) for i, (a, d) in enumerate(numbers)]
        assert choose(tried, naive) == naive_choice(tried, naive)


@pytest.mark.parametrize(
    ("tried", "chosen"),
    [
        ([("1", 90, -3), ("3", 89, -1), ("10", 88.9, 2)], "3"),
        ([("1", 88, -3), ("3", 88, -1), ("10", 80, 2)], "3"),
        ([("1", 91, -1), ("3", 92, -1)], "3"),
        ([("1", 91, -1), ("3", 91, -1)], "1"),
        ([("1", 90 - 1 / 3 - 2 / 3, 0), ("3", 95, -1)], "1"),
    ],
    ids=["one point below counts", "none is near", "equal deltas", "a tie", "rounding"],
)
def test_cases_of_the_rule(tried, chosen):
    assert choose([Tried(*one) for one in tried], naive=90.0).value == chosen


def test_what_a_value_gave_is_a_mean_over_seeds_and_other_datasets():
    before = {"a": 40.0, "b": 60.0, "c": 80.0, "unused": 1.0}
    runs = [{"a": 91.0, "b": 58.0, "c": 81.0}, {"a": 89.0, "b": 55.0, "c": 80.0}]

    def probes(numbers):
        return {name: {"linear_probe": number} for name, number in numbers.items()}

    found = measure("3", "a", [probes(run) for run in runs], probes(before))
    expected = sum(run[y] - before[y] for run, y in itertools.product(runs, "bc")) / 4
    assert (found.accuracy, found.delta) == (90.0, pytest.approx(expected))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_with_a_strength_has_values_with_the_published_one(method):
    run = METHODS[method]
    found = strengths_of(run, PROJECT)
    assert (found is None) == (kind_of(run) == "") == (method in ("naive", "LP-FT", "FLYP"))
    if found:
        assert found.default in found.values and len(found.values) >= 3
    published = {"L2SP": "0.5", "LDIFS": "10", "WiSE-FT": "0.5"}
    assert method not in published or found.default == published[method]


def test_values_may_be_given_in_any_spelling():
    assert strengths_of("FineTune+kl", PROJECT, ["3.0", "1e-1"]).values == ("3", "0.1")
    assert strengths_of("FineTune+kl", PROJECT).values == ("0.3", "1", "3", "10")
    assert strengths_of("ProxyFDAFineTune", PROJECT) == strengths_of("FDAFineTune", PROJECT)


@pytest.mark.parametrize(
    ("run", "values", "message"),
    [
        ("WiSEFT", ["0.5", "1.2"], "α is 1.2; use numbers from 0"),
        ("WiSEFT", ["half"], "α is half; use numbers"),
        ("FDAFineTune", ["0"], "λ is 0; use finite numbers above 0"),
        ("FDAFineTune", ["nan"], "λ is nan; use finite"),
        ("FDAFineTune", ["1", "1.0"], "λ 1 is named twice"),
    ],
)
def test_values_that_make_no_sense_are_refused(run, values, message):
    with pytest.raises(ValueError, match=message):
        strengths_of(run, PROJECT, values)
