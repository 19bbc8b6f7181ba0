"""Where runs are written: the only place that knows the folders of an output, for both directions.

The layouts are those of the CoOp family's scripts, ours among them; everything is written and read
through this module. ``<name>`` is the run's name (see :mod:`proxyfda.names`), and
``<config>_<K>shots`` may be followed by one more folder, as CoOp's ``nctx16_cscFalse_ctpend``.

* base to new: ``base2new/{train_base,test_new}/<dataset>/shots_<K>/<name>/<config>/seed<S>``
  (others have base results in ``test_base``; we train in ``train`` where both halves are evaluated
  on the validation split)
* choosing settings: ``select/<dataset>/shots_<K>/<name>/<config>/split<I>/{train,seen,unseen}/
  seed<S>``, and the choice of a run in ``select/<dataset>/shots_<K>/<name>``
* few-shot, and the training of a transfer: ``<dataset>/<name>/<config>_<K>shots/seed<S>``
* tests of a transfer, that is cross-dataset and domain generalisation:
  ``evaluation/<name>/<config>_<K>shots/<dataset>/seed<S>``
* zero-shot on all classes: ``ZeroshotCLIP/<config>/<dataset>``
* tuning end to end, and the probes of what came out on all datasets:
  ``finetune/{train,probe_val,probe_test}/<dataset>/<name>/<config>/seed<S>``; those of the
  backbone as it was pre-trained have ``pretrained`` for a dataset, and ``Pretrained`` for a name
* tasks in a row, I from 1 in ``<row>``, which is the datasets joined by ``+``; of the pre-trained
  backbone I is 0:
  ``continual/{train,probe_val,probe_test}/<row>/task<I>/<name>/<config>/seed<S>``; prompts are
  tested on one dataset at a time, in
  ``continual/test/<row>/task<I>/<name>/<config>_<K>shots/<dataset>/seed<S>``
* what was chosen for a tuning end to end: ``finetune/choice/<dataset>/<name>/<config>``
* models that caption images or answer questions, tuned on a family of them and asked about all:
  ``{captioning,vqa}/<family>/<name>/<config>/seed<S>``; as they were pre-trained they have
  ``pretrained`` for a family, and ``Pretrained`` for a name
* beside the runs: ``features``, image features that they share
  (:mod:`proxyfda.experiments.features`), and ``diagnose``, measures of all of them
  (``python -m proxyfda.diagnose correlate``)

A run's folder has its ``config.yaml``, ``environment.txt`` and ``log.txt``, curves, a folder of
checkpoints for each model, and in the end ``result.json`` (:mod:`proxyfda.experiments.record`);
``error.txt`` has the traceback of what nobody foresaw.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Iterator, Optional, Sequence, Tuple

from proxyfda.names import METHODS, PRETRAINED, REFERENCE, WISE_FT

RESULT = "result.json"
CONFIG = "config.yaml"
LOG = "log.txt"
ENVIRONMENT = "environment.txt"
ERROR = "error.txt"
TENSORBOARD = "tensorboard"
FEATURES, DIAGNOSIS = "features", "diagnose"
"""Folders of an output beside those of runs."""

IMAGE_TO_TEXT = ("captioning", "vqa")
PROTOCOLS = (
    "base2new", "select", "fewshot", "transfer", "zeroshot", "finetune", "continual",
    *IMAGE_TO_TEXT,
)  # fmt: skip
"""What a run is part of; the training of a transfer is a few-shot run."""

TRAIN, TRAIN_BASE, TEST_BASE, TEST_NEW = "train", "train_base", "test_base", "test_new"
SEEN, UNSEEN = "seen", "unseen"
PROBES = {"val": "probe_val", "test": "probe_test"}
"""Split -> part of a fine-tuning or a row of tasks that has the probes on it."""
CHOICE = "choice.yaml"
TEST = "test"
"""Part of a row of tasks that has the tests of prompts, each on one dataset."""
_CLASSES = {TRAIN: "base", TRAIN_BASE: "base", TEST_BASE: "base", TEST_NEW: "new"}

# -- writing --------------------------------------------------------------------------------------


def config_name(config: str, overlays: Sequence[str] = ()) -> str:
    """Name of the folder of a config with overlays on top of it."""
    return "-".join([config, *overlays])


def base2new(part: str, dataset: str, shots: int, name: str, config: str, seed: int) -> str:
    """Folder of a base-to-new run below the output; ``part`` is ``train_base`` or the like."""
    return os.path.join("base2new", part, dataset, f"shots_{shots}", name, config, f"seed{seed}")


def selection(dataset: str, shots: int, name: str) -> str:
    """Folder of what was chosen for a run on a dataset, and of the runs that it was chosen by."""
    return os.path.join("select", dataset, f"shots_{shots}", name)


def select(
    part: str, dataset: str, shots: int, name: str, config: str, split: int, seed: int
) -> str:
    """Folder of a run on a half of the base classes; ``part``: ``train``, ``seen``, ``unseen``."""
    folder = os.path.join(selection(dataset, shots, name), config, f"split{split}")
    return os.path.join(folder, part, f"seed{seed}")


def fewshot(dataset: str, shots: int, name: str, config: str, seed: int) -> str:
    """Folder of a training on all classes, which is also tested on them."""
    return os.path.join(dataset, name, f"{config}_{shots}shots", f"seed{seed}")


def transfer(target: str, shots: int, name: str, config: str, seed: int) -> str:
    """Folder of a test on another dataset than the one that was trained on."""
    return os.path.join("evaluation", name, f"{config}_{shots}shots", target, f"seed{seed}")


def zeroshot(dataset: str, name: str, config: str) -> str:
    """Folder of a test on all classes without training."""
    return os.path.join(name, config, dataset)


def finetune(part: str, dataset: str, name: str, config: str, seed: int) -> str:
    """Folder of a fine-tuning (``train``), or of the probes of it (one of :data:`PROBES`)."""
    return os.path.join("finetune", part, dataset, name, config, f"seed{seed}")


def pretrained(part: str, config: str, seed: int = 1) -> str:
    """Folder of the probes of the backbone as it was pre-trained."""
    return finetune(part, "pretrained", PRETRAINED, config, seed)


def continual(part: str, row: Sequence[str], task: int, name: str, config: str, seed: int) -> str:
    """Folder of the training on task ``task`` of a row of datasets, or of the probes after it."""
    return os.path.join(
        "continual", part, "+".join(row), f"task{task}", name, config, f"seed{seed}"
    )


def continual_test(
    row: Sequence[str], task: int, name: str, config: str, target: str, seed: int
) -> str:
    """Folder of a test on ``target`` of what task ``task`` of a row left: prompts."""
    folder = os.path.dirname(continual(TEST, row, task, name, config, seed))
    return os.path.join(folder, target, f"seed{seed}")


def finetune_choice(dataset: str, name: str, config: str) -> str:
    """Folder of what was chosen for a run that tunes end to end."""
    return os.path.join("finetune", "choice", dataset, name, config)


def image_to_text(protocol: str, family: str, name: str, config: str, seed: int) -> str:
    """Folder of a model that speaks, tuned on a family (empty: as it was pre-trained); ``protocol``
    is one of :data:`IMAGE_TO_TEXT`."""
    family = re.sub(r"[^\w-]+", "_", family) or "pretrained"
    return os.path.join(protocol, family, name, config, f"seed{seed}")


# -- reading --------------------------------------------------------------------------------------

_SHOTS = r"(?P<config>[^/]+)_(?P<shots>\d+)shots(?:/(?P<variant>[^/]+))?"
_PROBED = f"(?P<part>{'|'.join([TRAIN, *PROBES.values()])})"
_PATTERNS = {
    "base2new": rf"(?P<part>{'|'.join(_CLASSES)})/(?P<dataset>[^/]+)"
    r"/shots_(?P<shots>-?\d+)/(?P<name>[^/]+)/(?P<config>[^/]+)/seed(?P<seed>-?\d+)",
    "select": r"select/(?P<dataset>[^/]+)/shots_(?P<shots>-?\d+)/(?P<name>[^/]+)/(?P<config>[^/]+)"
    rf"/split(?P<split>\d+)/(?P<part>{TRAIN}|{SEEN}|{UNSEEN})/seed(?P<seed>-?\d+)",
    "finetune": rf"finetune/{_PROBED}/(?P<dataset>[^/]+)/(?P<name>[^/]+)/(?P<config>[^/]+)"
    r"/seed(?P<seed>-?\d+)",
    "continual": rf"continual/(?:{_PROBED}|(?P<tested>{TEST}))/(?P<dataset>[^/]+)/task(?P<task>\d+)"
    r"/(?P<name>[^/]+)/(?P<config>[^/]+)(?(tested)/(?P<target>[^/]+))/seed(?P<seed>-?\d+)",
    **{
        protocol: rf"{protocol}/(?P<dataset>[^/]+)/(?P<name>[^/]+)/(?P<config>[^/]+)"
        r"/seed(?P<seed>-?\d+)"
        for protocol in IMAGE_TO_TEXT
    },
    "transfer": rf"evaluation/(?P<name>[^/]+)/{_SHOTS}/(?P<dataset>[^/]+)/seed(?P<seed>-?\d+)",
    "fewshot": rf"(?P<dataset>[^/]+)/(?P<name>[^/]+)/{_SHOTS}/seed(?P<seed>-?\d+)",
    "zeroshot": rf"(?P<name>{REFERENCE}\d*)/(?P<config>[^/]+)/(?P<dataset>[^/]+)"
    r"(?:/seed(?P<seed>-?\d+))?",
}


@dataclass(frozen=True)
class Place:
    """What a run's folder says about it.

    Attributes:
        protocol: one of :data:`PROTOCOLS`.
        part: folder of a base-to-new run, ``train_base`` or the like, of one for choosing
            settings, ``train``, ``seen`` or ``unseen``, or of one that tunes end to end, ``train``
            or one of :data:`PROBES`, in a row of tasks also :data:`TEST`; otherwise empty.
        dataset, name, config: as the folders are called; config with the one that may follow it,
            and dataset the whole row of a row of tasks.
        shots: ``None`` where the layout has none (zero-shot).
        seed: ``None`` where there is no folder for it.
        split: number of the halves of the base classes; ``None`` where all of them are used.
        task: number of the task in a row of them, 0 for none yet; otherwise ``None``.
        target: what prompts are tested on in a row of tasks; otherwise empty.
    """

    protocol: str
    part: str
    dataset: str
    name: str
    config: str
    shots: Optional[int]
    seed: Optional[int]
    split: Optional[int] = None
    task: Optional[int] = None
    target: str = ""

    @property
    def classes(self) -> str:
        """Classes that are evaluated: ``base``, ``new`` or ``all``, or ``seen@1`` and the like."""
        if self.split is not None:
            return f"{UNSEEN if self.part == UNSEEN else SEEN}@{self.split}"
        return _CLASSES.get(self.part, "all") if self.protocol == "base2new" else "all"


def parse(folder: str) -> Optional[Place]:
    """What a run's folder says about it; ``None`` where no layout fits."""
    path = os.path.abspath(folder).replace(os.sep, "/")
    for protocol, pattern in _PATTERNS.items():
        match = re.search(f"(?:^|/){pattern}$", path)
        if match:
            found = match.groupdict()
            return Place(
                protocol=protocol,
                part=found.get("part") or found.get("tested") or "",
                dataset=found["dataset"],
                name=found["name"],
                config="/".join(filter(None, (found["config"], found.get("variant")))),
                shots=_number(found.get("shots")),
                seed=_number(found.get("seed")),
                split=_number(found.get("split")),
                task=_number(found.get("task")),
                target=found.get("target") or "",
            )
    return None


def _number(text: Optional[str]) -> Optional[int]:
    return None if text is None else int(text)


def output_of(folder: str) -> str:
    """The folder that has all runs, of a run's folder below it; empty where no layout fits.

    >>> output_of("out/finetune/probe_test/dtd/LPFT/cfg/seed1").endswith("out")
    True
    """
    path = os.path.abspath(folder).replace(os.sep, "/")
    for protocol, pattern in _PATTERNS.items():
        # That of base to new stands for folders below any; ours are below one of its name.
        ours = "(?:base2new/)?" if protocol == "base2new" else ""
        match = re.search(f"(?:^|/){ours}{pattern}$", path)
        if match:
            return path[: match.start()] or os.sep
    return ""


def run_folder_of(path: str) -> str:
    """The run's folder that a file or folder lies in: up to ``seed<S>``; empty if there is none."""
    match = re.match(r"(.*/seed-?\d+)(?:/|$)", path.replace("\\", "/"))
    return match[1] if match else ""


def training_of(folder: str, weight: Optional[float] = None) -> str:
    """Folder of the training that a folder of probes is of.

    WiSE-FT trains nothing of its own: its probes are of the plain fine-tuning.

    Args:
        weight: λ of the training, where the folder of the probes leaves it out, as it does where λ
            was chosen. Without such a folder it is that of the same config.

    >>> training_of("out/finetune/probe_val/dtd/LPFT/cfg/seed1").replace(os.sep, "/")
    'out/finetune/train/dtd/LPFT/cfg/seed1'
    >>> training_of("out/finetune/probe_val/dtd/WiSEFT/cfg-alpha_0.5/seed1").replace(os.sep, "/")
    'out/finetune/train/dtd/FineTune/cfg/seed1'
    """
    parts = "|".join(PROBES.values())
    folder = re.sub(rf"^(.*[/\\])({parts})(?=[/\\])", rf"\g<1>{TRAIN}", folder)
    above, seed = os.path.split(folder)
    above, config = os.path.split(above)
    above, name = os.path.split(above)
    if name == WISE_FT:
        name, config = METHODS["naive"], re.sub(r"-alpha_[^-/]+$", "", config)
    chosen = os.path.join(above, name, f"{config}-weight_{weight or 0:.12g}", seed)
    return chosen if os.path.isdir(chosen) else os.path.join(above, name, config, seed)


def run_folders(top: str) -> Iterator[str]:
    """Folders of runs below ``top``: each ``seed<S>``, and any other one with a result or log."""
    seen = set()
    for folder, below, files in os.walk(top, followlinks=True):
        below.sort()
        if os.path.realpath(folder) in seen:
            below.clear()
            continue
        seen.add(os.path.realpath(folder))
        name = os.path.basename(os.path.abspath(folder))
        if re.fullmatch(r"seed-?\d+", name) or {RESULT, LOG} & set(files):
            below.clear()
            yield folder


def has_any(folder: str, files: Tuple[str, ...] = (RESULT, CONFIG, LOG)) -> bool:
    """Whether a run's folder has any of ``files``."""
    return any(os.path.isfile(os.path.join(folder, name)) for name in files)
