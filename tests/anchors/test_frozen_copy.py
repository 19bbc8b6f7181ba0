"""A copy that stays as it was, whatever happens to the module and around it."""

import copy

import pytest
import torch
from torch import nn

from proxyfda.anchors import FrozenCopy


def encoder():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))


def test_output_stays_while_the_module_is_trained():
    module = encoder()
    x = torch.randn(8, 4)
    want = module.eval()(x).detach()
    module.train()
    frozen = FrozenCopy(module)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.5)
    for _ in range(3):
        optimiser.zero_grad()
        (module(x) - frozen(x)).square().sum().backward()
        optimiser.step()
    assert torch.equal(frozen(x), want)
    assert not torch.equal(module.eval()(x), want)


def test_module_itself_stays_as_it_is():
    module = encoder().train()
    FrozenCopy(module)
    assert module.training and all(p.requires_grad for p in module.parameters())


def test_never_trained_and_never_in_train_mode():
    holder = nn.ModuleDict({"tuned": encoder(), "frozen": FrozenCopy(encoder())}).train()
    assert holder["tuned"].training
    assert not any(m.training for m in holder["frozen"].modules())
    assert not any(p.requires_grad for p in holder["frozen"].parameters())
    x = torch.randn(8, 4)
    statistics = holder["frozen"].module[1].running_mean.clone()
    assert torch.equal(holder["frozen"](x), holder["frozen"](x))  # no dropout
    assert torch.equal(holder["frozen"].module[1].running_mean, statistics)
    assert holder["frozen"].train() is holder["frozen"]


def test_output_has_no_gradient_even_for_an_input_with_one():
    x = torch.randn(8, 4, requires_grad=True)
    assert not FrozenCopy(encoder())(x).requires_grad


def test_arguments_are_handed_on():
    class Module(nn.Module):
        def forward(self, a, *, b):
            return a - b

    assert FrozenCopy(Module())(torch.tensor(3.0), b=torch.tensor(1.0)).item() == 2.0


def test_state_and_copies():
    frozen, other = FrozenCopy(encoder()), FrozenCopy(encoder().requires_grad_(False))
    with torch.no_grad():
        other.module[0].weight.zero_()
    other.load_state_dict(frozen.state_dict())
    x = torch.randn(8, 4)
    assert torch.equal(other(x), frozen(x)) and torch.equal(copy.deepcopy(frozen)(x), frozen(x))
    assert frozen.to(torch.float64)(x.double()).dtype == torch.float64


@pytest.mark.parametrize("wrong", [None, torch.ones(2), nn.Linear])
def test_what_is_no_module_is_refused(wrong):
    with pytest.raises(TypeError, match="give a torch.nn.Module"):
        FrozenCopy(wrong)
