"""The benchmark of attach on a tiny ViT: it runs both ways and prints what it says."""

import importlib.util
import sys
from pathlib import Path

import torch

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_attach.py"


def test_both_ways_are_timed_on_the_same_gradients(monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("bench_attach", SCRIPT)
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    found = []
    for by_hand in (True, False):
        torch.manual_seed(0)
        ways = bench.TwoWays(bench.Features(), torch.randn(6, bench.DIM), "fda")
        ways.encoder.scale.data[::2] += 0.5
        ways.timed(by_hand, iter([0.0, 1.0]).__next__)
        found.append(ways.encoder.scale.grad)
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-7)
    words = [
        "--batch",
        "2",
        "--rounds",
        "1",
        "--depth",
        "1",
        "--size",
        "32",
        "--regulariser",
        "fda",
    ]
    monkeypatch.setattr(sys, "argv", ["bench_attach.py", *words])
    assert bench.main() == 0
    row = capsys.readouterr().out.splitlines()[-1].split()
    assert row[0] == "2" and float(row[1]) > 0 and float(row[2]) > 0
