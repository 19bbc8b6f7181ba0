"""Nested dicts, such as configs and the content of JSON and YAML files."""

from __future__ import annotations

from typing import Any, Iterator, Tuple

__all__ = ["flat", "plain"]


def flat(tree: Any, prefix: str = "") -> Iterator[Tuple[str, Any]]:
    """Pairs of dotted key and value of nested dicts; a config is one.

    >>> list(flat({"OPTIM": {"LR": 0.1, "NAME": "sgd"}, "SEED": 1}))
    [('OPTIM.LR', 0.1), ('OPTIM.NAME', 'sgd'), ('SEED', 1)]
    """
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def plain(tree: Any) -> Any:
    """Nested dicts of any kind, such as configs, as dicts of what JSON and YAML can hold.

    >>> plain({"INPUT": {"SIZE": (32, 32)}})
    {'INPUT': {'SIZE': [32, 32]}}
    """
    if isinstance(tree, dict):
        return {key: plain(value) for key, value in tree.items()}
    return list(tree) if isinstance(tree, (tuple, list)) else tree
