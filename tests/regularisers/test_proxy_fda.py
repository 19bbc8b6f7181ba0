"""Proxy-FDA: the formula, a plain training loop, and the bounds on what a step costs."""

import math

import pytest
import torch
from naive import cosine, features, with_unit_columns
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import proxyfda
from proxyfda import FDA, NeighbourGraph, ProxyFDA, ProxyGenerator, proxy_fda_loss
from proxyfda.neighbours.proxies import MAX_PAIRS
from proxyfda.regularisers import create

D = 12


def test_written_out():
    generator = ProxyGenerator(D, seed=0).double()
    x, frozen = features(6, 1), features(6, 2)
    graph = NeighbourGraph(frozen, 2)
    proxies = generator(x, graph)
    total = 0.0
    for i in range(6):
        pairs = []
        for j in range(6):
            if j != i:
                sign = 1 if graph.mask[i, j] else -1
                pairs.append((cosine(x[i], x[j]), cosine(frozen[i], frozen[j]), sign))
        for j, p in enumerate(with_unit_columns(proxies.weights[i], x)):
            estimate = sum(a * cosine(frozen[i], y) for a, y in zip(proxies.weights[i, j], frozen))
            pairs.append((cosine(x[i], p), estimate, 1 if j < proxies.positives else -1))
        terms = [
            math.log(1 + math.exp(max(w.item(), 0) * sign * (-c.item() / 0.1 + 10)))
            for c, w, sign in pairs
        ]
        total += sum(terms) / len(terms) / 6
    got, _ = proxy_fda_loss(x, frozen, generator, k=2)
    assert got.item() == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
@pytest.mark.parametrize(
    "of_fda",
    [{}, {"tau": 0.3, "bias": 2.0}, {"units": "frozen", "slope": 1.5}],
    ids=["default", "tau and bias", "frozen units"],
)
def test_module_is_the_sum_of_both_losses(cross, of_fda):
    x, frozen = features(20, 1), features(20, 2)
    more = {"columns": features(15, 3), "column_anchors": features(15, 4)} if cross else {}
    options = {"k": 8, "alpha": 0.5, "proxy_temperature": 0.2, **of_fda}
    reg = ProxyFDA(D, proxy_seed=3, constants="given", **options).double()
    loss = reg(x, frozen, **more)
    losses = proxy_fda_loss(x, frozen, reg.generator, **options, **more)
    assert loss.dim() == 0 and torch.equal(loss, sum(losses))
    terms = reg.terms(x, frozen, **more)
    assert list(terms) == ["loss_fda", "loss_proxy"]
    assert all(map(torch.equal, terms.values(), losses))


@pytest.mark.parametrize(
    "option, value",
    [
        ("k", 3),
        ("tau", 0.3),
        ("bias", 2.0),
        ("units", "frozen"),
        ("proxy_ratio", 1.0),
        ("alpha", 0.3),
        ("proxy_temperature", 0.5),
        ("max_proxies", 1),
        ("max_proxy_pairs", 500),
        ("proxy_seed", 1),
    ],
)
def test_every_option_acts(option, value):
    x, frozen = features(16, 1), features(16, 2)
    usual, other = ProxyFDA(D, proxy_seed=0), ProxyFDA(D, **{"proxy_seed": 0, option: value})
    assert usual(x, frozen).item() != pytest.approx(other(x, frozen).item(), rel=1e-6)


@pytest.mark.parametrize("proxy_seed, seed", [(5, 5), (0, 0)])
def test_seed_of_the_generator(proxy_seed, seed):
    torch.manual_seed(99)
    reg, same = ProxyFDA(D, proxy_seed=proxy_seed), ProxyGenerator(D, seed=seed)
    assert torch.equal(reg.generator.down.weight, same.down.weight)
    torch.manual_seed(7)
    assert torch.equal(ProxyFDA(D).generator.down.weight, ProxyGenerator(D, seed=7).down.weight)


@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
@pytest.mark.parametrize("name", ["fda", "proxy_fda"])
def test_one_line_in_a_plain_loop_trains_model_and_generator(name, cross):
    torch.manual_seed(0)
    model, head = nn.Linear(8, D), nn.Linear(D, 3)
    frozen = proxyfda.FrozenCopy(model)
    texts, text_anchors = nn.Parameter(features(6, 1).float()), features(6, 1).float()
    reg = FDA(k=3) if name == "fda" else ProxyFDA(D, k=3)
    parameters = [*model.parameters(), *head.parameters(), texts, *reg.parameters()]
    before = [p.detach().clone() for p in parameters]
    optimiser = torch.optim.AdamW(parameters, lr=1e-2)
    images, labels = torch.randn(10, 8), torch.arange(10) % 3
    losses = []
    for _ in range(20):
        tuned = model(images)
        more = {"columns": texts, "column_anchors": text_anchors} if cross else {}
        task = nn.functional.cross_entropy(head(tuned), labels)
        loss = task + 2.0 * reg(tuned, frozen(images), **more)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    changed = [not torch.equal(p, b) for p, b in zip(parameters, before)]
    assert all(c for p, c in zip(parameters, changed) if p is not texts)
    assert changed[4] is cross and parameters[4] is texts
    assert all(p.grad is None for p in frozen.parameters())


def test_generator_that_no_optimiser_holds_stays():
    model, reg = nn.Linear(8, D), ProxyFDA(D, k=3)
    before = {name: value.clone() for name, value in reg.state_dict().items()}
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    images = torch.randn(10, 8)
    start = model.weight.detach().clone()
    for _ in range(3):
        optimiser.zero_grad()
        reg(model(images), images @ torch.ones(8, D)).backward()
        optimiser.step()
    assert not torch.equal(model.weight, start)
    for name, weight in reg.named_parameters():
        assert torch.equal(weight, before[name])


def test_trivial_batch_leaves_the_generator_where_it_is():
    reg = ProxyFDA(D, k=3)
    optimiser = torch.optim.AdamW(reg.parameters(), lr=0.1, weight_decay=0.5)
    before = [p.detach().clone() for p in reg.parameters()]
    x = features(3, dtype=torch.float32).requires_grad_()
    reg(x, features(3, 1, torch.float32)).backward()
    optimiser.step()
    assert all(p.grad is None for p in reg.parameters())
    assert all(map(torch.equal, reg.parameters(), before))
    assert (x.grad == 0).all()


# -- bounds --------------------------------------------------------------------------------------


def case_of(kind):
    """Arguments of a call, its number of sets and of anchors in each of them."""
    stack = torch.stack
    if kind == "self":
        return {"features": features(9, 1), "anchors": features(9, 2)}, 1, 9
    if kind == "cross":
        more = {"columns": features(14, 3), "column_anchors": features(14, 4)}
        return {"features": features(6, 1), "anchors": features(6, 2), **more}, 1, 6
    sets = stack([features(6, seed) for seed in range(1, 4)])
    if kind == "sets":
        return {"features": sets, "anchors": features(6, 9)}, 3, 6
    columns = stack([features(14, seed) for seed in range(4, 7)])
    more = {"columns": columns, "column_anchors": features(14, 8)}
    return {"features": sets[:, :2], "anchors": features(2, 9), **more}, 3, 2


def regulariser(name, **options):
    return create(name, D, k=3, proxy_seed=0, **options).double()


def pairs_per_row(args, reg):
    """Proxies of an anchor times columns, counted from what the generator makes."""
    columns = args.get("columns", args["features"])
    graph = NeighbourGraph(args["anchors"], 3, args.get("column_anchors"))
    one = columns[0] if columns.dim() == 3 else columns
    return reg.generator(one, graph).weights[0].numel()


def losses_and_gradients(reg, args):
    leaves = [args[name] for name in ("features", "columns") if name in args]
    leaves = [x.requires_grad_() for x in leaves] + [*reg.parameters()]
    terms = list(reg.terms(**args).values())
    gradients = torch.autograd.grad(sum(terms), leaves)
    return [*(term.detach() for term in terms), *gradients]


@pytest.mark.parametrize("kind", ["self", "cross", "sets", "sets across"])
def test_nothing_is_left_out_up_to_the_bound(kind):
    args, sets, rows = case_of(kind)
    pairs = pairs_per_row(args, regulariser("proxy_fda")) * sets * rows
    wanted = losses_and_gradients(regulariser("proxy_fda", max_proxy_pairs=2**40), args)
    at_bound = losses_and_gradients(regulariser("proxy_fda", max_proxy_pairs=pairs), args)
    assert all(map(torch.equal, at_bound, wanted))
    beyond = losses_and_gradients(regulariser("proxy_fda", max_proxy_pairs=pairs - 1), args)
    assert not torch.equal(beyond[0], wanted[0])


@pytest.mark.parametrize("name", ["proxy_fda", "proxy_rkd"])
@pytest.mark.parametrize("kind", ["self", "cross", "sets", "sets across"])
@pytest.mark.parametrize("most", [1, 2, 4])
def test_average_over_the_turns_is_the_loss_of_all_anchors(kind, most, name):
    # A control variate: what the chosen anchors' proxies change is added to the loss without any.
    args, sets, rows = case_of(kind)
    pairs = pairs_per_row(args, regulariser(name))
    wanted = losses_and_gradients(regulariser(name), args)
    bounded = regulariser(name, max_proxy_pairs=pairs * most + 1)
    turns = [losses_and_gradients(bounded, args) for _ in range(sets * rows)]
    assert not torch.allclose(turns[0][0], turns[1][0], rtol=1e-8)
    for each, want in zip(zip(*turns), wanted):
        torch.testing.assert_close(torch.stack(each).mean(0), want, rtol=1e-6, atol=1e-9)


def test_turns_go_on_after_a_restart_and_stand_still_in_evaluation():
    args, _, _ = case_of("self")
    reg = regulariser("proxy_fda", max_proxy_pairs=1)
    first = [reg(**args).item() for _ in range(4)]
    assert len(set(first)) == 4
    again = regulariser("proxy_fda", max_proxy_pairs=1)
    state = {key: value.clone() for key, value in reg.state_dict().items()}
    again.load_state_dict(state)
    assert again.eval()(**args).item() == again(**args).item() == reg(**args).item()
    assert again.train()(**args).item() not in first
    assert again(**args).item() not in first


class LargestTensor(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that an operation gives."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            # Not the size of an expanded view, which has no memory of its own.
            if isinstance(tensor, torch.Tensor):
                own = tensor.untyped_storage().nbytes() // tensor.element_size()
                self.elements = max(self.elements, min(tensor.numel(), own))
        return result


@pytest.mark.skipif(
    torch.__version__.startswith("1."), reason="the size of a storage can be asked for from 2.0 on"
)
@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
def test_memory_of_a_step_with_600_classes_is_bounded(cross):
    # Without the bounds: 600 anchors of 239 proxies over 600 columns, 86 million.
    texts = torch.randn(600, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    anchors = texts.detach() + 0.1
    reg = ProxyFDA(32, k=8, proxy_seed=0)
    with LargestTensor() as largest:
        if cross:
            loss = reg(anchors[:64], anchors[:64], columns=texts, column_anchors=anchors)
        else:
            loss = reg(texts, anchors)
        loss.backward()
    assert torch.isfinite(loss) and texts.grad.abs().sum() > 0
    real = (64 if cross else 600) * 600
    assert real <= largest.elements <= MAX_PAIRS <= 2**21


@pytest.mark.parametrize("max_proxies, made", [(1, 2), (5, 8), (128, 39)])
def test_proxies_of_a_set_are_bounded(max_proxies, made):
    x = features(100)
    reg = ProxyFDA(D, k=8, max_proxies=max_proxies)
    assert reg.generator(x, reg.graph(x)).weights.shape == (100, made, 100)
