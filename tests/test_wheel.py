"""What wheel and sdist hold: the package, what it reads and its licence, and nothing else."""

import ast
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from itertools import takewhile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "proxyfda"
# What the package consists of beside its modules.
DATA = {
    "proxyfda/py.typed",
    "proxyfda/results/published.csv",
    "proxyfda/results/published_probes.csv",
    "proxyfda/vocabulary/nouns.txt",
    "proxyfda/backbones/clip/bundled/README.md",
    "proxyfda/backbones/clip/bundled/ViT-Bundled.json",
    "proxyfda/backbones/clip/bundled/ViT-Bundled.safetensors",
    "proxyfda/backbones/clip/bundled/ViT-Bundled-atlas.safetensors",
    "proxyfda/backbones/clip/bundled/zeroshot.json",
}
MODULES = {path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*.py")}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Names in the sdist of a copy of the repository, and the wheel that is made from it."""
    pytest.importorskip("build")
    pytest.importorskip("setuptools")
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("dist")
    leave = shutil.ignore_patterns(
        "__pycache__", "*.egg-info", ".*", "output", "data", "build", "dist", "site", "shared"
    )
    shutil.copytree(ROOT, copy, ignore=leave, dirs_exist_ok=True)
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(copy)],
        check=True, capture_output=True,
    )  # fmt: skip
    with tarfile.open(next(out.glob("*.tar.gz"))) as sdist:
        names = {name.split("/", 1)[1] for name in sdist.getnames() if "/" in name}
        files = {name for name in names if sdist.getmember(f"{_root(sdist)}/{name}").isfile()}
    return files, next(out.glob("*.whl"))


def _root(sdist):
    return sdist.getnames()[0].split("/")[0]


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(built):
    with zipfile.ZipFile(built[1]) as wheel:
        names = set(wheel.namelist())
        metadata = wheel.read(next(n for n in names if n.endswith("/METADATA"))).decode()
    about = {name for name in names if ".dist-info/" in name}
    assert names - about == MODULES | DATA
    assert any(name.endswith("/LICENSE") for name in about)
    assert "Description-Content-Type: text/markdown" in metadata
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist")]
    assert [line for line in required if "extra ==" not in line] == ["Requires-Dist: torch>=1.13"]


@pytest.mark.slow
def test_the_sdist_holds_the_package_and_what_describes_it(built):
    files = {name for name in built[0] if ".egg-info/" not in name}
    assert files == MODULES | DATA | {
        "CHANGELOG.md", "CITATION.cff", "LICENSE", "MANIFEST.in", "PKG-INFO", "README.md",
        "pyproject.toml", "setup.cfg",
    }  # fmt: skip


@pytest.mark.skipif(sys.version_info < (3, 10), reason="sys.stdlib_module_names is new in 3.10")
def test_tests_beside_the_wheel_import_what_is_installed_there():
    """`scripts/check_wheel.sh` takes them along; one that cannot be imported ends it."""
    script = (ROOT / "scripts" / "check_wheel.sh").read_text()
    stay_behind = re.search(r"^more='(.*)'$", script, re.M)[1]
    parts = re.search(r"^for part in (.*); do$", script, re.M)[1].split()
    taken = [
        path
        for part in parts
        for path in sorted((ROOT / "tests" / part).glob("*.py"))
        if not re.search(stay_behind, path.read_text()) and path.name != "test_install.py"
    ]
    assert len(taken) > 20
    there = {*sys.stdlib_module_names, "naive", "numpy", "operations", "proxyfda", "pytest"}
    there |= {"tests", "torch", "yacs", *parts}
    for path in taken:
        whole = ast.parse(path.read_text()).body
        tree = list(takewhile(lambda node: "importorskip(" not in ast.unparse(node), whole))
        names = {a.name for node in tree if isinstance(node, ast.Import) for a in node.names}
        names |= {node.module for node in tree if isinstance(node, ast.ImportFrom)}
        missing = {name.split(".")[0] for name in names} - there
        assert not missing, f"{path} imports {missing} before it could be skipped"
