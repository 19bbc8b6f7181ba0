"""The benchmark of tuning end to end on the bundled CLIP: it prints what the trainers do."""

import sys
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(SCRIPTS))
    import bench_finetune

    yield bench_finetune
    sys.path.remove(str(SCRIPTS))


@pytest.fixture
def arguments(bench, monkeypatch, tmp_path):
    """What the command line says, for some words of it."""

    def of(*words):
        size = "--backbone ViT-Bundled --weights bundled --batch 6 --classes 3 --rounds 1"
        monkeypatch.setattr(sys, "argv", ["bench_finetune.py", *words, *size.split()])
        args = bench.arguments()
        args.folder, args.side = str(tmp_path), 32
        return args

    return of


def test_each_method_has_a_row_of_its_step_and_its_term(bench, arguments, capsys):
    arguments("naive", "FDA", "L2SP", "--what", "step")
    assert bench.main() == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    wanted = ("naive", "FDA", "L2SP")
    rows = {row[0]: [float(word) for word in row[1:]] for row in rows if row and row[0] in wanted}
    assert len(rows["FDA"]) == 5  # ms, two ratios, the term in ms and in per cent
    assert len(rows["naive"]) == len(rows["L2SP"]) == 3  # no features, so no term to be timed
    assert all(value > 0 for row in rows.values() for value in row)


def test_cached_features_are_those_of_the_frozen_pass(bench, arguments):
    args = arguments("FDA")
    found = []
    for method in ("FDA", "FDA:cached"):
        trainer = bench.trainer_of(method, args)
        batch = next(iter(trainer.train_loader_x))
        found.append(trainer._anchors(batch["img"], batch))
        assert (trainer._frozen is None) == method.endswith(bench.CACHED)
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def test_a_naive_step_with_a_frozen_pass_encodes_once_more_and_trains_alike(bench, arguments):
    args = arguments("naive")
    weights, passes = [], []
    for job in (bench.step, bench.step_with_frozen_pass):
        trainer = bench.trainer_of("naive", args)
        batch, calls = next(iter(trainer.train_loader_x)), []
        trainer.backbone.register_forward_hook(
            lambda module, args, out, calls=calls: calls.append(out)
        )
        job(trainer, batch)
        passes.append([features.requires_grad for features in calls])
        weights.append(torch.cat([w.detach().flatten() for w in trainer._trained]))
    assert passes == [[True], [False, True]]
    assert torch.equal(*weights)
