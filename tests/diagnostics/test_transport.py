"""OTDD against the formula with POT's own Gaussian distances, and what it is by hand."""

import sys

import numpy
import pytest
import torch

from proxyfda.diagnostics import otdd
from proxyfda.utils.errors import NotInstalled, Unusable

ot = pytest.importorskip("ot")


def labelled(counts, d=4, seed=0, shift=0.0):
    """Features of classes of these sizes, and their labels."""
    stream = numpy.random.default_rng(seed)
    labels = numpy.repeat(numpy.arange(len(counts)), counts)
    centres = 3 * stream.normal(size=(len(counts), d))
    return centres[labels] + stream.normal(size=(len(labels), d)) + shift, labels


def squared(x, y):
    return ((x[:, None] - y[None]) ** 2).sum(-1)


def naive(x, labels_x, y, labels_y):
    """The cost pair by pair, with classes of full rank."""

    def moments(x, labels):
        groups = [x[labels == label] for label in numpy.unique(labels)]
        return numpy.stack([g.mean(0) for g in groups]), numpy.stack(
            [numpy.cov(g.T) for g in groups]
        )

    (means_x, covs_x), (means_y, covs_y) = moments(x, labels_x), moments(y, labels_y)
    between = ot.gaussian.bures_wasserstein_distance(means_x, means_y, covs_x, covs_y) ** 2
    places = [numpy.unique(labels, return_inverse=True)[1] for labels in (labels_x, labels_y)]
    return ot.emd2([], [], squared(x, y) + between[places[0]][:, places[1]])


@pytest.mark.parametrize("counts", [(12, 15), (30, 8, 9)], ids=["two", "three"])
def test_otdd_is_the_formula(counts):
    x, labels_x = labelled(counts)
    y, labels_y = labelled((10, 11, 9), seed=1, shift=1.0)
    want = naive(x, labels_x, y, labels_y)
    assert otdd(x, labels_x, y, labels_y) == pytest.approx(want, rel=1e-9)
    assert otdd(y, labels_y, x, labels_x) == pytest.approx(want, rel=1e-9)
    # Numbers of classes say nothing, and tensors of another precision do as well.
    got = otdd(torch.tensor(x).float(), 7 - 3 * labels_x, y, labels_y)
    assert got == pytest.approx(want, rel=1e-5)


def test_classes_of_fewer_samples_than_dimensions_and_of_one():
    """One sample each: the classes' distance is that of the points, so that all counts twice."""
    x, labels = labelled((1, 1, 1), d=6)
    y, _ = labelled((1, 1, 1), d=6, seed=1)
    assert otdd(x, labels, y, labels) == pytest.approx(2 * ot.emd2([], [], squared(x, y)))
    # In more dimensions that none of them uses nothing changes.
    x, labels = labelled((5, 6), d=3)
    y, _ = labelled((5, 6), d=3, seed=2)
    wide = [numpy.pad(given, ((0, 0), (0, 20))) for given in (x, y)]
    assert otdd(wide[0], labels, wide[1], labels) == pytest.approx(naive(x, labels, y, labels))


@pytest.mark.parametrize("entropy", [0.0, 0.05], ids=["exact", "sinkhorn"])
def test_a_set_is_at_distance_0_of_itself(entropy):
    x, labels = labelled((20, 30), d=40)
    assert otdd(x, labels, x, labels, entropy=entropy) == pytest.approx(0, abs=1e-9)
    order = numpy.random.default_rng(3).permutation(len(x))
    again = otdd(x, labels, x[order], 1 - labels[order], entropy=entropy)
    assert again == pytest.approx(0, abs=1e-9)


def test_moving_everything_costs_the_move_twice():
    """Points and classes are both moved by the same vector."""
    x, labels = labelled((9, 9))
    assert otdd(x, labels, x + 0.5, labels) == pytest.approx(2 * 4 * 0.25)


def test_between_the_same_images_it_is_l2():
    """The plan is each to itself; what comes on top is how far the class as a whole has moved."""
    x, _ = labelled((30,), d=8)
    y = x + 0.1 * numpy.random.default_rng(1).normal(size=x.shape)
    moved = ot.gaussian.bures_wasserstein_distance(
        *(numpy.stack([given.mean(0)]) for given in (x, y)),
        *(numpy.stack([numpy.cov(given.T)]) for given in (x, y)),
    )
    labels = numpy.zeros(30, int)
    drift = numpy.mean(((x - y) ** 2).sum(1))
    assert otdd(x, labels, y, labels) == pytest.approx(drift + moved.item() ** 2)


def test_sinkhorn_approaches_the_exact_plan_at_any_scale():
    x, labels = labelled((15, 15))
    y, _ = labelled((15, 15), seed=1, shift=1.0)
    want = otdd(x, labels, y, labels)
    far, near, nearest = (otdd(x, labels, y, labels, entropy=e) for e in (0.5, 0.05, 0.002))
    assert abs(near - want) < abs(far - want)
    assert near == pytest.approx(want, rel=0.05) and nearest == pytest.approx(want, rel=0.01)
    assert otdd(1e3 * x, labels, 1e3 * y, labels, entropy=0.05) == pytest.approx(1e6 * near)


def test_a_draw_is_of_the_seed_and_of_the_points_alone():
    x, labels = labelled((40, 40))
    y, _ = labelled((40, 40), seed=1)
    some = [otdd(x, labels, y, labels, most=20, seed=seed) for seed in (0, 0, 1)]
    assert some[0] == some[1] != some[2]
    assert otdd(x, labels, x, labels, most=20) == pytest.approx(0, abs=1e-9)
    rows = torch.randperm(80, generator=torch.Generator().manual_seed(1))[:20].numpy()
    cost = squared(x[rows], y[rows])
    sizes = [numpy.stack([given[labels == c].mean(0) for c in (0, 1)]) for given in (x, y)]
    covs = [numpy.stack([numpy.cov(given[labels == c].T) for c in (0, 1)]) for given in (x, y)]
    between = ot.gaussian.bures_wasserstein_distance(*sizes, *covs) ** 2
    want = ot.emd2([], [], cost + between[labels[rows]][:, labels[rows]])
    assert some[2] == pytest.approx(want)


def test_without_pot_the_command_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(NotInstalled, match="pip install POT"):
        otdd(*labelled((2, 2)), *labelled((2, 2)))


def test_a_plan_that_is_not_found_is_said(monkeypatch):
    monkeypatch.setattr("proxyfda.diagnostics.transport._ITERATIONS", 1)
    with pytest.raises(Unusable, match="20 and 20 samples"):
        otdd(*labelled((10, 10)), *labelled((10, 10), seed=1))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"y": numpy.zeros((6, 3))}, "x has 4 dimensions and y 3"),
        ({"y": numpy.zeros(6)}, "y has shape"),
        ({"labels_x": [0, 1]}, r"labels_x has shape \[2\].*6 features"),
        ({"labels_y": numpy.zeros(6)}, "labels_y has shape.*float64"),
        ({"labels_y": None}, "labels_y is None"),
        ({"x": numpy.zeros((0, 4)), "labels_x": numpy.zeros(0, int)}, "x has no rows"),
        ({"x": numpy.full((6, 4), numpy.inf)}, "x has numbers that are not finite"),
        ({"most": 0}, "most is 0"),
        ({"entropy": -1.0}, "entropy is -1"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_input_is_one_sentence(change, words):
    x, labels = labelled((3, 3))
    given = {"x": x, "labels_x": labels, "y": x, "labels_y": labels, **change}
    with pytest.raises(ValueError, match=words):
        otdd(**given)
