"""docs/drop-in.md: its code runs and its options exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from yacs.config import CfgNode

import proxyfda
from proxyfda import regularisers
from proxyfda.dassl import get_cfg_default
from proxyfda.integrations import dassl as plugin
from tests.integrations import dassl_hosts as hosts

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "drop-in.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.S)


def test_the_three_lines_run_in_a_train_py():
    pytest.importorskip("open_clip")  # the trainers here, in the place of the host's
    (block,) = [block for block in BLOCKS if "# 1" in block and "# 3" in block]
    scope = {}
    exec(block, scope)
    cfg = get_cfg_default()
    scope["extend_cfg"](cfg)
    assert cfg.TRAINER.PROXYFDA.WEIGHT == -1.0
    registry = plugin._registry()
    assert {"ProxyFDACoOp", "FDACoCoOp", "ProxyFDAPlain"} <= set(registry.registered_names())
    assert issubclass(registry.get("CoOp"), proxyfda.RegularisedTrainer)


@pytest.mark.parametrize("block", [b for b in BLOCKS if "MyTrainer" in b or "MyCoOp" in b])
def test_other_snippets_run(block):
    host = type("MyTrainer", (hosts.Plain,), {})
    registry = plugin._registry()
    scope = {"proxyfda": proxyfda, "MyTrainer": host, "CoOp": host, "TRAINER_REGISTRY": registry}
    exec(block, scope)
    assert {"ProxyFDAMyTrainer", "MyCoOp"} & set(registry.registered_names())


def test_options_exist_with_the_defaults_given():
    cfg = CfgNode({"TRAINER": CfgNode()})
    proxyfda.extend_cfg(cfg)
    node = cfg.TRAINER.PROXYFDA
    for name in re.findall(r"TRAINER\.PROXYFDA\.([A-Z_]+)", TEXT):
        assert name in node
    rows = re.findall(r"^\| ((?:`[A-Z_]+`(?:, )?)+) \| ([^|]+) \|", TEXT, re.M)
    assert len(rows) > 7
    for names, defaults in rows:
        values = [value.strip(" `") for value in defaults.split(",")]
        for name, value in zip(re.findall(r"`([A-Z_]+)`", names), values):
            default = node[name]
            assert default in ("", ()) or str(default) == value, name


def test_the_regularisers_named_exist_and_old_names_are_gone():
    named = re.findall(r"REGULARISER`? ([a-z_0-9]+)", TEXT)
    row = next(line for line in TEXT.splitlines() if line.startswith("| `REGULARISER`"))
    named += re.findall(r"`([a-z_0-9]+)`", row)
    assert {"rkd", "none", "pointwise", "fda", "proxy_fda", "ldifs", "l2sp"} <= set(named)
    assert set(named) <= {"none", *regularisers.names()}
    for old in ("MODE", "FORM", "ProxyFDAMixin", "ProxyFDAConfig", "fda_mode", "proxy_generator"):
        assert not re.search(rf"\b{old}\b", TEXT), old


def test_the_lines_of_python_in_the_text_run():
    lines = re.findall(r'`python -c "([^"]+)"`', TEXT)
    assert len(lines) == 2
    for line in lines:
        subprocess.run([sys.executable, "-c", line], check=True, stdout=subprocess.DEVNULL)
