"""What all registered regularisers have in common: options, names, state."""

import copy
import dataclasses
import io
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from naive import features
from torch import nn

import proxyfda
from proxyfda import FDA, FDAOptions, ProxyFDA, ProxyFDAOptions, regularisers
from proxyfda.regularisers.base import REGULARISERS, Options, Regulariser, register
from proxyfda.utils.errors import BadType, BadValue, UserError

D = 12
NAMES = regularisers.names()
every_regulariser = pytest.mark.parametrize("name", NAMES)


def build(name, seed=0, **options):
    """A regulariser that is called with features, and the model that L2SP holds."""
    if name == "l2sp":
        torch.manual_seed(seed)
        return regularisers.L2SP(nn.Linear(3, 2))
    if regularisers.find(name).needs_dim:
        options["proxy_seed"] = seed
    return regularisers.create(name, D, **options)


X, FROZEN = features(9, 1, torch.float32), features(9, 2, torch.float32)


# -- names ---------------------------------------------------------------------------------------


def test_names():
    assert {"fda", "proxy_fda", "rkd", "pointwise", "ldifs", "l2sp"} <= set(NAMES)
    assert NAMES[:2] == ["fda", "proxy_fda"] and NAMES[2:] == sorted(NAMES[2:])
    assert {regularisers.find(name).name for name in NAMES} == set(NAMES)


def test_contract_of_the_package():
    assert proxyfda.FDA is regularisers.find("fda")
    assert proxyfda.ProxyFDA is regularisers.find("proxy_fda")
    for name in ("RKD", "Pointwise", "LDIFS", "L2SP"):
        assert getattr(proxyfda, name) is regularisers.find(name.lower())


@pytest.mark.parametrize(
    "wrong, words",
    [
        (
            "pointwize",
            r"'pointwize' \(did you mean 'pointwise'\?\); use one of fda, proxy_fda,.*rkd",
        ),
        ("Proxy_FDA", "did you mean 'proxy_fda'"),
        ("nothing like it", "no regulariser 'nothing like it'; use one of"),
    ],
)
def test_unknown_name_gets_the_nearest_one(wrong, words):
    for look_up in (regularisers.find, regularisers.create):
        with pytest.raises(BadValue, match=words):
            look_up(wrong)


@every_regulariser
def test_created_by_name(name):
    made = regularisers.create(name, D)
    cls = regularisers.find(name)
    assert type(made) is cls and isinstance(made, nn.Module) and made.options == cls.options_class()
    assert bool(list(made.parameters())) is cls.needs_dim
    assert cls.kind in ("relations", "features", "weights")
    assert made.log_name.startswith("loss_") and made.log_name != "loss_proxy"


def test_generator_of_proxies_needs_a_dimension():
    with pytest.raises(BadValue, match="dim is 0"):
        regularisers.create("proxy_fda")


@every_regulariser
def test_gives_one_scalar_that_is_the_sum_of_its_terms(name):
    reg = build(name).eval()
    loss, terms = reg(X, FROZEN), reg.terms(X, FROZEN)
    assert isinstance(loss, torch.Tensor) and loss.dim() == 0 and torch.isfinite(loss)
    assert list(terms) == [reg.log_name] + ["loss_proxy"] * reg.needs_dim
    assert torch.equal(loss, sum(terms.values()))


# -- options -------------------------------------------------------------------------------------


@every_regulariser
def test_options_are_a_frozen_dataclass_beside_it(name):
    cls = regularisers.find(name)
    options = cls.options_class()
    assert isinstance(options, Options) and dataclasses.is_dataclass(options)
    for field in dataclasses.fields(options):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(options, field.name, getattr(options, field.name))
    if name != "l2sp":
        made = cls(*[D] * cls.needs_dim, options)
        assert made.options is options


@every_regulariser
def test_equal_names_of_options_have_equal_defaults(name):
    for field in dataclasses.fields(regularisers.find(name).options_class):
        for other in REGULARISERS.values():
            for same in dataclasses.fields(other.options_class):
                if same.name == field.name:
                    assert (same.default, same.type) == (field.default, field.type)


WRONG = {
    "k": [0, -1],
    "tau": [0.0, -0.1, float("inf"), float("nan")],
    "bias": [float("inf"), float("nan")],
    "units": ["cosin", ""],
    "slope": [0.0, float("nan")],
    "temperature": [0.0, float("inf")],
    "similarity": [-1.0, float("nan")],
    "distance": [-1.0, float("inf")],
    "angle": [-1.0, float("inf")],
    "normalise_over": ["token"],
    "proxy_ratio": [0.0, 4.1, float("nan")],
    "alpha": [-0.1, float("inf")],
    "proxy_temperature": [0.029, float("nan")],
    "max_proxies": [0],
    "max_proxy_pairs": [0],
}
"""Values of the options there are; those of a new regulariser belong in its own test."""

ALL_OPTIONS = [
    (name, field.name)
    for name in NAMES
    for field in dataclasses.fields(regularisers.find(name).options_class)
]


@pytest.mark.parametrize("name, option", ALL_OPTIONS)
def test_values_that_cannot_work_are_refused_with_the_options_name(name, option):
    for value in WRONG.get(option, []):
        with pytest.raises(BadValue, match=f"^{option} is {value!r}; .*\\.$"):
            regularisers.create(name, D, **{option: value})
    (field,) = (f for f in dataclasses.fields(regularisers.find(name).options_class)
                if f.name == option)  # fmt: skip
    default = field.default
    kind = {"int": "an int", "float": "a float", "str": "a str"}[type(default).__name__]
    for value in (None, [default], True, "x" if not isinstance(default, str) else 1):
        with pytest.raises(BadType, match=f"^{option} is .*; give {kind} like {default!r}\\.$"):
            regularisers.create(name, D, **{option: value})
    if isinstance(default, int):
        with pytest.raises(BadType, match=f"^{option} is 2.5; give an int like {default}\\.$"):
            regularisers.create(name, D, **{option: 2.5})


def test_one_of_rkds_weights_has_to_be_above_0():
    with pytest.raises(BadValue, match="similarity is 0.0; set similarity, distance or angle"):
        regularisers.create("rkd", similarity=0.0)


@pytest.mark.parametrize(
    "given, kept",
    [
        ({"tau": 1}, 1.0),
        ({"tau": numpy.float64(0.2)}, 0.2),
        ({"tau": numpy.float32(0.5)}, 0.5),
        ({"k": numpy.int64(4)}, 4),
    ],
)
def test_numbers_of_other_kinds_are_taken(given, kept):
    (name,) = given
    value = getattr(FDA(**given).options, name)
    assert value == kept and type(value) is type(kept)


@every_regulariser
def test_unknown_option_gets_the_nearest_one(name):
    cls = regularisers.find(name)
    known = [field.name for field in dataclasses.fields(cls.options_class)]
    with pytest.raises(BadValue, match=f"{cls.__name__} has no option 'zzz'; it has"):
        regularisers.create(name, D, zzz=1)
    for option in known:
        wrong = option + "s"
        with pytest.raises(BadValue, match=f"no option '{wrong}' .did you mean '{option}'"):
            regularisers.create(name, D, **{wrong: 1})


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: FDA(8), "FDA takes either one FDAOptions or its fields by name, not 8"),
        (lambda: FDA(FDAOptions(), k=3), "FDAOptions.* and k"),
        (lambda: FDA(regularisers.RKDOptions()), "not RKDOptions"),
        (lambda: ProxyFDA(D, FDAOptions()), "ProxyFDAOptions"),
    ],
    ids=["number", "both", "another's", "not the proxies'"],
)
def test_options_of_another_kind_are_refused(call, words):
    with pytest.raises(BadType, match=words):
        call()


def test_options_may_be_given_whole():
    assert FDA(FDAOptions(k=3)).options.k == 3
    assert ProxyFDA(D, ProxyFDAOptions(k=3, alpha=2)).options.alpha == 2.0


@every_regulariser
def test_representation_shows_the_options(name):
    reg = build(name)
    for field in dataclasses.fields(reg.options):
        assert f"{field.name}={getattr(reg.options, field.name)}" in repr(reg)


# -- state ---------------------------------------------------------------------------------------


def moved(reg):
    """The same with what it learned and counted at other values."""
    with torch.no_grad():
        for weight in reg.parameters():
            weight.add_(0.1)
        for trained in getattr(reg, "_trained", ()):
            for weight in trained:
                weight.add_(0.1)
    return reg


@every_regulariser
def test_state_survives_a_file_without_pickled_code(name):
    reg, other = moved(build(name, 1)), build(name, 1)
    file = io.BytesIO()
    torch.save(reg.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other.load_state_dict(state)
    for key, value in reg.state_dict().items():
        assert torch.equal(other.state_dict()[key], value)
    if name != "l2sp":  # whose weights are the model's
        assert torch.equal(other.eval()(X, FROZEN), reg.eval()(X, FROZEN))
    assert bool(state) is (reg.options.keeps_state or name == "l2sp")


@every_regulariser
def test_moves_to_another_dtype(name):
    reg = build(name)
    want = reg.eval()(X, FROZEN)
    assert reg.to(torch.float64) is reg
    floating = [p for p in [*reg.parameters(), *reg.buffers()] if p.is_floating_point()]
    assert all(p.dtype == torch.float64 for p in floating)
    x = X.double().requires_grad_()
    loss = reg(x, FROZEN.double())
    assert loss.item() == pytest.approx(want.item(), rel=1e-4, abs=1e-6)
    if name != "l2sp":
        loss.backward()
        assert loss.dtype == torch.float64 and x.grad.abs().sum() > 0


@every_regulariser
def test_deep_copy_is_independent(name):
    reg = build(name)
    reg(X, FROZEN)  # what is kept between steps is copied too
    twin = copy.deepcopy(reg)
    assert torch.equal(twin.eval()(X, FROZEN), reg.eval()(X, FROZEN))
    shared = {p.data_ptr() for p in reg.parameters()} & {p.data_ptr() for p in twin.parameters()}
    assert not shared
    before = reg(X, FROZEN)
    moved(twin)
    assert torch.equal(reg(X, FROZEN), before)


@every_regulariser
def test_part_of_a_module_like_any_other(name):
    model = nn.ModuleDict({"layer": nn.Linear(2, 2), "regulariser": build(name)})
    own = [p for p in model["regulariser"].parameters()]
    assert len(list(model.parameters())) == 2 + len(own)
    model.load_state_dict(model.state_dict())


# -- a new one -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class SquaredOptions(Options):
    power: float = 2.0

    def check(self):
        self._require_positive("power")


class Squared(Regulariser):
    name = "squared"
    options_class = SquaredOptions

    def terms(self, features, anchors=None, **more):
        return {self.log_name: (features - anchors).abs().pow(self.options.power).mean()}


@pytest.fixture
def squared(monkeypatch):
    monkeypatch.setattr("proxyfda.regularisers.base.REGULARISERS", dict(REGULARISERS))
    return register(Squared)


def test_a_new_one_is_found_by_its_name(squared):
    assert "squared" in regularisers.names() and "squared" not in NAMES
    made = regularisers.create("squared", power=1)
    assert made.log_name == "loss_squared"
    assert made(torch.ones(2, 2), torch.zeros(2, 2)).item() == 1.0
    with pytest.raises(BadValue, match="power is -1.0"):
        regularisers.create("squared", power=-1)


def test_names_and_defaults_do_not_collide(squared):
    assert register(Squared) is Squared  # its file may be imported again
    with pytest.raises(ValueError, match="Heir has the name 'squared': give another") as caught:
        register(type("Heir", (Squared,), {}))  # which forgot to take a name of its own
    assert not isinstance(caught.value, UserError)
    with pytest.raises(ValueError, match="''"):
        register(type("Nameless", (Squared,), {"name": ""}))
    other = dataclasses.make_dataclass("Other", [("k", int, 9)], bases=(Options,), frozen=True)
    with pytest.raises(ValueError, match="k is 9 by default in Same and 8 in"):
        register(type("Same", (Squared,), {"name": "same", "options_class": other}))


def test_every_file_of_the_folder_is_imported():
    code = """
import sys
import proxyfda.regularisers as r
files = [f[:-3] for f in __import__("os").listdir(r.__path__[0]) if f.endswith(".py")]
assert all("proxyfda.regularisers." + f in sys.modules for f in files if f != "__init__"), files
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
