"""Optimisers and learning-rate schedules from the OPTIM node of the config."""

from __future__ import annotations

import warnings

import torch
from torch import nn
from torch.optim import lr_scheduler as schedules

from proxyfda.utils.errors import BadType, BadValue, Unusable
from proxyfda.utils.suggest import did_you_mean

from .registry import check_availability

# its name before torch 2.0
LRScheduler = getattr(schedules, "LRScheduler", schedules._LRScheduler)

OPTIMISERS = ("sgd", "adam", "amsgrad", "adamw", "radam", "rmsprop")
SCHEDULES = ("single_step", "multi_step", "cosine")
WARMUPS = {"linear": "WARMUP_MIN_LR", "constant": "WARMUP_CONS_LR"}
"""Kinds of warm-up -> the option of OPTIM with the learning rate that they start at."""


def _staged_groups(model, optim_cfg):
    """Two groups: top-level children outside NEW_LAYERS at a reduced rate, the others at LR."""
    if not isinstance(model, nn.Module):
        raise BadType("OPTIM.STAGED_LR needs a module, not bare parameters (set it to False)")
    model = getattr(model, "module", model)
    new_layers = optim_cfg.NEW_LAYERS
    new_layers = [new_layers] if isinstance(new_layers, str) else list(new_layers)
    children = {name for name, child in model.named_children() if list(child.parameters())}
    loose = [name for name, _ in model.named_parameters(recurse=False)]
    if loose:
        raise BadValue(
            f"OPTIM.STAGED_LR is True, but {', '.join(loose)} of {type(model).__name__} is in no "
            "layer and would not be trained; set it to False"
        )
    for name in new_layers:
        if name not in children:
            raise BadValue(
                f"OPTIM.NEW_LAYERS has {name!r}{did_you_mean(name, children)}, which is no layer "
                f"of {type(model).__name__} with weights; use any of {', '.join(sorted(children))}"
            )
    base, new = [], []
    for name, child in model.named_children():
        (new if name in new_layers else base).extend(child.parameters())
    return [{"params": base, "lr": optim_cfg.LR * optim_cfg.BASE_LR_MULT}, {"params": new}]


def build_optimizer(model, optim_cfg, param_groups=None):
    """The optimiser that OPTIM.NAME asks for.

    Args:
        model: a module, or an iterable of parameters or of parameter groups (dicts).
        optim_cfg: the OPTIM node.
        param_groups: parameters or groups to use instead of `model`.

    Raises ValueError for an unknown OPTIM.NAME.
    """
    cfg = optim_cfg
    if param_groups is None:
        if cfg.STAGED_LR:
            param_groups = _staged_groups(model, cfg)
        else:
            param_groups = model.parameters() if isinstance(model, nn.Module) else model
    betas = {"betas": (cfg.ADAM_BETA1, cfg.ADAM_BETA2)}
    sgd = {
        "momentum": cfg.MOMENTUM,
        "dampening": cfg.SGD_DAMPNING,
        "nesterov": cfg.SGD_NESTEROV,
    }
    kinds = {
        "sgd": (torch.optim.SGD, sgd),
        "adam": (torch.optim.Adam, betas),
        "amsgrad": (torch.optim.Adam, {**betas, "amsgrad": True}),
        "adamw": (torch.optim.AdamW, betas),
        "radam": (torch.optim.RAdam, betas),
        "rmsprop": (torch.optim.RMSprop, {"momentum": cfg.MOMENTUM, "alpha": cfg.RMSPROP_ALPHA}),
    }
    check_availability(cfg.NAME, OPTIMISERS, "OPTIM.NAME")
    optimizer, options = kinds[cfg.NAME]
    return optimizer(param_groups, lr=cfg.LR, weight_decay=cfg.WEIGHT_DECAY, **options)


class WarmupLR(LRScheduler):
    """`warmup_epoch` steps of low learning rates, then the `successor`, which starts only then.

    The successor counts from its own beginning: the warm-up does not shorten a cosine. Its state is
    saved as a dict, so that the checkpoint loads without unpickling objects.
    """

    def __init__(self, optimizer, successor, warmup_epoch, warmup_type, first_lr):
        self.successor = successor
        self.warmup_epoch = warmup_epoch
        self.warmup_type = warmup_type
        self.first_lr = first_lr
        super().__init__(optimizer)

    def get_lr(self):
        if self.last_epoch >= self.warmup_epoch:
            return self.successor.get_last_lr()
        if self.warmup_type == "constant" or self.last_epoch == 0:
            return [self.first_lr] * len(self.base_lrs)
        return [lr * self.last_epoch / self.warmup_epoch for lr in self.base_lrs]

    def step(self, epoch=None):
        if self.last_epoch < self.warmup_epoch:
            super().step()
        else:
            self.successor.step()
            self._last_lr = self.successor.get_last_lr()

    def state_dict(self):
        return scheduler_state(super())

    def load_state_dict(self, state_dict):
        state = dict(state_dict)
        self.successor.load_state_dict(state.pop("successor"))
        super().load_state_dict(state)


def scheduler_state(scheduler):
    """`scheduler.state_dict()` with a scheduler held inside it turned into its own state dict."""
    return {
        key: value.state_dict() if isinstance(value, LRScheduler) else value
        for key, value in scheduler.state_dict().items()
    }


def steps_taken(state):
    """How often the scheduler behind a saved state was stepped (Dassl's own states included).

    `_step_count` begins at 1: constructing a scheduler takes its first step.
    """
    successor = state.get("successor")
    if successor is None:
        return state["_step_count"] - 1
    inner = successor if isinstance(successor, dict) else vars(successor)
    return state["last_epoch"] + inner["_step_count"] - 1


def fast_forward(scheduler, steps):
    """Step a scheduler until it has taken `steps`, setting the optimiser's rates as it goes.

    The same arithmetic in the same order as an uninterrupted run, hence the same rates to the bit;
    and the shape of the schedule comes from the config at hand, not from a checkpoint.
    """
    missing = steps - steps_taken(scheduler_state(scheduler))
    if missing < 0:
        raise Unusable(
            f"The schedule is {-missing} steps past the checkpoint's: build a new trainer to resume"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "lr_scheduler.step() before optimizer.step()"
        for _ in range(missing):
            scheduler.step()


def build_lr_scheduler(optimizer, optim_cfg):
    """The schedule of OPTIM.LR_SCHEDULER (single_step, multi_step, cosine), with its warm-up.

    Stepped once per epoch. Raises ValueError for unknown names, TypeError for a STEPSIZE of the
    wrong kind.
    """
    cfg = optim_cfg
    check_availability(cfg.LR_SCHEDULER, SCHEDULES, "OPTIM.LR_SCHEDULER")
    steps = cfg.STEPSIZE if isinstance(cfg.STEPSIZE, (list, tuple)) else [cfg.STEPSIZE]
    if cfg.LR_SCHEDULER != "cosine" and not all(isinstance(step, int) for step in steps):
        raise BadType(f"OPTIM.STEPSIZE must hold whole epochs, not {cfg.STEPSIZE}")
    if cfg.LR_SCHEDULER == "cosine":
        scheduler = schedules.CosineAnnealingLR(optimizer, float(cfg.MAX_EPOCH))
    elif cfg.LR_SCHEDULER == "multi_step":
        scheduler = schedules.MultiStepLR(optimizer, milestones=list(steps), gamma=cfg.GAMMA)
    else:
        size = steps[-1] if steps[-1] > 0 else cfg.MAX_EPOCH
        scheduler = schedules.StepLR(optimizer, step_size=size, gamma=cfg.GAMMA)
    if cfg.WARMUP_EPOCH <= 0:
        return scheduler
    check_availability(cfg.WARMUP_TYPE, WARMUPS, "OPTIM.WARMUP_TYPE")
    if not cfg.WARMUP_RECOUNT:
        scheduler.last_epoch = cfg.WARMUP_EPOCH
    first_lr = getattr(cfg, WARMUPS[cfg.WARMUP_TYPE])
    return WarmupLR(optimizer, scheduler, cfg.WARMUP_EPOCH, cfg.WARMUP_TYPE, first_lr)
