"""L2SP: a plain sum over the weights that are trained."""

import copy

import pytest
import torch
from torch import nn

from proxyfda import L2SP, l2sp_loss


def network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    net[1].requires_grad_(False)
    return net


def moved(net):
    with torch.no_grad():
        for i, weight in enumerate(net.parameters()):
            weight.add_(0.1 * (i + 1))
    return net


def naive(weights, starts):
    pairs = zip(weights, starts)
    return sum(
        (p - q) ** 2
        for w, s in pairs
        for p, q in zip(w.detach().flatten().tolist(), s.detach().flatten().tolist())
    )


def trained(net):
    return [p for p in net.parameters() if p.requires_grad]


@pytest.mark.parametrize("how", ["module", "parameters"])
def test_distance_of_a_models_trained_weights(how):
    net = network()
    starts = [p.detach().clone() for p in trained(net)]
    reg = L2SP(net if how == "module" else net.parameters())
    assert reg().item() == 0.0
    moved(net)
    want = naive(trained(net), starts)
    assert len(starts) == 4 and reg().item() == pytest.approx(want, rel=1e-5)
    # Like any other regulariser: features and anchors make no difference.
    assert torch.equal(reg(torch.ones(2, 3), torch.ones(2, 3)), reg())


def test_frozen_weights_are_left_out():
    net = network()
    reg = L2SP(net)
    with torch.no_grad():
        net[1].weight.add_(5.0)
    assert reg().item() == 0.0
    assert all(p.grad is None for p in net.parameters())


def test_gradient_pulls_back():
    net = network()
    reg = L2SP(net)
    starts = [p.detach().clone() for p in trained(net)]
    moved(net)
    reg().backward()
    for weight, start in zip(trained(net), starts):
        assert torch.allclose(weight.grad, 2 * (weight.detach() - start))
    assert net[1].weight.grad is None
    optimiser = torch.optim.SGD(trained(net), lr=0.25)
    for _ in range(40):
        optimiser.zero_grad()
        reg().backward()
        optimiser.step()
    assert all(torch.allclose(w, s, atol=1e-5) for w, s in zip(trained(net), starts))


def test_lists_of_weights():
    weights = [torch.ones(2, 3, dtype=torch.float64).requires_grad_(), torch.zeros(4).double()]
    starts = [torch.full((2, 3), 0.5).double().requires_grad_(), torch.arange(4.0).double()]
    want = naive(weights, starts)
    assert l2sp_loss(weights, starts).item() == pytest.approx(want) == 15.5
    assert L2SP()(weights, starts).item() == pytest.approx(want)
    L2SP()(weights, starts).backward()
    assert (weights[0].grad == 1.0).all() and starts[0].grad is None
    assert torch.autograd.gradcheck(lambda w: l2sp_loss([w], [starts[0].detach()]), (weights[0],))


def test_precision():
    half = torch.full((4,), 300.0, dtype=torch.float16)
    loss = l2sp_loss([half], [-half])
    assert loss.dtype == torch.float32 and loss.item() == 4 * 600.0**2
    tiny = torch.full((1,), 1e-30, dtype=torch.float64)
    assert l2sp_loss([tiny], [tiny * 0]).item() == pytest.approx(1e-60)
    assert l2sp_loss([], []).item() == 0.0


def test_starting_weights_are_its_only_state():
    net = network()
    reg = L2SP(net)
    assert list(reg.parameters()) == []
    assert [tuple(x.shape) for x in reg.state_dict().values()] == [(4, 3), (4,), (2, 4), (2,)]
    saved = copy.deepcopy(reg.state_dict())
    later = L2SP(moved(net))  # a restart from a checkpoint: the weights have moved already
    assert later().item() == 0.0
    later.load_state_dict(saved)
    assert later().item() == pytest.approx(reg().item()) != 0.0


def test_copied_together_with_its_model():
    net = network()
    both = copy.deepcopy(nn.ModuleDict({"model": net, "regulariser": L2SP(net)}))
    moved(both["model"])
    assert both["regulariser"]().item() > 0 and L2SP(net)().item() == 0.0
    both["regulariser"]().backward()
    assert both["model"][0].weight.grad is not None and net[0].weight.grad is None


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: l2sp_loss([torch.ones(2)], [torch.ones(3)]), r"\[\(2,\)\].*\[\(3,\)\]"),
        (lambda: l2sp_loss([torch.ones(2)], []), "starting weights"),
        (lambda: L2SP()(), r"L2SP\(model\)"),
        (lambda: L2SP()(torch.ones(2, 3), torch.ones(2, 3)), r"L2SP\(model\)"),
        (lambda: L2SP()([torch.ones(2)]), r"L2SP\(model\)"),
        (lambda: L2SP(nn.Linear(2, 2).requires_grad_(False))(), r"L2SP\(model\)"),
    ],
    ids=["shapes", "lengths", "nothing", "features", "no start", "frozen model"],
)
def test_bad_input_is_one_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()
