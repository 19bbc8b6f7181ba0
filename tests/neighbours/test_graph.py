"""The neighbour graph against its definition, pair by pair."""

import math

import pytest
import torch
from naive import cosine, features

from proxyfda.neighbours import NeighbourGraph, Relations
from proxyfda.neighbours.cosines import unit_rows, zero_loss
from proxyfda.neighbours.graph import MIN_SPREAD
from proxyfda.regularisers import fda_loss


@pytest.mark.parametrize(
    "n, k, clamped", [(2, 8, 1), (3, 8, 1), (4, 8, 2), (9, 8, 7), (10, 8, 8), (10, 1, 1), (1, 3, 0)]
)
def test_k_is_clamped_in_self_graph(n, k, clamped):
    graph = NeighbourGraph(features(n), k)
    assert graph.k == clamped and graph.requested_k == k
    assert (graph.mask.sum(1) == clamped).all()
    assert graph.indices.shape == (n, clamped)


@pytest.mark.parametrize("m, k, clamped", [(1, 3, 1), (2, 3, 1), (5, 9, 4), (5, 2, 2)])
def test_k_is_clamped_in_cross_graph(m, k, clamped):
    graph = NeighbourGraph(features(3), k, features(m, seed=1))
    assert graph.k == clamped and (graph.mask.sum(1) == clamped).all()


@pytest.mark.parametrize(
    "n, m, trivial", [(3, None, True), (4, None, False), (1, 2, False), (5, 1, True), (0, 4, True)]
)
def test_trivial_graphs(n, m, trivial):
    graph = NeighbourGraph(features(n), 2, None if m is None else features(m, seed=1))
    assert graph.is_trivial is trivial


@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
def test_contents(cross):
    x, y = features(7, cone=1.0), features(9, seed=1, cone=1.0)
    others = y if cross else x
    graph = NeighbourGraph(x, 2, y if cross else None)
    assert graph.shape == (7, len(others)) and graph.count == (9 if cross else 6)
    for i in range(7):
        sims = {j: cosine(x[i], others[j]).item() for j in range(len(others)) if cross or j != i}
        ranked = sorted(sims, key=lambda j: -sims[j])
        assert graph.order[i].tolist() == ranked
        assert graph.indices[i].tolist() == ranked[:2]
        assert set(graph.mask[i].nonzero().flatten().tolist()) == set(ranked[:2])
        assert graph.threshold[i].item() == pytest.approx((sims[ranked[1]] + sims[ranked[2]]) / 2)
        for j in sims:
            sign = 1 if j in ranked[:2] else -1
            assert graph.similarities[i, j].item() == pytest.approx(sims[j])
            assert graph.weights[i, j].item() == pytest.approx(sign * max(sims[j], 0.0))
    if cross:
        assert graph.valid.all()
    else:
        assert torch.equal(graph.valid, ~torch.eye(7, dtype=torch.bool))
        assert (graph.weights.diagonal() == 0).all()


@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
def test_spread_is_the_standard_deviation_around_each_rows_mean(cross):
    x, y = features(7), features(5, seed=1)
    others = y if cross else x
    variances = []
    for i in range(7):
        sims = [cosine(x[i], others[j]).item() for j in range(len(others)) if cross or j != i]
        mean = sum(sims) / len(sims)
        variances.append(sum((s - mean) ** 2 for s in sims) / len(sims))
    row = NeighbourGraph(x, 2, y if cross else None, scale="row").spread
    pooled = NeighbourGraph(x, 2, y if cross else None).spread
    assert row.flatten().tolist() == pytest.approx([math.sqrt(v) for v in variances])
    assert pooled.flatten().tolist() == pytest.approx([math.sqrt(sum(variances) / 7)] * 7)


def test_representation():
    x = features(7, cone=1.0)
    assert repr(NeighbourGraph(x, 2)).startswith("NeighbourGraph(self, 7 x 7, k=2, neighbours at ")
    assert "k=5 (of 9)" in repr(NeighbourGraph(x, 9))
    assert repr(NeighbourGraph(x, 2, x[:4])).startswith("NeighbourGraph(cross, 7 x 4, k=2, ")


def test_ties_take_the_lowest_columns():
    graph = NeighbourGraph(torch.ones(6, 3), 2)
    assert graph.indices.tolist() == [[1, 2], [0, 2], [0, 1], [0, 1], [0, 1], [0, 1]]
    assert (graph.mask.sum(1) == 2).all()
    assert (graph.spread == MIN_SPREAD).all()
    for i in range(6):
        assert graph.mask[i].nonzero().flatten().tolist() == graph.indices[i].tolist()


def test_negative_frozen_cosines_never_flip_the_sign():
    frozen = features(10, d=3, cone=0.0)
    graph = NeighbourGraph(frozen, 7, min_weight=0.05)
    assert (graph.similarities[graph.mask] < 0).any()
    assert (graph.weights[graph.mask] >= 0.05).all()
    assert (graph.weights[graph.valid & ~graph.mask] <= -0.05).all()
    assert (NeighbourGraph(frozen, 7).weights[graph.mask] >= 0).all()


def test_bf16_anchors_give_distinct_fp32_similarities():
    x = features(64, d=64, cone=4.0, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        graph = NeighbourGraph(x, 8)
    assert graph.similarities.dtype == torch.float32
    upper = graph.similarities[torch.ones(64, 64).triu(1).bool()]
    assert len(upper.unique()) > 0.99 * len(upper)


def test_graph_carries_no_gradient():
    x, y = features(6).requires_grad_(), features(5, seed=1).requires_grad_()
    graph = NeighbourGraph(x, 2, y)
    parts = [graph.similarities, graph.weights, graph.spread, graph.threshold, graph.columns]
    assert not any(part.requires_grad for part in parts)


@pytest.mark.parametrize("sets", [1, 3])
def test_repeated_graph_is_that_of_each_set(sets):
    graph = NeighbourGraph(features(6), 2)
    _ = graph.weights, graph.spread, graph.threshold  # made before, to be repeated with the rest
    for whole in (graph.repeat(sets), NeighbourGraph(features(6), 2).repeat(sets)):
        assert whole.shape == (6 * sets, 6)
        for name in ("similarities", "weights", "mask", "order", "threshold", "spread", "valid"):
            rows = getattr(whole, name)
            torch.testing.assert_close(rows, torch.cat([getattr(graph, name)] * sets))


@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
def test_rows_of_a_graph_are_those_of_the_whole(cross):
    index = torch.tensor([4, 1, 5])
    for whole in (
        NeighbourGraph(features(6), 2, features(8, seed=1) if cross else None),
        NeighbourGraph(features(6), 2, features(8, seed=1) if cross else None).repeat(2),
    ):
        part = whole.rows(index)
        assert part.shape == (3, 8 if cross else 6) and part.count == whole.count
        for name in ("similarities", "weights", "mask", "order", "threshold", "spread", "valid"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[index]), name
        again = part.rows(torch.tensor([2]))
        assert torch.equal(again.weights, whole.weights[5:6])
        assert torch.equal(again.valid, whole.valid[5:6])


@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
def test_relations_append_proxies_to_the_real_columns(cross):
    graph = NeighbourGraph(features(5), 2, features(6, seed=1) if cross else None)
    made = torch.linspace(-0.4, 0.9, 15, dtype=torch.float64).view(5, 3)
    relations = Relations(graph, made, positives=1)
    columns, counted = (6, 6) if cross else (5, 4)
    assert relations.width == columns + 3 and relations.count == counted + 3
    assert torch.equal(relations.similarities, torch.cat([graph.similarities, made], 1))
    signs = torch.tensor([1.0, -1.0, -1.0])
    assert torch.equal(relations.weights[:, columns:], made.clamp(min=0) * signs)
    assert torch.equal(relations.weights[:, :columns], graph.weights)
    counts = relations.mean(torch.ones_like(relations.similarities))
    assert torch.equal(counts, torch.ones(5, dtype=torch.float64))
    hidden = relations.hide(torch.ones_like(relations.similarities), -7.0) == -7.0
    assert torch.equal(hidden[:, :columns], ~graph.valid) and not hidden[:, columns:].any()


def test_standardised_cosines_are_positive_for_neighbours():
    graph = NeighbourGraph(features(9), 3)
    z = Relations(graph).standardise(graph.similarities)
    assert torch.equal((z > 0) & graph.valid, graph.mask)


def test_graph_that_was_first_used_in_inference_mode_serves_training():
    x, frozen = features(8, 1).requires_grad_(), features(8, 2)
    graph = NeighbourGraph(frozen, 3)
    frozen_units = {"units": "frozen"}
    with torch.inference_mode():
        want = fda_loss(x, graph=graph, **frozen_units).item()
    loss = fda_loss(x, graph=graph, **frozen_units)
    loss.backward()
    assert loss.item() == want and x.grad.abs().sum() > 0


def test_unit_rows_and_their_derivatives():
    x = features(4).requires_grad_()
    want = torch.stack([row / (row * row).sum().sqrt() for row in x.detach()])
    assert torch.allclose(unit_rows(x), want)
    assert torch.autograd.gradcheck(unit_rows, (x,))
    assert torch.autograd.gradgradcheck(unit_rows, (x,))
    assert unit_rows(x.half()).dtype == torch.float32
    zero = torch.zeros(2, 3, requires_grad=True)
    unit_rows(zero).sum().backward()
    assert (unit_rows(zero) == 0).all() and torch.isfinite(zero.grad).all()


def test_zero_loss_is_connected_and_at_least_fp32():
    x = torch.full((2, 3), float("inf"), dtype=torch.float16, requires_grad=True)
    loss = zero_loss(x, None)
    loss.backward()
    assert loss.item() == 0.0 and loss.dtype == torch.float32 and (x.grad == 0).all()
    assert zero_loss(features(2)).dtype == torch.float64


X = features(6)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: NeighbourGraph(X, 0), "k is 0"),
        (lambda: NeighbourGraph(X, 2.5), "k is 2.5"),
        (lambda: NeighbourGraph(X, True), "k is True"),
        (lambda: NeighbourGraph(X[0], 2), "anchors has shape"),
        (lambda: NeighbourGraph(X.long(), 2), "anchors has shape.*int64"),
        (lambda: NeighbourGraph("X", 2), "anchors is a str"),
        (lambda: NeighbourGraph(X, 2, X[0]), "columns has shape"),
        (lambda: NeighbourGraph(X, 2, X[:, :3]), "dimension 12.*3"),
        (lambda: NeighbourGraph(X, 2, scale="global"), "scale is 'global'"),
        (lambda: NeighbourGraph(X, 2, min_weight=-1), "min_weight is -1"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_bad_input_is_one_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()
