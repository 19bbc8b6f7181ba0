"""What a run is called: the host trainer and the regulariser that it trains with, in one word.

``CoOp`` is the plain trainer, ``FDACoOp`` and ``ProxyFDACoOp`` train the paper's losses, and
``CoOp+rkd`` is CoOp with any other regulariser. Output folders and tables use these names, and the
scripts take them for trainers. Standard library only.
"""

from __future__ import annotations

from typing import Dict, Tuple

from proxyfda.utils.errors import BadValue
from proxyfda.utils.suggest import did_you_mean

REFERENCE = "ZeroshotCLIP"
"""The trainer that learns nothing; every other one is compared with it."""

HOSTS = ("CoOp", "CoCoOp", "MaPLe", "PromptSRC")
"""Host trainers in the order in which they were published; tables show any others after them."""

PREFIXES = {"FDA": "fda", "ProxyFDA": "proxy_fda"}
"""Beginning of a trainer's name -> the regulariser that it trains with."""

NONE = "none"
"""The regulariser that adds no term; its batches may differ from the plain trainer's."""

PRETRAINED = "Pretrained"
"""The run that tunes nothing end to end: probes of the backbone as it was pre-trained."""

WISE_FT = "WiSEFT"
"""Probes of weights between the pre-trained ones and those of a plain fine-tuning."""

METHODS: Dict[str, str] = {
    "naive": "FineTune",
    "LP-FT": "LPFT",
    "WiSE-FT": WISE_FT,
    "L2SP": "FineTune+l2sp",
    "LDIFS": "FineTune+ldifs",
    "RKD": "FineTune+rkd",
    "point-wise": "FineTune+pointwise",
    "FDA": "FDAFineTune",
    "Proxy-FDA": "ProxyFDAFineTune",
    "FLYP": "FLYP",
}
"""Methods of tuning end to end as tables call them -> names of their runs, in the order of tables.
Any other regulariser is ``FineTune+<name>``."""


def is_zero_shot(name: str) -> bool:
    """Whether a run learns nothing, so that its result does not depend on the seed."""
    return name.startswith(REFERENCE)


def split_run_name(name: str) -> Tuple[str, str]:
    """The host trainer of a run and its regulariser (empty for a plain one).

    >>> split_run_name("ProxyFDACoOp"), split_run_name("CoOp+rkd"), split_run_name("CoOp")
    (('CoOp', 'proxy_fda'), ('CoOp', 'rkd'), ('CoOp', ''))
    """
    trainer, _, regulariser = name.partition("+")
    for prefix in sorted(PREFIXES, key=len, reverse=True):
        if trainer.startswith(prefix) and trainer != prefix:
            return trainer[len(prefix) :], regulariser or PREFIXES[prefix]
    return trainer, regulariser


def run_name(trainer: str, regulariser: str = "") -> str:
    """The name of a run of ``trainer`` with ``regulariser``.

    Args:
        trainer: a registered trainer, with or without a prefix.
        regulariser: what ``--regulariser`` is given; empty for what the trainer's name says.

    Raises:
        BadValue: the trainer's name says another regulariser, or the trainer learns nothing.

    >>> run_name("CoOp", "rkd"), run_name("CoOp", "fda"), run_name("CoOp", "none")
    ('CoOp+rkd', 'FDACoOp', 'CoOp')
    """
    host, own = split_run_name(trainer)
    if regulariser and is_zero_shot(trainer):
        raise BadValue(
            f"the regulariser {regulariser!r} is given for {trainer}, which trains nothing; "
            "leave it out"
        )
    if own and regulariser not in ("", own):
        raise BadValue(
            f"the regulariser {regulariser!r} is given for {trainer}, whose name says {own!r}; "
            f"use {host} with it"
        )
    regulariser = regulariser or own
    if regulariser in ("", NONE):
        return host
    prefix = next((prefix for prefix, name in PREFIXES.items() if name == regulariser), None)
    return f"{host}+{regulariser}" if prefix is None else prefix + host


def trainer_and_regulariser(word: str) -> Tuple[str, str]:
    """The two options of train.py for a run that is asked for by name.

    Every run is asked for in one way, so that two words for it lead to the same output folder and
    the same config there.

    Raises:
        BadValue: as :func:`run_name`.

    >>> trainer_and_regulariser("CoOp+rkd"), trainer_and_regulariser("CoOp+fda")
    (('CoOp', 'rkd'), ('FDACoOp', ''))
    """
    trainer, _, regulariser = word.partition("+")
    name = run_name(trainer, regulariser)
    return (trainer, regulariser) if "+" in name or regulariser == NONE else (name, "")


def is_regularised(word: str) -> bool:
    """Whether a run that is asked for by ``word`` trains with a term against forgetting."""
    return split_run_name(word)[1] not in ("", NONE)


def _letters(word: str) -> str:
    return "".join(filter(str.isalnum, word)).lower()


def finetune_run(method: str) -> str:
    """The run of a method of tuning end to end, however it is spelled; runs stay as they are.

    Raises:
        BadValue: no such method.

    >>> finetune_run("ProxyFDA"), finetune_run("lp-ft"), finetune_run("FineTune+match")
    ('ProxyFDAFineTune', 'LPFT', 'FineTune+match')
    """
    known = {_letters(title): name for title, name in METHODS.items()}
    if _letters(method) in known:
        return known[_letters(method)]
    trainer, _, regulariser = method.partition("+")
    name = run_name(trainer, regulariser)
    if tunes_end_to_end(name) and name != PRETRAINED:
        return name
    raise BadValue(
        f"there is no method {method!r}{did_you_mean(method, METHODS)}; use one of "
        f"{', '.join(METHODS)}, or FineTune+<regulariser>"
    )


def tunes_end_to_end(name: str) -> bool:
    """Whether a run tunes the encoder itself, or probes one that is so tuned.

    >>> tunes_end_to_end("FDAFineTune"), tunes_end_to_end("Pretrained"), tunes_end_to_end("CoOp")
    (True, True, False)
    """
    hosts = {split_run_name(method)[0] for method in METHODS.values()}
    return split_run_name(name)[0] in {PRETRAINED, *hosts}


def method_title(name: str) -> str:
    """What tables call a run that tunes end to end.

    >>> method_title("FDAFineTune"), method_title("FineTune+match")
    ('FDA', 'match')
    """
    titles = {run: title for title, run in METHODS.items()}
    return titles.get(name) or split_run_name(name)[1] or name
