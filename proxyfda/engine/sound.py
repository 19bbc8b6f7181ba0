"""The checkpoints that a run can go on from: whole, finite, and of one epoch in all its folders."""

from __future__ import annotations

import functools
import os
import re
from typing import NamedTuple

import torch

from proxyfda.utils.errors import BadValue, NotFound, UserError, sentence

from .checkpoint import BEST, POINTER, last_saved, load_checkpoint, restore, weights_in
from .optim import steps_taken
from .utils import get_rng_state, set_rng_state

_NUMBERED = re.compile(r"model\.pth\.tar-(\d+)")


class Place(NamedTuple):
    """Where the checkpoints of one model are, and what else is to be restored from them.

    Attributes:
        folder: of the model.
        optimizer, scheduler: of the trainer; None for what it does not have.
        steps_per_epoch: that a schedule takes at most; None if that is not known.
        beside: called with an epoch; raises if what else is kept of it is damaged.
    """

    folder: str
    optimizer: torch.optim.Optimizer | None = None
    scheduler: object = None
    steps_per_epoch: int | None = None
    beside: object = None


def places(trainer, directory):
    """The `Place` of every model of a trainer below `directory`."""
    loader = getattr(trainer, "train_loader_x", None)
    steps = None if loader is None else max(len(loader), 1)
    beside = functools.partial(trainer.check_beside, directory)
    return [
        Place(
            os.path.join(directory, name),
            trainer._optims[name],
            trainer._scheds[name],
            steps,
            beside,
        )
        for name in trainer.get_model_names()
    ]


def common_checkpoints(where):
    """Checkpoints of epochs of which each of several models has a sound one, the newest first.

    Args:
        where: the `Place` of each model.

    Yields pairs of the epoch and, in the order of `where`, pairs of file and its content. A line
    is printed for each file that is passed over. Nothing is newer than what a folder's pointer
    names, so that a user can go back; a folder without a pointer has no checkpoint.
    """
    rows = [_sound(place) for place in where]
    heads = [next(row, None) for row in rows]
    while heads and all(heads):
        newest = max(epoch for epoch, _, _ in heads)
        if all(epoch == newest for epoch, _, _ in heads):
            yield newest, [(path, content) for _, path, content in heads]
        heads = [next(row, None) if head[0] == newest else head for row, head in zip(rows, heads)]


def _sound(place):
    for path in _files(place.folder):
        try:
            checkpoint = load_checkpoint(path)
            check(checkpoint, path, place)
            _check_best(checkpoint, place.folder)
            if place.beside is not None:
                place.beside(checkpoint["epoch"])
        except UserError as error:
            print(f"Not going on from {os.path.basename(path)}: {sentence(error)}")
            continue
        yield checkpoint["epoch"], path, checkpoint


def _files(folder):
    """Paths of a model's checkpoints, the one that the pointer names first and then older ones."""
    if not os.path.exists(os.path.join(folder, POINTER)):
        return []
    pointed, names = last_saved(folder) or "", os.listdir(folder)
    epochs = {
        name: int(_NUMBERED.fullmatch(name)[1]) for name in names if _NUMBERED.fullmatch(name)
    }
    match = _NUMBERED.fullmatch(pointed)
    newest = int(match[1]) if match else max(epochs.values(), default=0)
    older = [name for name in epochs if epochs[name] <= newest and name != pointed]
    first = [pointed] if pointed in names and os.path.basename(pointed) == pointed else []
    return [os.path.join(folder, name) for name in first + sorted(older, key=epochs.get)[::-1]]


def check(checkpoint, path, place=None):
    """Refuse a checkpoint that training cannot go on from, whatever the model.

    Args:
        checkpoint: what `load_checkpoint` gave.
        path: of its file.
        place: with the optimiser and schedule that its state has to fit; None to look at neither.

    Raises:
        BadValue: it is no checkpoint, or a part of it is damaged.
        NotFinite: a weight is infinite or no number.
    """
    weights_in(checkpoint, path)
    epoch = checkpoint.get("epoch")
    match = _NUMBERED.fullmatch(os.path.basename(path))
    if type(epoch) is not int or epoch < 1 or (match and int(match[1]) != epoch):
        raise _damaged(path, f"epoch {epoch!r}")
    for part, fits in {
        "optimizer": lambda state: _fits_optimizer(state, place and place.optimizer),
        "scheduler": lambda state: _fits_schedule(state, epoch, place),
        "scaler": lambda state: isinstance(state, dict),
        "best_result": lambda best: isinstance(best, (int, float)) and best == best,
        "extra": lambda state: isinstance(state, dict),
        "rng": _fits_generators,
    }.items():
        state = checkpoint.get(part)
        if state is not None and not fits(state):
            raise _damaged(path, part)


def _check_best(checkpoint, folder):
    """A run that has kept its best model needs that one too, in the end."""
    path, best = os.path.join(folder, BEST), checkpoint.get("best_result")
    if best is not None and best > -float("inf") and os.path.isfile(path):
        check(load_checkpoint(path), path)


def _damaged(path, part):
    return BadValue(f'"{path}" has a damaged {part}: delete it or restore it from a copy')


def _fits_optimizer(state, optimizer):
    if optimizer is None:
        return isinstance(state, dict)
    try:
        groups, kept = state["param_groups"], state["state"]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        indices = [index for group in groups for index in group["params"]]
        sizes = [len(group["params"]) for group in groups]
        return (
            sizes == [len(group["params"]) for group in optimizer.param_groups]
            and all(map(_fits_group, groups, optimizer.param_groups))
            and all(
                _fits_parameter(value, parameter)
                for index, parameter in zip(indices, parameters)
                for value in kept.get(index, {}).values()
            )
        )
    except (TypeError, KeyError, AttributeError):
        return False


def _fits_group(group, own):
    """Whether settings of a group are numbers where the optimiser's own are."""
    number = (int, float)
    return all(
        isinstance(group[name], number)
        for name, value in own.items()
        if name in group and isinstance(value, number)
    )


def _fits_parameter(value, parameter):
    if not isinstance(value, torch.Tensor):
        return value is None or isinstance(value, (bool, int, float))
    return value.numel() == 1 or value.shape == parameter.shape


def _fits_schedule(state, epoch, place):
    if place is None or place.scheduler is None:
        return isinstance(state, dict)
    try:
        steps = steps_taken(state)
    except (TypeError, KeyError, AttributeError):
        return False
    # A schedule takes a step per epoch, or per batch.
    return type(steps) is int and 0 <= steps <= epoch * (place.steps_per_epoch or 10**6)


def _fits_generators(state):
    now = get_rng_state()
    try:
        set_rng_state(state)
    except Exception:  # of numpy, torch and Python, each of its own kinds
        return False
    finally:
        set_rng_state(now)
    return True


def resume_from_checkpoint(fdir, model, optimizer=None, scheduler=None):
    """Continue from the last sound checkpoint in `fdir`; returns the number of epochs done.

    Raises:
        NotFound: there is none.
        BadValue: it is of another model.
    """
    for epoch, [(path, checkpoint)] in common_checkpoints([Place(fdir, optimizer, scheduler)]):
        restore(checkpoint, path, model, optimizer, scheduler)
        return epoch
    raise NotFound(f'No sound checkpoint in "{fdir}": give a folder of a model that was trained')
