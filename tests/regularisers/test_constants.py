"""τ and b of Eq. 2: derived from frozen graphs, and learned."""

import copy
import math

import pytest
import torch
from naive import cosine, features

import proxyfda
from proxyfda import FDA, NeighbourGraph, ProxyFDA, derive_constants
from proxyfda.diagnostics import neighbour_overlap
from proxyfda.regularisers import FDAOptions, create, fda_loss, find
from proxyfda.regularisers.constants import FIRST_BATCHES

D = 12


def anchors(n=40, seed=0, cone=3.0):
    """Features in a cone, so that no two are opposite."""
    return features(n, seed, cone=cone, d=D)


def pairs_of(frozen, k, columns=None):
    """(ŵ, whether a neighbour) of all pairs, in plain Python."""
    own = columns is None
    columns = frozen if own else columns
    found = []
    for i, row in enumerate(frozen):
        others = [
            cosine(row, column).item() for j, column in enumerate(columns) if not (own and i == j)
        ]
        edge = sorted(others, reverse=True)[k - 1]
        found += [(c, c >= edge) for c in others]
    return found


def eq2_at_frozen(pairs, tau, bias):
    total = 0.0
    for c, near in pairs:
        w = max(c, 0.0) * (1 if near else -1)
        total += math.log1p(math.exp(w * (bias - c / tau)))
    return total / len(pairs)


def pull(pairs, tau, bias, moment):
    """Sums over neighbours and over the others of |dL/dc| times c^moment."""
    sums = {True: 0.0, False: 0.0}
    for c, near in pairs:
        w = max(c, 0.0) * (1 if near else -1)
        sums[near] += abs(w) / tau / (1 + math.exp(-w * (bias - c / tau))) * c**moment
    return sums[True], sums[False]


@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
@pytest.mark.parametrize("cone", [3.0, 0.3], ids=["narrow cone", "some cosines below 0"])
def test_the_derived_are_stationary_under_shift_and_stretch(cross, cone):
    frozen, columns = anchors(30, 1, cone), anchors(20, 2, cone) if cross else None
    tau, bias = derive_constants(NeighbourGraph(frozen, 6, columns))
    pairs = pairs_of(frozen, 6, columns)
    for moment in (0, 1):
        near, far = pull(pairs, tau, bias, moment)
        assert near == pytest.approx(far, rel=0.02)
    best = eq2_at_frozen(pairs, tau, bias)
    for factor in (0.8, 1.25):
        assert eq2_at_frozen(pairs, tau * factor, bias / factor) > best
        assert eq2_at_frozen(pairs, tau, bias * factor) > best
    assert best < 0.7 * eq2_at_frozen(pairs, 0.1, 10.0)


def test_literal_constants_are_not():
    near, far = pull(pairs_of(anchors(30, 1), 6), 0.1, 10.0, 0)
    assert near != pytest.approx(far, rel=0.3)


def test_one_row_has_constants_although_it_can_be_parted():
    row, columns = anchors(13).split([1, 12])
    tau, bias = derive_constants(NeighbourGraph(row, 4, columns))
    c = sorted((pair[0] for pair in pairs_of(row, 4, columns)), reverse=True)
    assert tau >= 1e-4 and 0 < c[4] < tau * bias < c[3]


@pytest.mark.parametrize(
    "frozen", [torch.ones(6, 3), torch.eye(6), -torch.eye(6) + 0.1], ids=["equal", "zero", "below"]
)
def test_graphs_that_tell_nothing_give_finite_constants(frozen):
    tau, bias = derive_constants(NeighbourGraph(frozen, 2))
    assert tau > 0 and math.isfinite(tau) and math.isfinite(bias)
    assert torch.isfinite(fda_loss(frozen, frozen, k=2, tau=tau, bias=bias))


def test_a_graph_without_pairs_is_refused():
    with pytest.raises(ValueError, match="has no pair of features; give a graph of at least 2"):
        derive_constants(NeighbourGraph(torch.ones(1, 3), 1))


# -- the module -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fda", "proxy_fda"])
def test_derived_module_is_eq2_with_the_derived(name):
    x, frozen = anchors(20, 3), anchors(20, 4)
    tau, bias = derive_constants(NeighbourGraph(frozen, 5))
    options = {"k": 5, **({"proxy_seed": 1} if name == "proxy_fda" else {})}
    derived = create(name, D, constants="derived", **options)
    given = create(name, D, tau=tau, bias=bias, **options)
    got, want = derived.terms(x.float(), frozen.float()), given.terms(x.float(), frozen.float())
    assert list(got) == list(want)
    for term in want:
        assert got[term].item() == pytest.approx(want[term].item(), rel=1e-3)
    assert not list(FDA(constants="derived").parameters())


def test_derived_from_all_rows_of_the_batches_so_far():
    frozen, columns = anchors(8, 5), anchors(15, 6)
    module = FDA(k=4, constants="derived")
    for row in frozen.split(1):
        module(row, row, columns=columns, column_anchors=columns)
    want = derive_constants(NeighbourGraph(frozen, 4, columns))
    assert module.constants.values() == pytest.approx(want, rel=1e-3)


def test_derived_stay_after_the_first_batches_and_in_evaluation():
    module, graph = FDA(k=4, constants="derived"), NeighbourGraph(anchors(12, 1), 4)
    other = NeighbourGraph(anchors(12, 2, cone=1.0), 4)
    module.eval()(anchors(12, 1), graph=graph)
    assert module.constants.values() == derive_constants(graph) and not module.constants.settled
    module.train()(anchors(12, 2), graph=other)
    first = module.constants.values()
    assert first == derive_constants(other)
    module.eval()(anchors(12, 1), graph=graph)
    assert module.constants.values() == first
    module.train()
    for _ in range(FIRST_BATCHES - 1):
        module(anchors(12, 2), graph=other)
    assert module.constants.values() == first  # the same pairs 32 times are the same shares
    module(anchors(12, 1), graph=graph)
    assert module.constants.settled and module.constants.values() == first
    assert len(other._remembered) <= 2  # only what stays is kept with a graph


@pytest.mark.parametrize("name", ["fda", "proxy_fda"])
def test_derived_resume(name):
    batches = [anchors(12, seed).float() for seed in range(4)]
    first = create(name, D, k=4, constants="derived")
    for batch in batches[:2]:
        first(batch, batch)
    second = create(name, D, k=4, constants="derived")
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for batch in batches[2:]:
        assert torch.equal(first(batch, batch), second(batch, batch))


@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
@pytest.mark.parametrize("name", ["fda", "proxy_fda"])
def test_learned_are_parameters_with_the_gradient_of_eq2_on_tuned_features(name, cross):
    x, frozen = anchors(16, 1).requires_grad_(), anchors(16, 2)
    more = {"columns": anchors(9, 3).requires_grad_(), "column_anchors": anchors(9, 4)}
    more = more if cross else {}
    given = {"k": 4, "tau": 0.2, "bias": 3.0}
    seed = {"proxy_seed": 0} if name == "proxy_fda" else {}
    module = create(name, D, constants="learned", **given, **seed).double()
    terms = module.terms(x, frozen, **more)
    same = create(name, D, **given, **seed).double().terms(x, frozen, **more)
    assert terms["loss_fda"].item() == pytest.approx(same["loss_fda"].item(), rel=1e-6)
    assert module.log_name == next(iter(terms)) == "loss_fda"
    own = module.constants
    wrt = [x, own.log_tau, own.boundary]
    of_loss = torch.autograd.grad(terms["loss_fda"], wrt, allow_unused=True, retain_graph=True)
    assert of_loss[0] is not None and of_loss[1] is of_loss[2] is None
    none, by_tau, by_boundary = torch.autograd.grad(
        terms["loss_constants"], wrt, allow_unused=True, retain_graph=True
    )
    assert none is None

    def at(log_tau, boundary):
        tau = math.exp(log_tau)
        return fda_loss(x, frozen, k=4, tau=tau, bias=boundary / tau, **more).item()

    tau, boundary, h = math.log(0.2), 0.6, 1e-4
    slopes = (
        (at(tau + h, boundary) - at(tau - h, boundary)) / (2 * h),
        (at(tau, boundary + h) - at(tau, boundary - h)) / (2 * h),
    )
    assert (by_tau.item(), by_boundary.item()) == pytest.approx(slopes, rel=1e-3)


def test_learned_on_frozen_features_become_the_derived():
    frozen = anchors(30, 1).float()
    module, graph = FDA(k=6, constants="learned"), NeighbourGraph(frozen, 6)
    optimiser = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(800):
        optimiser.zero_grad()
        module(frozen, graph=graph).backward()
        optimiser.step()
    tau, bias = (value.item() for value in module.constants.values())
    want = derive_constants(graph)
    assert (tau, tau * bias) == pytest.approx((want[0], want[0] * want[1]), rel=0.03)


def test_learned_tau_stays_above_0():
    module = FDA(k=3, constants="learned", tau=1e-6)
    loss = module(anchors(9).float(), anchors(9).float())
    assert module.constants.values()[0].item() == pytest.approx(1e-3) and torch.isfinite(loss)


@pytest.mark.parametrize("constants", ["derived", "learned"])
def test_a_batch_with_nothing_to_align_teaches_nothing(constants):
    module = FDA(k=3, constants=constants)
    before = copy.deepcopy(module.state_dict())
    x = anchors(3).float().requires_grad_()
    terms = module.terms(x, anchors(3).float())
    assert all(term.item() == 0 for term in terms.values())
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())


@pytest.mark.parametrize("name", ["fda", "proxy_fda"])
def test_unless_told_otherwise_they_are_derived_from_the_first_batches(name):
    batches = [anchors(12, seed).float() for seed in range(3)]
    module = create(name, D, k=4)
    for batch in batches:
        module(batch, batch)
    separate = FDA(k=4, constants="derived")
    for batch in batches:
        separate(batch, batch)
    assert module.constants.values() == separate.constants.values()
    one = create(name, D, k=4)
    one(batches[0], batches[0])
    assert one.constants.values() == derive_constants(NeighbourGraph(batches[0], 4))


@pytest.mark.parametrize(
    ("settings", "constants"),
    [
        ({}, "derived"),
        ({"k": 3}, "derived"),
        ({"constants": ""}, "derived"),
        ({"tau": 0.07}, "given"),
        ({"bias": 5.0}, "given"),
        ({"tau": 0.1}, "given"),
        ({"bias": 10.0}, "given"),
        ({"units": "frozen"}, "given"),
        ({"constants": "", "tau": 0.07}, "given"),
        ({"constants": "", "tau": 0.1}, "derived"),
        ({"constants": "learned", "tau": 0.07}, "learned"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["fda", "proxy_fda"])
def test_what_is_said_of_tau_and_b_is_meant(name, settings, constants):
    assert create(name, D, **settings).options.constants == constants


def test_tau_by_name_is_that_of_the_function():
    x, frozen = anchors(9).float(), anchors(9, 1).float()
    assert torch.equal(FDA(k=3, tau=0.1)(x, frozen), fda_loss(x, frozen, k=3))
    assert torch.equal(FDA(k=3, tau=0.07)(x, frozen), fda_loss(x, frozen, k=3, tau=0.07))


def test_options_say_by_their_values_alone_what_is_meant():
    assert FDAOptions().constants == FDAOptions(tau=0.1).constants == "derived"
    assert FDAOptions(tau=0.07).constants == FDAOptions(units="frozen").constants == "given"
    assert FDAOptions() == FDAOptions(constants="derived")


def test_some_regularisers_have_a_weight_of_their_own():
    weights = {name: find(name).default_weight for name in proxyfda.regularisers.names()}
    assert {name for name, weight in weights.items() if weight == 0.3} == {"fda", "proxy_fda"}
    assert weights.pop("pointwise") == 3.0
    assert all(weight in (0.3, 1.0) for weight in weights.values())


def test_given_constants_have_neither_state_nor_further_terms():
    x = anchors(9).float()
    module = FDA(k=3, constants="given")
    assert not module.state_dict() and list(module.terms(x, x)) == ["loss_fda"]
    assert not module.options.keeps_state
    assert all(FDA(constants=c).options.keeps_state for c in ("derived", "learned"))
    assert ProxyFDA(D).options.keeps_state and not proxyfda.RKD().options.keeps_state


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"constants": "fitted"}, "constants is 'fitted'; use one of given, derived, learned"),
        (
            {"constants": "derived", "units": "frozen"},
            "constants is 'derived'; units frozen have no tau and bias: use given, or units cosine",
        ),
        (
            {"constants": "derived", "bias": 5.0},
            "constants is 'derived'; tau 0.1, bias 5 would not count: use given, or leave them",
        ),
    ],
)
def test_options_that_do_not_work(settings, message):
    with pytest.raises(ValueError, match=message):
        FDA(**settings)


def test_derived_keep_more_neighbours_than_literal_ones():
    stream = torch.Generator().manual_seed(0)
    cone, own = torch.randn(1, 64, generator=stream), torch.randn(16, 64, generator=stream)
    noise = torch.randn(64, 64, generator=stream)
    frozen = 1.2 * cone + 0.5 * own.repeat_interleave(4, 0) + 0.6 * noise
    graph, kept, moved = NeighbourGraph(frozen, 8), [], []
    for constants in ((0.1, 10.0), derive_constants(graph)):
        tau, bias = constants
        x = torch.nn.functional.normalize(frozen, dim=1).requires_grad_()
        optimiser = torch.optim.Adam([x], lr=0.01)
        for _ in range(100):
            optimiser.zero_grad()
            fda_loss(x, graph=graph, tau=tau, bias=bias).backward()
            optimiser.step()
        kept.append(neighbour_overlap(frozen, x.detach(), 8))
        moved.append(1 - torch.nn.functional.cosine_similarity(x.detach(), frozen).mean().item())
    assert kept[1] > kept[0] + 0.1 and moved[1] < 0.5 * moved[0]
