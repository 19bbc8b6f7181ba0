"""The config of a run: defaults, files, flags and options, merged so that a mistake is named.

Merge order: the engine's defaults, the options of the registered trainers and datasets and of
Proxy-FDA, the dataset's config file, the trainer's config files one after the other, the named
flags, the trailing ``KEY VALUE`` options.
"""

from __future__ import annotations

import argparse
import ast
import os
import os.path as osp
from collections.abc import Iterable
from typing import Any

import yaml
from yacs.config import CfgNode

import proxyfda
from proxyfda.dassl import (
    DATASET_REGISTRY,
    ENGINE,
    TRAINER_REGISTRY,
    get_cfg_default,
)
from proxyfda.diagnostics.linear_probe import STRENGTHS
from proxyfda.engine.config import RULES as ENGINE_RULES
from proxyfda.engine.config import check_together
from proxyfda.engine.writers import LOG, LOG_RULES
from proxyfda.integrations.dassl_options import check_node, settle
from proxyfda.names import NONE, split_run_name
from proxyfda.utils.errors import BadValue, NotFound
from proxyfda.utils.nested import flat
from proxyfda.utils.rules import OneOf, Real, Rule, Several, Text, check_values, chooses, shown
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


# Options of --probe, see proxyfda/experiments/probing.py; the last two are also those of an
# evaluation whose image features no prompt changes.
PROBE = {
    "RECIPE": "convex",  # or ldifs, see proxyfda.diagnostics.fit_linear_probe
    "STRENGTHS": (),  # that are tried on validation images; empty: the recipe's
    "CACHE": "auto",  # folder of the features; auto: "features" of the output; empty: none
    "CACHE_GB": 20.0,
}
PROBE_RULES: dict[str, Rule] = {
    "PROBE.RECIPE": OneOf(tuple(STRENGTHS)),
    "PROBE.STRENGTHS": Several(Real(above=0)),
    "PROBE.CACHE": Text(what="a folder's path"),
    "PROBE.CACHE_GB": Real(above=0),
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


def option_rules() -> dict[str, Rule]:
    """What the options of :func:`default_config` may be, by their dotted names.

    A trainer or dataset gives those of its options by a classmethod ``option_rules()``. Those of
    ``TRAINER.PROXYFDA`` are not among them: :func:`proxyfda.integrations.dassl_options.check_node`
    is about them.
    """
    rules = dict(ENGINE_RULES)
    if ENGINE == "dassl":  # which has more words to choose from, and says which
        rules = {key: rule for key, rule in rules.items() if not chooses(rule)}
    for registry in (TRAINER_REGISTRY, DATASET_REGISTRY):
        for name in registry.registered_names():
            given = getattr(registry.get(name), "option_rules", None)
            rules.update(given() if given is not None else {})
    return {**rules, **PROBE_RULES, **LOG_RULES}


def check_options(cfg: CfgNode) -> None:
    """Refuse values that no run can have.

    Raises:
        BadValue: naming the option, its value and what to give.
    """
    check_values(flat(cfg), option_rules())
    check_together(cfg)
    check_node(cfg)


def load_config(args: argparse.Namespace) -> CfgNode:
    """The frozen config of a run.

    Args:
        args: what :func:`proxyfda.experiments.run.parser` makes of a command line.

    Raises:
        BadValue: an unknown option or one that has gone, a value that it cannot have, or an
            unknown regulariser; the message names it.
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
    check_options(cfg)
    settle(cfg, split_run_name(cfg.TRAINER.NAME)[1])
    cfg.freeze()
    return cfg


# -- merging --------------------------------------------------------------------------------------


def merge_file(cfg: CfgNode, path: str, flag: str) -> None:
    """Merge a YAML file; ``flag`` is where it was given."""
    what = f"{flag} {path}"
    theirs = read_yaml(path, what)
    _refuse_renamed(flat(theirs), what)
    _merge(cfg, flat(theirs), f"{what}: ")


def read_yaml(path: str, what: str) -> dict[str, Any]:
    """The options in a YAML file, as nested dicts; ``what`` names it in messages.

    Raises:
        NotFound: it does not exist.
        BadValue: it cannot be read, or holds anything else.
    """
    if not osp.isfile(path):
        raise NotFound(f"{what} does not exist; {_files_beside(path)}")
    try:
        with open(path, encoding="utf-8") as file:
            theirs = yaml.load(file, Loader=_Loader)
    except OSError as error:
        raise BadValue(f"{what} cannot be read ({error.strerror}); give a file of yours") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise BadValue(
            f"{what} is not valid YAML ({reason}); give a file of options, such as those in configs"
        ) from None
    if not isinstance(theirs, dict) or not _has_names(theirs):
        raise BadValue(
            f"{what} holds no options; give a YAML file with lines such as OPTIM: and, indented, "
            "LR: 0.002"
        )
    return theirs


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML takes the last one without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        names = [(key.value, key) for key, _ in node.value if isinstance(key.value, str)]
        for name, key in names:
            if name in seen and name != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"{name} is given twice", key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


def _has_names(tree: dict) -> bool:
    return all(
        isinstance(key, str) and (not isinstance(value, dict) or _has_names(value))
        for key, value in tree.items()
    )


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
    if args.no_cache:
        cfg.PROBE.CACHE = ""
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
    pairs = [(key, _literal(text)) for key, text in zip(words[::2], words[1::2])]
    _refuse_renamed(pairs, "the command line")
    _merge(cfg, pairs, "")


def _literal(text: str) -> Any:
    """The value that yacs would read from a word of the command line."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _refuse_renamed(options: Iterable[tuple[str, Any]], what: str) -> None:
    for key, value in options:
        if key in RENAMED:
            now = RENAMED[key].get(str(value))
            if now is None:
                now = "; ".join(f"{new} for {old!r}" for old, new in RENAMED[key].items())
            raise BadValue(
                f"{what} sets {key} to {value!r}, which is no option any more; give {now}"
            )


def _merge(cfg: CfgNode, pairs: Iterable[tuple[str, Any]], where: str) -> None:
    """Merge options one by one; ``where`` they were given begins the message about one."""
    known = dict(flat(cfg))
    for key, value in pairs:
        if key not in known:
            raise BadValue(f"{where}{_no_option(key, value, list(known))}")
        if isinstance(known[key], float) and type(value) is int:
            value = _as_float(value)  # yacs takes no 25 for 25.0
        try:
            if value is None:  # yacs takes it for a value of any kind
                raise TypeError
            cfg.merge_from_other_cfg(_nested(key, value))
        except (KeyError, AssertionError, ValueError, TypeError):
            rule = option_rules().get(key)
            wanted = rule.wanted if rule else f"a value like {known[key]!r}"
            raise BadValue(f"{where}{key} is {shown(value)}; give {wanted}") from None


def _nested(key: str, value: Any) -> CfgNode:
    """A config with one option."""
    first, _, rest = key.partition(".")
    return CfgNode({first: _nested(rest, value) if rest else value})


def _as_float(value: int) -> float | int:
    try:
        return float(value)
    except OverflowError:
        return value


def _no_option(key: str, value: Any, known: list[str]) -> str:
    """The sentence on an option that does not exist."""
    beneath = [option for option in known if option.startswith(f"{key}.")]
    if beneath:
        return f"{key} is {shown(value)}, but it is a group of options; give one, like {beneath[0]}"
    above = [option for option in known if key.startswith(f"{option}.")]
    if above:
        return f"{key!r} is no option: {above[0]} is one, and has none in it"
    return f"{key!r} is no option; {near_option(key, known)}"


def near_option(key: str, known: list[str]) -> str:
    """What was probably meant by an option that does not exist, or where to look."""
    parent, _, name = key.rpartition(".")
    names: dict[str, list[str]] = {}  # last part of the name -> whole names
    for option in known:
        names.setdefault(option.rpartition(".")[2], []).append(option)
    siblings = {option.rpartition(".")[2] for option in known if option.startswith(f"{parent}.")}
    siblings = {sibling for sibling in siblings if f"{parent}.{sibling}" in known}
    same = [option for one, options in names.items() for option in options if _same(one, name)]
    same = [option for option in same if option.startswith(f"{parent}.")] or same
    if same:
        return f"did you mean {' or '.join(same[:3])}?"
    close = nearest(name, siblings)
    if close:
        return f"did you mean {parent}.{close}?"
    close = nearest(name, names, 0.75)
    if close:
        return f"did you mean {nearest(key, names[close], 0)}?"
    return "docs/options.md lists the options, and the config.yaml of a run has all of them"


def _same(one: str, other: str) -> bool:
    return one.casefold() == other.casefold()


def _files_beside(path: str) -> str:
    folder = osp.dirname(path) or "."
    known = (
        sorted(f for f in os.listdir(folder) if f.endswith(".yaml")) if osp.isdir(folder) else []
    )
    if known:
        return f"the folder has {', '.join(known)}"
    return f"there is no {folder} with YAML files"
