"""Who may import whom, and what the drop-in part needs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "proxyfda"

# From the ground up: a part imports parts above it in this list, and never one below.
ORDER = [
    "utils",
    "benchmarks",
    "names",
    "vocabulary",
    "sampling",
    "neighbours",
    "regularisers",
    "anchors",
    "diagnostics",
    "engine",
    "dassl",
    "integrations",
    "backbones",
    "experiments",
    "results",
    "diagnose",
]
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported(path):
    """Names of the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = list(path.relative_to(ROOT).parts[: -node.level])
                base = ".".join([*package, *([base] if base else [])])
            yield base
            # "from proxyfda.results import figures" is an import of the module figures.
            yield from (f"{base}.{alias.name}" for alias in node.names)


def module_name(path):
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def dependencies():
    """Module -> modules of the package that it imports."""
    names = {module_name(path): path for path in MODULES}
    graph = {}
    for name, path in names.items():
        found = {other for other in imported(path) if other in names and other != name}
        graph[name] = found
    return graph


def part(module):
    return module.split(".")[1] if "." in module else ""


def test_every_part_of_the_package_has_its_place():
    parts = {path.stem if path.is_file() else path.name for path in PACKAGE.iterdir()}
    assert parts - {"__init__", "__pycache__", "py"} == set(ORDER)
    assert len(ORDER) <= 16


def test_no_part_imports_one_that_stands_above_it():
    upwards = sorted(
        f"{module} imports {other}"
        for module, others in dependencies().items()
        for other in others
        if part(module) and part(other) and ORDER.index(part(other)) > ORDER.index(part(module))
    )
    assert not upwards


def test_no_modules_import_each_other_in_a_circle():
    graph = {
        # A package's __init__ that gathers what its modules hold is no dependency of theirs.
        module: {other for other in others if not module.startswith(other + ".")}
        for module, others in dependencies().items()
    }
    done, path = set(), []

    def visit(module):
        if module in path:
            return " -> ".join([*path[path.index(module) :], module])
        if module in done:
            return ""
        path.append(module)
        circle = next(filter(None, map(visit, sorted(graph[module]))), "")
        path.pop()
        done.add(module)
        return circle

    assert not list(filter(None, map(visit, sorted(graph))))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_package_does_not_know_what_is_built_on_it(path):
    tops = {name.split(".")[0] for name in imported(path)}
    assert not tops & {"trainers", "datasets", "train", "run", "scripts", "tests"}


@pytest.mark.parametrize("folder", ["trainers", "datasets"])
def test_dassl_is_reached_through_the_seam_alone(folder):
    for path in (ROOT / folder).rglob("*.py"):
        for name in imported(path):
            assert name.split(".")[0] != "dassl" and not name.startswith("proxyfda.engine"), path


def test_the_drop_in_part_needs_torch_alone():
    code = """
import sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        blocked = "open_clip yacs torchvision sklearn tensorboard tabulate matplotlib PIL dassl"
        if name.split(".")[0] in blocked.split():
            raise ImportError(name + " is not here")
sys.meta_path.insert(0, Nothing())
import proxyfda
for name in proxyfda.__all__:
    getattr(proxyfda, name)
import torch
x = torch.randn(8, 4, requires_grad=True)
proxyfda.FDA(k=3)(x, torch.randn(8, 4)).backward()
assert x.grad.abs().sum() > 0
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
