"""FDA: Eq. 2 literally, its signs, and what it does to neighbours."""

import math

import pytest
import torch
from naive import cosine, features

import proxyfda
from proxyfda import FDA, NeighbourGraph
from proxyfda.diagnostics import neighbour_overlap
from proxyfda.neighbours import Relations
from proxyfda.regularisers import kl_loss, match_loss


def eq2(x, frozen, k, tau=0.1, bias=10.0, columns=None, column_anchors=None):
    """Eq. 2 in plain Python."""
    own = columns is None
    columns, column_anchors = (x, frozen) if own else (columns, column_anchors)
    total = 0.0
    for i in range(len(x)):
        js = [j for j in range(len(columns)) if not (own and j == i)]
        w_hat = {j: cosine(frozen[i], column_anchors[j]).item() for j in js}
        near = sorted(js, key=lambda j: -w_hat[j])[:k]
        terms = []
        for j in js:
            w = max(w_hat[j], 0.0) * (1 if j in near else -1)
            c = cosine(x[i], columns[j]).item()
            terms.append(math.log(1 + math.exp(w * (-c / tau + bias))))
        total += sum(terms) / len(terms)
    return total / len(x)


@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
def test_module_is_eq2_and_equals_the_function(cross):
    x, frozen = features(20, 1), features(20, 2)
    more = {"columns": features(15, 3), "column_anchors": features(15, 4)} if cross else {}
    loss = FDA(k=8, constants="given")(x, frozen, **more)
    assert loss.dim() == 0
    assert loss.item() == pytest.approx(eq2(x, frozen, 8, **more), rel=1e-9)
    twin = proxyfda.fda_loss(x, frozen, k=8, tau=0.1, bias=10.0, **more)
    assert torch.equal(loss, twin)
    assert torch.equal(FDA(constants="given")(x, frozen, **more), twin)


def test_tau_and_bias_are_those_of_eq2():
    x, frozen = features(9, 1), features(9, 2)
    loss = FDA(k=3, tau=0.3, bias=-1.5)(x, frozen)
    assert loss.item() == pytest.approx(eq2(x, frozen, 3, 0.3, -1.5), rel=1e-9)


def test_sign_of_bias_is_siglips():
    # SigLIP's initial logit is 10 cos - 10: for a neighbour with w = 1, softplus(-logit).
    x = torch.eye(4, dtype=torch.float64)[[0, 0, 1, 2]] + 1e-12
    graph = NeighbourGraph(x, 1)
    c = (x @ x.t()).clamp(max=1.0)
    pairs = torch.nn.functional.softplus(graph.weights * (-(10 * c - 10)))
    want = (pairs.sum() - pairs.diagonal().sum()) / 12
    assert proxyfda.fda_loss(x, graph=graph).item() == pytest.approx(want.item(), rel=1e-6)


@pytest.mark.parametrize("units", ["cosine", "frozen"])
def test_neighbours_attract_and_others_repel(units):
    graph = NeighbourGraph(features(8, cone=2.0), 3)
    cosines = graph.similarities.clone().requires_grad_()
    FDA(k=3, constants="given", units=units).row_losses(cosines, Relations(graph)).mean().backward()
    assert (cosines.grad[graph.mask] < 0).all()
    assert (cosines.grad[graph.valid & ~graph.mask] > 0).all()
    assert (cosines.grad.diagonal() == 0).all()


@pytest.mark.parametrize(
    "loss, kept",
    [
        (lambda x, graph: proxyfda.fda_loss(x, graph=graph), 0.5),
        (lambda x, graph: proxyfda.fda_loss(x, graph=graph, units="frozen"), 0.9),
        (lambda x, graph: match_loss(x, graph=graph), 1.0),
        (lambda x, graph: kl_loss(x, graph=graph), 1.0),
    ],
    ids=["fda", "fda in frozen units", "match", "kl"],
)
def test_neighbours_kept_when_minimised_alone(loss, kept):
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(10, 32, generator=generator).repeat_interleave(4, 0)
    noise = torch.randn(40, 32, generator=generator)
    frozen = 0.7 * centres + noise + 1.5 * torch.randn(32, generator=generator)
    graph = NeighbourGraph(frozen, 8)
    x = frozen.clone().requires_grad_()
    optimiser = torch.optim.Adam([x], lr=0.02)
    for _ in range(60):
        optimiser.zero_grad()
        loss(x, graph).backward()
        optimiser.step()
    assert neighbour_overlap(frozen, x.detach(), 8) >= kept


def test_graph_of_the_module_has_its_k():
    graph = FDA(k=4).graph(features(9), features(7, 1), scale="row")
    assert (graph.k, graph.shape, graph.is_cross, graph.scale) == (4, (9, 7), True, "row")


@pytest.mark.parametrize(
    ("form", "remedy"),
    [("regress", "use rkd_loss"), ("standardised", 'use units="frozen"'), ("papper", "leave form")],
)
def test_other_forms_name_their_function(form, remedy):
    x = torch.eye(6)
    assert proxyfda.fda_loss(x, x, k=2, form="paper") == proxyfda.fda_loss(x, x, k=2)
    with pytest.raises(ValueError, match=f"form is '{form}', but this is Eq. 2; {remedy}"):
        proxyfda.fda_loss(x, x, k=2, form=form)
    with pytest.raises(ValueError, match=remedy):
        proxyfda.proxy_fda_loss(x, x, proxyfda.ProxyGenerator(6), k=2, form=form)
