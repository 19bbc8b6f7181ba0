"""FDA loss and neighbour graph against double loops written from the formulas."""

import math

import pytest
import torch

from proxyfda.neighbours.graph import FORMS, MIN_SPREAD, NeighbourGraph, fda_loss, pointwise_loss

OPTIONS = {"tau": 0.2, "bias": 4.0, "slope": 1.7, "temperature": 0.6}
AT_FROZEN = ["match", "kl", "regress", "correlation"]


def features(n, d=12, seed=0, dtype=torch.float64, cone=0.5):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    x += cone * torch.randn(1, d, generator=generator, dtype=torch.float64)
    return (x * (1 + torch.arange(n).unsqueeze(1) % 3)).to(dtype)  # not normalised


def cosine(a, b):
    a, b = a.tolist(), b.tolist()
    dot = sum(p * q for p, q in zip(a, b))
    return dot / math.sqrt(sum(p * p for p in a) * sum(q * q for q in b))


def logistic(x):
    return 1 / (1 + math.exp(-x))


def bce(logit, target):
    q = logistic(logit)
    return -target * math.log(q) - (1 - target) * math.log(1 - q)


def naive_loss(form, x, frozen, k, columns=None, column_frozen=None, scale="pooled"):
    """Plain Python; ``x`` rows tuned, ``frozen`` their anchors, optionally columns."""
    own = columns is None
    cols, frozen_cols = (x, frozen) if own else (columns, column_frozen)
    n, m = len(x), len(cols)
    rows = []
    for i in range(n):
        js = [j for j in range(m) if not (own and j == i)]
        w_hat = {j: cosine(frozen[i], frozen_cols[j]) for j in js}
        ranked = sorted(js, key=lambda j: (-w_hat[j], j))
        rows.append((js, w_hat, ranked, {j: cosine(x[i], cols[j]) for j in js}))
    variances = []
    for js, w_hat, _, _ in rows:
        mean = sum(w_hat.values()) / len(js)
        variances.append(sum((w_hat[j] - mean) ** 2 for j in js) / len(js))
    total = 0.0
    for (js, w_hat, ranked, c), variance in zip(rows, variances):
        near = set(ranked[:k])
        theta = (w_hat[ranked[k - 1]] + w_hat[ranked[k]]) / 2
        sigma = math.sqrt(variance if scale == "row" else sum(variances) / n)
        w = {j: max(w_hat[j], 0.0) * (1 if j in near else -1) for j in js}
        z = {j: (c[j] - theta) / sigma for j in js}
        v = {j: (w_hat[j] - theta) / sigma for j in js}
        if form == "paper":
            terms = [math.log(1 + math.exp(w[j] * (-c[j] / 0.2 + 4.0))) for j in js]
        elif form == "standardised":
            size = sum(abs(w[j]) for j in js) / len(js)
            terms = [math.log(1 + math.exp(-1.7 * w[j] / size * z[j])) for j in js]
        elif form == "match":
            target = {j: logistic(1.7 * v[j]) for j in js}
            terms = [bce(1.7 * z[j], target[j]) - bce(1.7 * v[j], target[j]) for j in js]
        elif form == "kl":
            p = {j: math.exp(v[j] / 0.6) for j in js}
            q = {j: math.exp(z[j] / 0.6) for j in js}
            p_sum, q_sum = sum(p.values()), sum(q.values())
            kl = sum(p[j] / p_sum * math.log(p[j] / p_sum / (q[j] / q_sum)) for j in js)
            terms = [kl]
        elif form == "regress":
            e = [abs(c[j] - w_hat[j]) / sigma for j in js]
            terms = [0.5 * a * a if a < 1 else a - 0.5 for a in e]
        elif form == "correlation":
            a_mean, b_mean = sum(c.values()) / len(js), sum(w_hat.values()) / len(js)
            a, b = [c[j] - a_mean for j in js], [w_hat[j] - b_mean for j in js]
            ab = sum(p * q for p, q in zip(a, b))
            terms = [1 - ab / math.sqrt(sum(p * p for p in a) * sum(q * q for q in b))]
        total += sum(terms) / len(terms)
    return total / n


@pytest.mark.parametrize("scale", ["pooled", "row"])
@pytest.mark.parametrize("form", sorted(FORMS))
def test_forms_equal_double_loop(form, scale):
    x, frozen = features(9, seed=1), features(9, seed=2)
    got = fda_loss(x, frozen, k=3, form=form, scale=scale, **OPTIONS)
    assert got.item() == pytest.approx(naive_loss(form, x, frozen, 3, scale=scale), rel=1e-9)


@pytest.mark.parametrize("form", sorted(FORMS))
def test_cross_modal_forms_equal_double_loop(form):
    sets = features(5, seed=1), features(5, seed=2), features(8, seed=3), features(8, seed=4)
    x, frozen, columns, column_frozen = sets
    got = fda_loss(
        x, frozen, k=3, form=form, columns=columns, column_anchors=column_frozen, **OPTIONS
    )
    want = naive_loss(form, x, frozen, 3, columns, column_frozen)
    assert got.item() == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
@pytest.mark.parametrize("form", sorted(FORMS))
def test_gradcheck(form, cross):
    x = features(6, d=4, seed=1).requires_grad_()
    frozen = features(6, d=4, seed=2)
    columns = features(5, d=4, seed=3).requires_grad_()
    column_frozen = features(5, d=4, seed=4)

    def loss(x, columns):
        extra = {"columns": columns, "column_anchors": column_frozen} if cross else {}
        return fda_loss(x, frozen, k=2, form=form, **extra, **OPTIONS)

    assert torch.autograd.gradcheck(loss, (x, columns.detach() if not cross else columns))


@pytest.mark.parametrize("form", sorted(FORMS))
def test_both_sides_of_cross_modal_form_receive_gradient_and_anchors_none(form):
    tensors = [features(6, seed=s).requires_grad_() for s in range(4)]
    x, frozen, columns, column_frozen = tensors
    fda_loss(x, frozen, k=2, form=form, columns=columns, column_anchors=column_frozen).backward()
    assert x.grad.abs().sum() > 0 and columns.grad.abs().sum() > 0
    assert frozen.grad is None and column_frozen.grad is None


def test_sign_of_bias_is_siglips():
    # SigLIP's initial logit is 10 cos - 10: for a neighbour with w = 1, softplus(-logit).
    x = torch.eye(4, dtype=torch.float64)[[0, 0, 1, 2]] + 1e-12
    graph = NeighbourGraph(x, 1)
    c = (x @ x.t()).clamp(max=1.0)
    pairs = torch.nn.functional.softplus(graph.weights * (-(10 * c - 10)))
    want = (pairs.sum() - pairs.diagonal().sum()) / 12
    assert fda_loss(x, graph=graph).item() == pytest.approx(want.item(), rel=1e-6)


def test_neighbours_attract_and_others_repel_in_paper_form():
    frozen = features(8, cone=2.0)
    graph = NeighbourGraph(frozen, 3)
    cosines = graph.similarities.clone().requires_grad_()
    FORMS["paper"].function(cosines, graph.relations, tau=0.1, bias=10.0).mean().backward()
    assert (cosines.grad[graph.mask] < 0).all()
    assert (cosines.grad[graph.valid & ~graph.mask] > 0).all()
    assert (cosines.grad.diagonal() == 0).all()


def test_negative_frozen_cosines_never_flip_the_sign():
    frozen = features(10, d=3, cone=0.0)
    graph = NeighbourGraph(frozen, 7, min_weight=0.05)
    assert (graph.similarities[graph.mask] < 0).any()
    assert (graph.weights[graph.mask] >= 0.05).all()
    assert (graph.weights[graph.valid & ~graph.mask] <= -0.05).all()
    assert (NeighbourGraph(frozen, 7).weights[graph.mask] >= 0).all()


@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
@pytest.mark.parametrize("form", AT_FROZEN)
def test_minimum_at_frozen_features(form, cross):
    frozen, column_frozen = features(8, seed=1), features(6, seed=2)

    def loss(x, columns):
        extra = {"columns": columns, "column_anchors": column_frozen} if cross else {}
        return fda_loss(x, frozen, k=3, form=form, **extra)

    x, columns = frozen.clone().requires_grad_(), column_frozen.clone().requires_grad_()
    at = loss(x, columns)
    at.backward()
    assert at.item() == pytest.approx(0.0, abs=1e-12)
    assert x.grad.abs().max() < 1e-8
    assert loss(x + 0.3 * features(8, seed=5), columns + 0.3 * features(6, seed=6)) > 1e-3


@pytest.mark.parametrize("form", ["paper", "standardised"])
def test_forms_whose_minimum_is_elsewhere_have_gradient_at_frozen_features(form):
    x = features(8).requires_grad_()
    fda_loss(x, x.detach(), k=3, form=form).backward()
    assert x.grad.abs().max() > 1e-4


@pytest.mark.parametrize(
    "form, kept", [("paper", 0.5), ("standardised", 0.9), ("match", 1.0), ("kl", 1.0)]
)
def test_neighbours_kept_when_minimised_alone(form, kept):
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(10, 32, generator=generator).repeat_interleave(4, 0)
    noise = torch.randn(40, 32, generator=generator)
    frozen = 0.7 * centres + noise + 1.5 * torch.randn(32, generator=generator)
    graph = NeighbourGraph(frozen, 8)
    x = frozen.clone().requires_grad_()
    optimiser = torch.optim.Adam([x], lr=0.02)
    for _ in range(60):
        optimiser.zero_grad()
        fda_loss(x, graph=graph, form=form).backward()
        optimiser.step()
    assert graph.overlap(NeighbourGraph(x, 8)) >= kept


@pytest.mark.parametrize("form", sorted(FORMS))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_half_precision_inputs_are_computed_in_fp32(form, dtype):
    x, frozen = features(12, seed=1, dtype=dtype), features(12, seed=2, dtype=dtype)
    want = fda_loss(x.double(), frozen.double(), k=4, form=form)
    x.requires_grad_()
    got = fda_loss(x, frozen, k=4, form=form)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(want.item(), rel=1e-4)
    got.backward()
    assert x.grad.dtype == dtype and torch.isfinite(x.grad).all()


@pytest.mark.parametrize("form", sorted(FORMS))
def test_autocast_changes_nothing(form):
    x, frozen = features(12, seed=1, dtype=torch.float32), features(12, seed=2).float()
    x.requires_grad_()
    want = torch.autograd.grad(fda_loss(x, frozen, k=4, form=form), x)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = fda_loss(x, frozen, k=4, form=form)
    assert torch.equal(torch.autograd.grad(loss, x)[0], want)


@pytest.mark.parametrize("form", sorted(FORMS))
def test_no_overflow(form):
    # Opposite features, huge norms and a steep temperature: exponents of several hundred.
    x = torch.tensor([[1.0, 0.0], [-1.0, 1e-3], [0.0, 1.0], [1.0, 1e-3], [-1.0, 0.0]]) * 6e4
    x = x.half().requires_grad_()
    loss = fda_loss(x, x.detach().flip(0), k=2, form=form, tau=0.01, bias=100.0, slope=50.0)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(x.grad).all()


@pytest.mark.parametrize("form", sorted(FORMS))
def test_equal_and_zero_features_stay_finite(form):
    x = torch.ones(6, 4)
    x[4:] = 0.0
    x.requires_grad_()
    loss = fda_loss(x, torch.ones(6, 4), k=2, form=form)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(x.grad).all()


@pytest.mark.parametrize("form", sorted(FORMS))
@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_nothing_to_align_is_exact_zero(form, n):
    x = (features(n).to(torch.float16) * float("inf") if n == 3 else features(n)).requires_grad_()
    loss = fda_loss(x, features(n), k=8, form=form)
    loss.backward()
    assert loss.item() == 0.0 and loss.dim() == 0
    assert (x.grad == 0).all()


@pytest.mark.parametrize("n", [4, 5])
def test_small_batches_equal_double_loop(n):
    x, frozen = features(n, seed=1), features(n, seed=2)
    got = fda_loss(x, frozen, k=8, **OPTIONS)
    assert got.item() == pytest.approx(naive_loss("paper", x, frozen, n - 2), rel=1e-9)


def test_cross_modal_edges():
    x, frozen = features(1, seed=1).requires_grad_(), features(1, seed=2)
    one = fda_loss(x, frozen, k=3, columns=features(1), column_anchors=features(1))
    assert one.item() == 0.0
    two = fda_loss(x, frozen, k=3, columns=features(2), column_anchors=features(2))
    assert two.item() == pytest.approx(
        torch.nn.functional.softplus(
            NeighbourGraph(frozen, 1, features(2)).weights[0]
            * (10 - 10 * torch.cosine_similarity(x, features(2)))
        )
        .mean()
        .item()
    )


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


def test_graph_contents():
    x = features(7, cone=1.0)
    graph = NeighbourGraph(x, 2)
    for i in range(7):
        sims = {j: cosine(x[i], x[j]) for j in range(7) if j != i}
        ranked = sorted(sims, key=lambda j: -sims[j])
        assert graph.order[i].tolist() == ranked
        assert graph.indices[i].tolist() == ranked[:2]
        assert set(graph.mask[i].nonzero().flatten().tolist()) == set(ranked[:2])
        assert graph.threshold[i].item() == pytest.approx((sims[ranked[1]] + sims[ranked[2]]) / 2)
        for j in sims:
            sign = 1 if j in ranked[:2] else -1
            assert graph.weights[i, j].item() == pytest.approx(sign * max(sims[j], 0.0))
    assert not graph.valid.diagonal().any() and graph.valid.sum() == 42
    assert (graph.weights.diagonal() == 0).all()
    assert repr(graph).startswith("NeighbourGraph(self, 7 x 7, k=2, neighbours at ")
    assert "k=5 (of 9)" in repr(NeighbourGraph(x, 9))


def test_ties_take_the_lowest_columns():
    graph = NeighbourGraph(torch.ones(6, 3), 2)
    assert graph.indices.tolist() == [[1, 2], [0, 2], [0, 1], [0, 1], [0, 1], [0, 1]]
    assert (graph.mask.sum(1) == 2).all()
    assert (graph.spread == MIN_SPREAD).all()
    for i in range(6):
        assert graph.mask[i].nonzero().flatten().tolist() == graph.indices[i].tolist()


def test_bf16_anchors_give_distinct_fp32_similarities():
    x = features(64, d=64, cone=4.0, dtype=torch.bfloat16)
    graph = NeighbourGraph(x, 8)
    assert graph.similarities.dtype == torch.float32
    upper = graph.similarities[torch.ones(64, 64).triu(1).bool()]
    assert len(upper.unique()) > 0.99 * len(upper)


def test_overlap():
    a = NeighbourGraph(features(8, seed=1), 3)
    b = NeighbourGraph(features(8, seed=2), 3)
    common = [len(set(p) & set(q)) for p, q in zip(a.indices.tolist(), b.indices.tolist())]
    assert a.overlap(a) == 1.0
    assert a.overlap(b) == pytest.approx(sum(common) / 24)
    with pytest.raises(ValueError, match="not comparable"):
        a.overlap(NeighbourGraph(features(8), 2))


def test_loss_with_prepared_graph_is_the_same():
    x, frozen = features(8, seed=1), features(8, seed=2)
    assert fda_loss(x, graph=NeighbourGraph(frozen, 3)) == fda_loss(x, frozen, k=3)


def test_loss_does_not_depend_on_norms_or_order():
    x, frozen = features(9, seed=1), features(9, seed=2)
    want = fda_loss(x, frozen, k=3).item()
    assert fda_loss(5 * x, 0.1 * frozen, k=3).item() == pytest.approx(want)
    assert fda_loss(x.flip(0), frozen.flip(0), k=3).item() == pytest.approx(want)


@pytest.mark.parametrize("n", [512, pytest.param(4096, marks=pytest.mark.slow)])
def test_large_batch(n):
    # At 4096, a tensor of N x N x d would take 4 GiB.
    x = torch.randn(n, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = fda_loss(x, x.detach(), k=16)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(x.grad).all()


@pytest.mark.parametrize("kind", ["self", "cross", "conditional"])
@pytest.mark.parametrize("form", FORMS)
def test_several_sets_in_one_call_equal_one_call_each(form, kind):
    sets = torch.stack([features(7, seed=seed) for seed in range(1, 4)]).requires_grad_()
    frozen, names, name_anchors = features(7), features(5, seed=9), features(5, seed=8)
    columns = torch.stack([names + seed for seed in (0.0, 0.3, 0.5)])
    if kind == "self":
        together = fda_loss(sets, frozen, k=3, form=form)
        each = [fda_loss(x, frozen, k=3, form=form) for x in sets]
    elif kind == "cross":
        together = fda_loss(
            sets, frozen, columns=columns, column_anchors=name_anchors, k=3, form=form
        )
        each = [
            fda_loss(x, frozen, columns=c, column_anchors=name_anchors, k=3, form=form)
            for x, c in zip(sets, columns)
        ]
    else:  # every image meets class texts of its own
        graph = NeighbourGraph(frozen[:3], 3, name_anchors, scale="row")
        together = fda_loss(sets[:, :1], columns=columns, graph=graph, form=form)
        each = [
            fda_loss(x[:1], a[None], columns=c, column_anchors=name_anchors, k=3, form=form)
            for x, a, c in zip(sets, frozen, columns)
        ]
    expected = torch.stack(each).mean()
    torch.testing.assert_close(together, expected)
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, sets)[0] for loss in (together, expected))
    )


def test_pointwise_loss():
    x, frozen = features(5, seed=1).requires_grad_(), features(5, seed=2)
    want = sum(1 - cosine(a.detach(), b) for a, b in zip(x, frozen)) / 5
    assert pointwise_loss(x, frozen).item() == pytest.approx(want)
    assert torch.autograd.gradcheck(lambda x: pointwise_loss(x, frozen), (x,))
    assert pointwise_loss(x[:0], frozen[:0]).item() == 0.0


X = features(6)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: fda_loss(X, X, k=3, form="papper"), "form is 'papper'.*match.*paper"),
        (lambda: fda_loss(X, X, k=0), "k is 0"),
        (lambda: fda_loss(X, X, k=2.5), "k is 2.5"),
        (lambda: fda_loss(X, X), "k is missing"),
        (lambda: fda_loss(X, k=2), "needs anchors"),
        (lambda: fda_loss(X, X, k=2, columns=X), "column_anchors"),
        (lambda: fda_loss(X, X[:5], k=2), "6 rows to 6 rows.*5 x 5"),
        (lambda: fda_loss(X, X, k=2, tau=0.0), "tau is 0.0"),
        (lambda: fda_loss(X, X, k=2, form="kl", temperature=-1.0), "temperature is -1.0"),
        (lambda: fda_loss(X[0], X, k=2), "features has shape"),
        (lambda: fda_loss(X, X, k=2, columns=X[:, :3], column_anchors=X), "dimension 12.*3"),
        (lambda: NeighbourGraph(X, 2, X[:, :3]), "dimension 12.*3"),
        (lambda: NeighbourGraph(X, 2, scale="global"), "scale is 'global'"),
        (lambda: NeighbourGraph(X, 2, min_weight=-1), "min_weight is -1"),
        (lambda: pointwise_loss(X, X[:5]), "one anchor per feature"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_bad_input_is_one_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()
