"""Several runs that differ in their settings alone, trained in one pass.

Every run writes the folder that it would write by itself, with the same numbers up to rounding, and
goes on from it; whatever reads runs needs to know nothing of grids. How a step of several runs is
made is the trainer's matter (``build_grid``).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import time

import torch
from yacs.config import CfgNode

from proxyfda.dassl import TRAINER_REGISTRY, announce_engine, open_log
from proxyfda.experiments import folders, run
from proxyfda.experiments.config import load_config
from proxyfda.experiments.jobs import Job
from proxyfda.experiments.lock import folder_lock
from proxyfda.integrations.dassl import describe_regulariser
from proxyfda.names import split_run_name
from proxyfda.utils.errors import BadValue, UserError
from proxyfda.utils.files import writing
from proxyfda.utils.nested import flat

SHARED_OPTIM = ("OPTIM.MAX_EPOCH",)
"""Options of the optimiser in which the runs of a grid have to agree."""


def main(runs: list[argparse.Namespace]) -> list[dict | UserError | None]:
    """Train runs together.

    Args:
        runs: what :func:`proxyfda.experiments.run.parser` makes of each run's command line.

    Returns:
        For each run the content of its ``result.json``, ``None`` where it has no evaluation, or the
        error that it dropped out with while the others went on.

    Raises:
        UserError: a wrong option or folder, or runs that cannot be trained together; nothing is
            trained then.
        Busy: another process works in one of the output folders.
    """
    cfgs = [load_config(args) for args in runs]
    build = check(runs, cfgs)
    for args, cfg in zip(runs, cfgs):
        run.check_output(args, cfg)
        folders.check_model_dir(args, cfg)
    described = [{**run.describe(args, cfg), "grid": len(runs)} for args, cfg in zip(runs, cfgs)]
    with contextlib.ExitStack() as stack:
        stack.enter_context(writing(within=cfgs[0].OUTPUT_DIR))
        for cfg in cfgs:
            stack.enter_context(folder_lock(cfg.OUTPUT_DIR))
        for args, cfg in zip(runs, cfgs):
            run.claim_output(args, cfg)
        logs = [stack.enter_context(open_log(cfg.OUTPUT_DIR)) for cfg in cfgs]
        started = time.perf_counter()
        print(f"{len(runs)} runs in one pass, each with its log in its own folder")
        announce_engine()
        for args, cfg, log in zip(runs, cfgs, logs):
            with contextlib.redirect_stdout(log):
                run.print_settings(args, cfg)
                print(f"Trained together with {len(runs) - 1} other runs")
        if torch.cuda.is_available() and cfgs[0].USE_CUDA:
            torch.backends.cudnn.benchmark = cfgs[0].SEED < 0
        grid = build(cfgs, logs)
        members, built = list(grid.members), time.perf_counter()
        grid.train()
        # What all did together counts for each by its share: the sum over runs is the time taken.
        seconds = {
            "build": (built - started) / len(runs),
            "run": (time.perf_counter() - built) / len(runs),
        }
        return [
            grid.failed.get(member) or run.finish(args, cfg, what, member, **seconds)
            for member, args, cfg, what in zip(members, runs, cfgs, described)
        ]


def join(jobs: list[Job]) -> None:
    """Let the trainings of a list that can go together run in one pass: set their ``Job.grid``."""
    groups: dict[tuple, list[Job]] = {}
    for job in jobs:
        if job.after or "--eval-only" in job.flags:
            continue
        job.module()  # registers the trainers
        if hasattr(TRAINER_REGISTRY.get(job.flag("--trainer")), "build_grid"):
            cfg = load_config(job.parsed())
            if not _beyond_the_batch(cfg):
                groups.setdefault(_what_is_shared(cfg), []).append(job)
    for group in groups.values():
        for job in group if len(group) > 1 else ():
            job.grid = group[0].folder


def _what_is_shared(cfg: CfgNode) -> tuple:
    """What makes the batches of a run; runs with the same can be trained in one pass."""
    what = describe_regulariser(cfg) or {}
    batches = tuple(what.get(key) or 0 for key in ("m", "n", "mining"))
    # K bounds the images of a class in a batch.
    batches += (what["options"].get("k") if batches[0] else None,)
    common = tuple((key, repr(value)) for key, value in sorted(flat(cfg)) if _is_common(key))
    return split_run_name(cfg.TRAINER.NAME)[0], batches, common


def _beyond_the_batch(cfg: CfgNode) -> str:
    """The option by which a run encodes more than its batch, which a grid prepares; or empty."""
    what = describe_regulariser(cfg) or {}
    return next((name.upper() for name in ("words", "mixed") if what.get(name)), "")


def check(runs: list[argparse.Namespace], cfgs: list[CfgNode]):
    """Refuse runs that cannot be trained together; gives what builds the grid of those that can.

    Raises:
        BadValue: naming the first thing that stands in the way.
    """
    if not runs:
        raise BadValue("a grid of no runs; give at least one")
    folders = [os.path.realpath(cfg.OUTPUT_DIR) for cfg in cfgs]
    for folder in folders:
        if folders.count(folder) > 1:
            raise BadValue(
                f"two runs of the grid have the output folder {folder}; give each its own"
            )
    for args, cfg in zip(runs, cfgs):
        if args.eval_only or args.no_train:
            flag = "--eval-only" if args.eval_only else "--no-train"
            raise BadValue(
                f"the run in {cfg.OUTPUT_DIR} has {flag}; a grid trains, so run that one by itself"
            )
        if cfg.RESUME:
            raise BadValue(
                f"the run in {cfg.OUTPUT_DIR} has --resume {cfg.RESUME}; a grid goes on from its "
                "runs' own folders, so leave it out or run that one by itself"
            )
        beyond = _beyond_the_batch(cfg)
        if beyond:
            raise BadValue(
                f"the run in {cfg.OUTPUT_DIR} uses TRAINER.PROXYFDA.{beyond}; a grid encodes the "
                "images and class texts of its batches alone, so run that one by itself"
            )
    hosts = [split_run_name(cfg.TRAINER.NAME)[0] for cfg in cfgs]
    build = getattr(TRAINER_REGISTRY.get(cfgs[0].TRAINER.NAME), "build_grid", None)
    if build is None:
        raise BadValue(
            f"{hosts[0]} cannot train several settings in one pass (for CoOp, whose image features "
            "do not depend on them, it can be done); run them one by one"
        )
    first = dict(flat(cfgs[0]))
    for cfg, host in zip(cfgs, hosts):
        theirs = dict(flat(cfg))
        differing = [key for key in sorted(first) if first[key] != theirs[key] and _is_common(key)]
        if host != hosts[0]:
            differing.insert(0, "TRAINER.NAME")
        if differing:
            key = differing[0]
            raise BadValue(
                f"{key} is {first[key]!r} for {cfgs[0].OUTPUT_DIR} and {theirs[key]!r} for "
                f"{cfg.OUTPUT_DIR}; runs of a grid may differ in TRAINER.PROXYFDA and OPTIM (but "
                f"not {' and '.join(SHARED_OPTIM)}) alone, so train them in grids of their own"
            )
    return build


def _is_common(key: str) -> bool:
    """Whether all runs of a grid have to agree in this option."""
    if key in SHARED_OPTIM:
        return True
    own = ("OUTPUT_DIR", "TRAINER.NAME", "TRAINER.PROXYFDA.", "OPTIM.", "DATALOADER.NUM_WORKERS")
    return not key.startswith(own)
