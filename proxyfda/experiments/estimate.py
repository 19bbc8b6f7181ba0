"""What jobs will cost before they run: steps, images, and seconds from measured prices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from tabulate import tabulate

from proxyfda.experiments import layout
from proxyfda.experiments.config import load_config
from proxyfda.experiments.jobs import Job
from proxyfda.integrations.dassl_options import PluginOptions
from proxyfda.names import run_name, split_run_name

__all__ = ["Price", "Size", "Work", "estimate", "work_of"]

MOST_VAL_SHOTS = 4
"""Validation images per class beside few shots, as CoOp's readers cut them."""


@dataclass(frozen=True)
class Size:
    """Numbers of classes and images of a dataset; images are taken to be spread evenly."""

    classes: int
    train: int
    val: int
    test: int


@dataclass(frozen=True)
class Work:
    """What a job does.

    Attributes:
        run: trainer and regulariser, as runs are called.
        classes: classes that its texts are of.
        batch: images in a training step.
        steps: training steps.
        tested: images that it is tested on.
    """

    run: str
    classes: int
    batch: int
    steps: int
    tested: int


@dataclass(frozen=True)
class Price:
    """Seconds of a run's parts, each constant plus linear in the number of classes.

    Attributes:
        step: of a training step, and what each class adds.
        image: of a tested image, likewise.
        build: to load the weights and the dataset, once per job.
    """

    step: tuple[float, float]
    image: tuple[float, float]
    build: float

    def seconds(self, work: Work) -> float:
        """What a job takes on one device."""
        step, image = (max(0.0, a + b * work.classes) for a, b in (self.step, self.image))
        return work.steps * step + work.tested * image + self.build

    @classmethod
    def through(cls, few: tuple[int, float, float], many: tuple[int, float, float], build: float):
        """From (classes, seconds of a step, seconds of an image) at two numbers of classes.

        >>> Price.through((10, 0.1, 0.01), (110, 0.2, 0.01), 5.0).step
        (0.09, 0.001)
        """

        def line(place: int) -> tuple[float, float]:
            slope = (many[place] - few[place]) / (many[0] - few[0])
            # A step does not get cheaper with more classes: that is noise.
            slope = max(slope, 0.0)
            return round(few[place] - slope * few[0], 9), round(slope, 12)

        return cls(line(1), line(2), build)


def classes_of(word: str, classes: int) -> int:
    """How many of so many classes a word of ``DATASET.SUBSAMPLE_CLASSES`` keeps.

    >>> [classes_of(word, 11) for word in ("all", "base", "new", "seen@1", "unseen@1", "seen@2")]
    [11, 6, 5, 3, 3, 3]
    """
    base = math.ceil(classes / 2)
    part, _, number = word.partition("@")
    more, less = math.ceil(base / 2), base // 2
    if number:
        return more if (part == layout.SEEN) == bool(int(number) % 2) else less
    return {"all": classes, "base": base, "new": classes - base}[word]


def work_of(job: Job, size: Size, cfg=None) -> Work:
    """What a job does on a dataset of that size.

    Args:
        cfg: its config, or that of a job which differs in seed, classes, shots and split alone.
    """
    cfg = load_config(job.parsed()) if cfg is None else cfg
    run = run_name(cfg.TRAINER.NAME, cfg.TRAINER.PROXYFDA.REGULARISER)
    classes = classes_of(_option(job, "DATASET.SUBSAMPLE_CLASSES"), size.classes)
    trains, shots = "--eval-only" not in job.flags, int(_option(job, "DATASET.NUM_SHOTS"))
    share = classes / size.classes
    options = PluginOptions.from_cfg(cfg, split_run_name(cfg.TRAINER.NAME)[1])
    batch = options.m * options.n if options.has_batches else cfg.DATALOADER.TRAIN_X.BATCH_SIZE
    images = size.train * share
    if shots > 0:
        images = min(images, shots * classes)
    # Of each epoch the last, smaller batch is left out, unless it is the only one.
    steps = max(1, int(images) // batch) * cfg.OPTIM.MAX_EPOCH if trains else 0
    validates = _option(job, "TEST.SPLIT") == "val"
    tested = (size.val if validates else size.test) * share
    if validates and shots > 0:
        tested = min(tested, classes * min(shots, MOST_VAL_SHOTS))
    return Work(run, classes, batch, steps, 0 if cfg.TEST.NO_TEST else round(tested))


_OF_THE_JOB = ("DATASET.SUBSAMPLE_CLASSES", "DATASET.NUM_SHOTS", "TEST.SPLIT")


def _option(job: Job, key: str) -> str:
    """The last value of an option that every job of a protocol has."""
    return job.flags[len(job.flags) - job.flags[::-1].index(key)]


def works(jobs: Iterable[Job], size_of: Callable[[str], Size]) -> list[Work]:
    """What jobs do.

    Args:
        size_of: the size of a dataset, by the path of its config file.
    """
    found, cfgs = [], {}
    for job in jobs:
        words, skipped = [], False
        for word in job.flags:
            words += [] if skipped else [word]
            skipped = word in ("--seed", "--model-dir", *_OF_THE_JOB)
        if tuple(words) not in cfgs:
            cfgs[tuple(words)] = load_config(job.parsed())
        size = size_of(job.flag("--dataset-config-file"))
        found.append(work_of(job, size, cfgs[tuple(words)]))
    return found


def estimate(
    parts: Mapping[str, Iterable[Work]], prices: Mapping[str, Price], at_once: int = 1
) -> str:
    """A table of what is to be done, by part and run, with hours where there are prices.

    Args:
        parts: work by part of the whole, such as choosing and final runs.
        prices: by run; without any there are no hours.
        at_once: jobs that run at a time, of which each is taken to be as fast as alone.
    """
    rows, total = [], 0.0
    for part, work in parts.items():
        by_run: dict[str, list[Work]] = {}
        for one in work:
            by_run.setdefault(one.run, []).append(one)
        for run, own in by_run.items():
            hours = sum(prices[run].seconds(one) for one in own) / 3600 if prices else 0.0
            total += hours
            rows.append([
                part, run, sum(one.steps > 0 for one in own), len(own),
                sum(one.steps for one in own), sum(one.steps * one.batch for one in own),
                sum(one.tested for one in own), hours,
            ])  # fmt: skip
    sums = [sum(row[i] for row in rows) for i in range(2, 7)]
    rows.append(["all", "", *sums, total])
    heads = ["part", "run", "trainings", "jobs", "steps", "images trained on", "images tested"]
    heads += ["device hours"] if prices else []
    lines = [
        [*row[:2], *(f"{n:,}" for n in row[2:7]), *([f"{row[7]:.1f}"] if prices else [])]
        for row in rows
    ]
    align = ["left"] * 2 + ["right"] * (len(heads) - 2)
    table = tabulate(lines, heads, disable_numparse=True, colalign=align)
    if prices and at_once > 1:
        table += f"\nwith {at_once} jobs at a time about {total / at_once:.1f} hours"
    return table
