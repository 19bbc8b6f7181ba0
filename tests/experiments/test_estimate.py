"""What jobs will cost: counted as the engine counts, priced by lines."""

from pathlib import Path

import pytest

import train
from proxyfda.experiments.estimate import (
    Price,
    Size,
    Work,
    classes_of,
    estimate,
    work_of,
    works,
)
from proxyfda.experiments.project import Project
from proxyfda.experiments.protocols import base2new_jobs

PROJECT = Project(str(Path(train.__file__).parent), entry="train")
DTD = Size(classes=47, train=2820, val=1128, test=1692)


def jobs_of(run, *opts, dataset="dtd", seed=1, **more):
    where = {"project": PROJECT, "data": "/data", "output": "/output", "opts": opts}
    return base2new_jobs(run, dataset, seed, **where, **more)


@pytest.mark.parametrize("classes", [7, 8, 9, 10, 47])
def test_classes_are_those_of_the_readers(classes):
    from datasets.classes import chosen_labels

    for word in (
        "all",
        "base",
        "new",
        *(f"{p}@{i}" for p in ("seen", "unseen") for i in (1, 2, 3)),
    ):
        assert classes_of(word, classes) == len(chosen_labels(list(range(classes)), word)), word


def test_work_of_a_training_and_of_its_test():
    # 24 base classes of 47, 16 shots, batches of 32 in 200 epochs; 36 test images a class
    base, new = works(jobs_of("CoOp"), lambda _: DTD)
    assert base == Work("CoOp", 24, 32, 24 * 16 // 32 * 200, 24 * 36)
    assert new == Work("CoOp", 23, 32, 0, 23 * 36)


@pytest.mark.parametrize(
    ("opts", "batch", "steps"),
    [
        (("DATALOADER.TRAIN_X.BATCH_SIZE", "100"), 100, 3 * 200),
        (("DATALOADER.TRAIN_X.BATCH_SIZE", "1000", "OPTIM.MAX_EPOCH", "5"), 1000, 5),
        (("TRAINER.PROXYFDA.M", "16", "TRAINER.PROXYFDA.N", "4"), 64, 6 * 200),
    ],
    ids=["what is left over is dropped", "a single batch may be small", "balanced batches"],
)
def test_steps_follow_batch_and_epochs(opts, batch, steps):
    work = work_of(jobs_of("FDACoOp", *opts)[0], DTD)
    assert (work.run, work.batch, work.steps) == ("FDACoOp", batch, steps)


def test_few_images_and_validation():
    small = Size(classes=10, train=30, val=20, test=50)
    train_base = work_of(jobs_of("CoOp", dataset="eurosat")[0], small)
    assert train_base.steps == 200 and train_base.tested == 25  # 15 images, one batch
    train, base, new = works(jobs_of("CoOp", dataset="eurosat", split="val"), lambda _: small)
    assert (train.tested, base.tested, new.tested) == (10, 10, 10)
    train = work_of(jobs_of("CoOp", split="val")[0], DTD)
    assert train.tested == 24 * 4  # of 24 a class few-shot sampling leaves 4
    assert work_of(jobs_of("CoOp", "TEST.NO_TEST", "True")[0], DTD).tested == 0


def test_configs_are_read_once_for_all_seeds_and_parts(monkeypatch):
    read = []
    import proxyfda.experiments.estimate as module

    load = module.load_config
    monkeypatch.setattr(module, "load_config", lambda args: read.append(1) or load(args))
    jobs = [job for seed in (1, 2) for job in jobs_of("CoOp", seed=seed)]
    assert len(works(jobs, lambda _: DTD)) == 4 and len(read) == 2  # training and evaluation


def test_price_is_a_line_through_two_measurements():
    price = Price.through((10, 0.1, 0.01), (110, 0.3, 0.005), 2.0)
    work = Work("CoOp", classes=60, batch=32, steps=100, tested=1000)
    # Images of more classes were cheaper, which is noise: as for few.
    assert price.seconds(work) == pytest.approx(100 * 0.2 + 1000 * 0.01 + 2.0)


def test_table_sums_runs_and_parts():
    works_ = [Work("CoOp", 10, 32, 100, 50), Work("CoOp", 10, 32, 0, 40)]
    more = [Work("FDACoOp", 10, 64, 36000, 10)]
    prices = {run: Price((0.2, 0.0), (0.0, 0.0), 0.0) for run in ("CoOp", "FDACoOp")}
    lines = estimate({"choosing": works_, "final": more}, prices, at_once=2).splitlines()
    rows = [line.split() for line in lines[2:]]
    assert rows[0] == ["choosing", "CoOp", "1", "2", "100", "3,200", "90", "0.0"]
    assert rows[1] == ["final", "FDACoOp", "1", "1", "36,000", "2,304,000", "10", "2.0"]
    assert rows[2] == ["all", "2", "3", "36,100", "2,307,200", "100", "2.0"]
    assert lines[-1] == "with 2 jobs at a time about 1.0 hours"
    assert "hours" not in estimate({"final": more}, {})
