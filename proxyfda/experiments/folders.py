"""The folder of a run: whether it may be had, what kills left in it, and how it is left.

It belongs to the run that its ``config.yaml`` says once there is work in it (:func:`holds_work`);
until then it is open to any.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import os.path as osp
import time
from collections.abc import Callable, Iterator
from typing import Any

import yaml
from yacs.config import CfgNode

from proxyfda.engine.writers import LEFT
from proxyfda.experiments import layout
from proxyfda.experiments.lock import LOCK
from proxyfda.names import is_zero_shot, split_run_name
from proxyfda.utils.errors import AlreadyExists, BadValue, NotFound, UserError
from proxyfda.utils.files import remove_partial, write_text
from proxyfda.utils.nested import flat

_WRITTEN_ANEW = (layout.CONFIG, layout.ENVIRONMENT, layout.ERROR)
_OF_THE_BEGINNING = {layout.CONFIG, layout.ENVIRONMENT, layout.LOG}
_APPENDED_TO = (layout.LOG, layout.TENSORBOARD, *LEFT)
Compared = tuple[list[str], dict[str, Any], dict[str, Any]]
"""Options in which the run in a folder differs from another one, and all of both, flat."""
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
        entry.name not in _WRITTEN_ANEW
        and not _is_of(entry.name, _APPENDED_TO)
        and not entry.name.startswith(LOCK)
        and not entry.name.endswith(".tmp")
        and (not entry.is_dir() or any(holds for _, _, holds in os.walk(entry.path)))
        for entry in entries
    )


def _is_of(name: str, files: tuple[str, ...]) -> bool:
    """Whether a name is one of some files', or one that was set aside."""
    return any(name == file or name.startswith(f"{file}-") for file in files)


def refuse_another(folder: str, compared: Callable[[], Compared]) -> None:
    """Refuse a folder that holds the work of a run with another config; nothing is touched.

    Args:
        compared: the run there beside the one to come; called only if there is work.

    Raises:
        AlreadyExists: naming the first option that differs.
        BadValue: the config there is damaged, so that it says nothing of the work beside it.
    """
    if not holds_work(folder):
        return
    changed, theirs, ours = compared()
    if changed:
        key = changed[0]
        raise AlreadyExists(
            f"{folder} holds a run with another config "
            f"({key} is {theirs.get(key)!r} there and {ours.get(key)!r} here"
            + (f", and {len(changed) - 1} more" if len(changed) > 1 else "")
            + "); choose another output folder or remove that one"
        )


def claim(folder: str, config: dict[str, Any], compared: Callable[[], Compared]) -> None:
    """Mark a folder, whose lock is held, with a run's config, and tidy it.

    Args:
        config: of the run to come.
        compared: see :func:`refuse_another`.

    Raises:
        AlreadyExists, BadValue: see :func:`refuse_another`.
    """
    refuse_another(folder, compared)
    path, another = osp.join(folder, layout.CONFIG), False
    if not holds_work(folder):
        try:
            another = bool(compared()[0])
        except BadValue:
            another = True
    remove_partial(folder)
    if another:
        _set_aside(folder)
    if another or not osp.exists(path):
        write_text(path, yaml.safe_dump(config, sort_keys=False))


def _set_aside(folder: str) -> None:
    """Give new names to what the run to come would append to, which is another one's."""
    for name in _APPENDED_TO:
        path = osp.join(folder, name)
        if osp.exists(path):
            with contextlib.suppress(OSError):
                os.rename(path, f"{path}-{time.strftime('%Y-%m-%d-%H-%M-%S')}")


@contextlib.contextmanager
def left_as_it_was(folder: str) -> Iterator[None]:
    """Where a user's mistake ends a run that has written nothing but files of its beginning, take
    them away again: whoever looks finds what was there before. Curves are of a training that has
    begun, and stay with its log."""
    before = set(os.listdir(folder))
    try:
        yield
    except UserError:
        new = set(os.listdir(folder)) - before
        if new <= _OF_THE_BEGINNING:
            for name in new:
                os.remove(osp.join(folder, name))
        raise


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
