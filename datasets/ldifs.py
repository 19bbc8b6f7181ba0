"""The splits of LDIFS, with which end-to-end fine-tuning is published.

Mukhoti et al., "Fine-tuning can cripple your foundation model; preserving features may be the
solution", TMLR 2024; code ``omegafragger/ldifs_code`` (c7e82a4, ``datasets/registry.py``): where a
dataset has no validation images of its own, a tenth of its training images, at most 20,000, is cut
off by torch's ``random_split`` with a generator of seed 0. Which images these are follows from
their order, so every reader that calls :func:`cut` says what order that is. Here both parts keep
this order.
"""

from __future__ import annotations

import torch
from torch.utils.data import random_split

from proxyfda.utils.errors import BadValue

__all__ = ["SPLITS", "check_word", "cut", "pooled"]

SPLITS = ("", "ldifs")
"""Words of ``DATASET.SPLIT``: the dataset's usual split, or that of LDIFS."""

_SHARE, _MOST, _SEED = 0.1, 20_000, 0


def check_word(word):
    """Refuse what is no word of ``DATASET.SPLIT``.

    Raises:
        BadValue: naming the words that there are.
    """
    if word not in SPLITS:
        raise BadValue(
            f"DATASET.SPLIT is {word!r}; leave it empty for the usual split, or use ldifs"
        )


def cut(entries, name):
    """Training images as ``(train, val)``, cut as the module says.

    Args:
        entries: list of all training images, in LDIFS's order.
        name: of the dataset, for the error.

    Raises:
        BadValue: fewer than ten images, of which a tenth is none.

    >>> train, val = cut(list(range(60000)), "MNIST")
    >>> len(train), len(val)
    (54000, 6000)
    """
    n_val = min(int(len(entries) * _SHARE), _MOST)
    if not n_val:
        raise BadValue(
            f"{name} has {len(entries)} training images, of which a tenth is none to validate on; "
            "complete the data"
        )
    generator = torch.Generator().manual_seed(_SEED)
    halves = random_split(range(len(entries)), [len(entries) - n_val, n_val], generator=generator)
    train, val = ([entries[i] for i in sorted(half.indices)] for half in halves)
    return train, val


def pooled(parts, name, order):
    """A split whose val was cut from the official training images, cut LDIFS's way instead.

    Args:
        parts: ``{"train": [Entry, ...], "val": [...], "test": [...]}`` with the official test
            images as test.
        name: of the dataset, for the error.
        order: entry -> its key in LDIFS's order.
    """
    train, val = cut(sorted([*parts["train"], *parts["val"]], key=order), name)
    return {"train": train, "val": val, "test": parts["test"]}
