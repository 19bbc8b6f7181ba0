"""Writes a small package named ``dassl``, with the structure and the faults of the original that
the repairs are for; what they leave alone is borrowed from the embedded engine."""

from pathlib import Path

FILES = {
    "__init__.py": '__version__ = "0.0.fake"',
    "utils/__init__.py": """
from .tools import *
from .torchtools import *
from proxyfda.engine import (
    AverageMeter, MetricMeter, Registry, collect_env_info, count_num_param, set_random_seed,
    setup_logger,
)
""",
    "utils/tools.py": """
from proxyfda.engine import listdir_nohidden, mkdir_if_missing, read_json, write_json

def read_image(path):
    raise IOError("No file exists at {}".format(path))
""",
    "utils/torchtools.py": """
import torch
from proxyfda.engine import load_pretrained_weights

def load_checkpoint(fpath):
    return torch.load(fpath)

def save_checkpoint(state, save_dir, is_best=False, remove_module_from_keys=True, model_name=""):
    raise AssertionError("Dassl's own")

def resume_from_checkpoint(fdir, model, optimizer=None, scheduler=None):
    raise AssertionError("Dassl's own")
""",
    "optim/__init__.py": """
from proxyfda.engine import build_optimizer
from .lr_scheduler import build_lr_scheduler
""",
    "optim/lr_scheduler.py": """
from torch.optim.lr_scheduler import _LRScheduler
from proxyfda.engine import build_lr_scheduler

class _BaseWarmupScheduler(_LRScheduler):
    def __init__(self, optimizer, last_epoch=-1, verbose=False):
        super().__init__(optimizer, last_epoch, verbose)

class ConstantWarmupScheduler(_BaseWarmupScheduler):
    def get_lr(self):
        return [0.125 for _ in self.base_lrs]
""",
    "data/__init__.py": "from .data_manager import DataManager, DatasetWrapper",
    "data/data_manager.py": """
from dassl.utils import read_image
from .datasets import build_dataset
from proxyfda.engine import DataManager, DatasetWrapper, build_data_loader
""",
    "data/transforms/__init__.py": """
from proxyfda.engine import build_transform
from .autoaugment import levels
""",
    "data/transforms/autoaugment.py": """
import numpy as np

def levels():
    return np.round(np.linspace(8, 4, 5), 0).astype(np.int)
""",
    "data/datasets/__init__.py": """
from proxyfda.engine import DATASET_REGISTRY, build_dataset
from .base_dataset import DatasetBase, Datum
from .dg import *
""",
    "data/datasets/base_dataset.py": """
from proxyfda.engine import DatasetBase

def check_isfile(fpath):
    return False  # and a warning

class Datum:
    def __init__(self, impath="", label=0, domain=0, classname=""):
        assert check_isfile(impath)
""",
    "data/datasets/dg/__init__.py": "from .wilds import *",
    "data/datasets/dg/wilds/__init__.py": "from .wilds_base import *",
    "data/datasets/dg/wilds/wilds_base.py": "import wilds\nimport pandas",
    "evaluation/__init__.py": "from proxyfda.engine import EVALUATOR_REGISTRY, build_evaluator",
    "metrics/__init__.py": "from proxyfda.engine import compute_accuracy",
    "config/__init__.py": "from proxyfda.engine import get_cfg_default",
    "engine/__init__.py": """
from proxyfda.engine import TRAINER_REGISTRY, build_trainer
from .trainer import SimpleTrainer, TrainerBase, TrainerX
""",
    "engine/trainer.py": """
from dassl.data import DataManager
from dassl.utils import load_checkpoint, resume_from_checkpoint, save_checkpoint

class TrainerBase:
    def save_model(self, epoch, directory, is_best=False, val_result=None, model_name=""):
        raise AssertionError("Dassl's own")

class SimpleTrainer(TrainerBase):
    def test(self, split=None):
        return 0.0

class TrainerX(SimpleTrainer):
    def run_epoch(self):
        raise AssertionError("Dassl's own")
""",
}


def write(folder: Path) -> None:
    """Write the package into a folder, which then goes to PYTHONPATH."""
    for name, source in FILES.items():
        path = folder / "dassl" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source.lstrip() + "\n")
