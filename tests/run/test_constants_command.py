"""scripts/constants.py on features of one's own."""

import subprocess
import sys
from pathlib import Path

import torch

from proxyfda import NeighbourGraph, derive_constants

COMMAND = Path(__file__).resolve().parents[2] / "scripts" / "constants.py"


def test_the_command_measures_features_of_a_file(tmp_path):
    frozen = torch.randn(12, 12, generator=torch.Generator().manual_seed(1)) + 1
    torch.save(frozen, tmp_path / "frozen.pt")
    command = [sys.executable, str(COMMAND), "--k", "3", "--steps", "2"]
    done = subprocess.run(
        [*command, "--features", str(tmp_path / "frozen.pt")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    tau, bias = derive_constants(NeighbourGraph(torch.nn.functional.normalize(frozen, dim=1), 3))
    last = done.stdout.splitlines()[-1]
    assert last == f"derived: TRAINER.PROXYFDA.TAU {tau:.5g} TRAINER.PROXYFDA.BIAS {bias:.5g}"
    assert "literal" in done.stdout and "learned on frozen" in done.stdout
