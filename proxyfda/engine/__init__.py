"""Embedded training engine: the part of Dassl's interface that CLIP prompt tuning uses.

Names, signatures, config keys, defaults, files and log lines are those of Dassl.pytorch by Kaiyang
Zhou, so that trainers, datasets and YAML files written for it run here; the code is our own.
Import through `proxyfda.dassl`, which prefers an installed Dassl.
"""
# ruff: noqa: F401

from .checkpoint import (
    check_finite,
    find_checkpoint,
    load_checkpoint,
    load_pretrained_weights,
    save_checkpoint,
    weights_in,
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
from .sound import resume_from_checkpoint
from .together import Together
from .trainer import SimpleTrainer, TrainerBase, TrainerX
from .utils import (
    AverageMeter,
    MetricMeter,
    collect_env_info,
    count_num_param,
    get_rng_state,
    listdir_nohidden,
    log_to,
    mkdir_if_missing,
    open_log,
    read_json,
    set_random_seed,
    set_rng_state,
    setup_logger,
    write_json,
)
