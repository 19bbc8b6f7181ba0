"""All regularisers on relations, with and without proxies, against loops from the formulas."""

import naive
import pytest
import torch
from naive import CASES, KEEP_THE_FROZEN, features

from proxyfda import regularisers
from proxyfda.neighbours import NeighbourGraph, ProxyGenerator
from proxyfda.regularisers import (
    correlation_loss,
    fda_loss,
    kl_loss,
    match_loss,
    proxy_fda_loss,
    rkd_loss,
)
from proxyfda.regularisers.relations import proxied_relation_loss

FUNCTIONS = {
    "fda": fda_loss,
    "match": match_loss,
    "kl": kl_loss,
    "rkd": rkd_loss,
    "correlation": correlation_loss,
}
D = 12

every_case = pytest.mark.parametrize("case", CASES)
both_kinds = pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])


def loss_of(case, features, anchors=None, k=3, **more):
    name, options = CASES[case]
    if name in ("fda", "match") and "graph" not in more:
        more["k"] = k
    return FUNCTIONS[name](features, anchors, **options, **more)


def module_of(case, proxies=False, k=3, **more):
    name, options = CASES[case]
    if proxies:
        more = {"proxy_seed": 0, "k": k, **more}
        return regularisers.create(f"proxy_{name}", D, **options, **more).double()
    if name in ("fda", "match"):
        more["k"] = k
    return regularisers.create(name, **options, **more)


def inputs(cross, rows=9, columns=11, dtype=torch.float64):
    """Tuned and frozen features of each side, all of which require gradient."""
    made = {
        "features": features(rows, 1, dtype),
        "anchors": features(rows, 2, dtype),
        "columns": features(columns, 3, dtype),
        "column_anchors": features(columns, 4, dtype),
    }
    names = list(made) if cross else ["features", "anchors"]
    return {name: made[name].requires_grad_() for name in names}


def reference(case, k, args, scale="pooled", proxies=None):
    frozen = {name: x.detach() for name, x in args.items() if "anchors" in name}
    return naive.relation_loss(
        case,
        args["features"],
        frozen["anchors"],
        k,
        args.get("columns"),
        frozen.get("column_anchors"),
        scale,
        proxies,
    )


def tuned_sides(args):
    return [args[name] for name in ("features", "columns") if name in args]


# -- values and gradients ------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["pooled", "row"])
@both_kinds
@every_case
def test_loss_and_gradient_equal_the_loops(case, cross, scale):
    args = inputs(cross)
    got, want = loss_of(case, **args, scale=scale), reference(case, 3, args, scale)
    assert got.item() == pytest.approx(want.item(), rel=1e-9)
    tuned = tuned_sides(args)
    for a, b in zip(torch.autograd.grad(got, tuned), torch.autograd.grad(want, tuned)):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-10)


@both_kinds
@every_case
def test_module_equals_function(case, cross):
    args = inputs(cross)
    assert torch.equal(module_of(case)(**args), loss_of(case, **args))


@pytest.mark.parametrize("scale", ["pooled", "row"])
@pytest.mark.parametrize("columns", [11, 15], ids=["few columns", "more columns than dimensions"])
@both_kinds
@every_case
def test_loss_with_proxies_equals_explicit_construction(case, cross, columns, scale):
    rows = 9 if cross else columns
    args, reg = inputs(cross, rows, columns), module_of(case, proxies=True)
    got, _ = reg.terms(**args, scale=scale).values()
    graph = NeighbourGraph(args["anchors"], 3, args.get("column_anchors"))
    proxies = reg.generator(args.get("columns", args["features"]), graph)
    want = reference(case, 3, args, scale, proxies)
    assert got.item() == pytest.approx(want.item(), rel=1e-6)
    tuned = tuned_sides(args)
    for a, b in zip(torch.autograd.grad(got, tuned), torch.autograd.grad(want, tuned)):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-9)


@every_case
def test_proxies_enter_the_mean(case):
    x, frozen = features(9, 1), features(9, 2)
    with_proxies, _ = module_of(case, proxies=True).terms(x, frozen).values()
    assert with_proxies.item() != pytest.approx(loss_of(case, x, frozen).item(), rel=1e-3)


@both_kinds
@every_case
def test_gradcheck(case, cross):
    x = features(6, 1, d=4).requires_grad_()
    columns = features(5, 3, d=4).requires_grad_(cross)
    frozen, column_anchors = features(6, 2, d=4), features(5, 4, d=4)

    def loss(x, columns):
        more = {"columns": columns, "column_anchors": column_anchors} if cross else {}
        return loss_of(case, x, frozen, k=2, **more)

    assert torch.autograd.gradcheck(loss, (x, columns))


@both_kinds
@every_case
def test_anchors_receive_no_gradient(case, cross):
    args = inputs(cross)
    loss_of(case, **args).backward()
    assert all(x.grad.abs().sum() > 0 for x in tuned_sides(args))
    assert args["anchors"].grad is None and (not cross or args["column_anchors"].grad is None)


@both_kinds
@every_case
def test_gradients_of_model_and_generator_are_isolated(case, cross):
    args, reg = inputs(cross), module_of(case, proxies=True)
    loss, loss_proxy = reg.terms(**args).values()
    loss.backward(retain_graph=True)
    assert all(p.grad is None for p in reg.parameters())
    assert all(x.grad.abs().sum() > 0 for x in tuned_sides(args))
    assert args["anchors"].grad is None and (not cross or args["column_anchors"].grad is None)
    for x in tuned_sides(args):
        x.grad = None
    loss_proxy.backward()
    assert all(torch.isfinite(p.grad).all() for p in reg.parameters())
    assert sum(p.grad.abs().sum() for p in reg.parameters()) > 0
    assert all(x.grad is None for x in args.values())


@every_case
@pytest.mark.parametrize("proxies", [False, True], ids=["", "proxies"])
def test_anchors_from_inference_mode_serve(case, proxies):
    with torch.inference_mode():
        frozen = features(9, 2)
    x = features(9, 1).requires_grad_()
    module_of(case, proxies)(x, frozen).backward()
    assert x.grad.abs().sum() > 0


@both_kinds
@pytest.mark.parametrize("proxies", [False, True], ids=["", "proxies"])
@pytest.mark.parametrize("case", KEEP_THE_FROZEN)
def test_minimum_is_at_the_frozen_features(case, proxies, cross):
    frozen, column_anchors = features(9, 1), features(8, 2)
    reg = module_of(case, proxies)

    def loss(x, columns):
        more = {"columns": columns, "column_anchors": column_anchors} if cross else {}
        return next(iter(reg.terms(x, frozen, **more).values()))

    x, columns = frozen.clone().requires_grad_(), column_anchors.clone().requires_grad_()
    at = loss(x, columns)
    at.backward()
    assert at.item() == pytest.approx(0.0, abs=1e-12)
    assert x.grad.abs().max() < 1e-8 and (not cross or columns.grad.abs().max() < 1e-8)
    assert loss(x + 0.3 * features(9, seed=5), columns + 0.3 * features(8, seed=6)) > 1e-3


@pytest.mark.parametrize("case", sorted(set(CASES) - set(KEEP_THE_FROZEN)))
def test_fda_has_its_minimum_elsewhere(case):
    x = features(8).requires_grad_()
    loss_of(case, x, x.detach()).backward()
    assert x.grad.abs().max() > 1e-4


# -- graphs and sets -----------------------------------------------------------------------------


@both_kinds
@pytest.mark.parametrize("proxies", [False, True], ids=["", "proxies"])
@every_case
def test_prepared_graph_gives_the_same(case, proxies, cross):
    args, reg = inputs(cross), module_of(case, proxies)
    graph = reg.graph(args["anchors"], args.get("column_anchors"))
    want = reg.eval()(**args)
    assert torch.equal(reg(args["features"], graph=graph, columns=args.get("columns")), want)


def test_features_that_are_their_own_anchors_are_tuned_all_the_same():
    x = features(8)
    graph = NeighbourGraph(x, 3)
    want = fda_loss(x.clone(), graph=graph)
    assert torch.equal(fda_loss(x, graph=graph), want)
    loss = fda_loss(x.requires_grad_(), graph=graph)
    loss.backward()
    assert torch.equal(loss, want) and x.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["self", "cross", "conditional"])
@pytest.mark.parametrize("proxies", [False, True], ids=["", "proxies"])
@every_case
def test_several_sets_in_one_call_equal_one_call_each(case, proxies, kind):
    sets = torch.stack([features(7, seed) for seed in range(1, 4)]).requires_grad_()
    columns = torch.stack([features(6, seed) for seed in range(4, 7)]).requires_grad_()
    frozen, column_anchors = features(7), features(6, 8)
    reg = module_of(case, proxies)
    if kind == "self":
        together = reg.terms(sets, frozen)
        each = [reg.terms(x, frozen) for x in sets]
    elif kind == "cross":
        more = {"column_anchors": column_anchors, "scale": "pooled"}
        together = reg.terms(sets, frozen, columns=columns, **more)
        each = [reg.terms(x, frozen, columns=c, **more) for x, c in zip(sets, columns)]
    else:  # every row meets columns of its own
        graph = reg.graph(frozen[:3], column_anchors, scale="row")
        together = reg.terms(sets[:, :1], graph=graph, columns=columns)
        each = [
            reg.terms(x[:1], a[None], columns=c, column_anchors=column_anchors)
            for x, a, c in zip(sets, frozen, columns)
        ]
    leaves = [sets, *([columns] if kind != "self" else []), *reg.parameters()]
    for name, got in together.items():
        wanted = torch.stack([terms[name] for terms in each]).mean()
        torch.testing.assert_close(got, wanted)
        gradients = (
            torch.autograd.grad(loss, leaves, allow_unused=True, retain_graph=True)
            for loss in (got, wanted)
        )
        for a, b in zip(*gradients):
            torch.testing.assert_close(a, b)


@both_kinds
@every_case
def test_anchors_of_every_set_may_differ(case, cross):
    sets, anchors = (
        torch.stack([features(5, s) for s in range(first, first + 3)]) for first in (1, 9)
    )
    columns = torch.stack([features(6, seed) for seed in range(4, 7)])
    more = {"columns": columns, "column_anchors": features(6, 8), "scale": "row"}
    if not cross:
        with pytest.raises(ValueError, match="anchors has shape"):
            loss_of(case, sets, anchors)
        return
    each = [
        loss_of(case, x, a, **{**more, "columns": c}) for x, a, c in zip(sets, anchors, columns)
    ]
    torch.testing.assert_close(loss_of(case, sets, anchors, **more), torch.stack(each).mean())
    flat = loss_of(case, sets, anchors.flatten(0, 1), **more)
    torch.testing.assert_close(flat, torch.stack(each).mean())


@every_case
def test_loss_depends_neither_on_norms_nor_on_order(case):
    x, frozen = features(9, seed=1), features(9, seed=2)
    want = loss_of(case, x, frozen).item()
    assert loss_of(case, 5 * x, 0.1 * frozen).item() == pytest.approx(want)
    assert loss_of(case, x.flip(0), frozen.flip(0)).item() == pytest.approx(want)


# -- precision -----------------------------------------------------------------------------------


@pytest.mark.parametrize("proxies", [False, True], ids=["", "proxies"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@every_case
def test_half_precision_features_are_computed_in_fp32(case, dtype, proxies):
    x, frozen = features(12, 1, dtype), features(12, 2, dtype)
    reg = module_of(case, proxies, k=4)
    want = reg(x.double(), frozen.double())
    x.requires_grad_()
    got = reg.float()(x, frozen)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(want.item(), rel=1e-4)
    got.backward()
    assert x.grad.dtype == dtype and torch.isfinite(x.grad).all()


@both_kinds
@pytest.mark.parametrize(
    "dtype, of_generator",
    [
        (torch.float64, torch.float32),
        (torch.float32, torch.float64),
        (torch.float16, torch.float64),
        (torch.float32, torch.bfloat16),
    ],
    ids=lambda dtype: str(dtype)[6:],
)
def test_dtypes_of_features_and_generator_may_differ(dtype, of_generator, cross):
    args, reg = inputs(cross, dtype=dtype), module_of("fda", True)
    wanted = reg.terms(**{name: x.detach().double() for name, x in args.items()})
    terms = reg.to(of_generator).terms(**args)
    sum(terms.values()).backward()
    rel = 2e-2 if of_generator == torch.bfloat16 else 1e-3
    assert [x.item() for x in terms.values()] == pytest.approx(
        [x.item() for x in wanted.values()], rel=rel
    )
    assert all(x.grad.dtype == dtype for x in tuned_sides(args))
    assert all(torch.isfinite(p.grad).all() for p in reg.parameters())


@pytest.mark.parametrize("proxies", [False, True], ids=["", "proxies"])
@both_kinds
@every_case
def test_autocast_changes_nothing(case, cross, proxies):
    args = inputs(cross, dtype=torch.float32)
    reg = module_of(case, proxies).float().eval()
    want = reg(**args)
    leaves = [*tuned_sides(args), *reg.parameters()]
    gradients = torch.autograd.grad(want, leaves)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = reg(**args)
    assert torch.equal(got, want)
    assert all(map(torch.equal, torch.autograd.grad(got, leaves), gradients))


@every_case
def test_no_overflow(case):
    # Opposite features, huge norms and a steep temperature: exponents of several hundred.
    x = torch.tensor([[1.0, 0.0], [-1.0, 1e-3], [0.0, 1.0], [1.0, 1e-3], [-1.0, 0.0]]) * 6e4
    x = x.half().requires_grad_()
    name, options = CASES[case]
    steep = {"tau": 0.01, "bias": 100.0, "slope": 50.0, "temperature": 0.01}
    options = {**options, **{key: steep[key] for key in options if key in steep}}
    loss = regularisers.create(name, **options)(x, x.detach().flip(0))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(x.grad).all()


@pytest.mark.parametrize("proxies", [False, True], ids=["", "proxies"])
@every_case
def test_equal_and_zero_features_stay_finite(case, proxies):
    x = torch.ones(6, D)
    x[4:] = 0.0
    x.requires_grad_()
    reg = module_of(case, proxies, k=2).float()
    loss = reg(x, torch.ones(6, D))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(x.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in reg.parameters())


# -- edges ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("proxies", [False, True], ids=["", "proxies"])
@pytest.mark.parametrize("n", [0, 1, 2, 3])
@every_case
def test_nothing_to_align_is_exact_zero(case, n, proxies):
    x = (features(n).half() * float("inf") if n == 3 else features(n)).requires_grad_()
    reg = module_of(case, proxies)
    loss = reg(x, features(n))
    loss.backward()
    assert loss.item() == 0.0 and loss.dim() == 0
    assert (x.grad == 0).all()
    assert all(p.grad is None for p in reg.parameters())


@pytest.mark.parametrize("proxies", [False, True], ids=["", "proxies"])
@every_case
def test_one_column_is_nothing_to_align(case, proxies):
    x, y = features(5).requires_grad_(), features(1, 1).requires_grad_()
    reg = module_of(case, proxies)
    loss = reg(x, features(5, 2), columns=y, column_anchors=features(1, 3))
    loss.backward()
    assert loss.item() == 0.0 and (x.grad == 0).all() and (y.grad == 0).all()
    assert all(p.grad is None for p in reg.parameters())


@pytest.mark.parametrize("n", [4, 5])
@every_case
def test_small_batches_equal_the_loops(case, n):
    args = inputs(False, rows=n)
    want = reference(case, n - 2, args)
    assert loss_of(case, **args, k=8).item() == pytest.approx(want.item(), rel=1e-9)


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("case", sorted(set(CASES) - {"correlation"}))
def test_two_columns_equal_the_loops(case, rows):
    args = inputs(True, rows=rows, columns=2)
    want = reference(case, 1, args)
    assert loss_of(case, **args, k=8).item() == pytest.approx(want.item(), rel=1e-9)


@both_kinds
@pytest.mark.parametrize("n, m", [(4, 2), (5, 3), (6, 20)])
@every_case
def test_small_sets_with_proxies_are_finite(case, n, m, cross):
    args, reg = inputs(cross, n, m, torch.float32), module_of(case, True, k=8).float()
    loss = reg(**args)
    loss.backward()
    grads = [*(p.grad for p in reg.parameters()), *(x.grad for x in tuned_sides(args))]
    assert torch.isfinite(loss) and all(torch.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize("n", [512, pytest.param(4096, marks=pytest.mark.slow)])
def test_large_batch(n):
    # At 4096, a tensor of N x N x d would take 4 GiB.
    x = torch.randn(n, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = fda_loss(x, x.detach(), k=16)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(x.grad).all()


X = features(6)
SETS = X.expand(2, 6, D)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: fda_loss(X, X, k=0), "k is 0"),
        (lambda: kl_loss(X, X, k=2.5), "k is 2.5"),
        (lambda: fda_loss(X, X), "k is missing"),
        (lambda: fda_loss(X, k=2), "needs anchors"),
        (lambda: fda_loss(X, X, k=2, columns=X), "column_anchors"),
        (lambda: fda_loss(X, X, k=2, column_anchors=X), "column_anchors"),
        (lambda: fda_loss(X, X[:5], k=2), "6 rows to 6 rows.*5 x 5"),
        (lambda: fda_loss(X, graph=NeighbourGraph(X, 2, X[:5])), "6 rows to 6 rows.*cross, 6 x 5"),
        (lambda: fda_loss(X, columns=X, graph=NeighbourGraph(X, 2)), "6 rows to 6 col.*self, 6"),
        (lambda: fda_loss(X, X, k=2, tau=0.0), "tau is 0.0"),
        (lambda: fda_loss(X, X, k=2, slope=-1.0), "slope is -1.0"),
        (lambda: fda_loss(X, X, k=2, bias=float("nan")), "bias is nan"),
        (lambda: fda_loss(X, X, k=2, units="frozn"), "units is 'frozn'.*cosine, frozen"),
        (lambda: match_loss(X, X, k=2, slope=0.0), "slope is 0.0"),
        (lambda: kl_loss(X, X, temperature=-1.0), "temperature is -1.0"),
        (lambda: fda_loss(X[0], X, k=2), "features has shape"),
        (lambda: fda_loss(X, X, k=2, columns=X[0], column_anchors=X), "columns has shape"),
        (lambda: fda_loss(X, X, k=2, columns=X[:, :3], column_anchors=X), "dimension 12.*3"),
        (lambda: fda_loss(SETS, X, k=2, columns=X, column_anchors=X), "same number of sets"),
        (lambda: proxy_fda_loss(X, X, k=2), "generator is missing"),
        (lambda: proxy_fda_loss(X, X, ProxyGenerator(7), k=2), r"dimension 7.*Generator\(12\)"),
        (lambda: proxy_fda_loss(X, X, ProxyGenerator(D), k=2, alpha=-1), "alpha is -1"),
        (
            lambda: proxy_fda_loss(X, X, ProxyGenerator(D), k=2, proxy_temperature=0.01),
            "L_proxy is 0.01",
        ),
        (
            lambda: proxied_relation_loss(lambda c, r: c.sum(1), X, X, ProxyGenerator(D)),
            "k is missing",
        ),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_bad_input_is_one_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()
