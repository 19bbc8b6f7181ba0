"""Proxies: convexity, explicit construction, gradient isolation, edges."""

import math

import pytest
import torch
from torch.nn.functional import normalize, softplus

from proxyfda.neighbours.graph import FORMS, NeighbourGraph, Relations, fda_loss
from proxyfda.neighbours.proxies import Proxies, ProxyGenerator, proxy_fda_loss, proxy_loss

D = 12


def features(n, seed=0, dtype=torch.float64, cone=0.5, d=D):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    x += cone * torch.randn(1, d, generator=generator, dtype=torch.float64)
    return (x * (1 + torch.arange(n).unsqueeze(1) % 3)).to(dtype)


def generator_for(d=D, ratio=0.4, seed=0, **options):
    torch.manual_seed(seed)
    return ProxyGenerator(d, ratio, **options)


def inputs(cross, seed=0, dtype=torch.float64, rows=9, columns=11):
    """Arguments of proxy_fda_loss with tensors that require gradient."""
    first = {
        "features": features(rows, seed + 1, dtype).requires_grad_(),
        "anchors": features(rows, seed + 2, dtype).requires_grad_(),
    }
    second = {
        "columns": features(columns, seed + 3, dtype).requires_grad_(),
        "column_anchors": features(columns, seed + 4, dtype).requires_grad_(),
    }
    return {**first, **second} if cross else first


@pytest.mark.parametrize("d, count", [(512, 22_881), (64, 64 * 32 + 6_497)])
def test_parameter_count(d, count):
    assert sum(p.numel() for p in ProxyGenerator(d).parameters()) == count <= 23_600


@pytest.mark.parametrize(
    "size, number", [(0, 0), (1, 1), (2, 1), (3, 1), (4, 2), (8, 3), (55, 22), (62, 25)]
)
def test_number_of_proxies(size, number):
    assert ProxyGenerator(4).count(size) == number


@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
@pytest.mark.parametrize("k", [1, 3, 7, 99])
@pytest.mark.parametrize("ratio", [0.05, 0.4, 1.0, 2.0])
def test_weights_are_convex_within_their_set(cross, k, ratio):
    x = features(10, 1)
    columns = features(13, 2)
    graph = NeighbourGraph(x, k, columns if cross else None)
    proxies = generator_for(ratio=ratio)(columns if cross else x, graph)
    a, near = proxies.weights, graph.mask
    generator = generator_for(ratio=ratio)
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


def test_proxies_start_diverse():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(16, 64, generator=generator).repeat_interleave(4, 0)
    x = centres + torch.randn(64, 64, generator=generator) + torch.randn(64, generator=generator)
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


@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
def test_gram_formulation_equals_explicit_proxies(cross):
    x, columns = normalize(features(9, 1), dim=1), normalize(features(11, 2), dim=1)
    others = columns if cross else x
    graph = NeighbourGraph(x, 3, columns if cross else None)
    proxies = generator_for().double()(others, graph)
    p = proxies.weights @ others  # [N, P, d]
    got = proxies.cosines(x @ others.t(), others @ others.t())
    assert torch.allclose(got, torch.cosine_similarity(x.unsqueeze(1), p, dim=2), atol=1e-12)
    for i in range(9):
        for j in range(p.shape[1]):
            want = (proxies.weights[i, j] * graph.similarities[i]).sum()
            assert proxies.estimate(graph.similarities)[i, j].item() == pytest.approx(want.item())


def explicit_loss(form, x, frozen, k, generator, columns=None, column_frozen=None, **options):
    """One anchor at a time, with the proxies formed in d dimensions."""
    cross = columns is not None
    graph = NeighbourGraph(frozen, k, column_frozen)
    others, frozen_others = (columns, column_frozen) if cross else (x, frozen)
    proxies = generator(others, graph)
    rows, others = normalize(x, dim=1), normalize(others, dim=1)
    frozen, frozen_others = normalize(frozen, dim=1), normalize(frozen_others, dim=1)
    total = 0.0
    for i in range(len(x)):
        js = [j for j in range(len(others)) if cross or j != i]
        a = proxies.weights[i].detach()
        p = normalize(a @ others, dim=1)
        if form in ("paper", "standardised"):
            estimate = a @ graph.similarities[i]
        else:
            estimate = normalize(a @ frozen_others, dim=1) @ frozen[i]
        similarities = torch.cat([graph.similarities[i, js], estimate])
        positive = torch.cat([graph.mask[i, js], torch.arange(len(a)) < proxies.positives])
        weights = torch.where(positive, 1.0, -1.0) * similarities.clamp(min=0)
        one = Relations(
            similarities.unsqueeze(0),
            positive.unsqueeze(0),
            weights.unsqueeze(0),
            torch.ones(1, len(weights), dtype=torch.bool),
            len(weights),
            graph.threshold[i : i + 1],
            graph.spread[i : i + 1],
        )
        cosines = torch.cat([others[js] @ rows[i], p @ rows[i]]).unsqueeze(0)
        used = {name: options[name] for name in FORMS[form].uses}
        total = total + FORMS[form].function(cosines, one, **used).sum()
    return total / len(x)


@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
@pytest.mark.parametrize("form", sorted(FORMS))
def test_loss_and_gradient_equal_explicit_construction(form, cross):
    options = {"tau": 0.2, "bias": 4.0, "slope": 1.7, "temperature": 0.6}
    generator = generator_for().double()
    args = inputs(cross)
    got, _ = proxy_fda_loss(**args, generator=generator, k=3, form=form, **options)
    got.backward()
    again = inputs(cross)
    want = explicit_loss(
        form,
        again["features"],
        again["anchors"].detach(),
        3,
        generator,
        again.get("columns"),
        again["column_anchors"].detach() if cross else None,
        **options,
    )
    want.backward()
    assert got.item() == pytest.approx(want.item(), rel=1e-6)
    for name in ("features", "columns")[: 1 + cross]:
        assert torch.allclose(args[name].grad, again[name].grad, rtol=1e-6, atol=1e-9)


def test_paper_form_written_out():
    generator = generator_for().double()
    x, frozen = features(6, 1), features(6, 2)
    graph = NeighbourGraph(frozen, 2)
    proxies = generator(x, graph)
    total = 0.0
    for i in range(6):
        terms = []
        for j in range(6):
            if j != i:
                c = torch.cosine_similarity(x[i], x[j], dim=0)
                w_hat = torch.cosine_similarity(frozen[i], frozen[j], dim=0)
                w = w_hat.clamp(min=0) * (1 if graph.mask[i, j] else -1)
                terms.append(softplus(w * (-c / 0.1 + 10)))
        for j, a in enumerate(proxies.weights[i]):
            p = sum(a[m] * x[m] / x[m].norm() for m in range(6))
            c = torch.cosine_similarity(x[i], p, dim=0)
            w_hat = (a * torch.cosine_similarity(frozen[i : i + 1], frozen)).sum()
            w = w_hat.clamp(min=0) * (1 if j < proxies.positives else -1)
            terms.append(softplus(w * (-c / 0.1 + 10)))
        total += sum(terms) / len(terms) / 6
    got, _ = proxy_fda_loss(x, frozen, generator, k=2)
    assert got.item() == pytest.approx(total.item(), rel=1e-6)


@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
def test_proxy_loss_written_out(cross):
    x, columns = features(7, 1), features(9, 2)
    others = columns if cross else x
    graph = NeighbourGraph(features(7, 3), 4, features(9, 4) if cross else None)
    proxies = generator_for(ratio=0.6).double()(others, graph)
    unit = normalize(others, dim=1)
    totals = {"near contrast": [], "far contrast": [], "near variance": [], "far variance": []}
    for i in range(7):
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
    variance = means["near variance"] + means["far variance"]
    assert variance > 0
    for alpha in (0.0, 0.7):
        got = proxy_loss(proxies, others, graph, alpha=alpha, temperature=0.2)
        assert got.item() == pytest.approx(contrast + alpha * variance, rel=1e-4)


@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
@pytest.mark.parametrize("form", sorted(FORMS))
def test_gradients_are_isolated(form, cross):
    generator = generator_for()
    args = inputs(cross, dtype=torch.float32)
    loss_fda, loss_proxy = proxy_fda_loss(**args, generator=generator, k=3, form=form)
    loss_fda.backward()
    assert all(p.grad is None for p in generator.parameters())
    tuned, frozen = ("features", "columns"), ("anchors", "column_anchors")
    assert all(args[name].grad.abs().sum() > 0 for name in tuned if name in args)
    assert all(args[name].grad is None for name in frozen if name in args)
    for name in tuned:
        if name in args:
            args[name].grad = None
    loss_proxy.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in generator.parameters())
    assert sum(p.grad.abs().sum() for p in generator.parameters()) > 0
    assert all(tensor.grad is None for tensor in args.values())


@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
@pytest.mark.parametrize("what", ["fda", "proxy"])
def test_gradcheck(what, cross):
    generator = generator_for(4, width=3).double()
    x, frozen = features(6, 1, d=4), features(6, 2, d=4)
    extra = {"columns": features(5, 3, d=4), "column_anchors": features(5, 4, d=4)} if cross else {}
    graph = NeighbourGraph(frozen, 3, extra.get("column_anchors"))
    if what == "fda":
        # The generator sees the features without gradient: hold its proxies while they move.
        proxies = generator(extra.get("columns", x), graph)

        class Fixed(torch.nn.Module):
            def forward(self, features, graph):
                return proxies

        def loss(x, columns):
            both = {**extra, "columns": columns} if cross else {}
            return proxy_fda_loss(x, frozen, Fixed(), k=3, tau=0.3, bias=3.0, **both)[0]

        moving = (x.requires_grad_(), features(5, 3, d=4).requires_grad_(cross))
        assert torch.autograd.gradcheck(loss, moving)
    else:
        weights = generator(extra.get("columns", x), graph).weights.detach().requires_grad_()
        positives = generator.count(graph.k)

        def loss(weights):
            return proxy_loss(Proxies(weights, positives), extra.get("columns", x), graph)

        assert torch.autograd.gradcheck(loss, (weights,))


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


@pytest.mark.parametrize("form", ["match", "kl", "regress", "correlation"])
@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
def test_minimum_stays_at_frozen_features(form, cross):
    frozen, columns = features(9, 1), features(8, 2)
    x, y = frozen.clone().requires_grad_(), columns.clone().requires_grad_()
    extra = {"columns": y, "column_anchors": columns} if cross else {}
    loss, _ = proxy_fda_loss(x, frozen, generator_for().double(), k=3, form=form, **extra)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-12) and x.grad.abs().max() < 1e-8


@pytest.mark.parametrize("form", sorted(FORMS))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_half_precision_and_autocast(form, dtype):
    generator = generator_for()
    x, frozen = features(12, 1, dtype), features(12, 2, dtype)
    want = proxy_fda_loss(x.float(), frozen.float(), generator, k=4, form=form)
    x.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = proxy_fda_loss(x, frozen, generator, k=4, form=form)
    assert [loss.dtype for loss in got] == [torch.float32] * 2
    assert [loss.item() for loss in got] == pytest.approx([loss.item() for loss in want], rel=1e-5)
    sum(got).backward()
    assert torch.isfinite(x.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in generator.parameters())


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_nothing_to_align_is_exact_zero(n):
    generator, x = generator_for(), features(n).requires_grad_()
    losses = proxy_fda_loss(x, features(n), generator, k=8)
    sum(losses).backward()
    assert [loss.item() for loss in losses] == [0.0, 0.0]
    assert (x.grad == 0).all() and all((p.grad == 0).all() for p in generator.parameters())


@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
@pytest.mark.parametrize("n, m", [(4, 2), (5, 3), (6, 20)])
def test_small_sets_are_finite(n, m, cross):
    generator, args = generator_for(), inputs(cross, rows=n, columns=m, dtype=torch.float32)
    losses = proxy_fda_loss(**args, generator=generator, k=8)
    sum(losses).backward()
    grads = [p.grad for p in generator.parameters()] + [args["features"].grad]
    assert all(torch.isfinite(loss) for loss in losses)
    assert all(torch.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize("form", sorted(FORMS))
def test_equal_features_are_finite(form):
    generator, x = generator_for(4), torch.ones(6, 4).requires_grad_()
    losses = proxy_fda_loss(x, torch.ones(6, 4), generator, k=3, form=form)
    sum(losses).backward()
    assert all(torch.isfinite(loss) for loss in losses) and torch.isfinite(x.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in generator.parameters())


@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
@pytest.mark.parametrize("form", ["paper", "match"])
def test_several_sets_in_one_call_equal_one_call_each(form, cross):
    sets = torch.stack([features(7, seed) for seed in range(1, 4)]).requires_grad_()
    columns = torch.stack([features(6, seed) for seed in range(4, 7)]).requires_grad_()
    frozen, column_anchors = features(7), features(6, 8)
    generator = generator_for().double()
    options = {"k": 3, "form": form, "generator": generator}
    if cross:  # every row meets columns of its own
        graph = NeighbourGraph(frozen[:3], 3, column_anchors, scale="row")
        rows = sets[:, :1]
        together = proxy_fda_loss(rows, columns=columns, graph=graph, **options)
        each = [
            proxy_fda_loss(row, anchor[None], columns=c, column_anchors=column_anchors, **options)
            for row, anchor, c in zip(rows, frozen, columns)
        ]
    else:
        together = proxy_fda_loss(sets, frozen, **options)
        each = [proxy_fda_loss(x, frozen, **options) for x in sets]
    leaves = [sets, *([columns] if cross else []), *generator.parameters()]
    for got, wanted in zip(together, zip(*each)):
        wanted = torch.stack(wanted).mean()
        torch.testing.assert_close(got, wanted)
        gradients = (torch.autograd.grad(x, leaves, allow_unused=True) for x in (got, wanted))
        for a, b in zip(*gradients):
            torch.testing.assert_close(a, b)


def test_prepared_graph_and_state_dict():
    x, frozen = features(9, 1, torch.float32), features(9, 2, torch.float32)
    one, two = generator_for(seed=1), generator_for(seed=2)
    two.load_state_dict(one.state_dict())
    with torch.inference_mode():
        one(x, NeighbourGraph(x, 3))  # constants made here must still serve training
    a = proxy_fda_loss(x, frozen, one, k=3)
    b = proxy_fda_loss(x, generator=two, graph=NeighbourGraph(frozen, 3))
    assert a[0] == b[0] and a[1] == b[1]
    a[1].backward()


def test_proxies_enter_the_mean():
    x, frozen = features(9, 1), features(9, 2)
    with_proxies, _ = proxy_fda_loss(x, frozen, generator_for(), k=3)
    assert with_proxies.item() != pytest.approx(fda_loss(x, frozen, k=3).item(), rel=1e-3)


X = features(6)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: proxy_fda_loss(X, X, k=2), "generator is missing"),
        (lambda: proxy_fda_loss(X, X, ProxyGenerator(7), k=2), r"dimension 7.*Generator\(12\)"),
        (lambda: ProxyGenerator(D)(X[:4], NeighbourGraph(X, 2)), "4 features"),
        (lambda: proxy_fda_loss(X, X, ProxyGenerator(D), k=2, form="x"), "form is 'x'"),
        (lambda: proxy_fda_loss(X, X, ProxyGenerator(D), k=2, alpha=-1), "alpha is -1"),
        (
            lambda: proxy_fda_loss(X, X, ProxyGenerator(D), k=2, proxy_temperature=0.01),
            "L_proxy is 0.01",
        ),
        (lambda: ProxyGenerator(0), "dim is 0"),
        (lambda: ProxyGenerator(4, 0.0), "ratio is 0.0"),
    ],
    ids=["no generator", "dim", "columns", "form", "alpha", "temperature", "dim 0", "ratio"],
)
def test_bad_input_is_one_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()
