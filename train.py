"""Train and evaluate a trainer on a dataset, with the flags and the merge order of CoOp's train.py.

Merge order: Dassl's defaults, ``extend_cfg``, the dataset config file, the trainer config file, the
named flags, the trailing ``KEY VALUE`` options.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import json
import os
import os.path as osp
import platform
import time

import torch
import yaml
from yacs.config import CfgNode

import proxyfda
from proxyfda.experiments.lock import folder_lock
from proxyfda.utils.errors import AlreadyExists, BadValue, NotFound, show_user_errors

if __name__ == "__main__":
    show_user_errors()  # before the imports, which choose the engine

import datasets  # noqa: F401  (registers the readers)
import trainers  # noqa: F401  (registers the trainers)
from proxyfda.dassl import (
    ENGINE,
    TRAINER_REGISTRY,
    announce_engine,
    build_trainer,
    collect_env_info,
    get_cfg_default,
    set_random_seed,
    setup_logger,
)
from proxyfda.results import is_zero_shot

# What may differ between two runs in one output folder: it does not change what is computed.
_FREE_KEYS = (
    "OUTPUT_DIR",
    "RESUME",
    "VERBOSE",
    "DATASET.ROOT",
    "DATALOADER.NUM_WORKERS",
    "TRAIN.PRINT_FREQ",
    "MODEL.BACKBONE.GRAD_CHECKPOINTING",
)


def extend_cfg(cfg):
    """Add the options of this repository to Dassl's defaults."""
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"  # all, base or new
    for name in TRAINER_REGISTRY.registered_names():
        trainer = TRAINER_REGISTRY.get(name)
        if hasattr(trainer, "extend_cfg"):  # not so those of an installed Dassl
            trainer.extend_cfg(cfg)
    proxyfda.extend_cfg(cfg)


def print_args(args, cfg):
    """Print the flags and the merged config."""
    for title, lines in (
        ("Arguments", [f"{key}: {value}" for key, value in sorted(vars(args).items())]),
        ("Config", [str(cfg)]),
    ):
        print(f"{'*' * 15}\n** {title} **\n{'*' * 15}")
        print("\n".join(lines))


def reset_cfg(cfg, args):
    """Carry the named flags over into the config."""
    for value, node, key in (
        (args.root, cfg.DATASET, "ROOT"),
        (args.output_dir, cfg, "OUTPUT_DIR"),
        (args.resume, cfg, "RESUME"),
        (args.transforms, cfg.INPUT, "TRANSFORMS"),
        (args.trainer, cfg.TRAINER, "NAME"),
        (args.backbone, cfg.MODEL.BACKBONE, "NAME"),
    ):
        if value:
            node[key] = value
    if args.seed >= 0:
        cfg.SEED = args.seed


def _keys(cfg, prefix=""):
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def _near(key, cfg):
    near = difflib.get_close_matches(key, list(_keys(cfg)), n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else "see the config printed at the start of a run"


def _merge(merge, what, cfg):
    """Run one yacs merge; say its complaint in one sentence that names the option."""
    try:
        merge()
    except (KeyError, AssertionError) as error:
        missing = (
            str(error.args[0] if error.args else error)
            .replace("Non-existent key: ", "")
            .strip("'\" ")
        )
        raise BadValue(
            f"{what} sets {missing!r}, which is no option; {_near(missing, cfg)}"
        ) from None
    except ValueError as error:
        raise BadValue(f"{what} has a value of the wrong type: {error}") from None
    except yaml.YAMLError as error:
        raise BadValue(f"{what} is not valid YAML: {' '.join(str(error).split())}") from None


def _widened(value, wanted):
    """A whole number where a float is wanted, as a float: yacs takes no 25 for 25.0."""
    if isinstance(wanted, CfgNode) and isinstance(value, CfgNode):
        for key in value.keys() & wanted.keys():
            value[key] = _widened(value[key], wanted[key])
    elif isinstance(wanted, float) and type(value) is int:
        return float(value)
    return value


def _merge_file(cfg, path, flag):
    if not path:
        return
    if not osp.isfile(path):
        folder = osp.dirname(path) or "."
        known = (
            sorted(f for f in os.listdir(folder) if f.endswith(".yaml"))
            if osp.isdir(folder)
            else []
        )
        there = (
            f"the folder has {', '.join(known)}"
            if known
            else f"there is no {folder} with YAML files"
        )
        raise NotFound(f"{flag} {path} does not exist; {there}")

    def merge():
        with open(path) as file:
            cfg.merge_from_other_cfg(_widened(CfgNode.load_cfg(file), cfg))

    _merge(merge, f"{flag} {path}", cfg)


def _merge_opts(cfg, opts):
    if len(opts) % 2:
        raise BadValue(
            "the trailing options come in pairs KEY VALUE, but there are "
            f"{len(opts)} words: {' '.join(opts)}"
        )
    for key, value in zip(opts[::2], opts[1::2]):
        if key not in set(_keys(cfg)):
            raise BadValue(f"{key!r} is no option; {_near(key, cfg)}")
        option = f"option {key} {value}"
        wanted = functools.reduce(lambda node, name: node[name], key.split("."), cfg)
        if isinstance(wanted, float) and value.lstrip("+-").isdigit():
            value = float(value)
        _merge(lambda key=key, value=value: cfg.merge_from_list([key, value]), option, cfg)


def setup_cfg(args):
    """The frozen config of a run.

    Raises:
        ValueError: unknown option or value of the wrong type, naming it.
        FileNotFoundError: missing config file.
    """
    cfg = get_cfg_default()
    extend_cfg(cfg)
    _merge_file(cfg, args.dataset_config_file, "--dataset-config-file")
    _merge_file(cfg, args.config_file, "--config-file")
    reset_cfg(cfg, args)
    _merge_opts(cfg, args.opts)
    for name, flag in (("TRAINER", "--trainer"), ("DATASET", "--dataset-config-file")):
        if not cfg[name].NAME:
            raise BadValue(
                f"{name}.NAME is empty: give {flag}, or {name}.NAME as a trailing option"
            )
    cfg.freeze()
    return cfg


def plain(cfg):
    """A config as nested dicts of what JSON and YAML can hold."""
    if isinstance(cfg, dict):
        return {key: plain(value) for key, value in cfg.items()}
    return list(cfg) if isinstance(cfg, (tuple, list)) else cfg


def _flat(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def check_output(args, cfg=None):
    """Refuse an output folder that holds a run with another config.

    Raises:
        FileExistsError: naming the first option that differs; nothing is touched.
    """
    cfg = cfg or setup_cfg(args)
    path = osp.join(cfg.OUTPUT_DIR, "config.yaml")
    if not osp.exists(path):
        return
    with open(path) as file:
        theirs = dict(_flat(yaml.safe_load(file) or {}))
    ours = dict(_flat(_identity(args, cfg)))
    free = set(_FREE_KEYS)
    if cfg.DATASET.NAME == "ImageFolder":
        free.remove("DATASET.ROOT")  # there the root is the dataset
    if not ours["trained_on"] or not theirs.get("trained_on"):
        free.add("trained_on")  # a prompt of another codebase, or one that has been moved away
    changed = [
        key
        for key in sorted(set(ours) | set(theirs))
        if key not in free and ours.get(key) != theirs.get(key)
    ]
    if changed:
        key = changed[0]
        raise AlreadyExists(
            f"{cfg.OUTPUT_DIR} holds a run with another config "
            f"({key} is {theirs.get(key)!r} there and {ours.get(key)!r} here"
            + (f", and {len(changed) - 1} more" if len(changed) > 1 else "")
            + "); choose another output folder or remove that one"
        )


def _identity(args, cfg):
    """What a run is: its config, and what an evaluated prompt was trained on."""
    task, source = "eval" if args.eval_only else "train", ""
    path = osp.join(args.model_dir, "config.yaml")
    if args.eval_only and osp.isfile(path):
        with open(path) as file:
            source = ((yaml.safe_load(file) or {}).get("DATASET") or {}).get("NAME", "")
    return {"task": task, "trained_on": source, **plain(cfg)}


def claim_output(args, cfg):
    """Mark the output folder with this run's config, unless it belongs to another."""
    check_output(args, cfg)
    path = osp.join(cfg.OUTPUT_DIR, "config.yaml")
    if not osp.exists(path):
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
        _write(path, yaml.safe_dump(_identity(args, cfg), sort_keys=False))


def _write(path, text):
    # In one move: a reader sees the whole file or none.
    with open(path + ".tmp", "w") as file:
        file.write(text)
    os.replace(path + ".tmp", path)


def write_result(cfg, args, trainer, seconds):
    """Write ``result.json``: the unrounded result of a run and what is needed to repeat it."""
    import open_clip
    import torchvision

    result = {
        **trainer.last_result,
        "dataset": getattr(trainer.dm.dataset, "name", cfg.DATASET.NAME),
        "trainer": cfg.TRAINER.NAME,
        "config": osp.splitext(osp.basename(args.config_file))[0],
        "shots": cfg.DATASET.NUM_SHOTS,
        "seed": cfg.SEED,
        "subsample": cfg.DATASET.SUBSAMPLE_CLASSES,
        "epoch": trainer.max_epoch if not args.eval_only else args.load_epoch,
        "engine": ENGINE,
        "versions": {
            "proxyfda": proxyfda.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "open_clip": open_clip.__version__,
        },
        "time": {key: round(value, 3) for key, value in seconds.items()},
        "cfg": plain(cfg),
    }
    _write(osp.join(cfg.OUTPUT_DIR, "result.json"), json.dumps(result, indent=2) + "\n")
    return result


def check_model_dir(args, cfg):
    """Refuse an evaluation of nothing, or in the folder of the training that it evaluates.

    Raises:
        ValueError: no model folder although the trainer learns something, or one that is the
            output folder.
        FileNotFoundError: the model folder does not exist.
    """
    if not args.eval_only:
        if args.model_dir:
            raise BadValue(
                f"--model-dir {args.model_dir} is for --eval-only; to go on from a checkpoint give "
                "--resume, to start from its values MODEL.INIT_WEIGHTS"
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


def main(args):
    """Run one job; returns the content of its ``result.json`` (``None`` without an evaluation)."""
    cfg = setup_cfg(args)
    check_output(args, cfg)
    check_model_dir(args, cfg)
    with folder_lock(cfg.OUTPUT_DIR):
        return _run(args, cfg)


def _run(args, cfg):
    started = time.perf_counter()
    claim_output(args, cfg)
    if cfg.SEED >= 0:
        print(f"Setting fixed seed: {cfg.SEED}")
        set_random_seed(cfg.SEED)
    else:
        print("No --seed is given: shots, initial values and batches differ from run to run")
    if cfg.DATASET.NUM_SHOTS < 0 and not (args.eval_only or args.no_train):
        print(f"DATASET.NUM_SHOTS is {cfg.DATASET.NUM_SHOTS}: training on all training images")
    setup_logger(cfg.OUTPUT_DIR)
    if torch.cuda.is_available() and cfg.USE_CUDA:
        # Benchmarked kernels may differ from run to run.
        torch.backends.cudnn.benchmark = cfg.SEED < 0
    print_args(args, cfg)
    announce_engine()
    print(f"** System info **\n{collect_env_info()}\n")
    trainer = build_trainer(cfg)
    built = time.perf_counter()
    if args.eval_only:
        trainer.load_model(args.model_dir, epoch=args.load_epoch)
        trainer.test()
    elif not args.no_train:
        trainer.train()
    seconds = {"build": built - started, "run": time.perf_counter() - built}
    if getattr(trainer, "last_result", None) is None:
        return None
    return write_result(cfg, args, trainer, seconds)


def parser():
    """The command line: CoOp's flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
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
    add("--config-file", default="", help="config of the trainer")
    add("--dataset-config-file", default="", help="config of the dataset")
    add("--trainer", default="", help="name of the trainer")
    add("--backbone", default="", help="name of the CLIP backbone")
    add("--eval-only", action="store_true", help="evaluate only")
    add("--model-dir", default="", help="folder to load the model from with --eval-only")
    add("--load-epoch", type=int, help="epoch of that model (default: the best, else the last)")
    add("--no-train", action="store_true", help="build everything, do not train")
    add("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that override the config")
    return parser


if __name__ == "__main__":
    main(parser().parse_args())
