"""What `pip install` of this repository brings into somebody else's environment."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def project():
    tomllib = pytest.importorskip("tomllib")
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_package_proxyfda_and_nothing_else_is_installed(project):
    setuptools = pytest.importorskip("setuptools")
    find = project["tool"]["setuptools"]["packages"]["find"]
    packages = setuptools.find_packages(str(ROOT), include=find["include"])
    assert {name.split(".")[0] for name in packages} == {"proxyfda"}
    on_disk = {path.parent for path in (ROOT / "proxyfda").rglob("__init__.py")}
    assert {ROOT.joinpath(*name.split(".")) for name in packages} == on_disk


def test_torch_is_the_only_requirement(project):
    assert [name.split(">")[0] for name in project["project"]["dependencies"]] == ["torch"]


def test_extras_agree_with_the_requirements_file(project):
    lines = (ROOT / "requirements.txt").read_text().split()
    extras = project["project"]["optional-dependencies"]
    wanted = [name for extra in ("clip", "engine", "plots") for name in extras[extra]]
    assert set(wanted) <= set(lines)


@pytest.mark.skipif(sys.version_info < (3, 9), reason="checked by running there")
def test_python_3_8_could_read_the_drop_in_part():
    import ast

    parts = ["__init__", "capture", "config", "fda", "frozen", "plugin", "proxies", "sampler"]
    for name in parts:
        source = (ROOT / "proxyfda" / f"{name}.py").read_text()
        ast.parse(source, feature_version=(3, 8))
        assert name == "__init__" or "from __future__ import annotations" in source
