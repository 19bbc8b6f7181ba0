"""What `pip install` of this repository brings into somebody else's environment."""

import subprocess
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
    files = ("requirements-captioning.txt", "requirements-dev.txt")
    lines = [line for file in files for line in (ROOT / file).read_text().split()]
    named = ("transformers", "captioning", "lightning", "timm")
    wanted = [name for extra in named for name in extras[extra]]
    assert wanted and set(wanted) <= set(lines)


@pytest.mark.skipif(sys.version_info < (3, 9), reason="checked by running there")
@pytest.mark.parametrize(
    "part",
    [
        "__init__.py",
        "sampling.py",
        "neighbours",
        "regularisers",
        "anchors",
        "integrations",
        "diagnostics",
        "utils",
    ],
)
def test_python_3_8_could_read_the_drop_in_part(part):
    import ast

    path = ROOT / "proxyfda" / part
    files = [path] if path.suffix else sorted(path.rglob("*.py"))
    assert files
    for file in files:
        source = file.read_text()
        tree = ast.parse(source, feature_version=(3, 8))
        annotated = any(isinstance(node, (ast.AnnAssign, ast.FunctionDef)) for node in tree.body)
        if annotated and file.name != "__init__.py":
            assert "from __future__ import annotations" in source, file


def test_the_drop_in_part_imports_nothing_but_torch():
    """In a process of its own that has only torch and the standard library."""
    script = f"""
import builtins, sys
sys.path.insert(0, {str(ROOT)!r})
import torch
known, original = set(sys.modules), builtins.__import__

def only(name, globals=None, locals=None, fromlist=(), level=0):
    top = name.split(".")[0]
    package = (globals or {{}}).get("__name__", "").split(".")[0]
    if package == "proxyfda" and not level and top not in ("proxyfda", "torch"):
        if top not in sys.stdlib_module_names:
            raise ImportError("the drop-in part imports " + name)
    return original(name, globals, locals, fromlist, level)

builtins.__import__ = only
import proxyfda
for name in proxyfda.__all__:
    getattr(proxyfda, name)
"""
    if sys.version_info < (3, 10):
        pytest.skip("sys.stdlib_module_names is new in 3.10")
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)
