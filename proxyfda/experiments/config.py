"""The config of a run: defaults, files, flags and options, merged so that a mistake is named.

Merge order: the engine's defaults, the options of the registered trainers and datasets and of
Proxy-FDA, the dataset's config file, the trainer's config files one after the other, the named
flags, the trailing ``KEY VALUE`` options.
"""

from __future__ import annotations

import argparse
import ast
import functools
import os
import os.path as osp
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import yaml
from yacs.config import CfgNode

import proxyfda
from proxyfda.dassl import DATASET_REGISTRY, LOG, TRAINER_REGISTRY, get_cfg_default, named_writers
from proxyfda.names import NONE
from proxyfda.utils.errors import BadValue, NotFound
from proxyfda.utils.suggest import did_you_mean, nearest

# Options that have gone -> by their former value what to give instead.
_PROXYFDA = "TRAINER.PROXYFDA"
RENAMED: dict[str, dict[str, str]] = {
    f"{_PROXYFDA}.MODE": {
        "fda": "--regulariser fda",
        "proxy_fda": "--regulariser proxy_fda",
        "pointwise": "--regulariser pointwise",
        "sampler": f"--regulariser none with {_PROXYFDA}.M and {_PROXYFDA}.N",
    },
    f"{_PROXYFDA}.FORM": {
        "paper": "--regulariser fda",
        "regress": "--regulariser rkd",
        "match": "--regulariser match",
        "kl": "--regulariser kl",
        "correlation": "--regulariser correlation",
        "standardised": f"--regulariser fda with {_PROXYFDA}.UNITS frozen",
    },
}


# Options of --probe, see proxyfda/experiments/probing.py.
PROBE = {
    "RECIPE": "convex",  # or ldifs, see proxyfda.diagnostics.fit_linear_probe
    "STRENGTHS": (),  # that are tried on validation images; empty: the recipe's
    "CACHE": "auto",  # folder of the features; auto: "features" beside the runs; empty: none
    "CACHE_GB": 20.0,
}


def default_config() -> CfgNode:
    """The engine's config with the options of everything that is registered.

    A trainer or dataset adds its options by a classmethod ``extend_cfg(cfg)``, which may be called
    any number of times.
    """
    cfg = get_cfg_default()
    for registry in (TRAINER_REGISTRY, DATASET_REGISTRY):
        for name in registry.registered_names():
            extend = getattr(registry.get(name), "extend_cfg", None)
            if extend is not None:
                extend(cfg)
    proxyfda.extend_cfg(cfg)
    cfg.PROBE = CfgNode(PROBE)
    cfg.LOG = CfgNode(LOG)
    return cfg


def load_config(args: argparse.Namespace) -> CfgNode:
    """The frozen config of a run.

    Args:
        args: what :func:`proxyfda.experiments.run.parser` makes of a command line.

    Raises:
        BadValue: an unknown option or one that has gone, a value of the wrong type, or an unknown
            regulariser; the message names it.
        NotFound: a config file does not exist.
    """
    cfg = default_config()
    if args.dataset_config_file:
        merge_file(cfg, args.dataset_config_file, "--dataset-config-file")
    for path in args.config_file:
        merge_file(cfg, path, "--config-file")
    merge_flags(cfg, args)
    merge_options(cfg, args.opts)
    for name, flag in (("TRAINER", "--trainer"), ("DATASET", "--dataset-config-file")):
        # What is probed is named by --probe, and --model-dir may say what was trained.
        if not cfg[name].NAME and not args.probe:
            raise BadValue(
                f"{name}.NAME is empty: give {flag}, or {name}.NAME as a trailing option"
            )
    named_writers(cfg.LOG.WRITERS)  # refuses what there is not, before anything runs
    cfg.freeze()
    return cfg


# -- merging --------------------------------------------------------------------------------------


def merge_file(cfg: CfgNode, path: str, flag: str) -> None:
    """Merge a YAML file; ``flag`` is where it was given."""
    if not osp.isfile(path):
        raise NotFound(f"{flag} {path} does not exist; {_files_beside(path)}")

    def merge() -> None:
        with open(path, encoding="utf-8") as file:
            theirs = CfgNode.load_cfg(file)
        _refuse_renamed(flat(theirs), f"{flag} {path}")
        cfg.merge_from_other_cfg(_with_floats(theirs, cfg))

    _merge(merge, f"{flag} {path}", cfg)


def merge_flags(cfg: CfgNode, args: argparse.Namespace) -> None:
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
    if args.regulariser:
        check_regulariser(args.regulariser)
        cfg.TRAINER.PROXYFDA.REGULARISER = args.regulariser


def check_regulariser(name: str, flag: str = "--regulariser") -> None:
    """Refuse what is no regulariser; ``flag`` is where it was given.

    Raises:
        BadValue: naming the nearest one.
    """
    from proxyfda.regularisers import names

    known = [NONE, *(known for known in names() if known != NONE)]
    if name not in known:
        raise BadValue(
            f"{flag} is {name!r}{did_you_mean(name, known)}; use one of {', '.join(known)}"
        )


def merge_options(cfg: CfgNode, words: list[str]) -> None:
    """Merge trailing ``KEY VALUE`` pairs."""
    if len(words) % 2:
        raise BadValue(
            "the trailing options come in pairs KEY VALUE, but there are "
            f"{len(words)} words: {' '.join(words)}"
        )
    known = {key for key, _ in flat(cfg)}
    for key, text in zip(words[::2], words[1::2]):
        _refuse_renamed([(key, text)], "the command line")
        if key not in known:
            raise BadValue(f"{key!r} is no option; {_near(key, cfg)}")
        wanted = functools.reduce(lambda node, name: node[name], key.split("."), cfg)
        value = _with_floats(_literal(text), wanted) if isinstance(wanted, float) else text
        _merge(
            lambda key=key, value=value: cfg.merge_from_list([key, value]),
            f"option {key} {text}",
            cfg,
        )


def _literal(text: str) -> Any:
    """The value that yacs would read from a word of the command line."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _with_floats(value: Any, wanted: Any) -> Any:
    """Whole numbers where floats are wanted, as floats: yacs takes no 25 for 25.0."""
    if isinstance(wanted, CfgNode) and isinstance(value, CfgNode):
        for key in value.keys() & wanted.keys():
            value[key] = _with_floats(value[key], wanted[key])
    elif isinstance(wanted, float) and type(value) is int:
        return float(value)
    return value


def _refuse_renamed(options: Iterable[tuple[str, Any]], what: str) -> None:
    for key, value in options:
        if key in RENAMED:
            now = RENAMED[key].get(str(value))
            if now is None:
                now = "; ".join(f"{new} for {old!r}" for old, new in RENAMED[key].items())
            raise BadValue(
                f"{what} sets {key} to {value!r}, which is no option any more; give {now}"
            )


def _merge(merge: Callable[[], None], what: str, cfg: CfgNode) -> None:
    """Run one yacs merge; say its complaint in one sentence that names the option."""
    try:
        merge()
    except BadValue:
        raise
    except (KeyError, AssertionError) as error:
        missing = str(error.args[0] if error.args else error).rpartition(": ")[2].strip("'\" ")
        raise BadValue(
            f"{what} sets {missing!r}, which is no option; {_near(missing, cfg)}"
        ) from None
    except ValueError as error:
        raise BadValue(f"{what} has a value of the wrong type: {error}") from None
    except yaml.YAMLError as error:
        raise BadValue(f"{what} is not valid YAML: {' '.join(str(error).split())}") from None


def _near(key: str, cfg: CfgNode) -> str:
    near = nearest(key, [known for known, _ in flat(cfg)], cutoff=0.5)
    return f"did you mean {near}?" if near else "see the config printed at the start of a run"


def _files_beside(path: str) -> str:
    folder = osp.dirname(path) or "."
    known = (
        sorted(f for f in os.listdir(folder) if f.endswith(".yaml")) if osp.isdir(folder) else []
    )
    if known:
        return f"the folder has {', '.join(known)}"
    return f"there is no {folder} with YAML files"


# -- as plain values ------------------------------------------------------------------------------


def plain(cfg: Any) -> Any:
    """A config as nested dicts of what JSON and YAML can hold."""
    if isinstance(cfg, dict):
        return {key: plain(value) for key, value in cfg.items()}
    return list(cfg) if isinstance(cfg, (tuple, list)) else cfg


def flat(tree: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Pairs of dotted key and value of nested dicts; a config is one."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
