"""Names of runs."""

import doctest

import pytest

import train  # noqa: F401  (registers the trainers)
from proxyfda.dassl import TRAINER_REGISTRY
from proxyfda.experiments import names
from proxyfda.experiments.names import run_name, split_run_name, trainer_and_regulariser
from proxyfda.utils.errors import BadValue


def test_examples():
    failed, tried = doctest.testmod(names)
    assert tried and not failed


@pytest.mark.parametrize("host", ["CoOp", "MaPLe", "KgCoOp"])
@pytest.mark.parametrize("regulariser", ["", "fda", "proxy_fda", "rkd", "l2sp"])
def test_a_name_is_taken_apart_again(host, regulariser):
    name = run_name(host, regulariser)
    assert split_run_name(name) == (host, regulariser)
    assert run_name(*trainer_and_regulariser(name)) == name


def test_a_prefix_and_its_regulariser_are_the_same():
    assert run_name("FDACoOp", "fda") == run_name("CoOp", "fda") == run_name("FDACoOp")


@pytest.mark.parametrize(
    ("trainer", "regulariser", "message"),
    [
        ("FDACoOp", "rkd", "whose name says 'fda'; use CoOp with it"),
        ("ProxyFDACoOp", "none", "whose name says 'proxy_fda'"),
        ("ZeroshotCLIP", "rkd", "which trains nothing; leave it out"),
    ],
)
def test_what_does_not_fit_is_refused(trainer, regulariser, message):
    with pytest.raises(BadValue, match=message):
        run_name(trainer, regulariser)


def test_the_hosts_are_the_trainers_that_there_are():
    registered = TRAINER_REGISTRY.registered_names()
    hosts = {split_run_name(name)[0] for name in registered if not names.is_zero_shot(name)}
    assert hosts == set(names.HOSTS)
    for host in hosts:
        assert {host, *(prefix + host for prefix in names.PREFIXES)} <= set(registered)
