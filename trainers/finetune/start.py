"""The encoder of an earlier run as the start of a new one."""

from __future__ import annotations

import os.path as osp

from torch import nn
from yacs.config import CfgNode

from proxyfda.backbones.weights import mismatches
from proxyfda.dassl import TRAINER_REGISTRY, find_checkpoint
from proxyfda.experiments import layout
from proxyfda.experiments.folders import read_config
from proxyfda.experiments.tuned import checkpoint_state
from proxyfda.utils.errors import BadValue, NotFound
from proxyfda.utils.nested import flat

__all__ = ["check_start", "load_part"]


def check_start(folder: str, cfg: CfgNode, option: str) -> None:
    """Refuse a folder whose encoder cannot be gone on with.

    Args:
        folder: of an earlier run.
        cfg: the config of this one.
        option: that names the folder.

    Raises:
        NotFound: no such folder.
        BadValue: not a run that tunes end to end, or one of another backbone.
    """
    if not osp.isdir(folder):
        raise NotFound(
            f"{option} {folder} does not exist; give the output folder of a FineTune run"
        )
    try:
        theirs = dict(flat(read_config(folder)))
    except BadValue:
        theirs = {}
    name = theirs.get("TRAINER.NAME")
    known = TRAINER_REGISTRY.registered_names()
    tunes = name in known and getattr(TRAINER_REGISTRY.get(name), "tunes_encoder", False)
    if not tunes:
        held = f"one of {name}" if name else f"no readable {layout.CONFIG}"
        raise BadValue(
            f"{option} {folder} is not a run that tunes an encoder end to end (it holds {held}); "
            "give the output folder of a FineTune run"
        )
    for key in ("NAME", "WEIGHTS"):
        there = theirs.get(f"MODEL.BACKBONE.{key}")
        here = cfg.MODEL.BACKBONE[key]
        if there != here:
            raise BadValue(
                f"{option} {folder} has MODEL.BACKBONE.{key} {there!r} and this run {here!r}; give "
                "a run of the same backbone"
            )


def load_part(module: nn.Module, directory: str, name: str, epoch: int | None = None) -> str:
    """Fill a module from the checkpoint of that name in a run's folder; returns the file's path.

    Args:
        epoch: None for the best on the validation set, if one was kept, else the last.

    Raises:
        NotFound: no such checkpoint.
        BadValue: a file that is damaged or of another module.
    """
    path = find_checkpoint(directory, name, epoch)
    state = checkpoint_state(path)
    problems = mismatches(module.state_dict(), state)
    if problems:
        raise BadValue(
            f"{path} does not fit the {name} of this run: {problems}; give the same "
            "MODEL.BACKBONE and INPUT.SIZE as in its training"
        )
    module.load_state_dict(state)
    return path
