"""The order of trainers and datasets in tables."""

from __future__ import annotations

from proxyfda.names import HOSTS, PREFIXES, is_zero_shot, split_run_name

# Regularisers in the order of tables; any others follow by name.
_REGULARISERS = ("", *PREFIXES.values())


def known_first(known, name):
    """Sort key: names in the order of ``known``, then all others by name."""
    known = list(known)
    return (known.index(name), "") if name in known else (len(known), name)


def trainer_order(name):
    """Sort key of run names: zero-shot, then hosts as published, and of each plain, FDA, Proxy-FDA
    and the other regularisers."""
    host, regulariser = split_run_name(name)
    return (
        not is_zero_shot(name),
        known_first(HOSTS, host),
        known_first(_REGULARISERS, regulariser),
    )
