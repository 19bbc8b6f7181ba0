"""What is in the folder of a run that was there before: its config, its work, what kills left."""

from __future__ import annotations

import argparse
import contextlib
import os
import os.path as osp
import time
from typing import Any

import yaml
from yacs.config import CfgNode

from proxyfda.engine.writers import CURVES, WANDB_ID
from proxyfda.experiments import layout
from proxyfda.experiments.config import flat
from proxyfda.experiments.lock import LOCK
from proxyfda.names import is_zero_shot, split_run_name
from proxyfda.utils.errors import BadValue, NotFound
from proxyfda.utils.files import remove_partial

_ASIDE = (layout.LOG, layout.TENSORBOARD, CURVES, WANDB_ID)
_POINTER, _CHECKPOINT = "checkpoint", ".pth.tar"  # as the engines name them


def read_config(folder: str) -> dict[str, Any]:
    """The content of the ``config.yaml`` of a run; empty if there is none.

    Raises:
        BadValue: it is damaged.
    """
    path = osp.join(folder, layout.CONFIG)
    if not osp.lexists(path):
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.safe_load(file)
        dict(flat(content))  # the keys are texts all the way down
        if not content:
            raise ValueError("it is empty")
    except (
        OSError,
        ValueError,
        TypeError,
        AttributeError,
        RecursionError,
        yaml.YAMLError,
    ) as error:
        raise BadValue(
            f"{path} is damaged ({' '.join(str(error).split())[:120]}); restore it from a copy, or "
            "remove the folder to run it anew"
        ) from None
    return content


def holds_work(folder: str) -> bool:
    """Whether a run's folder has anything that a new run would not write anew: checkpoints, a
    result, files of the user. Logs and curves of a run that came to nothing are no such thing."""
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return False
    return any(
        entry.name not in (layout.CONFIG, layout.ENVIRONMENT, layout.ERROR)
        and not entry.name.startswith((*_ASIDE, LOCK))
        and not entry.name.endswith(".tmp")
        and (not entry.is_dir() or any(holds for _, _, holds in os.walk(entry.path)))
        for entry in entries
    )


def tidy(folder: str, another: bool) -> None:
    """Remove what killed processes left half-written; to be called with the folder's lock.

    Args:
        another: the run to come is another one than the config there says, so that its log and its
            curves are set aside.
    """
    remove_partial(folder)
    if not another:
        return
    for name in _ASIDE:
        path = osp.join(folder, name)
        if osp.exists(path):
            with contextlib.suppress(OSError):
                os.rename(path, f"{path}-{time.strftime('%Y-%m-%d-%H-%M-%S')}")


def check_resume(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Refuse a ``--resume`` that training cannot go on from.

    Raises:
        NotFound: the folder does not exist, or has no checkpoint.
        BadValue: nothing is trained; the folder is that of a model within a run, or belongs to a
            run of another trainer.
    """
    folder = cfg.RESUME
    if not folder:
        return
    if args.eval_only or args.no_train:
        flag = "--eval-only" if args.eval_only else "--no-train"
        raise BadValue(f"--resume {folder} is for training, not for {flag}; leave one of them out")
    if not osp.isdir(folder):
        what = "is a file" if osp.isfile(folder) else "does not exist"
        raise NotFound(f"--resume {folder} {what}; give the output folder of a training")
    if _is_of_a_model(folder):
        parent = osp.dirname(osp.abspath(folder))
        raise BadValue(
            f"--resume {folder} is the folder of a model within a run; give the run's: {parent}"
        )
    if not any(entry.is_dir() and _is_of_a_model(entry.path) for entry in os.scandir(folder)):
        raise NotFound(
            f"--resume {folder} has no checkpoint; give the output folder of a training that has "
            "saved one, or leave --resume out to start anew"
        )
    theirs = dict(flat(read_config(folder)))  # none of another codebase's
    there = named(theirs)
    here = named(dict(flat(cfg)))
    if theirs and there != here:
        raise BadValue(
            f"--resume {folder} holds a training of {' with '.join(filter(None, there))} and this "
            f"is {' with '.join(filter(None, here))}; go on with the same trainer, or start from "
            "its values by MODEL.INIT_WEIGHTS"
        )


def check_model_dir(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Refuse an evaluation of nothing, or in the folder of the training that it evaluates.

    Raises:
        BadValue: no model folder although the trainer learns something, or one that is the output
            folder.
        NotFound: the model folder does not exist.
    """
    if args.probe:
        return  # see probing.check_flags
    if not args.eval_only:
        if args.model_dir:
            raise BadValue(
                f"--model-dir {args.model_dir} is for --eval-only and --probe; to go on from a "
                "checkpoint give --resume, to start from its values MODEL.INIT_WEIGHTS"
            )
        return
    if not args.model_dir:
        if is_zero_shot(cfg.TRAINER.NAME):
            return
        raise BadValue(
            f"--eval-only of {cfg.TRAINER.NAME} needs --model-dir, the output folder of the "
            "training to evaluate; without training there is ZeroshotCLIP"
        )
    if not osp.isdir(args.model_dir):
        raise NotFound(
            f"--model-dir {args.model_dir} does not exist; give the output folder of a training"
        )
    if osp.realpath(args.model_dir) == osp.realpath(cfg.OUTPUT_DIR):
        raise BadValue(
            f"--output-dir and --model-dir are both {args.model_dir}; give an output folder of its "
            "own, so that the training's log and result stay what they are"
        )


def named(options: dict[str, Any]) -> tuple[str, str]:
    """Host trainer and regulariser, whether the trainer's name says it, the config, or both."""
    host, own = split_run_name(str(options.get("TRAINER.NAME")))
    return host, options.get("TRAINER.PROXYFDA.REGULARISER") or own


def _is_of_a_model(folder: str) -> bool:
    names = os.listdir(folder)
    return _POINTER in names or any(_CHECKPOINT in name for name in names)
