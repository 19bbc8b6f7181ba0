"""Names in tables, and the order of trainers and datasets."""

from __future__ import annotations

from proxyfda.names import (
    HOSTS,
    METHODS,
    PREFIXES,
    PRETRAINED,
    is_zero_shot,
    method_title,
    split_run_name,
    tunes_end_to_end,
)

PROTOCOL_TITLES = {
    "base2new": "base to new",
    "fewshot": "few-shot",
    "transfer": "transfer",
    "zeroshot": "zero-shot",
    "finetune": "end to end",
    "continual": "tasks in a row",
    "captioning": "captioning",
    "vqa": "question answering",
}
"""What a page calls the protocols of :mod:`proxyfda.experiments.layout`."""

# Regularisers in the order of tables; any others follow by name.
_REGULARISERS = ("", *PREFIXES.values())


def known_first(known, name):
    """Sort key: names in the order of ``known``, then all others by name."""
    known = list(known)
    return (known.index(name), "") if name in known else (len(known), name)


def trainer_order(name):
    """Sort key of run names: what learns nothing, then hosts as published, and of each plain, FDA,
    Proxy-FDA and the other regularisers; then methods of tuning end to end, as listed.

    >>> names = ["FDAFineTune", "FineTune+match", "LPFT", "Pretrained", "FineTune"]
    >>> sorted(names, key=trainer_order)
    ['Pretrained', 'FineTune', 'LPFT', 'FDAFineTune', 'FineTune+match']
    """
    host, regulariser = split_run_name(name)
    if tunes_end_to_end(name) and name != PRETRAINED:
        return True, (len(HOSTS), ""), known_first(METHODS.values(), name)
    return (
        not learns_nothing(name),
        known_first(HOSTS, host),
        known_first(_REGULARISERS, regulariser),
    )


def shots_title(count):
    """A number of shots as titles and sentences have it; 0 is that of zero-shot CLIP.

    >>> shots_title(0), shots_title(1), shots_title(16)
    ('zero-shot', '1 shot', '16 shots')
    """
    return "zero-shot" if count == 0 else "1 shot" if count == 1 else f"{count} shots"


def title_of(name):
    """What tables on forgetting call a run: the method if it tunes end to end, else its name.

    >>> title_of("ProxyFDAFineTune"), title_of("ProxyFDACoOp")
    ('Proxy-FDA', 'ProxyFDACoOp')
    """
    return method_title(name) if tunes_end_to_end(name) else name


def learns_nothing(name):
    """Whether a run is of a model as it was pre-trained, without a seed."""
    return is_zero_shot(name) or name == PRETRAINED
