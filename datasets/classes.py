"""Which classes a run sees: the words of ``DATASET.SUBSAMPLE_CLASSES``.

``base`` and ``new`` are the halves of the CoOp family (Zhou et al., CVPR 2022, arXiv 2203.05557):
of the labels in order the first ceil(n / 2), and the rest.

Settings are chosen without the new classes: ``seen@I`` and ``unseen@I`` (I = 1, 2, ...) are the
halves of the *base* classes. Splits 1 and 2 are the two halves of one random permutation, each once
as the seen one, splits 3 and 4 those of the next, and so on. With an odd number of base classes the
odd-numbered split sees one class more. The permutation depends on I and on nothing else: not on the
run's seed, the class names or the version of Python.
"""

from __future__ import annotations

import hashlib
import math
import re

from proxyfda.utils.errors import BadValue

__all__ = ["FEWEST_BASE", "check_word", "chosen_labels", "halves_base", "hold_out", "in_hash_order"]

FEWEST_BASE = 4
"""Base classes that can be halved: two see enough to tell one from another."""

# Training images that stand in for validation images: a share of each class, but not more than
# ImageNet has of its own.
_HELD_OUT, _MOST_HELD_OUT = 0.2, 50
_HALVES = re.compile(r"(seen|unseen)@([1-9][0-9]*)")


def check_word(word):
    """Refuse what is no word of ``DATASET.SUBSAMPLE_CLASSES``.

    Raises:
        BadValue: naming the words that there are.
    """
    if word not in ("all", "base", "new") and not halves_base(word):
        raise BadValue(
            f"DATASET.SUBSAMPLE_CLASSES is {word!r}; use all, base or new, or a part of the base "
            "classes, seen@1, unseen@1, seen@2, ..."
        )


def halves_base(word):
    """Whether a word names a half of the base classes, on which settings are chosen."""
    return isinstance(word, str) and _HALVES.fullmatch(word) is not None


def chosen_labels(labels, word):
    """The labels that a word keeps, in order.

    Args:
        labels: all labels of the dataset, sorted.
        word: see the module.

    Raises:
        BadValue: another word, no class is left, or too few base classes for two halves.
    """
    check_word(word)
    half = math.ceil(len(labels) / 2)
    base = labels[:half]
    if halves_base(word):
        return _half_of(base, word)
    kept = {"all": labels, "base": base, "new": labels[half:]}[word]
    if not kept:
        raise BadValue(
            f"DATASET.SUBSAMPLE_CLASSES {word} leaves no class of the {len(labels)} there are; use "
            "all, or a dataset with more classes"
        )
    return kept


def _half_of(base, word):
    if len(base) < FEWEST_BASE:
        raise BadValue(
            f"DATASET.SUBSAMPLE_CLASSES {word} halves the base classes, of which there are "
            f"{len(base)}; use a dataset with at least {FEWEST_BASE} of them "
            f"({2 * FEWEST_BASE - 1} classes)"
        )
    part, number = _HALVES.fullmatch(word).groups()
    permutation, second = divmod(int(number) - 1, 2)
    order = in_hash_order(range(len(base)), lambda place: f"{permutation} {place}")
    cut = math.ceil(len(base) / 2)
    halves = order[:cut], order[cut:]
    return [base[place] for place in sorted(halves[second ^ (part == "unseen")])]


def held_out(images):
    """How many of a class's training images stand in for validation images."""
    return min(_MOST_HELD_OUT, max(1, round(_HELD_OUT * images)))


def hold_out(parts, name):
    """A dataset without validation images of its own, with some of its training images as such.

    Of each class a fifth, at least one image and at most 50 (as many as ImageNet's own), by a hash
    of their paths: which ones depends on neither the seed nor the other images.

    Args:
        parts: ``{"train": [Entry, ...], "val": [...], "test": [...]}``.
        name: of the dataset, for the error.

    Returns:
        The same with fewer training images, the others as ``val``.

    Raises:
        BadValue: a class has a single training image.
    """
    by_label = {}
    for entry in parts["train"]:
        by_label.setdefault(entry.label, []).append(entry)
    held = set()
    for entries in by_label.values():
        if len(entries) < 2:
            raise BadValue(
                f"{name} has no validation images to choose settings on, and the class "
                f"{entries[0].classname!r} has one training image, so none can be held out; add "
                "images"
            )
        count = held_out(len(entries))
        held.update(in_hash_order(entries, lambda entry: entry.path)[:count])
    print(f"{name}: {len(held)} training images are held out, as there are no validation images")
    return {
        **parts,
        "train": [entry for entry in parts["train"] if entry not in held],
        "val": [entry for entry in parts["train"] if entry in held],
    }


def in_hash_order(items, text):
    """``items`` sorted by the SHA-256 of ``text(item)``: a random order that is always the same."""

    def key(item):
        return hashlib.sha256(text(item).encode("utf-8", "surrogateescape")).digest()

    return sorted(items, key=key)
