"""What is checked: trainers on rendered pictures and the bundled CLIP, on the device or the CPU."""

from __future__ import annotations

import contextlib
import os.path as osp
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

import train
from datasets.bundled.build import render_dataset
from datasets.bundled.specs import SPECS
from proxyfda.dassl import TRAINER_REGISTRY, build_trainer, set_random_seed
from proxyfda.experiments.config import load_config
from proxyfda.experiments.project import Project
from proxyfda.names import trainer_and_regulariser
from verify.report import NotApplicable

ROOT = osp.dirname(osp.dirname(osp.dirname(osp.abspath(__file__))))
PROJECT = Project(ROOT, entry="train")
DATASET = "bundled_fruits"
COUNTS = {"train": 4, "val": 2, "test": 4}
TF32 = "fp32 with tf32"
KINDS = ("fp32", TF32, "amp", "bf16", "fp16")
"""Precisions of a row: ``PREC``, where fp32 stands for tf32 switched off."""


@dataclass(frozen=True)
class Sizes:
    """How large the checks are.

    Attributes:
        steps: of a training that is compared with the CPU's.
        epochs: of a run that is repeated and resumed.
        backbone, batch, classes: of what is timed.
        many: numbers of classes of the overhead.
        rounds: measured, after those that warm up.
        options: of the config, for what is timed.
    """

    steps: int = 8
    epochs: int = 4
    backbone: str = "ViT-B/16"
    batch: int = 32
    classes: int = 50
    images: int = 64
    many: tuple[int, ...] = (50, 1000)
    rounds: int = 10
    options: dict[str, object] = field(default_factory=dict)


TINY = Sizes(
    steps=2,
    epochs=2,
    backbone="ViT-Bundled",
    batch=4,
    classes=4,
    images=8,
    many=(4, 8),
    rounds=1,
    options={  # its encoders have three blocks
        "TRAINER.MAPLE.PROMPT_DEPTH": 3,
        "TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT": 3,
        "TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION": 3,
    },
)


@dataclass
class Kit:
    """What all checks share.

    Attributes:
        device: ``cuda`` or ``cpu``.
        folder: for what runs write; removed by :meth:`close`.
    """

    device: torch.device
    sizes: Sizes
    folder: str = field(default_factory=lambda: tempfile.mkdtemp(prefix="verify_gpu_"))

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    @property
    def data(self) -> str:
        """The data root, rendered when it is first asked for."""
        spec = next(spec for spec in SPECS if spec.folder == DATASET)
        root = Path(self.folder) / "data"
        if not (root / DATASET).exists():
            root.mkdir(parents=True, exist_ok=True)
            render_dataset(spec, root, COUNTS)
        return str(root)

    def close(self) -> None:
        """Remove what was written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def words(self, name: str, prec: str, output: str, *opts, device: str = "") -> list[str]:
        """The command line of a run.

        Args:
            name: of the run, see :mod:`proxyfda.names`.
            prec: ``PREC``.
            opts: KEY, VALUE, KEY, VALUE.
            device: ``cpu``; by default the kit's.
        """
        trainer, regulariser = trainer_and_regulariser(name)
        node = TRAINER_REGISTRY.get(trainer).config_node
        options = {
            f"TRAINER.{node}.PREC": prec,
            "TRAINER.PROXYFDA.K": 3,
            "DATASET.NUM_SHOTS": 4,
            "DATASET.SUBSAMPLE_CLASSES": "base",
            "DATALOADER.TRAIN_X.BATCH_SIZE": 24,
            "DATALOADER.NUM_WORKERS": 0,
            "TRAIN.PRINT_FREQ": 100,
            "TRAIN.CHECKPOINT_FREQ": 1,
            "OPTIM.MAX_EPOCH": self.sizes.epochs,
            "OPTIM.WARMUP_EPOCH": -1,
            "USE_CUDA": self.on_gpu and device != "cpu",
        }
        config = "CoOp" if trainer.startswith("Zeroshot") else trainer
        words = ["--trainer", trainer, "--regulariser", regulariser, "--seed", "1"]
        words += ["--config-file", PROJECT.trainer_config(config, "bundled")]
        words += ["--dataset-config-file", PROJECT.dataset_config(DATASET)]
        words += ["--root", self.data, "--output-dir", output]
        words += [str(word) for pair in options.items() for word in pair]
        return words + [str(word) for word in opts]

    def trainer(self, name: str, prec: str, device: str = "", *opts):
        """The trainer of a run, ready for its first step."""
        output = tempfile.mkdtemp(dir=self.folder)
        words = self.words(name, prec, output, *opts, device=device)
        cfg = load_config(train.parser().parse_args(words))
        set_random_seed(1)
        trainer = build_trainer(cfg)
        trainer.before_train()
        trainer.epoch, trainer.batch_idx, trainer.num_batches = 0, 0, 10**9
        trainer.set_model_mode("train")
        return trainer


def check_kind(kit: Kit, name: str, kind: str) -> str:
    """The ``PREC`` of a kind of precision.

    Raises:
        NotApplicable: the device or the trainer has none such.
    """
    prec = "fp32" if kind == TF32 else kind
    trainer = TRAINER_REGISTRY.get(trainer_and_regulariser(name)[0])
    if prec not in trainer.precisions:
        raise NotApplicable(f"{name} takes {', '.join(trainer.precisions)}")
    if not kit.on_gpu and kind in (TF32, "amp", "fp16"):
        raise NotApplicable("needs a GPU: a CPU computes it in fp32")
    if kit.on_gpu and kind in (TF32, "bf16") and torch.cuda.get_device_capability() < (8, 0):
        raise NotApplicable("this GPU has neither tf32 nor bf16 (compute capability below 8.0)")
    return prec


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Switch tf32 in matrix products and convolutions, and back."""
    places = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [place.allow_tf32 for place in places]
    try:
        for place in places:
            place.allow_tf32 = allowed
        yield
    finally:
        for place, value in zip(places, before):
            place.allow_tf32 = value


def learnt(trainer) -> dict[str, torch.nn.Parameter]:
    """What a trainer trains, by name."""
    return {
        f"{model}.{name}": weight
        for model in trainer.get_model_names()
        for name, weight in trainer._models[model].named_parameters()
        if weight.requires_grad
    }
