"""Who may import whom, and what the drop-in part needs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module


@pytest.mark.parametrize(
    "path", sorted((ROOT / "proxyfda").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT))
)
def test_the_package_does_not_know_what_is_built_on_it(path):
    tops = {name.split(".")[0] for name in imported(path)}
    assert not tops & {"trainers", "datasets", "train", "run", "runner", "scripts", "tests"}


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
proxyfda.fda_loss(x, torch.randn(8, 4), k=3).backward()
assert x.grad.abs().sum() > 0
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
