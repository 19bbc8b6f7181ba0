"""Learning rates to the last bit, and parameter groups."""

import math

import pytest
import torch

from proxyfda.engine import build_lr_scheduler, build_optimizer, get_cfg_default
from proxyfda.engine.optim import fast_forward, scheduler_state, steps_taken

# Observed with the original Dassl; the numbers are upstream's, exact.
CONSTANT_10 = [
    *(1e-05, 0.002, 0.0019510565162951536, 0.0018090169943749473, 0.0015877852522924731),
    *(0.0013090169943749475, 0.001, 0.0006909830056250527, 0.000412214747707527),
    *(0.00019098300562505268, 4.894348370484647e-05),
]
CONSTANT_20 = [
    *(1e-05, 0.0025, 0.0024846104257439223, 0.0024388206453689423),
    *(0.00236375815523546, 0.0022612712429686847, 0.0021338834764831846, 0.0019847315653655916),
    *(0.0018174881246744337, 0.0016362712429686846, 0.0014455430813002889, 0.00125),
    *(0.0010544569186997118, 0.0008637287570313159, 0.0006825118753255666, 0.0005152684346344087),
    *(
        0.00036611652351681566,
        0.00023872875703131582,
        0.00013624184476454027,
        6.117935463105809e-05,
    ),
    *(1.5389574256077926e-05,),
]
NO_WARMUP_10 = [*CONSTANT_10[1:], 0.0]
LINEAR_3 = [1e-05, 0.002 * 1 / 3, 0.002 * 2 / 3, *CONSTANT_10[1:9]]
MULTI_STEP = [1e-05, 0.002, 0.002, 0.002, 0.002 * 0.1, 0.002 * 0.1, 0.002 * 0.1 * 0.1]


def make_cfg(**options):
    cfg = get_cfg_default()
    defaults = {"NAME": "sgd", "LR": 0.002, "LR_SCHEDULER": "cosine"}
    warmup = {"WARMUP_EPOCH": 1, "WARMUP_TYPE": "constant"}
    cfg.OPTIM.update({**defaults, **warmup, **options})
    return cfg.OPTIM


def make(cfg):
    optimizer = build_optimizer(torch.nn.Linear(2, 2), cfg)
    return optimizer, build_lr_scheduler(optimizer, cfg)


def rates(optimizer, scheduler, epochs):
    found = []
    for _ in range(epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


SEQUENCES = [
    pytest.param({}, CONSTANT_10, id="cosine_10_constant_1"),
    pytest.param({"MAX_EPOCH": 20, "LR": 0.0025}, CONSTANT_20, id="cosine_20_constant_1"),
    pytest.param({"WARMUP_EPOCH": -1}, NO_WARMUP_10, id="cosine_10"),
    pytest.param({"WARMUP_EPOCH": 3, "WARMUP_TYPE": "linear"}, LINEAR_3, id="cosine_10_linear_3"),
    pytest.param({"LR_SCHEDULER": "multi_step", "STEPSIZE": (3, 5)}, MULTI_STEP, id="multi_step"),
    pytest.param(
        {"LR_SCHEDULER": "single_step", "STEPSIZE": (9, 2), "WARMUP_EPOCH": 0},
        [0.002, 0.002, 0.002 * 0.1, 0.002 * 0.1, 0.002 * 0.1 * 0.1],
        id="single_step_takes_the_last_size",
    ),
    pytest.param(
        {"LR_SCHEDULER": "single_step", "MAX_EPOCH": 3, "WARMUP_EPOCH": 0},
        [0.002, 0.002, 0.002, 0.002 * 0.1],
        id="single_step_default_size",
    ),
]


@pytest.mark.parametrize(("options", "expected"), SEQUENCES)
def test_rates_are_exact(options, expected):
    assert rates(*make(make_cfg(**options)), len(expected)) == expected


@pytest.mark.parametrize(("options", "expected"), SEQUENCES)
@pytest.mark.parametrize("done", [0, 1, 3])
def test_fast_forward_continues_exactly(options, expected, done):
    cfg = make_cfg(**options)
    optimizer, scheduler = make(cfg)
    rates(optimizer, scheduler, done)
    steps = steps_taken(scheduler_state(scheduler))
    assert steps == done
    optimizer, scheduler = make(cfg)
    fast_forward(scheduler, steps)
    assert rates(optimizer, scheduler, len(expected) - done) == expected[done:]


def test_fast_forward_refuses_to_go_back():
    optimizer, scheduler = make(make_cfg())
    rates(optimizer, scheduler, 4)
    with pytest.raises(RuntimeError, match="2 steps past"):
        fast_forward(scheduler, 2)


def test_warmup_state_is_plain_and_restores():
    optimizer, scheduler = make(make_cfg())
    rates(optimizer, scheduler, 4)
    state = scheduler.state_dict()
    assert isinstance(state["successor"], dict)
    other_optimizer, other = make(make_cfg())
    other.load_state_dict(state)
    other_optimizer.load_state_dict(optimizer.state_dict())
    assert rates(other_optimizer, other, 6) == CONSTANT_10[4:10]


def test_without_recount_the_warmup_shortens_the_schedule():
    optimizer, scheduler = make(make_cfg(WARMUP_EPOCH=2, WARMUP_RECOUNT=False))
    third, fourth = rates(optimizer, scheduler, 4)[2:]
    cosine = [1 + math.cos(math.pi * epoch / 10) for epoch in range(5)]
    assert third == 0.002
    assert fourth == pytest.approx(0.002 * cosine[3] / cosine[2])


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("sgd", torch.optim.SGD),
        ("adam", torch.optim.Adam),
        ("amsgrad", torch.optim.Adam),
        ("adamw", torch.optim.AdamW),
        ("radam", torch.optim.RAdam),
        ("rmsprop", torch.optim.RMSprop),
    ],
)
def test_optimisers_take_their_options_from_the_config(name, cls):
    cfg = make_cfg(NAME=name, WEIGHT_DECAY=0.125, MOMENTUM=0.5, ADAM_BETA1=0.25)
    optimizer = build_optimizer(torch.nn.Linear(2, 2), cfg)
    (group,) = optimizer.param_groups
    assert type(optimizer) is cls
    assert group["lr"] == 0.002 and group["weight_decay"] == 0.125
    assert group.get("momentum", 0.5) == 0.5
    assert group.get("betas", (0.25, 0.999)) == (0.25, 0.999)
    assert group.get("amsgrad", False) == (name == "amsgrad")


def test_parameters_may_be_given_as_groups():
    first, second = torch.nn.Linear(2, 3), torch.nn.Linear(3, 1)
    groups = [{"params": list(first.parameters()), "lr": 0.5}, {"params": [second.weight]}]
    for optimizer in (
        build_optimizer([dict(group) for group in groups], make_cfg()),
        build_optimizer(None, make_cfg(), param_groups=[dict(group) for group in groups]),
    ):
        assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.002]
    optimizer = build_optimizer(first.parameters(), make_cfg())
    assert len(optimizer.param_groups[0]["params"]) == 2


def test_staged_rates():
    model = torch.nn.Sequential()
    model.add_module("base", torch.nn.Linear(2, 2))
    model.add_module("head", torch.nn.Linear(2, 2))
    optimizer = build_optimizer(model, make_cfg(STAGED_LR=True, NEW_LAYERS=("head",)))
    base, head = optimizer.param_groups
    assert base["lr"] == pytest.approx(0.0002) and head["lr"] == 0.002
    assert base["params"][0] is model.base.weight and head["params"][0] is model.head.weight


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"NAME": "sdg"}, "OPTIM.NAME 'sdg'.*did you mean 'sgd'"),
        ({"LR_SCHEDULER": "cosin"}, "did you mean 'cosine'"),
        ({"WARMUP_TYPE": "slow"}, "OPTIM.WARMUP_TYPE 'slow'.*constant, linear"),
    ],
)
def test_unknown_names(options, words):
    with pytest.raises(ValueError, match=words):
        make(make_cfg(**options))
