"""Default configuration: Dassl's keys and values, less the nodes of its DA, DG, SSL trainers, and
the rules that the values keep to.

Keys that nothing here reads stay, so that YAML files and options written for Dassl still merge.
"""

from __future__ import annotations

from yacs.config import CfgNode

from proxyfda.utils.errors import BadValue
from proxyfda.utils.nested import flat
from proxyfda.utils.rules import Flag, OneOf, Real, Rule, Several, Text, Whole

from .data import INTERPOLATION_MODES, SAMPLERS, TRANSFORMS
from .optim import OPTIMISERS, SCHEDULES, WARMUPS
from .registry import DATASET_REGISTRY, EVALUATOR_REGISTRY, TRAINER_REGISTRY

_LOADER = {"SAMPLER": "RandomSampler", "BATCH_SIZE": 32, "N_DOMAIN": 0, "N_INS": 16}

_DEFAULTS = {
    "VERSION": 1,
    "OUTPUT_DIR": "./output",
    "RESUME": "",  # folder of an earlier run to continue from; empty: OUTPUT_DIR itself
    "SEED": -1,  # negative: not seeded
    "USE_CUDA": True,
    "VERBOSE": True,
    "INPUT": {
        "SIZE": (224, 224),
        "INTERPOLATION": "bilinear",
        "TRANSFORMS": (),
        "NO_TRANSFORM": False,
        "PIXEL_MEAN": [0.485, 0.456, 0.406],
        "PIXEL_STD": [0.229, 0.224, 0.225],
        "CROP_PADDING": 4,
        "RRCROP_SCALE": (0.08, 1.0),
        "CUTOUT_N": 1,
        "CUTOUT_LEN": 16,
        "GN_MEAN": 0.0,
        "GN_STD": 0.15,
        "RANDAUGMENT_N": 2,
        "RANDAUGMENT_M": 10,
        "COLORJITTER_B": 0.4,
        "COLORJITTER_C": 0.4,
        "COLORJITTER_S": 0.4,
        "COLORJITTER_H": 0.1,
        "RGS_P": 0.2,
        "GB_P": 0.5,
        "GB_K": 21,
    },
    "DATASET": {
        "ROOT": "",
        "NAME": "",
        "SOURCE_DOMAINS": (),
        "TARGET_DOMAINS": (),
        "NUM_LABELED": -1,
        "NUM_SHOTS": -1,  # images per class; below 1: all
        "VAL_PERCENT": 0.1,
        "STL10_FOLD": -1,
        "CIFAR_C_TYPE": "",
        "CIFAR_C_LEVEL": 1,
        "ALL_AS_UNLABELED": False,
    },
    "DATALOADER": {
        "NUM_WORKERS": 4,
        "K_TRANSFORMS": 1,  # augmented views per training image
        "RETURN_IMG0": False,  # also return the image without augmentation, as "img0"
        "TRAIN_X": dict(_LOADER),
        "TRAIN_U": {"SAME_AS_X": True, **_LOADER},
        "TEST": {"SAMPLER": "SequentialSampler", "BATCH_SIZE": 32},
    },
    "MODEL": {
        "INIT_WEIGHTS": "",
        "BACKBONE": {"NAME": "", "PRETRAINED": True},
        "HEAD": {
            "NAME": "",
            "HIDDEN_LAYERS": (),
            "ACTIVATION": "relu",
            "BN": True,
            "DROPOUT": 0.0,
        },
    },
    "OPTIM": {
        "NAME": "adam",
        "LR": 0.0003,
        "WEIGHT_DECAY": 5e-4,
        "MOMENTUM": 0.9,
        "SGD_DAMPNING": 0,
        "SGD_NESTEROV": False,
        "RMSPROP_ALPHA": 0.99,
        "ADAM_BETA1": 0.9,
        "ADAM_BETA2": 0.999,
        "STAGED_LR": False,  # layers outside NEW_LAYERS learn at LR * BASE_LR_MULT
        "NEW_LAYERS": (),
        "BASE_LR_MULT": 0.1,
        "LR_SCHEDULER": "single_step",
        "STEPSIZE": (-1,),  # 0 or less: MAX_EPOCH
        "GAMMA": 0.1,
        "MAX_EPOCH": 10,
        "WARMUP_EPOCH": -1,  # 0 or -1: no warm-up
        "WARMUP_TYPE": "linear",
        "WARMUP_CONS_LR": 1e-5,
        "WARMUP_MIN_LR": 1e-5,
        "WARMUP_RECOUNT": True,  # the schedule after the warm-up counts from 0 again
    },
    "TRAIN": {
        "CHECKPOINT_FREQ": 0,  # epochs; 0 or -1: only after the last one
        "PRINT_FREQ": 10,  # batches
        "COUNT_ITER": "train_x",
    },
    "TEST": {
        "EVALUATOR": "Classification",
        "PER_CLASS_RESULT": False,
        "COMPUTE_CMAT": False,
        "NO_TEST": False,
        "SPLIT": "test",
        "FINAL_MODEL": "last_step",  # or best_val, which evaluates on val after every epoch
    },
    "TRAINER": {"NAME": ""},
}


def get_cfg_default():
    """A fresh, unfrozen `yacs` CfgNode with the defaults."""
    return CfgNode(_DEFAULTS).clone()


_CHANNELS, _SHARE, _AT_LEAST_0 = 3, Real(least=0, most=1), Real(least=0)
_FACTOR = Real(least=0, below=1)  # of what a running mean keeps

_LOADER_RULES: dict[str, Rule] = {
    "SAMPLER": OneOf(tuple(SAMPLERS)),
    "BATCH_SIZE": Whole(1),
    "N_DOMAIN": Whole(0),
    "N_INS": Whole(1),
}

_RULES: dict = {
    "VERSION": Whole(1),
    "OUTPUT_DIR": Text(empty=False, what="a folder's path"),
    "RESUME": Text(what="a folder's path"),
    "SEED": Whole(most=2**63 - 1),
    "USE_CUDA": Flag(),
    "VERBOSE": Flag(),
    "INPUT": {
        "SIZE": Several(Whole(1, 8192), count=2),
        "INTERPOLATION": OneOf(tuple(INTERPOLATION_MODES)),
        "TRANSFORMS": Several(OneOf(tuple(TRANSFORMS))),
        "NO_TRANSFORM": Flag(),
        "PIXEL_MEAN": Several(Real(), _CHANNELS),
        "PIXEL_STD": Several(Real(above=0), _CHANNELS),
        "CROP_PADDING": Whole(0, 8192),
        "RRCROP_SCALE": Several(Real(above=0, most=1), 2, rising=True),
        "CUTOUT_N": Whole(1),
        "CUTOUT_LEN": Whole(1),
        "GN_MEAN": Real(),
        "GN_STD": _AT_LEAST_0,
        "RANDAUGMENT_N": Whole(1),
        "RANDAUGMENT_M": Whole(0),
        "COLORJITTER_B": _AT_LEAST_0,
        "COLORJITTER_C": _AT_LEAST_0,
        "COLORJITTER_S": _AT_LEAST_0,
        "COLORJITTER_H": Real(least=0, most=0.5),
        "RGS_P": _SHARE,
        "GB_P": _SHARE,
        "GB_K": Whole(1, 8191, odd=True),
    },
    "DATASET": {
        "ROOT": Text(what="a folder's path"),
        "NAME": OneOf(lambda: ["", *DATASET_REGISTRY.registered_names()]),
        "SOURCE_DOMAINS": Several(Text()),
        "TARGET_DOMAINS": Several(Text()),
        "NUM_LABELED": Whole(-1),
        "NUM_SHOTS": Whole(1, also=((-1, "all images"),)),
        "VAL_PERCENT": _SHARE,
        "STL10_FOLD": Whole(-1, 9),
        "CIFAR_C_TYPE": Text(),
        "CIFAR_C_LEVEL": Whole(1, 5),
        "ALL_AS_UNLABELED": Flag(),
    },
    "DATALOADER": {
        "NUM_WORKERS": Whole(0, 512),
        "K_TRANSFORMS": Whole(1),
        "RETURN_IMG0": Flag(),
        "TRAIN_X": _LOADER_RULES,
        "TRAIN_U": {"SAME_AS_X": Flag(), **_LOADER_RULES},
        "TEST": {key: _LOADER_RULES[key] for key in ("SAMPLER", "BATCH_SIZE")},
    },
    "MODEL": {
        "INIT_WEIGHTS": Text(what="the path of a file or folder"),
        "BACKBONE": {"NAME": Text(what="a name"), "PRETRAINED": Flag()},
        "HEAD": {
            "NAME": Text(),
            "HIDDEN_LAYERS": Several(Whole(1)),
            "ACTIVATION": Text(),
            "BN": Flag(),
            "DROPOUT": _FACTOR,
        },
    },
    "OPTIM": {
        "NAME": OneOf(OPTIMISERS),
        "LR": Real(above=0),
        "WEIGHT_DECAY": _AT_LEAST_0,
        "MOMENTUM": _FACTOR,
        "SGD_DAMPNING": _SHARE,
        "SGD_NESTEROV": Flag(),
        "RMSPROP_ALPHA": _FACTOR,
        "ADAM_BETA1": _FACTOR,
        "ADAM_BETA2": _FACTOR,
        "STAGED_LR": Flag(),
        "NEW_LAYERS": Several(Text(empty=False, what="the name of a layer")),
        "BASE_LR_MULT": _AT_LEAST_0,
        "LR_SCHEDULER": OneOf(SCHEDULES),
        "STEPSIZE": Several(Whole(), least=1),
        "GAMMA": Real(above=0),
        "MAX_EPOCH": Whole(1),
        "WARMUP_EPOCH": Whole(-1),
        "WARMUP_TYPE": OneOf(tuple(WARMUPS)),
        "WARMUP_CONS_LR": _AT_LEAST_0,
        "WARMUP_MIN_LR": _AT_LEAST_0,
        "WARMUP_RECOUNT": Flag(),
    },
    "TRAIN": {
        "CHECKPOINT_FREQ": Whole(-1),
        "PRINT_FREQ": Whole(1),
        "COUNT_ITER": OneOf(("train_x", "train_u", "smaller_one")),
    },
    "TEST": {
        "EVALUATOR": OneOf(EVALUATOR_REGISTRY.registered_names),
        "PER_CLASS_RESULT": Flag(),
        "COMPUTE_CMAT": Flag(),
        "NO_TEST": Flag(),
        "SPLIT": OneOf(("test", "val")),
        "FINAL_MODEL": OneOf(("last_step", "best_val")),
    },
    "TRAINER": {"NAME": OneOf(lambda: ["", *TRAINER_REGISTRY.registered_names()])},
}


RULES: dict[str, Rule] = dict(flat(_RULES))
"""Dotted name of each default -> what it may be."""


def check_together(cfg):
    """Refuse values that are sound by themselves and cannot work together.

    Raises BadValue naming the options.
    """
    optim, loader = cfg.OPTIM, cfg.DATALOADER
    if optim.STAGED_LR and not optim.NEW_LAYERS:
        raise BadValue(
            "OPTIM.STAGED_LR is True, but OPTIM.NEW_LAYERS is empty, so every layer would learn at "
            "the lower rate; name the layers that learn at OPTIM.LR, or leave STAGED_LR False"
        )
    if optim.WARMUP_EPOCH > optim.MAX_EPOCH:
        raise BadValue(
            f"OPTIM.WARMUP_EPOCH is {optim.WARMUP_EPOCH}, above OPTIM.MAX_EPOCH {optim.MAX_EPOCH}, "
            "so the warm-up would not end; give fewer epochs of warm-up, or 0 for none"
        )
    if optim.SGD_NESTEROV and (optim.MOMENTUM == 0 or optim.SGD_DAMPNING != 0):
        raise BadValue(
            f"OPTIM.SGD_NESTEROV is True with OPTIM.MOMENTUM {optim.MOMENTUM} and "
            f"OPTIM.SGD_DAMPNING {optim.SGD_DAMPNING}; give a momentum above 0 and a dampening of 0"
        )
    if loader.K_TRANSFORMS > 1 and cfg.INPUT.NO_TRANSFORM:
        raise BadValue(
            f"DATALOADER.K_TRANSFORMS is {loader.K_TRANSFORMS}, but INPUT.NO_TRANSFORM is True, so "
            "all views would be equal; set one of them back"
        )
