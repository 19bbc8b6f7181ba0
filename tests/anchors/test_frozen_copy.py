"""A copy that stays as it was, whatever happens to the module and around it."""

import copy

import pytest
import torch
from torch import nn

from proxyfda.anchors import FrozenCopy
from proxyfda.utils.errors import BadType


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


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x):
        return self.out(self.embed(x))


def hooked():
    module = nn.Linear(4, 3)
    module.register_forward_hook(lambda module, inputs, output: output * 2)
    return module


MODULES = {
    "weight-norm": lambda: torch.nn.utils.weight_norm(nn.Linear(4, 3)),
    "spectral-norm": lambda: torch.nn.utils.spectral_norm(nn.Linear(4, 3)),
    "parametrised": lambda: torch.nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)),
    "tied": Tied,
    "hook-that-changes-features": hooked,
    "data-parallel": lambda: nn.DataParallel(nn.Linear(4, 3)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODULES)
def test_weights_that_are_computed_shared_or_wrapped_are_copied(name):
    torch.manual_seed(0)
    module, x = MODULES[name](), torch.randn(5, 4)
    module(x)  # hooks have left tensors with gradient
    frozen = FrozenCopy(module)
    want = module.eval()(x).detach()
    torch.testing.assert_close(frozen(x), want)
    assert not isinstance(frozen.module, nn.DataParallel)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.5).add_(0.1)
    torch.testing.assert_close(frozen(x), want)
    assert not torch.allclose(module(x), want)
    if name == "tied":
        assert frozen.module.embed.weight is frozen.module.out.weight


@pytest.mark.skipif(not hasattr(torch, "compile"), reason="torch has it from 2.0 on")
def test_of_a_compiled_module_the_module_itself_is_copied():
    frozen = FrozenCopy(torch.compile(encoder(), backend="eager"))
    assert type(frozen.module) is nn.Sequential


def test_the_copy_follows_every_weight_of_the_module():
    module = Tied()
    frozen = FrozenCopy(module)
    frozen.follow(module.double())
    assert frozen(torch.ones(1, 4).double()).dtype == torch.float64
    frozen.follow(module.to("meta"))
    assert {weight.device.type for weight in frozen.parameters()} == {"meta"}
    assert not any(weight.requires_grad for weight in frozen.parameters())


def sharded():
    module = encoder()
    module[0].__class__ = type("FullyShardedDataParallel", (nn.Linear,), {})
    return module


class Stubborn(nn.Linear):
    def __deepcopy__(self, known):
        raise RuntimeError("not with me.\nMore of it.")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (sharded, "Sequential is sharded by FSDP.*copy it before.*anchors=frozen"),
        (lambda: Stubborn(1, 1), "Stubborn cannot be copied .RuntimeError: not with me.; give as"),
        (lambda: nn.LazyLinear(3), "LazyLinear has weights without values yet; run it on a batch"),
    ],
    ids=["sharded", "refuses", "lazy"],
)
def test_what_cannot_be_copied_is_told(make, words):
    with pytest.raises(BadType, match=words):
        FrozenCopy(make())
