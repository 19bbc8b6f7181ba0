"""Protocols: which jobs make an experiment.

Every protocol is a function that gives a list of :class:`~proxyfda.experiments.jobs.Job`. Where
their output lies is said by :mod:`proxyfda.experiments.layout`. Runs are asked for by their names,
such as ``CoOp``, ``ProxyFDACoOp`` and ``CoOp+rkd``.
"""

from __future__ import annotations

import os.path as osp
from collections.abc import Sequence

from proxyfda.experiments import layout
from proxyfda.experiments.candidates import Candidate
from proxyfda.experiments.jobs import Job
from proxyfda.experiments.project import Project
from proxyfda.names import (
    NONE,
    is_regularised,
    is_zero_shot,
    run_name,
    trainer_and_regulariser,
)
from proxyfda.utils.errors import BadValue

__all__ = ["base2new_jobs", "fewshot_jobs", "select_jobs", "transfer_jobs", "zeroshot_jobs"]


class Setting:
    """A run with a config on a dataset: what the jobs of an experiment have in common.

    Args:
        protocol: name in ``configs/defaults.yaml``.
        run: trainer, with ``+<regulariser>`` where its name does not say it.
        project: the repository with the configs.
        data, output: folders of the datasets and of the results.
        cfg: config of the trainer, by default that of ``configs/defaults.yaml``.
        overlay: config of ``configs/regularisers`` on top of it, for runs with a regulariser.
        label: name of the config's folder in the output, where ``opts`` make it differ.
        opts: trailing options of train.py.
        variant: options of the run's own after these, which are part of the folder's name.

    Attributes:
        name: the run's name.
        dataset: name of the dataset's folder in the output.
        config: name of the config's folder there.
        flags: those of train.py that say what is trained.
    """

    def __init__(
        self,
        protocol: str,
        run: str,
        dataset: str,
        shots: int,
        *,
        project: Project,
        data: str,
        output: str,
        cfg: str = "",
        overlay: str = "",
        label: str = "",
        opts: Sequence[str] = (),
        variant: Candidate | None = None,
    ):
        if label in (".", "..") or set(label) & set("/\\\0\n"):
            raise BadValue(
                f"--label is {label!r}, but it names one folder of the output; give a name without "
                "slashes"
            )
        trainer, regulariser = trainer_and_regulariser(run)
        self.name, self.shots = run_name(trainer, regulariser), shots
        self.dataset = project.dataset_name(dataset)
        self.label = "-".join(filter(None, [label, variant.variant if variant else ""]))
        self._project, self._data, self._output = project, data, output
        self._dataset_file = dataset
        self._opts = [*opts, *(variant.words if variant else ())]
        cfg = cfg or project.default_config(run, self.dataset, protocol, shots)
        if not (is_regularised(run) or regulariser == NONE):
            overlay = ""  # the plain trainer is what it is compared with
        overlays = [osp.splitext(osp.basename(overlay))[0]] if overlay else []
        self.config = label or layout.config_name(cfg, overlays)
        self.config += f"-{variant.variant}" if variant and variant.variant else ""
        self.flags = ["--trainer", trainer]
        self.flags += ["--regulariser", regulariser] if regulariser else []
        self._config_files = [project.trainer_config(run, cfg)]
        self._config_files += [project.overlay(overlay)] if overlay else []

    def job(
        self,
        protocol: str,
        folder: str,
        seed: int,
        what: str,
        *words: str,
        shots: int | None = None,
        classes: str = "all",
        split: str = "test",
        dataset: str = "",
        also: Sequence[str] = (),
        after: str = "",
        name: str = "",
    ) -> Job:
        """One job; ``words`` are flags of train.py, ``dataset`` is another one than its own,
        ``also`` are further ones that it reads, and ``name`` is another run's that it is called by.
        """
        dataset = dataset or self._dataset_file
        rootless = [one for one in (dataset, *also) if not self._project.dataset_has_root(one)]
        flags = ["--root", self._data] if rootless else []
        flags += ["--seed", str(seed), *self.flags, "--protocol", protocol]
        flags += ["--dataset-config-file", self._project.dataset_config(dataset)]
        flags += ["--config-file", *self._config_files]
        k = self.shots if shots is None else shots
        flags += [*words, "DATASET.NUM_SHOTS", str(k), "TEST.SPLIT", split, *self._opts]
        flags += ["DATASET.SUBSAMPLE_CLASSES", classes]  # after the user's: it is the protocol's
        seeded = layout.parse(osp.join(self._output, folder)).seed is not None
        name = f"{name or self.name} {self.dataset}" + (f" seed {seed}" if seeded else "")
        name += f" ({self.label})" if self.label else ""
        return Job(
            name=f"{name}, {what}",
            folder=osp.join(self._output, folder),
            flags=flags,
            after=after,
            entry=self._project.entry,
        )


def base2new_jobs(
    run: str,
    dataset: str,
    seed: int,
    *,
    shots: int = 16,
    split: str = "test",
    **where,
) -> list[Job]:
    """Train on the base classes and test on them, then test on the new classes.

    Args:
        run: trainer, with ``+<regulariser>`` where its name does not say it.
        split: split to evaluate on; ``val`` for choosing settings.
        where: ``project``, ``data``, ``output``, ``cfg``, ``overlay``, ``label``, ``opts`` and
            ``variant`` of :class:`Setting`.
    """
    setting = Setting("base2new", run, dataset, shots, **where)

    def job(part: str, *words: str, **more) -> Job:
        folder = layout.base2new(part, setting.dataset, shots, setting.name, setting.config, seed)
        classes = "new" if part == layout.TEST_NEW else "base"
        return setting.job(
            "base2new", folder, seed, part, *words, classes=classes, split=split, **more
        )

    halves = (layout.TRAIN_BASE, layout.TEST_NEW)
    if is_zero_shot(run):
        k = -1 if split == "val" else shots
        return [job(part, "--eval-only", shots=k) for part in halves]
    if split == "val":
        # Few-shot sampling cuts the validation split to min(shots, 4) images per class, too few to
        # choose by: train first, then evaluate both halves on the whole of it.
        train = job(layout.TRAIN)
        words = ("--eval-only", "--model-dir", train.folder)
        return [train, *(job(part, *words, shots=-1, after=train.folder) for part in halves)]
    base = job(layout.TRAIN_BASE)
    words = ("--eval-only", "--model-dir", base.folder)
    return [base, job(layout.TEST_NEW, *words, after=base.folder)]


def select_jobs(
    settings: Sequence[Candidate],
    dataset: str,
    split: int,
    seed: int,
    *,
    shots: int = 16,
    **where,
) -> list[Job]:
    """Train every setting on the seen half of the base classes, and test it on either half.

    Both are tested on all validation images; nothing of the new classes is looked at, and no test
    image (:mod:`datasets.classes`).

    Args:
        settings: what to compare. All have to be given one ``cfg``, to differ in nothing else.
        split: number of the halves, from 1.
        where: as for :func:`base2new_jobs`, but for ``variant``.
    """
    trainings: list[Job] = []
    tests: list[Job] = []
    for one in settings:
        setting = Setting("base2new", one.run, dataset, shots, variant=one, **where)

        def job(part: str, *words: str, setting=setting, **more) -> Job:
            name, config = setting.name, setting.config
            folder = layout.select(part, setting.dataset, shots, name, config, split, seed)
            half = layout.UNSEEN if part == layout.UNSEEN else layout.SEEN
            more.update(classes=f"{half}@{split}", split="val")
            return setting.job("select", folder, seed, f"split {split} {part}", *words, **more)

        trainings.append(job(layout.TRAIN))
        words = ("--eval-only", "--model-dir", trainings[-1].folder)
        # As in base2new_jobs: few-shot sampling would leave too few validation images.
        after = trainings[-1].folder
        tests += [job(part, *words, shots=-1, after=after) for part in (layout.SEEN, layout.UNSEEN)]
    return [*trainings, *tests]


def fewshot_jobs(run: str, dataset: str, seed: int, *, shots: int, **where) -> list[Job]:
    """Train on all classes with ``shots`` images each, and test; arguments as above."""
    if is_zero_shot(run):
        return zeroshot_jobs(dataset, run=run, **where)
    return [_training(Setting("fewshot", run, dataset, shots, **where), seed)]


def _training(setting: Setting, seed: int) -> Job:
    folder = layout.fewshot(setting.dataset, setting.shots, setting.name, setting.config, seed)
    return setting.job("fewshot", folder, seed, f"{setting.shots}-shot")


def transfer_jobs(
    run: str,
    source: str,
    targets: Sequence[str],
    seed: int,
    *,
    shots: int = 16,
    **where,
) -> list[Job]:
    """Train on all classes of the source and test there, then test on every target.

    Cross-dataset transfer and domain generalisation are this with other targets, and share the
    training. Zero-shot CLIP is tested on all of them.
    """
    if is_zero_shot(run):
        each = [zeroshot_jobs(dataset, run=run, **where) for dataset in (source, *targets)]
        return [job for jobs in each for job in jobs]
    setting = Setting("transfer", run, source, shots, **where)
    train = _training(setting, seed)
    jobs = [train]
    for target in targets:
        name = where["project"].dataset_name(target)
        folder = layout.transfer(name, shots, setting.name, setting.config, seed)
        words = ("--eval-only", "--model-dir", train.folder)
        more = {"dataset": target, "after": train.folder}
        jobs.append(setting.job("transfer", folder, seed, f"tested on {name}", *words, **more))
    return jobs


def zeroshot_jobs(dataset: str, *, run: str = "ZeroshotCLIP", **where) -> list[Job]:
    """Test zero-shot CLIP on all classes. Seed and shots play no part."""
    setting = Setting("zeroshot", run, dataset, -1, **where)
    folder = layout.zeroshot(setting.dataset, setting.name, setting.config)
    return [setting.job("zeroshot", folder, 1, "zero-shot", "--eval-only")]
