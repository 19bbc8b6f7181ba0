"""A repository that experiments are run in: its entry module, and the folder of its configs.

This package knows no trainer and no dataset: the entry module registers them, and the configs say
which there are.
"""

from __future__ import annotations

import functools
import os
import os.path as osp
from dataclasses import dataclass

import yaml

from proxyfda.benchmarks import BUNDLED, RENDERED, SMALL
from proxyfda.names import HOSTS, is_regularised, is_zero_shot, split_run_name, tunes_end_to_end
from proxyfda.utils.errors import BadValue, NotFound
from proxyfda.utils.suggest import did_you_mean

# Zero-shot runs take CoOp's preprocessing and backbone, as upstream's scripts do.
_CONFIGS_OF_ZERO_SHOT = "CoOp"
_CONFIGS_OF_FINETUNING = "FineTune"
# Configs with the encoder of a rendered world are called by the first part of its datasets' names.
_WORLDS = {name.split("_")[0] for name in RENDERED}


def _configs_of(name: str) -> str:
    """Whose configs a run takes: those of the host, but all methods of tuning end to end share one
    folder, so that they differ in nothing else."""
    if is_zero_shot(name):
        return _CONFIGS_OF_ZERO_SHOT
    return _CONFIGS_OF_FINETUNING if tunes_end_to_end(name) else split_run_name(name)[0]


@dataclass(frozen=True)
class Project:
    """Where the entry module and the configs are.

    Attributes:
        root: the repository's folder. ``configs`` in it has ``datasets``, ``trainers/<host>``,
            ``regularisers``, ``select``, ``finetune`` and ``defaults.yaml``.
        entry: module with ``parser()`` and ``main(args)``, importable from the root.
    """

    root: str
    entry: str

    # -- trainers and regularisers ----------------------------------------------------------------

    @property
    def hosts(self) -> list[str]:
        """Host trainers of prompts that have configs, as published and then by name."""
        known = {name: place for place, name in enumerate(HOSTS)}
        found = set(_folders(self._path("trainers"))) - {_CONFIGS_OF_FINETUNING}
        return sorted(found, key=lambda n: (known.get(n, len(known)), n))

    def default_config(self, name: str, dataset: str, protocol: str, shots: int) -> str:
        """Config that a protocol takes where none is named: that of a rendered dataset's world
        (``atlas``, ``bundled``), else what ``defaults.yaml`` says.

        Args:
            name: of the run, see :mod:`proxyfda.names`.

        Raises:
            BadValue: the file has nothing for it.
        """
        world = dataset.split("_")[0]
        if world in _WORLDS:
            return world
        host = _CONFIGS_OF_FINETUNING if tunes_end_to_end(name) else split_run_name(name)[0]
        table = self._defaults()[protocol]
        if host not in table:
            raise BadValue(
                f"configs/defaults.yaml has no default config of {name!r} for {protocol} (it has "
                f"{', '.join(table)}); name one with --cfg or CFG="
            )
        rules = table[host]
        for rule in [{"config": rules}] if isinstance(rules, str) else rules:
            if (
                dataset in rule.get("datasets", [dataset])
                and shots in rule.get("shots", [shots])
                and rule.get("regularised", is_regularised(name)) == is_regularised(name)
            ):
                return rule["config"]
        raise BadValue(
            f"configs/defaults.yaml has no rule of {name!r} for {dataset} with {shots} shots in "
            f"{protocol}; name a config with --cfg or CFG="
        )

    def epochs(self, dataset: str) -> int | None:
        """For how many epochs a dataset is tuned on end to end, whatever the config; ``None``: as
        the config says."""
        return self._defaults()["epochs"].get(dataset)

    def _defaults(self) -> dict:
        return _read(self._path("defaults.yaml"))

    def trainer_config(self, name: str, cfg: str) -> str:
        """Path of ``configs/trainers/<host>/<cfg>.yaml``.

        Raises:
            BadValue: the host of the run has no configs.
            NotFound: it has none of that name.
        """
        host = _configs_of(name)
        if host not in (*self.hosts, _CONFIGS_OF_FINETUNING):
            raise BadValue(f"no configs for trainer {name!r}; there are {', '.join(self.hosts)}")
        path = self._path("trainers", host, f"{cfg}.yaml")
        if not osp.isfile(path):
            raise NotFound(
                f"no config {cfg!r} for trainer {name!r} (looked for {osp.relpath(path)}); name "
                "one of that folder with --cfg or CFG="
            )
        return path

    def overlay(self, name: str) -> str:
        """Path of what goes on top of a trainer's config: ``configs/regularisers/<name>.yaml``, or
        a YAML file given as it is.

        Raises:
            NotFound: there is neither.
        """
        if name.endswith((".yaml", ".yml")):
            if not osp.isfile(name):
                raise NotFound(f"the overlay {name} does not exist; scripts/select.sh writes such")
            return osp.abspath(name)
        path = self._path("regularisers", f"{name}.yaml")
        if not osp.isfile(path):
            known = ", ".join(_yaml_files(osp.dirname(path))) or "none"
            raise NotFound(f"no overlay {name!r}; configs/regularisers has {known}")
        return path

    def grid(self, regulariser: str) -> str:
        """Path of the settings that are tried for a regulariser where none are named.

        That is ``configs/select/<regulariser>.yaml``. One with proxies takes the file of the same
        without them, and what has no file takes ``default.yaml``.
        """
        return self._grid("select", regulariser)

    def strengths(self, method: str) -> str:
        """Path of the λ that are tried for a regulariser in tuning end to end, or of the α of
        another method: ``configs/finetune/<method>.yaml``, found as :meth:`grid` finds its."""
        return self._grid("finetune", method)

    def _grid(self, folder: str, name: str) -> str:
        proxies = "proxy_"
        plain = name[len(proxies) :] if name.startswith(proxies) else "default"
        paths = [self._path(folder, f"{name}.yaml") for name in (name, plain, "default")]
        return next(filter(osp.isfile, paths), paths[-1])

    # -- datasets ---------------------------------------------------------------------------------

    @property
    def bundled_datasets(self) -> list[str]:
        """Names of the rendered datasets that stand in for the benchmarks of prompt tuning."""
        return [name for name in self.rendered_datasets if name in BUNDLED]

    @property
    def rendered_datasets(self) -> list[str]:
        """Names of all rendered datasets' configs, small ones and those for tuning end to end
        included."""
        names = _yaml_files(self._path("datasets"))
        return [name for name in RENDERED if name in names]

    def rendered_targets(self, source: str) -> list[str]:
        """Where a training on a rendered dataset is tested unless told otherwise: the source's
        world, whose words the encoder knows. Empty for any other source."""
        groups = [group for group in (BUNDLED, SMALL) if source in group]
        return [name for name in self.rendered_datasets if groups and name in groups[0]]

    def dataset_config(self, dataset: str) -> str:
        """Path of ``configs/datasets/<dataset>.yaml``, or of a YAML file given as it is.

        Raises:
            NotFound: there is neither.
        """
        if osp.isfile(dataset) and dataset.endswith((".yaml", ".yml")):
            return osp.abspath(dataset)
        path = self._path("datasets", f"{dataset}.yaml")
        if not osp.isfile(path):
            folder = osp.dirname(path)
            known = _yaml_files(folder)
            use = f"one of {', '.join(known)}, or a YAML file of yours" if known else "a YAML file"
            raise NotFound(
                f"no dataset {dataset!r}{did_you_mean(dataset, known)}; use {use}"
                + ("" if known else f" ({folder} has none)")
            )
        return path

    def dataset_name(self, dataset: str) -> str:
        """Name of a dataset's folder in the output: that of its config file."""
        return osp.splitext(osp.basename(self.dataset_config(dataset)))[0]

    def dataset_has_root(self, dataset: str) -> bool:
        """Whether a dataset's config says where it lies: one's own images lie elsewhere."""
        return bool(self._dataset(dataset).get("ROOT"))

    def dataset_reader(self, dataset: str) -> str:
        """Name under which the reader of a dataset is registered; empty if its config has none."""
        return self._dataset(dataset).get("NAME") or ""

    def _dataset(self, dataset: str) -> dict:
        return _read(self.dataset_config(dataset)).get("DATASET") or {}

    def _path(self, *parts: str) -> str:
        return osp.join(self.root, "configs", *parts)


def _read(path: str) -> dict:
    """The content of a YAML file, which is nobody's to change."""
    return _read_version(path, os.stat(path).st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _read_version(path: str, stamp: int) -> dict:
    with open(path, encoding="utf-8") as file:
        return yaml.safe_load(file) or {}


def _folders(path: str) -> list[str]:
    names = os.listdir(path) if osp.isdir(path) else []
    return [name for name in names if osp.isdir(osp.join(path, name))]


def _yaml_files(folder: str) -> list[str]:
    names = sorted(os.listdir(folder)) if osp.isdir(folder) else []
    return [name[: -len(".yaml")] for name in names if name.endswith(".yaml")]
