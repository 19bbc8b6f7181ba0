"""Names of runs."""

import doctest
from pathlib import Path

import pytest

import train
from proxyfda import names
from proxyfda.dassl import TRAINER_REGISTRY
from proxyfda.experiments.project import Project
from proxyfda.names import run_name, split_run_name, trainer_and_regulariser
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


def test_every_host_has_configs_and_the_trainers_that_prefixes_name():
    registered = [  # other tests register trainers of their own
        name
        for name in TRAINER_REGISTRY.registered_names()
        if TRAINER_REGISTRY.get(name).__module__.startswith("trainers.")
    ]
    hosts = {split_run_name(name)[0] for name in registered}
    hosts = {host for host in hosts if not names.is_zero_shot(host)}
    assert set(names.HOSTS) <= hosts
    hosts_of_prompts = {host for host in hosts if not names.tunes_end_to_end(host)}
    project = Project(str(Path(train.__file__).parent), entry="train")
    assert hosts_of_prompts == set(project.hosts)
    for host in hosts - hosts_of_prompts:  # they share one folder
        assert project.trainer_config(host, "vit_b32").endswith("FineTune/vit_b32.yaml")
    for host in hosts:
        assert {host, *(prefix + host for prefix in names.PREFIXES)} <= set(registered)
