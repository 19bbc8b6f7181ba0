"""Linear probes, against scikit-learn's solution and a naive loop of LDIFS's recipe."""

import pytest
import torch
from torch.nn import functional as F

from proxyfda.diagnostics import choose_linear_probe, fit_linear_probe


def data(n, seed, d=16, classes=4, noise=1.0, dtype=torch.float64):
    """Features with a common mean and a decaying spectrum, as an encoder's."""
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.arange(1, d + 1).double().rsqrt()
    centres = torch.randn(classes, d, generator=torch.Generator().manual_seed(0)).double()
    labels = torch.arange(n) % classes
    x = 2 + centres[labels] * spectrum
    x = x + noise * torch.randn(n, d, generator=generator).double() * spectrum
    return x.to(dtype), labels


def centred(logits):
    return logits - logits.mean(1, keepdim=True)


@pytest.mark.parametrize("strength", [1e-2, 1e-4])
@pytest.mark.parametrize("normalise", [True, False], ids=["unit", "as they are"])
def test_the_minimum_is_scikit_learns(strength, normalise):
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, labels = data(120, 1)
    queries, wanted = data(80, 2)
    ready, asked = (F.normalize(t, dim=1) if normalise else t for t in (x, queries))
    theirs = linear_model.LogisticRegression(C=1 / (strength * len(x)), tol=1e-8, max_iter=5000)
    theirs.fit(ready.numpy(), labels.numpy())
    ours = fit_linear_probe(x, labels, strength=strength, normalise=normalise)
    expected = torch.tensor(theirs.decision_function(asked.numpy()))
    gap = (centred(ours.logits(queries)) - centred(expected)).abs().max()
    assert gap < 1e-3
    assert ours.accuracy(queries, wanted) == theirs.score(asked.numpy(), wanted.numpy())


def test_fp32_is_as_accurate():
    (x, labels), (queries, wanted) = data(120, 1), data(80, 2)
    double = fit_linear_probe(x, labels, strength=1e-3)
    single = fit_linear_probe(x.float(), labels, strength=1e-3)
    assert single.weight.dtype == torch.float32
    assert (double.logits(queries) - single.logits(queries)).abs().max() < 0.02
    assert single.accuracy(queries, wanted) == double.accuracy(queries, wanted)


def naive_ldifs(x, labels, classes, rate, seed):
    torch.manual_seed(seed)
    layer = torch.nn.Linear(x.shape[1], classes)
    optimiser = torch.optim.AdamW(layer.parameters(), lr=rate)
    for _ in range(1000):
        optimiser.zero_grad()
        F.cross_entropy(layer(F.normalize(x, dim=1)), labels).backward()
        optimiser.step()
    return layer


def test_ldifs_is_a_naive_loop_and_leaves_the_random_numbers_alone():
    x, labels = data(40, 1, d=6, dtype=torch.float32)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    ours = fit_linear_probe(x, labels, recipe="ldifs", strength=0.05, seed=3)
    assert torch.equal(before, torch.get_rng_state())
    theirs = naive_ldifs(x, labels, 4, 0.05, 3)
    assert torch.allclose(ours.weight, theirs.weight, atol=1e-3)
    assert torch.allclose(ours.bias, theirs.bias, atol=1e-3)


@pytest.mark.parametrize("recipe, strengths", [("convex", [1.0, 1e-3]), ("ldifs", [1e-5, 0.1])])
def test_the_strength_that_validates_best_is_chosen_and_fitted_on_both(
    recipe, strengths, monkeypatch
):
    monkeypatch.setattr("proxyfda.diagnostics.linear_probe.ITERATIONS", 150)
    train, val = data(60, 1, d=8), data(40, 2, d=8)
    each = [fit_linear_probe(*train, strength=s, recipe=recipe) for s in strengths]
    scores = [probe.accuracy(*val) for probe in each]
    assert scores[0] < scores[1]
    chosen = choose_linear_probe(train, val, strengths, recipe=recipe)
    assert chosen.strength == strengths[1]
    assert torch.allclose(chosen.weight, each[1].weight, atol=1e-4)
    again = choose_linear_probe(train, val, strengths, recipe=recipe, refit=True)
    both = [torch.cat(pair) for pair in zip(train, val)]
    expected = fit_linear_probe(*both, strength=strengths[1], recipe=recipe)
    assert torch.allclose(again.weight, expected.weight, atol=1e-4)


def test_of_equal_accuracies_ldifs_takes_the_first_and_convex_the_likelier(monkeypatch):
    monkeypatch.setattr("proxyfda.diagnostics.linear_probe.ITERATIONS", 150)
    x, labels = data(40, 1, noise=0.01)
    first = choose_linear_probe((x, labels), (x, labels), [0.1, 0.5], recipe="ldifs")
    assert first.strength == 0.1
    convex = choose_linear_probe((x, labels), (x, labels), [1e-6, 1e-3])
    assert convex.accuracy(x, labels) == 1 and convex.strength == 1e-6


def test_a_class_without_training_samples_is_never_predicted_and_counts_as_wrong():
    x, labels = data(40, 1, noise=0.01)
    known = labels != 1
    probe = fit_linear_probe(x[known], labels[known], classes=6)
    assert probe.weight.shape == (6, 16) and probe.bias[[1, 4, 5]].isinf().all()
    assert probe.accuracy(x, labels) == 0.75
    chosen = choose_linear_probe((x[known], labels[known]), (x, labels), refit=False)
    assert chosen.accuracy(x, labels) == 0.75


def test_many_classes_are_summed_in_parts(monkeypatch):
    x, labels = data(50, 1)
    whole = fit_linear_probe(x, labels)
    monkeypatch.setattr("proxyfda.diagnostics.linear_probe._CHUNK", 28)
    assert torch.allclose(fit_linear_probe(x, labels).weight, whole.weight, atol=1e-6)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"labels": [2, 2, 2]}, "all 3 labels are class 2"),
        ({"features": torch.zeros(0, 2), "labels": torch.zeros(0).long()}, "a probe needs some"),
        (
            {"features": torch.tensor([[1.0], [float("nan")], [0.0]])},
            "has 1 rows of 3 that are not",
        ),
        ({"labels": [0, 1]}, "labels has shape .2."),
        ({"labels": [0.0, 1.0, 0.0]}, "as a whole number"),
        ({"labels": [0, 1, -1]}, "class -1; number the classes from 0"),
        ({"classes": 1}, "classes is 1, but there is class 1"),
        ({"strength": 0.0}, "strength is 0.0"),
        ({"recipe": "sgd"}, "recipe is 'sgd'; use one of convex, ldifs"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_one_sentence(change, words):
    good = {"features": torch.tensor([[1.0], [2.0], [0.0]]), "labels": [0, 1, 0]}
    with pytest.raises(ValueError, match=words):
        fit_linear_probe(**{**good, **change})


def test_sets_of_other_dimension_and_no_strengths_are_refused():
    x, labels = data(8, 1)
    with pytest.raises(ValueError, match="train has 16 dimensions and val 15"):
        choose_linear_probe((x, labels), (x[:, 1:], labels))
    with pytest.raises(ValueError, match="strengths is empty"):
        choose_linear_probe((x, labels), (x, labels), [])
    with pytest.raises(ValueError, match="x has 15 dimensions and the probe 16"):
        fit_linear_probe(x, labels).logits(x[:, 1:])
