"""Protocols: which jobs make an experiment, and where their output lies.

Every protocol is a function that gives a list of :class:`~runner.job.Job`. Output folders are those
of the CoOp family's scripts:

* base to new: ``base2new/{train_base,test_new}/<dataset>/shots_<K>/<trainer>/<config>/seed<S>``
* few-shot and the training of a transfer: ``<dataset>/<trainer>/<config>_<K>shots/seed<S>``
* tests of a transfer: ``evaluation/<trainer>/<config>_<K>shots/<dataset>/seed<S>``
* zero-shot: ``ZeroshotCLIP/<config>/<dataset>``
"""

from __future__ import annotations

import os
import os.path as osp
from collections.abc import Sequence

import yaml

from proxyfda.results import is_zero_shot, plain_trainer
from proxyfda.utils.errors import BadValue, NotFound
from runner import ROOT
from runner.job import Job

CONFIGS = osp.join(ROOT, "configs")
BENCHMARKS = (
    "imagenet", "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101",
    "fgvc_aircraft", "sun397", "dtd", "eurosat", "ucf101",
)  # fmt: skip
SHIFTED = ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")


# -- configs ------------------------------------------------------------------------------------


def default_config(trainer: str, dataset: str, protocol: str = "base2new", shots: int = 16) -> str:
    """Config that a protocol takes where none is named, from ``configs/defaults.yaml``.

    Raises:
        ValueError: the file has nothing for this trainer.
    """
    if dataset.startswith("bundled"):
        return "bundled"
    with open(osp.join(CONFIGS, "defaults.yaml")) as file:
        table = yaml.safe_load(file)[protocol]
    rules = table.get(trainer) or table.get(plain_trainer(trainer)[1])
    if rules is None:
        raise BadValue(
            f"configs/defaults.yaml has no default config of {trainer!r} for {protocol} (it has "
            f"{', '.join(table)}, and their FDA and ProxyFDA forms); name one with --cfg or CFG="
        )
    for rule in [{"config": rules}] if isinstance(rules, str) else rules:
        if dataset in rule.get("datasets", [dataset]) and shots in rule.get("shots", [shots]):
            return rule["config"]
    raise BadValue(
        f"configs/defaults.yaml has no rule of {trainer!r} for {dataset} with {shots} shots in "
        f"{protocol}; name a config with --cfg or CFG="
    )


def find_config(trainer: str, cfg: str) -> str:
    """Path of ``configs/trainers/<trainer>/<cfg>.yaml``, or of the same for its host."""
    # Zero-shot runs take CoOp's preprocessing and backbone, as upstream's scripts do.
    host = "CoOp" if is_zero_shot(trainer) else plain_trainer(trainer)[1]
    names = dict.fromkeys([trainer, host])
    folders = sorted(os.listdir(osp.join(CONFIGS, "trainers")))
    if not set(names) & set(folders):
        raise BadValue(f"no configs for trainer {trainer!r}; there are {', '.join(folders)}")
    tried = [osp.join(CONFIGS, "trainers", name, f"{cfg}.yaml") for name in names]
    for path in tried:
        if osp.isfile(path):
            return path
    raise NotFound(
        f"no config {cfg!r} for trainer {trainer!r} (looked for "
        f"{' and '.join(osp.relpath(path) for path in tried)}); "
        "name one of that folder with --cfg or CFG="
    )


def bundled_datasets() -> list[str]:
    """Names of the bundled datasets' configs."""
    names = sorted(os.listdir(osp.join(CONFIGS, "datasets")))
    return [name[: -len(".yaml")] for name in names if name.startswith("bundled_")]


def dataset_config(dataset: str) -> str:
    """Path of ``configs/datasets/<dataset>.yaml``, or of a YAML file given as it is."""
    if osp.isfile(dataset) and dataset.endswith((".yaml", ".yml")):
        return osp.abspath(dataset)
    path = osp.join(CONFIGS, "datasets", f"{dataset}.yaml")
    if not osp.isfile(path):
        known = sorted(f[:-5] for f in os.listdir(osp.dirname(path)) if f.endswith(".yaml"))
        raise NotFound(
            f"no dataset {dataset!r}; use one of {', '.join(known)}, or a YAML file of yours"
        )
    return path


class _Setting:
    """A trainer with a config on a dataset: what the jobs of an experiment have in common.

    Args:
        data, output: folders of the datasets and of the results.
        cfg: config of the trainer, by default that of ``configs/defaults.yaml``.
        label: name of the config's folder in the output, where ``opts`` make it differ.
        opts: trailing options of train.py.

    Attributes:
        dataset: name of the dataset's folder in the output.
        config: name of the config's folder there.
    """

    def __init__(
        self, protocol, trainer, dataset, shots, *, data, output, cfg="", label="", opts=None
    ):
        self.trainer, self.shots = trainer, shots
        self.data, self.output = data, output
        self.dataset = dataset_name(dataset)
        cfg = cfg or default_config(trainer, self.dataset, protocol, shots)
        self.config = label or cfg
        self.label = label
        self.opts = opts or []
        self._config_file = find_config(trainer, cfg)
        self._dataset_file = dataset_config(dataset)

    def job(
        self,
        folder: str,
        seed: int,
        what: str,
        *words: str,
        shots: int | None = None,
        classes: str = "all",
        split: str = "test",
        dataset: str = "",
        after: str = "",
    ) -> Job:
        """One job; ``words`` are flags of train.py, ``dataset`` is another one than its own."""
        dataset_file = dataset_config(dataset) if dataset else self._dataset_file
        flags = [] if _has_root(dataset_file) else ["--root", self.data]
        flags += ["--seed", str(seed), "--trainer", self.trainer]
        flags += ["--dataset-config-file", dataset_file, "--config-file", self._config_file]
        k = self.shots if shots is None else shots
        flags += [*words, "DATASET.NUM_SHOTS", str(k), "TEST.SPLIT", split, *self.opts]
        flags += ["DATASET.SUBSAMPLE_CLASSES", classes]  # after the user's: it is the protocol's
        name = f"{self.trainer} {self.dataset}" + ("" if "seed" not in folder else f" seed {seed}")
        name += f" ({self.label})" if self.label else ""
        return Job(f"{name}, {what}", osp.join(self.output, folder), flags, after)


def dataset_name(dataset: str) -> str:
    """Name of a dataset's folder in the output: that of its config file."""
    return osp.splitext(osp.basename(dataset_config(dataset)))[0]


def _has_root(dataset_file: str) -> bool:
    # One's own images lie elsewhere than the benchmarks: a config with a root keeps it.
    with open(dataset_file) as file:
        return bool(((yaml.safe_load(file) or {}).get("DATASET") or {}).get("ROOT"))


# -- protocols ----------------------------------------------------------------------------------


def base2new_jobs(
    trainer: str,
    dataset: str,
    seed: int,
    *,
    shots: int = 16,
    split: str = "test",
    **where,
) -> list[Job]:
    """Train on the base classes and test on them, then test on the new classes.

    Args:
        split: split to evaluate on; ``val`` for choosing settings.
        where: ``data``, ``output``, ``cfg``, ``label`` and ``opts`` of :class:`_Setting`.
    """
    setting = _Setting("base2new", trainer, dataset, shots, **where)
    tail = osp.join(setting.dataset, f"shots_{shots}", trainer, setting.config, f"seed{seed}")

    def job(part: str, *words: str, **more) -> Job:
        folder = osp.join("base2new", part, tail)
        classes = "new" if part == "test_new" else "base"
        return setting.job(folder, seed, part, *words, classes=classes, split=split, **more)

    if is_zero_shot(trainer):
        k = -1 if split == "val" else shots
        return [job(part, "--eval-only", shots=k) for part in ("train_base", "test_new")]
    if split == "val":
        # Few-shot sampling cuts the validation split to min(shots, 4) images per class, too few to
        # choose by: train first, then evaluate both halves on the whole of it.
        train = job("train")
        words = ("--eval-only", "--model-dir", train.folder)
        parts = ("train_base", "test_new")
        return [train, *(job(part, *words, shots=-1, after=train.folder) for part in parts)]
    base = job("train_base")
    return [
        base,
        job("test_new", "--eval-only", "--model-dir", base.folder, after=base.folder),
    ]


def fewshot_jobs(
    trainer: str,
    dataset: str,
    seed: int,
    *,
    shots: int,
    **where,
) -> list[Job]:
    """Train on all classes with ``shots`` images each, and test; arguments as above."""
    if is_zero_shot(trainer):
        return zeroshot_jobs(dataset, trainer=trainer, **where)
    setting = _Setting("fewshot", trainer, dataset, shots, **where)
    return [_training(setting, seed)]


def _training(setting: _Setting, seed: int) -> Job:
    config = f"{setting.config}_{setting.shots}shots"
    folder = osp.join(setting.dataset, setting.trainer, config, f"seed{seed}")
    return setting.job(folder, seed, f"{setting.shots}-shot")


def transfer_jobs(
    trainer: str,
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
    if is_zero_shot(trainer):
        each = [zeroshot_jobs(t, trainer=trainer, **where) for t in (source, *targets)]
        return [job for jobs in each for job in jobs]
    setting = _Setting("transfer", trainer, source, shots, **where)
    train = _training(setting, seed)
    jobs = [train]
    for target in targets:
        config = f"{setting.config}_{shots}shots"
        name = dataset_name(target)
        jobs.append(
            setting.job(
                osp.join("evaluation", trainer, config, name, f"seed{seed}"),
                seed,
                f"tested on {name}",
                "--eval-only",
                "--model-dir",
                train.folder,
                dataset=target,
                after=train.folder,
            )
        )
    return jobs


def zeroshot_jobs(
    dataset: str,
    *,
    trainer: str = "ZeroshotCLIP",
    **where,
) -> list[Job]:
    """Test zero-shot CLIP on all classes. Seed and shots play no part."""
    setting = _Setting("zeroshot", trainer, dataset, -1, **where)
    folder = osp.join(trainer, setting.config, setting.dataset)
    return [setting.job(folder, 1, "zero-shot", "--eval-only")]
