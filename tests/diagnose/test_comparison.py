"""A comparison against the functions called one by one, and what it refuses."""

import pytest
import torch

from proxyfda.diagnose import Encoded, compare
from proxyfda.diagnose.comparison import halves
from proxyfda.diagnostics import cka, fit_linear_probe, l2_drift, neighbour_overlap, otdd

pytest.importorskip("ot")
LABELS = torch.arange(24) % 3


def encoded(noise, d=6, seed=0):
    stream = torch.Generator().manual_seed(0)
    centres = torch.randn(3, d, generator=stream)
    x = centres[LABELS] + 0.5 * torch.randn(24, d, generator=stream)
    x = x + noise * torch.randn(24, d, generator=torch.Generator().manual_seed(seed))
    return Encoded(3 * x, {0: x[:, :2], 4: x}, (x @ centres.t()).argmax(1))


def test_measures_are_those_of_the_functions_on_unit_features():
    frozen, tuned = encoded(0.0), encoded(0.4)
    found = compare("toy", frozen, tuned, LABELS, k=3, seed=5)
    before, after = (torch.nn.functional.normalize(e.features, dim=1) for e in (frozen, tuned))
    assert found.overlap == pytest.approx(neighbour_overlap(before, after, 3))
    assert 0 < found.overlap < 1
    assert found.kept.mean().item() == pytest.approx(found.overlap)
    assert found.cka == pytest.approx(cka(before, after, debiased=True))
    assert found.l2_drift == pytest.approx(l2_drift(before, after))
    assert found.moved.mean().item() == pytest.approx(found.l2_drift)
    assert found.layers[0] == pytest.approx(l2_drift(frozen.layers[0], tuned.layers[0], unit=True))
    assert list(found.layers) == [0, 4]
    one, other = halves(24, 5)
    want = otdd(before[one], LABELS[one], after[other], LABELS[other])
    assert found.otdd == pytest.approx(want)
    frozen_want = otdd(before[one], LABELS[one], before[other], LABELS[other])
    assert found.otdd_beyond == pytest.approx(want - frozen_want)
    probe = fit_linear_probe(after[one], LABELS[one], classes=3)
    assert found.linear_probe == pytest.approx(100 * probe.accuracy(after[other], LABELS[other]))
    right = tuned.guesses == LABELS
    assert found.zero_shot == pytest.approx(100 * right.double().mean().item())


def test_halves_are_disjoint_and_everything():
    one, other = halves(9, 1)
    assert sorted(torch.cat([one, other]).tolist()) == list(range(9)) and len(one) == 4
    assert not torch.equal(one, halves(9, 2)[0])


def test_nothing_was_tuned():
    frozen = encoded(0.0)
    found = compare("toy", frozen, frozen, LABELS, k=3)
    assert (found.overlap, found.l2_drift, found.cka) == (1.0, 0.0, pytest.approx(1.0))
    assert found.otdd == found.otdd_before > 0  # of different images
    assert found.linear_probe == found.linear_probe_before


def test_one_class_and_no_texts_leave_out_what_needs_them():
    frozen = Encoded(encoded(0.0).features)
    found = compare("toy", frozen, frozen, torch.zeros(24, dtype=torch.long))
    assert found.linear_probe is None and found.zero_shot is None and found.layers == {}


@pytest.mark.parametrize(
    "tuned, count, k, words",
    [
        (encoded(0.0, d=5), 24, 3, "features of 6 dimensions and the tuned one of 5"),
        (encoded(0.0), 9, 8, "toy has 9 images here, too few for 8 neighbours"),
    ],
    ids=["dimensions", "few"],
)
def test_bad_input_is_one_sentence(tuned, count, k, words):
    frozen = encoded(0.0)
    frozen, tuned = (Encoded(e.features[:count]) for e in (frozen, tuned))
    with pytest.raises(ValueError, match=words):
        compare("toy", frozen, tuned, LABELS[:count], k=k)
