"""Settings to choose from: grids, --try, files, and what is refused."""

import itertools
from pathlib import Path

import pytest
import yaml

import train
from proxyfda.experiments.candidates import (
    Candidate,
    candidates,
    parse_tries,
    plain_candidate,
    read_settings,
)
from proxyfda.experiments.config import load_config
from proxyfda.experiments.project import Project
from proxyfda.experiments.protocols import base2new_jobs
from proxyfda.integrations.dassl import describe_regulariser
from proxyfda.names import NONE
from proxyfda.regularisers import names
from proxyfda.utils.errors import BadValue, NotFound, UserError

ROOT = Path(train.__file__).parent
PROJECT = Project(str(ROOT), entry="train")
NODE = "TRAINER.PROXYFDA."


def of(run, **more):
    tries = parse_tries(more.pop("tries", []))
    return candidates(run, PROJECT, tries=tries, **more)


def test_tries_are_all_combinations_with_all_regularisers():
    found = of("CoOp", regularisers=["fda", "kl"], tries=["WEIGHT=1,3", "SPACES=text,text+cross"])
    expected = itertools.product(["fda", "kl"], ["1", "3"], ["text", "text,cross"])
    assert [(one.run, *dict(one.options).values()) for one in found] == [
        (f"CoOp+{name}", weight, spaces) for name, weight, spaces in expected
    ]
    assert {key for one in found for key, _ in one.options} == {NODE + "WEIGHT", NODE + "SPACES"}
    assert found[1].label == "fda WEIGHT 1 SPACES text,cross"


def test_a_regulariser_takes_the_options_that_it_has_and_no_setting_comes_twice():
    found = of("MaPLe", regularisers=["match", "rkd", "l2sp"], tries=["K=3,8", "SPACES=image"])
    assert [one.label for one in found] == [
        "match K 3 SPACES image",
        "match K 8 SPACES image",
        "rkd SPACES image",
        "l2sp",
    ]


def test_the_plain_trainer_s_own_options_can_be_chosen(tmp_path):
    found = of("CoOp", tries=["OPTIM.LR=0.002,0.004", "M=0,16", "N=4"])
    assert {one.run for one in found} == {"CoOp+none"} and len(found) == 4
    assert found[0].label == "OPTIM.LR 0.002 M 0 N 4"
    with pytest.raises(BadValue, match="all settings of CoOp are the plain trainer"):
        of("CoOp", settings=_file_of([{"label": "x"}], tmp_path))


def _file_of(content, folder):
    path = folder / "settings.yaml"
    text = content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("host", ["CoOp", "MaPLe"])
@pytest.mark.parametrize("name", [NONE, *names()])
def test_every_regulariser_has_a_default_grid_that_configs_take(name, host):
    found = of(f"{host}+{name}")
    assert len(found) >= 2
    for one in found:
        where = {"project": PROJECT, "data": "/data", "output": "/out"}
        cfg = load_config(base2new_jobs(one.run, "dtd", 1, variant=one, **where)[0].parsed())
        described = describe_regulariser(cfg)
        assert described["name"] == name
        for key, value in one.options:
            assert str(cfg.TRAINER.PROXYFDA[key[len(NODE) :]]) in (value, f"{value}.0") or (
                ",".join(cfg.TRAINER.PROXYFDA.SPACES) == value
            )
    spaces = {dict(one.options).get(NODE + "SPACES", "") for one in found}
    if host == "CoOp":
        assert not any("image" in value for value in spaces)  # their image encoder is frozen


def test_one_with_proxies_takes_the_grid_without_them():
    assert [one.options for one in of("CoOp+proxy_kl")] == [one.options for one in of("CoOp+kl")]
    assert PROJECT.grid("proxy_correlation").endswith("default.yaml")
    assert PROJECT.grid("something").endswith("default.yaml")


def test_a_file_of_settings(tmp_path):
    path = _file_of(
        [
            {"label": "soft", "regulariser": "match", "options": {"WEIGHT": 3.0, "K": 4}},
            {"regulariser": "rkd", "options": {"SPACES": ["text", "cross"], "OPTIM.LR": 0.001}},
            {"label": "batches", "options": {"M": 16, "N": 4, "MINING": True}},
        ],
        tmp_path,
    )
    soft, rkd, batches = of("CoOp", settings=path)
    assert soft == Candidate("soft", "CoOp+match", ((NODE + "WEIGHT", "3"), (NODE + "K", "4")))
    assert rkd.label == "rkd SPACES text,cross OPTIM.LR 0.001"
    assert batches.run == "CoOp+none" and dict(batches.options)[NODE + "MINING"] == "True"
    # Beside a grid, and with the trainer's own regulariser where it has one.
    assert len(of("CoOp", settings=path, regularisers=["pointwise"], tries=["WEIGHT=1,2"])) == 5
    (own,) = read_settings(_file_of([{"options": {"K": 3}}], tmp_path), "FDACoOp")
    assert own.run == "CoOp+fda"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("label: a", "is no list of settings"),
        ("[]", "is no list of settings"),
        ("- a", "setting 1 is 'a'; give a mapping of label, options, regulariser"),
        ("- {label: a, weight: 3}", "setting 1 is .* give a mapping"),
        ("- {options: [1]}", "options .* give a mapping of KEY: VALUE"),
        ("- {regulariser: rkt}", r"setting 1: regulariser is 'rkt' \(did you mean 'rkd'"),
        ("- {label: a}\n- {label: a, options: {OPTIM.LR: 1}}", "label 'a', which another one has"),
        ("- {label: plain}", "label 'plain', which another one has"),
        ("a: [", "is not valid YAML"),
    ],
    ids=["mapping", "empty", "word", "key", "options", "regulariser", "twice", "plain", "yaml"],
)
def test_faulty_files(tmp_path, content, message):
    with pytest.raises(BadValue, match=message) as error:
        of("CoOp", settings=_file_of(content, tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("run", "more", "message"),
    [
        ("ZeroshotCLIP", {}, "trains nothing"),
        ("CoOp", {}, "CoOp says nothing to choose among; name .* CoOp.rkd"),
        ("CoOp", {"regularisers": ["rkt"]}, "--regularisers is 'rkt'"),
        ("FDACoOp", {"regularisers": ["rkd"]}, "is 'rkd', but FDACoOp says 'fda'; name CoOp"),
        ("CoOp+rkd", {"regularisers": ["fda"]}, "but CoOp.rkd says 'rkd'"),
        ("CoOp+rkd", {"tries": ["K=3"]}, "K, which is no option of rkd"),
        ("CoOp+l2sp", {"tries": ["SPACES=text"]}, "SPACES, which is no option of l2sp"),
        ("CoOp", {"tries": ["WEIGHT=3"]}, "WEIGHT, which is no option of plain batches"),
        ("CoOp", {"tries": ["REGULARISER=fda,rkd"]}, "--regularisers or the settings file"),
        ("CoOp+rkd", {"tries": ["WEIGHT=1", "WEIGHT=3"]}, "names WEIGHT twice"),
        *(("CoOp+rkd", {"tries": [word]}, "give KEY=V1,V2") for word in ("WEIGHT", "=1", "K=1,")),
    ],
    ids=lambda value: str(value)[:24],
)
def test_mistakes(run, more, message):
    with pytest.raises(BadValue, match=message) as error:
        of(run, **more)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_an_unknown_regulariser(tmp_path):
    with pytest.raises(NotFound, match="--settings .*none.yaml does not exist"):
        of("CoOp", settings=str(tmp_path / "none.yaml"))
    with pytest.raises(UserError, match="rkt"):
        of("CoOp+rkt")


def test_numbers_have_one_spelling_and_brackets_hold_together():
    assert parse_tries(["WEIGHT=3.0,0.10,1e-3", "INPUT.SIZE=(32, 32),(64,64)", "A=x"]) == {
        "WEIGHT": ["3", "0.1", "0.001"],
        "INPUT.SIZE": ["(32, 32)", "(64,64)"],
        "A": ["x"],
    }


def test_folders_are_named_by_options_and_not_by_labels():
    options = ((NODE + "WEIGHT", "3"), (NODE + "SPACES", "text,cross"), ("OPTIM.LR", "0.01"))
    one, other = Candidate("a", "CoOp+rkd", options), Candidate("b", "CoOp+rkd", options[::-1])
    assert one.variant == other.variant == "optim.lr_0.01-spaces_text+cross-weight_3"
    plain = plain_candidate("ProxyFDACoOp")
    assert (plain.label, plain.run, plain.variant) == ("plain", "CoOp", "")
    long = [Candidate("", "CoOp+rkd", (("A.B", f"{'x' * 300}{i}"),)).variant for i in range(2)]
    assert len(set(long)) == 2 and max(map(len, long)) <= 120
