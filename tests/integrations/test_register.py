"""Names of trainers, what the config asks of them, and what is told about it."""

import dataclasses
from pathlib import Path

import pytest
import torch
from yacs.config import CfgNode

import proxyfda
from proxyfda import regularisers
from proxyfda.dassl import TRAINER_REGISTRY, get_cfg_default
from proxyfda.integrations.dassl import (
    RegularisedTrainer,
    describe_regulariser,
)
from proxyfda.integrations.dassl_options import settle
from proxyfda.names import split_run_name
from proxyfda.utils.errors import BadValue
from tests.integrations import dassl_hosts as hosts
from tests.integrations.dassl_hosts import first_batch

proxyfda.register()
CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def test_a_registered_host_is_replaced_by_a_subclass_of_the_same_name():
    class Replaced(hosts.Plain):
        """A host with words of its own."""

    TRAINER_REGISTRY.register(Replaced, force=True)
    assert proxyfda.register(Replaced) == ["FDAReplaced", "ProxyFDAReplaced"]
    found = TRAINER_REGISTRY.get("Replaced")
    assert found is not Replaced and issubclass(found, Replaced)
    assert issubclass(found, RegularisedTrainer)
    assert (found.__name__, found.__module__) == ("Replaced", Replaced.__module__)
    assert found.trained_regulariser == ""
    for name, regulariser in (("FDAReplaced", "fda"), ("ProxyFDAReplaced", "proxy_fda")):
        assert TRAINER_REGISTRY.get(name).trained_regulariser == regulariser
    proxyfda.register()
    assert TRAINER_REGISTRY.get("Replaced") is found


def test_a_host_that_is_not_registered_under_its_name_is_not_put_there():
    class Unknown(hosts.Plain):
        pass

    proxyfda.register(Unknown)
    names = TRAINER_REGISTRY.registered_names()
    assert "FDAUnknown" in names and "Unknown" not in names


def test_the_replaced_host_needs_no_node_in_the_config(make, tmp_path):
    trainer = make("Plain")
    cfg = get_cfg_default()
    cfg.merge_from_other_cfg(
        CfgNode({k: v for k, v in trainer.cfg.clone().items() if k != "TRAINER"})
    )
    cfg.TRAINER.NAME = "Plain"
    bare = TRAINER_REGISTRY.get("Plain")(cfg)
    assert set(bare.forward_backward(first_batch(bare))) == {"loss"}
    assert describe_regulariser(cfg) is None
    with pytest.raises(AttributeError, match="no node TRAINER.PROXYFDA; call proxyfda.extend_cfg"):
        TRAINER_REGISTRY.get("FDAPlain")(cfg)


@pytest.mark.parametrize("chosen", ["rkd", "none", "proxy_fda"])
def test_a_trainer_whose_name_says_what_is_trained_takes_no_other(make, chosen):
    with pytest.raises(BadValue) as error:
        make("FDAPlain", REGULARISER=chosen)
    assert str(error.value) == (
        f"TRAINER.PROXYFDA.REGULARISER is {chosen!r}; but the trainer's name says fda: give the "
        "name of the host to --trainer, or leave REGULARISER empty"
    )
    trainer = make("FDAPlain", REGULARISER="fda")
    assert "loss_fda" in trainer.forward_backward(first_batch(trainer))


def test_the_name_and_the_config_ask_for_the_same_training(make):
    for prefix, name in (("FDA", "fda"), ("ProxyFDA", "proxy_fda")):
        by_name, by_config = make(f"{prefix}Coupled"), make("Coupled", REGULARISER=name)
        got, want = (t.forward_backward(first_batch(t)) for t in (by_name, by_config))
        assert got == want


def test_none_gives_balanced_batches_and_no_term(make):
    balanced = make("Plain", REGULARISER="none", M=3, N=2)
    reference = make("FDAPlain", M=3, N=2)
    plain = make(hosts.Plain)
    want = [batch["impath"] for batch in reference.train_loader_x]
    assert [batch["impath"] for batch in balanced.train_loader_x] == want
    assert all(len(paths) == 6 for paths in want)
    for trainer in (balanced, plain):
        trainer.train_loader_x = None  # the same batch for both
    batch = first_batch(reference)
    steps = []
    for trainer in (balanced, plain):
        trainer.batch_idx, trainer.num_batches = 0, 10
        trainer.set_model_mode("train")
        steps.append(trainer.forward_backward(batch))
    assert steps[0] == steps[1] and set(steps[0]) == {"loss"}
    for name, value in plain.model.state_dict().items():
        assert torch.equal(balanced.model.state_dict()[name], value), name


def test_m_without_a_regulariser_has_no_effect_and_says_so(make, capsys):
    trainer = make("Plain", M=3, N=2)
    note = (
        "TRAINER.PROXYFDA.M 3 has no effect without a regulariser; for the balanced batches alone "
        "set TRAINER.PROXYFDA.REGULARISER none\n"
    )
    assert note in capsys.readouterr().out
    assert trainer.train_loader_x.batch_size == 8
    for quiet in (
        lambda: make("Plain"),
        lambda: make("Plain", REGULARISER="none", M=3, N=2),
        lambda: make("FDAPlain", M=3, N=2, WEIGHT=0),
        lambda: make("Plain", M=3, N=2, ENABLED=False),
    ):
        quiet()
        assert "has no effect" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("trainer", "found"),
    [
        ("ProxyFDACoOp", ("CoOp", "proxy_fda")),
        ("FDACoOp", ("CoOp", "fda")),
        ("CoOp", ("CoOp", "")),
        ("FDA", ("FDA", "")),
        ("MyFDA", ("MyFDA", "")),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_the_regulariser_in_a_trainers_name(trainer, found):
    assert split_run_name(trainer) == found


def config(name, **options):
    cfg = get_cfg_default()
    proxyfda.extend_cfg(cfg)
    cfg.TRAINER.NAME = name
    for option, value in options.items():
        cfg.merge_from_list([f"TRAINER.PROXYFDA.{option}", value])
    return cfg


def test_what_acts_is_described_with_its_options():
    described = describe_regulariser(
        config("FDAPlain", WEIGHT=3, K=4, M=16, N=4, MINING=True, SPACES="text,cross")
    )
    assert described == {
        "name": "fda",
        "weight": 3.0,
        "spaces": ["text", "cross"],
        "options": {
            "k": 4,
            "tau": 0.1,
            "bias": 10.0,
            "constants": "derived",
            "units": "cosine",
            "slope": 2.0,
        },
        "m": 16,
        "n": 4,
        "mining": True,
    }
    rkd = describe_regulariser(config("Plain", REGULARISER="rkd", DISTANCE=1, ANGLE=2))
    assert rkd["name"] == "rkd" and rkd["spaces"] == [] and rkd["m"] == 0
    assert rkd["options"] == {"similarity": 1.0, "distance": 1.0, "angle": 2.0}
    batches = describe_regulariser(config("Plain", REGULARISER="none", M=4, N=2))
    assert (batches["name"], batches["m"], batches["options"]) == ("none", 4, {})


@pytest.mark.parametrize(
    ("trainer", "options", "weight"),
    [
        ("FDAPlain", {}, 0.3),
        ("ProxyFDAPlain", {}, 0.3),
        ("Plain", {"REGULARISER": "fda", "CONSTANTS": "given"}, 0.3),
        ("Plain", {"REGULARISER": "rkd"}, 1.0),
        ("Plain", {"REGULARISER": "none", "M": 4, "N": 2}, 1.0),
        ("FDAPlain", {"WEIGHT": 3}, 3.0),
        ("FDAPlain", {"WEIGHT": -1}, 0.3),
    ],
    ids=str,
)
def test_the_weight_is_the_regularisers_own_unless_it_is_given(trainer, options, weight):
    cfg = config(trainer, **options)
    assert describe_regulariser(cfg)["weight"] == weight
    settle(cfg, split_run_name(trainer)[1])
    assert weight == cfg.TRAINER.PROXYFDA.WEIGHT


@pytest.mark.parametrize(
    ("options", "constants"),
    [
        ({}, "derived"),
        ({"TAU": 0.07}, "given"),
        ({"BIAS": 5}, "given"),
        ({"UNITS": "frozen"}, "given"),
        ({"TAU": 0.1}, "derived"),  # as if nothing was said
    ],
    ids=str,
)
def test_tau_and_bias_of_a_config_count_where_they_differ_from_the_defaults(options, constants):
    cfg = config("FDAPlain", **options)
    assert describe_regulariser(cfg)["options"]["constants"] == constants
    settle(cfg, "fda")
    assert constants == cfg.TRAINER.PROXYFDA.CONSTANTS


def test_a_tau_beside_derived_constants_is_refused_by_the_options_name():
    with pytest.raises(
        BadValue, match="TRAINER.PROXYFDA.CONSTANTS is 'derived'; tau 0.07, bias 10"
    ):
        describe_regulariser(config("FDAPlain", CONSTANTS="derived", TAU=0.07))


@pytest.mark.parametrize("overlay", ["paper", "paper_cross"])
def test_the_papers_overlays_are_literal(overlay):
    cfg = config("ProxyFDAPlain")
    cfg.merge_from_file(str(CONFIGS / "regularisers" / f"{overlay}.yaml"))
    described = describe_regulariser(cfg)
    assert (described["weight"], described["options"]["constants"]) == (1.0, "given")
    assert (described["options"]["tau"], described["options"]["bias"]) == (0.1, 10.0)


@pytest.mark.parametrize(
    ("trainer", "options"),
    [
        ("Plain", {}),
        ("Plain", {"REGULARISER": "none"}),
        ("Plain", {"M": 4, "N": 2}),
        ("FDAPlain", {"WEIGHT": 0}),
        ("ProxyFDAPlain", {"ENABLED": False, "M": 4, "N": 2}),
    ],
    ids=["host", "none", "batches-without-a-regulariser", "weight-0", "disabled"],
)
def test_nothing_is_described_where_nothing_acts(trainer, options):
    assert describe_regulariser(config(trainer, **options)) is None


@pytest.mark.parametrize("option", ["MODE", "FORM"])
def test_options_of_old_end_with_the_new_one(option, tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text(f"TRAINER: {{PROXYFDA: {{{option}: regress}}}}")
    ways = (
        lambda cfg: cfg.merge_from_list([f"TRAINER.PROXYFDA.{option}", "regress"]),
        lambda cfg: cfg.merge_from_file(str(path)),
        lambda cfg: cfg.clone().merge_from_file(str(path)),
    )
    for merge in ways:
        with pytest.raises(KeyError) as error:
            merge(config("CoOp"))
        (sentence,) = error.value.args
        assert f"TRAINER.PROXYFDA.{option} was renamed to TRAINER.PROXYFDA.REGULARISER" in sentence
    assert option not in config("CoOp").TRAINER.PROXYFDA


def test_every_option_of_every_regulariser_is_a_key_with_its_default():
    node = config("Plain").TRAINER.PROXYFDA
    for name in regularisers.names():
        for option in dataclasses.fields(regularisers.find(name).options_class):
            assert node[option.name.upper()] == option.default, (name, option.name)


def test_make_trainer_refuses_other_regularisers_by_name():
    with pytest.raises(BadValue, match="regulariser is 'rkd'; trainers of their own have fda, pro"):
        proxyfda.make_trainer(hosts.Plain, "rkd")
    with pytest.raises(BadValue, match="did you mean 'proxy_fda'"):
        proxyfda.make_trainer(hosts.Plain, "proxyfda")
