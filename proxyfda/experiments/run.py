"""One run: train or evaluate a trainer on a dataset, with the flags of CoOp's train.py.

Later settings win: the engine's defaults, the options of trainers and datasets, the dataset's
config file, the trainer's config files in their order, the named flags, the trailing KEY VALUE
options.
"""

from __future__ import annotations

import argparse
import os.path as osp
import platform
import shlex
import time

import torch
from yacs.config import CfgNode

import proxyfda
from proxyfda.benchmarks import dataset_key
from proxyfda.dassl import (
    ENGINE,
    announce_engine,
    build_trainer,
    collect_env_info,
    log_to,
    open_log,
    set_random_seed,
)
from proxyfda.experiments import folders, layout, probing, record
from proxyfda.experiments.config import load_config
from proxyfda.experiments.lock import folder_lock
from proxyfda.integrations.dassl_options import NODE, idle_options
from proxyfda.names import run_name
from proxyfda.utils.errors import UserError
from proxyfda.utils.files import write_text, writing
from proxyfda.utils.nested import flat, plain

_REGULARISER = f"{NODE}.REGULARISER"


def main(args: argparse.Namespace) -> dict | None:
    """Run one job.

    Args:
        args: what :func:`parser` makes of a command line.

    Returns:
        The content of its ``result.json``; ``None`` without an evaluation.

    Raises:
        UserError: a wrong option, folder or combination; nothing is written then.
        Busy: another process works in the output folder.
        CannotWrite: the disk is full or read-only.
    """
    probing.check_flags(args)
    cfg = load_config(args)
    if args.probe:
        cfg = probing.completed(args, cfg)
    check_output(args, cfg)
    folders.check_model_dir(args, cfg)
    folders.check_resume(args, cfg)
    described = describe(args, cfg)
    with (
        writing(within=cfg.OUTPUT_DIR),
        folder_lock(cfg.OUTPUT_DIR),
        folders.left_as_it_was(cfg.OUTPUT_DIR),
    ):
        return _run(args, cfg, described)


def _run(args: argparse.Namespace, cfg: CfgNode, described: dict) -> dict | None:
    started = time.perf_counter()
    claim_output(args, cfg)
    if cfg.SEED >= 0:
        print(f"Setting fixed seed: {cfg.SEED}")
        set_random_seed(cfg.SEED)
    else:
        print("No --seed is given: shots, initial values and batches differ from run to run")
    if cfg.DATASET.NUM_SHOTS < 0 and not (args.eval_only or args.no_train or args.probe):
        print(f"DATASET.NUM_SHOTS is {cfg.DATASET.NUM_SHOTS}: training on all training images")
    log_to(open_log(cfg.OUTPUT_DIR))
    if torch.cuda.is_available() and cfg.USE_CUDA:
        # Benchmarked kernels may differ from run to run.
        torch.backends.cudnn.benchmark = cfg.SEED < 0
    print_settings(args, cfg)
    announce_engine()
    if args.probe:
        result = {**described, **probing.run(args, cfg, described["source"] or "")}
        return record.write(cfg.OUTPUT_DIR, result)
    trainer = build_trainer(cfg)
    built = time.perf_counter()
    if args.eval_only:
        trainer.load_model(args.model_dir, epoch=args.load_epoch)
        trainer.test()
    elif not args.no_train:
        trainer.train()
    return finish(
        args, cfg, described, trainer, build=built - started, run=time.perf_counter() - built
    )


def finish(args, cfg, described: dict, trainer, **seconds: float) -> dict | None:
    """Write the ``result.json`` of a run that has ended.

    Args:
        described: what :func:`describe` says of it.
        trainer: with the result of its evaluation, ``last_result``.
        seconds: that its parts took.

    Returns:
        The content; ``None`` without an evaluation.
    """
    if getattr(trainer, "last_result", None) is None:
        return None
    result = {
        **trainer.last_result,
        **described,
        "dataset": getattr(trainer.dm.dataset, "name", cfg.DATASET.NAME),
        "epoch": args.load_epoch if args.eval_only else trainer.max_epoch,
        "time": {key: round(value, 3) for key, value in seconds.items()},
    }
    return record.write(cfg.OUTPUT_DIR, result)


def print_settings(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Print the command line's arguments, and where the whole config and the versions are."""
    given = [
        f"{key} {value if isinstance(value, str) else shlex.join(map(str, value))}"
        if isinstance(value, (str, list, tuple))
        else f"{key} {value}"
        for key, value in sorted(vars(args).items())
        if value not in ("", None, False, [])
    ]
    print(f"Arguments: {'; '.join(given)}")
    write_text(osp.join(cfg.OUTPUT_DIR, layout.ENVIRONMENT), collect_env_info() + "\n")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() and cfg.USE_CUDA else "CPU"
    print(
        f"proxyfda {proxyfda.__version__}, torch {torch.__version__}, {device}; config in "
        f"{osp.join(cfg.OUTPUT_DIR, layout.CONFIG)}, environment in {layout.ENVIRONMENT} beside it"
    )


# -- what a run is --------------------------------------------------------------------------------


def describe(args: argparse.Namespace, cfg: CfgNode) -> dict:
    """What ``result.json`` says of a run beside its result: all that is needed to repeat it.

    Raises:
        BadValue: a regulariser that does not fit the trainer.
    """
    import open_clip
    import torchvision

    from proxyfda.integrations.dassl import describe_regulariser

    place = layout.parse(cfg.OUTPUT_DIR)
    files = [osp.splitext(osp.basename(path))[0] for path in args.config_file]
    return {
        "protocol": args.protocol or (place.protocol if place else None),
        "source": trained_on(args, cfg) or None,
        "target": _dataset_of(args, cfg),
        "name": run_name(cfg.TRAINER.NAME, cfg.TRAINER.PROXYFDA.REGULARISER),
        "trainer": cfg.TRAINER.NAME,
        "regulariser": describe_regulariser(cfg),
        "backbone": {"name": cfg.MODEL.BACKBONE.NAME, **_weights(cfg)},
        "config": layout.config_name(files[0], files[1:]) if files else "",
        "shots": cfg.DATASET.NUM_SHOTS,
        "seed": cfg.SEED,
        "subsample": cfg.DATASET.SUBSAMPLE_CLASSES,
        "engine": ENGINE,
        "versions": {
            "proxyfda": proxyfda.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "open_clip": open_clip.__version__,
        },
        "cfg": plain(cfg),
    }


def _weights(cfg: CfgNode) -> dict:
    """The weights of the backbone: their tag, or a file with its size."""
    weights = cfg.MODEL.BACKBONE.WEIGHTS
    size = {"bytes": osp.getsize(weights)} if osp.isfile(weights) else {}
    return {"weights": weights, **size}


def _dataset_of(args: argparse.Namespace, cfg: CfgNode) -> str:
    """The dataset of a run, named as its config file is."""
    name = osp.splitext(osp.basename(args.dataset_config_file))[0]
    return dataset_key(name or cfg.DATASET.NAME)


def trained_on(args: argparse.Namespace, cfg: CfgNode) -> str:
    """The dataset that the evaluated prompts were trained on; empty where none or not known.

    For an evaluation it is what the training wrote into ``--model-dir``; of another codebase's
    training only the folder names are left.
    """
    if not (args.eval_only or args.probe):
        return _dataset_of(args, cfg)
    if not args.model_dir:
        return ""
    try:
        source = record.read(args.model_dir).get("source")
        if source:
            return source
    except UserError:
        pass  # it has no result, or a damaged one: its config says the same
    theirs = dict(flat(folders.read_config(args.model_dir)))
    if theirs:
        return theirs.get("source") or dataset_key(theirs.get("DATASET.NAME") or "")
    place = layout.parse(args.model_dir)
    return dataset_key(place.dataset) if place else ""


def _identity(args: argparse.Namespace, cfg: CfgNode) -> dict:
    """What a run is: its config, and what it was trained on."""
    task = "probe" if args.probe else "eval" if args.eval_only else "train"
    what = {"task": task, "source": trained_on(args, cfg)}
    if args.probe:
        what.update(probes=list(probing.files(args)), alpha=probing.alpha_of(args))
    return {**what, **plain(cfg)}


# -- its folders ----------------------------------------------------------------------------------


def check_output(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Refuse an output folder that holds a run with another config.

    A folder that holds no work yet, as after a run that could not be built, takes any config.

    Raises:
        AlreadyExists: naming the first option that differs; nothing is touched.
        BadValue: the config there is damaged, so that it says nothing of the work beside it.
    """
    folders.refuse_another(cfg.OUTPUT_DIR, lambda: _changed(args, cfg))


def _changed(args: argparse.Namespace, cfg: CfgNode) -> folders.Compared:
    """Options in which the run in the output folder differs from this one, and those of both."""
    theirs = dict(flat(folders.read_config(cfg.OUTPUT_DIR)))
    ours = dict(flat(_identity(args, cfg)))
    if not theirs:
        return [], theirs, ours
    for one in (ours, theirs):
        one[_REGULARISER] = folders.named(one)[1]
    idle = idle_options(ours[_REGULARISER]) & idle_options(theirs[_REGULARISER])
    free = {*record.FREE, *(f"{NODE}.{option}" for option in idle)}
    if cfg.DATASET.NAME == "ImageFolder":
        free.remove("DATASET.ROOT")  # there the root is the dataset
    if not (args.eval_only or args.probe) or not ours["source"] or not theirs.get("source"):
        # Of a training DATASET says it; a prompt of another codebase, or one that has been moved
        # away, does not tell.
        free.add("source")
    changed = [
        key
        for key in sorted(set(ours) | set(theirs))
        if key not in free
        and ours.get(key) != theirs.get(key)
        and (args.probe or not key.startswith("PROBE."))
    ]
    return changed, theirs, ours


def claim_output(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Mark the output folder with this run's config, unless it belongs to another."""
    folders.claim(cfg.OUTPUT_DIR, _identity(args, cfg), lambda: _changed(args, cfg))


# -- the command line -----------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Gives options after the files of ``--config-file`` back: it takes all words up to a flag."""

    def parse_known_args(self, args=None, namespace=None):
        found, unknown = super().parse_known_args(args, namespace)
        files = found.config_file
        count = next(
            (i for i, word in enumerate(files) if i and not word.endswith((".yaml", ".yml"))),
            len(files),
        )
        found.config_file, found.opts = files[:count], files[count:] + found.opts
        return found, unknown


def parser() -> argparse.ArgumentParser:
    """The command line: CoOp's flags and a few of ours."""
    parser = _Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--root", default="", help="folder with the datasets")
    add("--output-dir", default="", help="where the run is written")
    add(
        "--resume",
        default="",
        help="folder of the checkpoint to go on from (default: the output folder)",
    )
    add("--seed", type=int, default=-1, help="a negative seed leaves everything random")
    add("--transforms", nargs="+", help="data augmentation, in place of INPUT.TRANSFORMS")
    add(
        "--config-file",
        nargs="+",
        default=[],
        metavar="FILE",
        help="config of the trainer; more files are merged on top of it, such as one of "
        "configs/regularisers",
    )
    add("--dataset-config-file", default="", help="config of the dataset")
    add("--trainer", default="", help="name of the trainer")
    add(
        "--regulariser",
        default="",
        metavar="NAME",
        help="what to train with against forgetting, with any trainer (none: nothing)",
    )
    add("--backbone", default="", help="name of the CLIP backbone")
    add("--eval-only", action="store_true", help="evaluate only")
    add(
        "--model-dir",
        default="",
        help="folder to load the model from with --eval-only or --probe",
    )
    add(
        "--probe",
        default="",
        metavar="FILES",
        help="config files of datasets, joined by commas: linear probe and zero-shot accuracy on "
        "each, of the encoder that was tuned in --model-dir, else of the backbone",
    )
    add(
        "--alpha",
        type=float,
        help="with --probe: share of the tuned weights, the rest being the pre-trained ones "
        "(WiSE-FT; default 1)",
    )
    add(
        "--no-cache",
        action="store_true",
        help="of frozen image features, keep none on the disk and read none",
    )
    add("--load-epoch", type=int, help="epoch of that model (default: the best, else the last)")
    add("--no-train", action="store_true", help="build everything, do not train")
    add(
        "--protocol",
        default="",
        choices=("", *layout.PROTOCOLS),
        help="what the run is part of, for its result (default: as its output folder says)",
    )
    add("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that override the config")
    return parser
