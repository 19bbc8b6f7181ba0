"""Embedded training engine: the part of Dassl's interface that CLIP prompt tuning uses.

Names, signatures, config keys, defaults, files and log lines are those of KaiyangZhou/Dassl.pytorch,
so that trainers, datasets and YAML files written for it run here; the code is this project's own.
Import through `proxyfda.dassl`, which prefers an installed Dassl.
"""

from .checkpoint import (
    find_checkpoint,
    load_checkpoint,
    load_pretrained_weights,
    resume_from_checkpoint,
    save_checkpoint,
)
from .config import get_cfg_default
from .data import (
    DataManager,
    DatasetBase,
    DatasetWrapper,
    Datum,
    ImageError,
    build_data_loader,
    build_transform,
    read_image,
)
from .evaluation import Classification, EvaluatorBase, compute_accuracy
from .optim import build_lr_scheduler, build_optimizer
from .registry import (
    DATASET_REGISTRY,
    EVALUATOR_REGISTRY,
    TRAINER_REGISTRY,
    Registry,
    build_dataset,
    build_evaluator,
    build_trainer,
    check_availability,
)
from .trainer import SimpleTrainer, TrainerBase, TrainerX
from .utils import (
    AverageMeter,
    MetricMeter,
    collect_env_info,
    count_num_param,
    listdir_nohidden,
    mkdir_if_missing,
    read_json,
    set_random_seed,
    setup_logger,
    write_json,
)

__all__ = [
    "DATASET_REGISTRY",
    "EVALUATOR_REGISTRY",
    "TRAINER_REGISTRY",
    "AverageMeter",
    "Classification",
    "DataManager",
    "DatasetBase",
    "DatasetWrapper",
    "Datum",
    "EvaluatorBase",
    "ImageError",
    "MetricMeter",
    "Registry",
    "SimpleTrainer",
    "TrainerBase",
    "TrainerX",
    "build_data_loader",
    "build_dataset",
    "build_evaluator",
    "build_lr_scheduler",
    "build_optimizer",
    "build_trainer",
    "build_transform",
    "check_availability",
    "collect_env_info",
    "compute_accuracy",
    "count_num_param",
    "find_checkpoint",
    "get_cfg_default",
    "listdir_nohidden",
    "load_checkpoint",
    "load_pretrained_weights",
    "mkdir_if_missing",
    "read_image",
    "read_json",
    "resume_from_checkpoint",
    "save_checkpoint",
    "set_random_seed",
    "setup_logger",
    "write_json",
]
