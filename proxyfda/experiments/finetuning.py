"""Protocols of tuning end to end: which jobs tune on one dataset, or on a row of them, and probe.

A training evaluates its head on validation images alone. Test images are looked at once, by the
probes at the end; what is chosen before, is chosen by probes on validation images
(:mod:`proxyfda.experiments.strengths`). Probes of one training come in one job: it encodes each
dataset once. Those of the backbone as it was pre-trained are the same for all runs.

Runs are asked for by the names of :func:`proxyfda.names.finetune_run`. Where the output lies is
said by :mod:`proxyfda.experiments.layout`.
"""

from __future__ import annotations

from collections.abc import Sequence

from proxyfda.experiments import layout
from proxyfda.experiments.candidates import Candidate
from proxyfda.experiments.jobs import Job
from proxyfda.experiments.project import Project
from proxyfda.experiments.protocols import Setting
from proxyfda.experiments.strengths import ALPHA, WEIGHT, kind_of
from proxyfda.integrations.dassl_options import NODE
from proxyfda.names import (
    METHODS,
    PRETRAINED,
    REFERENCE,
    WISE_FT,
    run_name,
    split_run_name,
    tunes_end_to_end,
)
from proxyfda.utils.errors import BadValue

__all__ = [
    "check_row",
    "continual_jobs",
    "finetune_jobs",
    "pretrained_job",
    "probed_datasets",
    "prompt_row_jobs",
]

NAIVE = METHODS["naive"]
WEIGHT_KEY = f"{NODE}.WEIGHT"
ANCHORS = ("", "pretrained", "previous")
"""What a task of a row is held to: the backbone as it was pre-trained (also where nothing is said),
or the encoder of the task before."""
ALL_IMAGES = -1  # DATASET.NUM_SHOTS


class _Tuning:
    """A method on a dataset, with its strength: what its training and its probes share.

    Args:
        protocol: name in ``configs/defaults.yaml``.
        run: name of the run, such as ``FineTune+rkd``.
        strength: λ or α as a word; empty: none, or that of the config.
        chosen: it was chosen by the rule, so the name of the probes' folder leaves it out.
        shots: images per class to tune on; all by default.
        where: of :class:`~proxyfda.experiments.protocols.Setting`.
    """

    def __init__(
        self,
        protocol: str,
        run: str,
        dataset: str,
        *,
        strength: str = "",
        chosen: bool = False,
        shots: int = ALL_IMAGES,
        project: Project,
        opts: Sequence[str] = (),
        **where,
    ):
        kind = kind_of(run) if strength else ""
        # WiSE-FT trains nothing of its own: it looks at the plain fine-tuning's weights.
        trained = NAIVE if run in (WISE_FT, PRETRAINED) else run
        epochs = project.epochs(project.dataset_name(dataset)) if run != PRETRAINED else None
        opts = [*(["OPTIM.MAX_EPOCH", str(epochs)] if epochs else []), *opts]
        weight = Candidate("", trained, ((WEIGHT_KEY, strength),)) if kind == WEIGHT else None
        self._setting = Setting(
            protocol, trained, dataset, shots, project=project, opts=opts, variant=weight, **where
        )
        self._project = project
        self.protocol, self.name, self.dataset = protocol, run_name(run), self._setting.dataset
        self.trained, self.config = self._setting.name, self._setting.config
        self.probed_config, self._probing = self.config, []
        if kind == ALPHA:
            self.probed_config += f"-alpha_{strength}"
            self._probing = ["--alpha", strength]
        if kind and chosen:
            suffix = weight.variant if weight else f"alpha_{strength}"
            self.probed_config = self.probed_config[: -len(suffix) - 1]
        self._what = f", α {strength}" if kind == ALPHA else ""

    def training(self, folder: str, seed: int, what: str, *opts: str, after: str = "") -> Job:
        """The training in ``folder``; ``opts`` are KEY VALUE options of the protocol's."""
        job = self._setting.job(self.protocol, folder, seed, what, split="val", after=after)
        job.flags += opts
        return job

    def probes(
        self, folder: str, seed: int, probes: Sequence[str], split: str, what: str, after: str
    ) -> Job:
        """The job that probes what the training in ``after`` gave, or the pre-trained backbone."""
        files = [self._project.dataset_config(one) for one in probes]
        words = ["--probe", ",".join(files), *self._probing]
        words += ["--model-dir", after] if after else []
        return self._setting.job(
            self.protocol,
            folder,
            seed,
            f"{what}{layout.PROBES[split]}{self._what}",
            *words,
            shots=ALL_IMAGES,
            split=split,
            also=probes,
            after=after,
            name=self.name,
        )


def probed_datasets(dataset: str, probes: Sequence[str], project: Project) -> list[str]:
    """What a run that was tuned on ``dataset`` is probed on: ``probes``, and the dataset itself.

    Raises:
        BadValue: there is no other one, so that nothing could show what was forgotten.
    """
    own = project.dataset_name(dataset)
    names = [project.dataset_name(one) for one in probes]
    if not set(names) - {own}:
        raise BadValue(
            f"the datasets to probe are {', '.join(names) or 'none'}, and {own} is tuned on; name "
            "another one in PROBES (--probes) that shows what is forgotten"
        )
    return list(probes) if own in names else [dataset, *probes]


def finetune_jobs(
    run: str,
    dataset: str,
    seed: int,
    *,
    probes: Sequence[str],
    split: str = "test",
    strength: str = "",
    chosen: bool = False,
    **where,
) -> list[Job]:
    """Tune on a dataset, then probe the encoder on it and on others.

    Args:
        run: as :func:`proxyfda.names.finetune_run` gives it. WiSE-FT has the training of the plain
            fine-tuning.
        probes: datasets to probe on.
        split: of the probes; ``val`` for choosing.
        strength: λ or α, see :mod:`proxyfda.experiments.strengths`.
        chosen: it was chosen by the rule: the folder of the probes leaves it out, so that one row
            of a table has what was chosen for each dataset.
        where: ``project``, ``data``, ``output``, ``cfg``, ``overlay``, ``label``, ``opts`` of
            :class:`~proxyfda.experiments.protocols.Setting`, and ``shots``.

    Raises:
        BadValue: see :func:`probed_datasets`.
    """
    asked = probed_datasets(dataset, probes, where["project"])
    tuning = _Tuning("finetune", run, dataset, strength=strength, chosen=chosen, **where)
    place = (tuning.dataset, tuning.trained, tuning.config, seed)
    train = tuning.training(layout.finetune(layout.TRAIN, *place), seed, "tuned")
    place = (tuning.dataset, tuning.name, tuning.probed_config, seed)
    folder = layout.finetune(layout.PROBES[split], *place)
    return [train, tuning.probes(folder, seed, asked, split, "", train.folder)]


def pretrained_job(
    dataset: str, probes: Sequence[str], *, split: str = "test", cfg: str = "", **where
) -> Job:
    """Probe the backbone as it was pre-trained; once for all methods, seeds and tuned datasets.

    Args:
        dataset: one that is tuned on, whose config says the backbone.
    """
    cfg = cfg or _default_config(PRETRAINED, dataset, "finetune", where["project"])
    tuning = _Tuning("finetune", PRETRAINED, probes[0], cfg=cfg, **where)
    folder = layout.pretrained(layout.PROBES[split], tuning.config)
    return tuning.probes(folder, 1, probes, split, "", "")


def _default_config(
    run: str, dataset: str, protocol: str, project: Project, shots: int = ALL_IMAGES
) -> str:
    return project.default_config(run, project.dataset_name(dataset), protocol, shots)


# -- tasks in a row -------------------------------------------------------------------------------


def check_row(row: Sequence[str], project: Project) -> list[str]:
    """The names of a row of datasets.

    Raises:
        BadValue: fewer than two, or one of them twice.
    """
    names = [project.dataset_name(dataset) for dataset in row]
    if len(names) < 2:
        raise BadValue(
            f"the row of tasks is {', '.join(names) or 'empty'}; name at least two datasets joined "
            "by commas, or tune on one with finetune.sh"
        )
    twice = next((name for name in names if names.count(name) > 1), "")
    if twice:
        raise BadValue(f"the row of tasks has {twice} twice; name each dataset once")
    return names


def continual_jobs(
    run: str,
    row: Sequence[str],
    seed: int,
    *,
    probes: Sequence[str] = (),
    strength: str = "",
    anchor: str = "",
    cfg: str = "",
    **where,
) -> list[Job]:
    """Tune on one dataset after the other, each from the encoder that the last one left.

    After every task the encoder is probed on all tasks and on the held-out datasets, and so is the
    pre-trained one before the first, on test images: there is nothing to choose.

    Args:
        run: as for :func:`finetune_jobs`. WiSE-FT looks at weights between the pre-trained ones and
            those that the row of the plain fine-tuning has led to.
        row: the tasks in order.
        probes: held-out datasets; those of the row are probed anyway.
        anchor: what a task is held to, see :data:`ANCHORS`.
        where: as for :func:`finetune_jobs`.

    Raises:
        BadValue: see :func:`check_row`, or an unknown anchor.
    """
    project = where["project"]
    names = check_row(row, project)
    if anchor not in ANCHORS:
        raise BadValue(f"the anchor is {anchor!r}; use pretrained or previous")
    asked = _row_and_others(row, probes, project)
    # The folder says what differs from the config; of a method without a term nothing does.
    anchored = anchor == "previous" and kind_of(run) == WEIGHT
    # One config for the whole row, so that all its runs are one line of a table.
    where["cfg"] = cfg or _default_config(run, row[0], "continual", project)
    before = _Tuning("continual", PRETRAINED, row[0], **where)
    folder = layout.continual(layout.PROBES["test"], names, 0, PRETRAINED, before.config, 1)
    jobs = [before.probes(folder, 1, asked, "test", "", "")]
    last = ""
    for number, dataset in enumerate(row, 1):
        tuning = _Tuning("continual", run, dataset, strength=strength, **where)
        more = "-previous" if anchored else ""
        opts = ["TRAINER.FINETUNE.START_FROM", last] if last else []
        opts += ["TRAINER.FINETUNE.ANCHOR", anchor] if last and anchored else []
        place = (names, number, tuning.trained, tuning.config + more, seed)
        what = f"task {number} of {len(names)}"
        folder = layout.continual(layout.TRAIN, *place)
        train = tuning.training(folder, seed, what, *opts, after=last)
        last = train.folder
        place = (names, number, tuning.name, tuning.probed_config + more, seed)
        folder = layout.continual(layout.PROBES["test"], *place)
        jobs += [train, tuning.probes(folder, seed, asked, "test", f"{what}, ", last)]
    return jobs


def _row_and_others(row: Sequence[str], probes: Sequence[str], project: Project) -> list[str]:
    names = [project.dataset_name(dataset) for dataset in row]
    return [*row, *(one for one in probes if project.dataset_name(one) not in names)]


def prompt_row_jobs(
    run: str,
    row: Sequence[str],
    seed: int,
    *,
    probes: Sequence[str] = (),
    strength: str = "",
    shots: int = 16,
    cfg: str = "",
    **where,
) -> list[Job]:
    """Learn prompts on one dataset after the other, each from the prompts that the last one left.

    After every task they are tested on all tasks and on the held-out datasets, and zero-shot CLIP
    before the first.

    Args:
        run: name of a run that learns prompts, such as ``ProxyFDACoOp``.
        row, probes: as for :func:`continual_jobs`.
        strength: λ; empty: that of the config.
        shots: images per class to learn from.
        where: as for :func:`finetune_jobs`, without ``shots``.

    Raises:
        BadValue: see :func:`check_row`.
    """
    project = where["project"]
    names = check_row(row, project)
    asked = _row_and_others(row, probes, project)
    weight = Candidate("", run, ((WEIGHT_KEY, strength),)) if strength else None
    where["cfg"] = cfg or _default_config(run, row[0], "continual", project, shots)
    zero = Setting("continual", split_run_name(run)[0], row[0], shots, **where)
    zero.name, zero.flags = REFERENCE, ["--trainer", REFERENCE]  # with the same config
    jobs = _prompt_tests(zero, names, 0, asked, 1, "", project)
    last = ""
    for number, dataset in enumerate(row, 1):
        setting = Setting("continual", run, dataset, shots, variant=weight, **where)
        config = _with_shots(setting)
        folder = layout.continual(layout.TRAIN, names, number, setting.name, config, seed)
        what = f"task {number} of {len(names)}"
        train = setting.job("continual", folder, seed, what, split="val", after=last)
        train.flags += ["MODEL.INIT_WEIGHTS", last] if last else []
        last = train.folder
        jobs += [train, *_prompt_tests(setting, names, number, asked, seed, last, project)]
    return jobs


def _with_shots(setting: Setting) -> str:
    return f"{setting.config}_{setting.shots}shots"


def _prompt_tests(
    setting: Setting,
    names: list[str],
    number: int,
    asked: Sequence[str],
    seed: int,
    model: str,
    project: Project,
) -> list[Job]:
    """Tests on each dataset of the prompts in ``model``, or of zero-shot CLIP."""
    jobs = []
    words = ["--eval-only", *(["--model-dir", model] if model else [])]
    for target in asked:
        name = project.dataset_name(target)
        place = (names, number, setting.name, _with_shots(setting), name, seed)
        folder = layout.continual_test(*place)
        what = f"task {number} of {len(names)}, tested on {name}"
        more = {"dataset": target, "after": model}
        jobs.append(setting.job("continual", folder, seed, what, *words, **more))
    return jobs


def is_prompt_run(run: str, project: Project) -> bool:
    """Whether a run learns prompts: a host with configs, with or without a regulariser."""
    return not tunes_end_to_end(run) and split_run_name(run)[0] in project.hosts
