"""Bad inputs end in one sentence that names the thing, and change nothing in the output folder.

The short form takes of each option one value and of the files every seventh case; with ``--long``
all are run.
"""

import pytest
from faults.inputs.calls import verdict
from faults.inputs.file_cases import FILE_CASES
from faults.inputs.option_cases import OPTION_CASES, TOLD

from proxyfda.experiments.config import default_config, option_rules
from proxyfda.integrations.dassl_options import NODE, node_defaults
from proxyfda.utils.nested import flat

ALL = list({case.id: case for case in [*TOLD, *OPTION_CASES, *FILE_CASES]}.values())
ONE_EACH = list({case.option: case for case in OPTION_CASES[::-1]}.values())


def test_the_table_is_long_and_no_case_is_in_it_twice():
    made = [case.id for case in [*OPTION_CASES, *FILE_CASES]]
    assert len(set(made)) == len(made) >= 400


def test_every_option_of_the_config_has_a_rule():
    rules = set(option_rules()) | {f"{NODE}.{name}" for name in node_defaults()}
    ours = {key for key, _ in flat(default_config()) if key.split(".")[:2] != ["TRAINER", "MINE"]}
    assert not ours - rules


def test_every_option_has_a_bad_value_in_the_table():
    free = {key for key, rule in option_rules().items() if rule.accepts("x") and rule.accepts("")}
    assert not set(option_rules()) - {case.option for case in OPTION_CASES} - free


@pytest.mark.parametrize("case", TOLD, ids=lambda case: case.id)
def test_what_users_told(case, place):
    assert not verdict(case, place)


def test_a_bad_value_of_each_option(place):
    wrong = {case.id: verdict(case, place) for case in ONE_EACH}
    assert not {key: value for key, value in wrong.items() if value}


@pytest.mark.parametrize("case", FILE_CASES[::7], ids=lambda case: case.id)
def test_bad_files_and_flags(case, place):
    assert not verdict(case, place)


def pytest_generate_tests(metafunc):
    if "every_case" in metafunc.fixturenames:  # thousands, which are only made where they are run
        cases = ALL if metafunc.config.getoption("--long") else []
        metafunc.parametrize("every_case", cases, ids=lambda case: case.id)


@pytest.mark.long
def test_every_case(every_case, place):
    assert not verdict(every_case, place)
