"""Proxies: convexity, explicit construction, gradients of L_proxy, the generator's start."""

import math

import pytest
import torch
from naive import features
from torch import nn
from torch.nn.functional import normalize

from proxyfda.neighbours import NeighbourGraph, Proxies, ProxyGenerator, proxy_loss
from proxyfda.neighbours.proxies import MAX_PROXIES, choose_anchors

D = 12


def generator_for(d=D, ratio=0.4, seed=0, **options):
    return ProxyGenerator(d, ratio, seed=seed, **options)


@pytest.mark.parametrize("d, count", [(512, 22_881), (64, 64 * 32 + 6_497)])
def test_parameter_count(d, count):
    assert sum(p.numel() for p in ProxyGenerator(d).parameters()) == count <= 23_600


@pytest.mark.parametrize(
    "size, number",
    [(0, 0), (1, 1), (2, 1), (3, 1), (4, 2), (8, 3), (55, 22), (62, 25), (319, 128), (999, 128)],
)
def test_number_of_proxies(size, number):
    assert MAX_PROXIES == 128
    assert ProxyGenerator(4).count(size) == number


def test_number_of_proxies_is_bounded():
    x = features(30)
    proxies = generator_for(max_proxies=4)(x, NeighbourGraph(x, 15))
    assert proxies.weights.shape == (30, 8, 30) and proxies.positives == 4


@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
@pytest.mark.parametrize("k", [1, 3, 7, 99])
@pytest.mark.parametrize("ratio", [0.05, 0.4, 1.0, 2.0])
def test_weights_are_convex_within_their_set(cross, k, ratio):
    x = features(10, 1)
    columns = features(13, 2)
    graph = NeighbourGraph(x, k, columns if cross else None)
    generator = generator_for(ratio=ratio)
    proxies = generator(columns if cross else x, graph)
    a, near = proxies.weights, graph.mask
    assert proxies.positives == generator.count(graph.k)
    assert a.shape[1] == proxies.positives + generator.count(graph.count - graph.k)
    assert (a >= 0).all() and torch.allclose(a.sum(2), torch.ones(a.shape[:2]))
    outside = torch.cat(
        [
            a[:, : proxies.positives] * ~near.unsqueeze(1),
            a[:, proxies.positives :] * (near | ~graph.valid).unsqueeze(1),
        ],
        dim=1,
    )
    assert (outside == 0).all()


def test_one_generator_serves_any_set_sizes():
    generator = generator_for()
    for n, k in [(5, 2), (30, 8), (4, 1), (30, 8), (30, 20)]:
        x = features(n)
        a = generator(x, NeighbourGraph(x, k)).weights
        assert torch.allclose(a.sum(2), torch.ones(a.shape[:2]))


def test_what_was_kept_from_another_size_changes_nothing():
    x, used = features(12), generator_for()
    for n, k in [(12, 5), (7, 3), (12, 3)]:
        used(features(n), NeighbourGraph(features(n), k))
    graph = NeighbourGraph(x, 5)
    assert torch.equal(used(x, graph).weights, generator_for()(x, graph).weights)


def test_proxies_start_diverse():
    stream = torch.Generator().manual_seed(0)
    centres = torch.randn(16, 64, generator=stream).repeat_interleave(4, 0)
    x = centres + torch.randn(64, 64, generator=stream) + torch.randn(64, generator=stream)
    graph = NeighbourGraph(x, 8)
    proxies = generator_for(64)(x, graph)
    p = normalize(proxies.weights @ normalize(x, dim=1), dim=2)
    real = normalize(x, dim=1).var(0).sum()
    assert p[:, : proxies.positives].var(1).sum(1).mean() > 0.2 * real
    assert p[:, proxies.positives :].var(1).sum(1).mean() > 0.2 * real


def test_proxies_do_not_depend_on_the_order_of_the_batch():
    x = features(9, 1)
    shuffle = torch.tensor([4, 0, 8, 2, 1, 7, 6, 3, 5])
    generator = generator_for().double()
    a = generator(x, NeighbourGraph(x, 3)).weights
    b = generator(x[shuffle], NeighbourGraph(x[shuffle], 3)).weights
    assert torch.allclose(a[shuffle][:, :, shuffle], b)


def convolution(sequence, weight):
    """A depthwise convolution of width 3 with zeros around the sequence [P, r]."""
    padded = torch.cat([torch.zeros_like(sequence[:1]), sequence, torch.zeros_like(sequence[:1])])
    count = len(sequence)
    return sum(padded[2 - t : 2 - t + count] * weight[t] for t in range(3))


@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
def test_layout_of_the_generator_written_out(cross):
    x, columns = features(9, 1), features(11, 2)
    others = columns if cross else x
    graph = NeighbourGraph(features(9, 3), 4, features(11, 4) if cross else None)
    generator = generator_for(ratio=0.6, width=8).double()
    proxies = generator(others, graph)
    unit = normalize(others, dim=1)
    tokens = generator.norm(generator.down(unit - unit.mean(0)))
    q, k, v = generator.qkv(tokens).chunk(3, dim=1)
    members = tokens + generator.out(torch.softmax(q @ k.t() / math.sqrt(8), 1) @ v)
    for i in range(9):
        ranked = graph.order[i].tolist()
        made = []
        for own in (ranked[:4], ranked[4:]):
            pooled = nn.functional.adaptive_avg_pool1d(
                members[own].t().unsqueeze(0), generator.count(len(own))
            )[0].t()
            hidden = convolution(generator.pointwise[0](pooled), generator.depthwise[0]).relu()
            hidden = convolution(generator.pointwise[1](hidden), generator.depthwise[1])
            cosines = normalize(pooled + hidden, dim=1) @ normalize(members[own], dim=1).t()
            spread_out = torch.zeros(len(cosines), len(others), dtype=torch.float64)
            spread_out[:, own] = (10.0 * cosines).softmax(1)
            made.append(spread_out)
        assert torch.allclose(proxies.weights[i], torch.cat(made), atol=1e-6)


def test_no_gradient_flows_into_the_features():
    x = features(9).requires_grad_()
    graph, generator = NeighbourGraph(x, 3), generator_for()
    proxies = generator(x, graph)
    proxy_loss(proxies, x, graph).backward()
    assert x.grad is None and all(p.grad is not None for p in generator.parameters())


@pytest.mark.parametrize("sets", [1, 3])
@pytest.mark.parametrize("m", [6, 15], ids=["few columns", "more columns than dimensions"])
def test_sets_of_columns_equal_one_call_each(m, sets):
    columns = torch.stack([features(m, seed) for seed in range(sets)])
    graph = NeighbourGraph(features(2 * sets, 7), 3, features(m, 8), scale="row")
    generator = generator_for().double()
    together = generator(columns, graph)
    loss = proxy_loss(together, columns, graph)
    each = []
    for s in range(sets):
        part = graph.rows(torch.tensor([2 * s, 2 * s + 1]))
        proxies = generator(columns[s], part)
        assert torch.allclose(together.weights[2 * s : 2 * s + 2], proxies.weights)
        each.append(proxy_loss(proxies, columns[s], part))
    torch.testing.assert_close(loss, torch.stack(each).mean())


@pytest.mark.parametrize("m", [9, 15], ids=["few columns", "more columns than dimensions"])
@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
def test_proxy_loss_written_out(cross, m):
    n = 7 if cross else m
    x, columns = features(n, 1), features(m, 2)
    others = columns if cross else x
    graph = NeighbourGraph(features(n, 3), 4, features(m, 4) if cross else None)
    proxies = generator_for(ratio=0.6).double()(others, graph)
    unit = normalize(others, dim=1)
    totals = {"near contrast": [], "far contrast": [], "near variance": [], "far variance": []}
    for i in range(n):
        near = graph.indices[i].tolist()
        far = [j for j in range(len(unit)) if j not in near and (cross or j != i)]
        p = normalize(proxies.weights[i].detach() @ unit, dim=1)
        split = proxies.positives
        for name, own, other, ps in (("near", near, far, p[:split]), ("far", far, near, p[split:])):
            for q in ps:
                towards = sum(math.exp(float(q @ unit[j]) / 0.2) for j in own) / len(own)
                away = sum(math.exp(float(q @ unit[j]) / 0.2) for j in other) / len(other)
                totals[f"{name} contrast"].append(-math.log(towards / (towards + away)))
            ratio = ps.var(0).sum() / unit[own].var(0).sum() if len(ps) > 1 else torch.tensor(1.0)
            totals[f"{name} variance"].append(max(0.0, 1 - math.sqrt(ratio)))
    means = {name: sum(values) / len(values) for name, values in totals.items()}
    contrast = means["near contrast"] + means["far contrast"]
    assert means["near variance"] > 0 and means["far variance"] > 0
    variance = means["near variance"] + means["far variance"]
    for alpha in (0.0, 0.7):
        got = proxy_loss(proxies, others, graph, alpha=alpha, temperature=0.2)
        assert got.item() == pytest.approx(contrast + alpha * variance, rel=1e-4)


@pytest.mark.parametrize("m", [7, 9], ids=["few columns", "more columns than dimensions"])
@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
def test_gradcheck_of_proxy_loss(cross, m):
    n = 5 if cross else m
    generator = generator_for(7, ratio=0.8, width=3).double()
    x, columns = features(n, 1, d=7), features(m, 3, d=7)
    others = columns if cross else x
    graph = NeighbourGraph(features(n, 2, d=7), 3, features(m, 4, d=7) if cross else None)
    weights = generator(others, graph).weights.detach().requires_grad_()
    positives = generator.count(graph.k)

    def loss(weights, alpha=1.0):
        return proxy_loss(Proxies(weights, positives), others, graph, alpha=alpha, temperature=0.2)

    assert loss(weights) > loss(weights, alpha=0.0) + 0.01  # several proxies that may spread
    assert torch.autograd.gradcheck(loss, (weights,))
    assert torch.autograd.gradcheck(lambda weights: loss(weights, 0.0), (weights,))


@pytest.mark.parametrize("k, ratio", [(3, 0.2), (1, 2.0)], ids=["one proxy", "one member"])
def test_sets_of_one_proxy_or_member_have_no_variance_term(k, ratio):
    x = features(6)
    graph = NeighbourGraph(x, k, x[:2] if k == 1 else None)
    others = x[:2] if k == 1 else x
    proxies = generator_for(ratio=ratio)(others, graph)
    made, members = proxies.positives, graph.k
    assert (made, members) == ((2, 1) if k == 1 else (1, 3))
    assert proxy_loss(proxies, others, graph, alpha=5.0) == proxy_loss(
        proxies, others, graph, alpha=0.0
    )


def test_training_the_generator_lowers_its_loss():
    x = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
    x += x[:8].repeat_interleave(4, 0)
    generator, graph = generator_for(16), NeighbourGraph(x, 6)
    optimiser = torch.optim.Adam(generator.parameters(), lr=1e-2)
    losses = []
    for _ in range(25):
        optimiser.zero_grad()
        loss = proxy_loss(generator(x, graph), x, graph)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.02


def test_constants_made_in_inference_mode_serve_training():
    x, generator = features(9, 1, torch.float32), generator_for()
    graph = NeighbourGraph(x, 3)
    with torch.inference_mode():
        generator(x, graph)
    proxy_loss(generator(x, graph), x, graph).backward()
    assert all(p.grad is not None for p in generator.parameters())


def test_proxy_loss_with_nothing_to_align_is_zero():
    x, generator = features(3), generator_for()
    graph = NeighbourGraph(x, 2)
    loss = proxy_loss(generator(x, graph), x, graph)
    loss.backward()
    assert loss.item() == 0.0


# -- the generator's initial weights -------------------------------------------------------------


def weights_as_torch_draws_them(d, seed):
    """Initial weights of the layers as torch's own modules, built one after the other."""
    torch.manual_seed(seed)
    layers = [
        nn.Linear(d, 32, bias=False),
        nn.Linear(32, 96, bias=False),
        nn.Linear(32, 32),
        nn.Linear(32, 32),
        nn.Linear(32, 32),
    ]
    drawn = [p for layer in layers for p in layer.parameters()]
    return drawn + [torch.empty(3, 32).uniform_(-1, 1) / math.sqrt(3) for _ in range(2)]


def weights_of(generator):
    layers = [generator.down, generator.qkv, generator.out, *generator.pointwise]
    return [p for layer in layers for p in layer.parameters()] + [*generator.depthwise]


@pytest.mark.parametrize("seed", [0, 7])
def test_seeded_weights_are_those_that_torchs_modules_draw(seed):
    wanted = weights_as_torch_draws_them(D, seed)
    got = weights_of(ProxyGenerator(D, seed=seed))
    torch.manual_seed(seed)
    unseeded = weights_of(ProxyGenerator(D))
    assert len(got) == len(wanted) == len(unseeded) == 10
    assert all(torch.equal(a, b) for a, b in zip(got, wanted))
    assert all(torch.equal(a, b) for a, b in zip(unseeded, wanted))


def test_seeds_differ():
    one, two = ProxyGenerator(D, seed=1), ProxyGenerator(D, seed=2)
    assert not torch.equal(one.down.weight, two.down.weight)
    assert not torch.equal(one.depthwise[0], two.depthwise[0])


def test_building_with_a_seed_touches_no_global_stream(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a global stream was touched")

    torch.manual_seed(3)
    before = torch.get_rng_state()
    names = ["manual_seed", "manual_seed_all", "seed", "seed_all", "set_rng_state"]
    for name in [*names, "set_rng_state_all"]:
        monkeypatch.setattr(torch.cuda, name, refuse)
    for name in ("manual_seed", "seed", "set_rng_state"):
        monkeypatch.setattr(torch, name, refuse)
    monkeypatch.setattr(torch.random, "fork_rng", refuse)
    ProxyGenerator(D, seed=5)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(torch.__version__.startswith("1."), reason="a default device is new in 2.0")
def test_all_parameters_are_made_on_the_default_device():
    with torch.device("meta"):
        seeded, unseeded = ProxyGenerator(D, seed=1), ProxyGenerator(D)
    assert {p.device.type for p in [*seeded.parameters(), *unseeded.parameters()]} == {"meta"}


# -- whose turn it is ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sets, rows, most", [(1, 8, 3), (1, 7, 1), (3, 5, 2), (3, 5, 3), (3, 5, 8), (4, 1, 3)]
)
def test_every_anchor_has_its_turn_equally_often(sets, rows, most):
    counts = torch.zeros(sets, rows, dtype=torch.long)
    for turn in range(sets * rows):
        in_sets, in_rows = choose_anchors(sets, rows, 10, 10 * most + 9, turn)
        assert 1 <= len(in_sets) * len(in_rows) <= most
        assert len(set(in_sets.tolist())) == len(in_sets)
        assert len(set(in_rows.tolist())) == len(in_rows)
        counts[in_sets.unsqueeze(1), in_rows] += 1
    assert (counts == counts[0, 0]).all() and counts[0, 0] > 0


def test_all_anchors_where_the_bound_allows_and_one_at_least():
    assert choose_anchors(2, 4, 10, 80, turn=3) is None
    assert choose_anchors(2, 4, 10, 79, turn=3) is not None
    in_sets, in_rows = choose_anchors(2, 4, 10, 1, turn=0)
    assert len(in_sets) == len(in_rows) == 1


X = features(6)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: ProxyGenerator(7)(X, NeighbourGraph(X, 2)), r"dimension 7.*Generator\(12\)"),
        (lambda: ProxyGenerator(D)(X[:4], NeighbourGraph(X, 2)), "4 features"),
        (lambda: ProxyGenerator(D)(X[0], NeighbourGraph(X, 2)), r"shape \(12,\)"),
        (lambda: ProxyGenerator(0), "dim is 0"),
        (lambda: ProxyGenerator(4, width=0), "width 0"),
        (lambda: ProxyGenerator(4, 0.0), "ratio is 0.0"),
        (lambda: ProxyGenerator(4, scale=0.0), "scale 0.0"),
        (lambda: ProxyGenerator(4, max_proxies=0), "max_proxies is 0"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_bad_input_is_one_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("option", ["alpha", "temperature"])
def test_bad_options_of_proxy_loss(option):
    graph = NeighbourGraph(X, 2)
    value = {"alpha": -1.0, "temperature": 0.01}[option]
    with pytest.raises(ValueError, match=f"{option}.* is {value}"):
        proxy_loss(ProxyGenerator(D)(X, graph), X, graph, **{option: value})
