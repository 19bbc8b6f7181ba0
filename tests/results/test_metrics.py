import subprocess
import sys
from pathlib import Path

import pytest
import torch

from proxyfda.results.metrics import harmonic_mean


@pytest.mark.parametrize(
    "base, new, h",
    [(82.69, 63.22, 71.66), (83.16, 73.67, 78.13), (84.26, 76.10, 79.97), (0, 0, 0), (50, 0, 0)],
)
def test_published_values(base, new, h):
    assert harmonic_mean(base, new) == pytest.approx(h, abs=0.005)
    assert harmonic_mean(torch.tensor(base), torch.tensor(new)).item() == pytest.approx(
        h, abs=0.005
    )


def test_many():
    assert harmonic_mean([60.0, 0.0], (30.0, 0.0)) == pytest.approx([40.0, 0.0])
    got = harmonic_mean(torch.tensor([60, 0]), torch.tensor([30, 0]))
    assert torch.allclose(got, torch.tensor([40.0, 0.0]))


@pytest.mark.parametrize(
    "base, new", [(-1.0, 2.0), (torch.tensor([-1.0]), torch.tensor([1.0])), ([1.0], [1.0, 2.0])]
)
def test_bad_input(base, new):
    with pytest.raises(ValueError):
        harmonic_mean(base, new)


def test_it_needs_no_third_party_package():
    # -S: the folder of installed packages is not searched.
    code = "from proxyfda.results.metrics import harmonic_mean; print(harmonic_mean(60, 30))"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.stdout == "40.0\n", done.stderr
