"""Names of trainers and datasets: what belongs together, and in which order tables show it."""

from __future__ import annotations

import re

REFERENCE = "ZeroshotCLIP"
PREFIXES = ("", "FDA", "ProxyFDA")
HOSTS = ("CoOp", "CoCoOp", "MaPLe", "PromptSRC")
# Config names of the CoOp family, and the names its papers (and readers) give these datasets.
TITLES = {
    "imagenet": "ImageNet",
    "caltech101": "Caltech101",
    "oxford_pets": "OxfordPets",
    "stanford_cars": "StanfordCars",
    "oxford_flowers": "OxfordFlowers",
    "food101": "Food101",
    "fgvc_aircraft": "FGVCAircraft",
    "sun397": "SUN397",
    "dtd": "DescribableTextures",
    "eurosat": "EuroSAT",
    "ucf101": "UCF101",
    "imagenetv2": "ImageNetV2",
    "imagenet_sketch": "ImageNetSketch",
    "imagenet_a": "ImageNetA",
    "imagenet_r": "ImageNetR",
}
BENCHMARKS = tuple(TITLES.values())[:11]
SHIFTED = tuple(TITLES)[11:]  # test sets of ImageNet's classes: domain generalisation
_ALIASES = {"flowers102": "oxford_flowers"}
_ALIASES.update((key.replace("_", ""), key) for key in TITLES)
_ALIASES.update((title.lower(), key) for key, title in TITLES.items())


def is_zero_shot(trainer):
    """Whether a trainer learns nothing, so that its result does not depend on the seed."""
    return trainer.startswith(REFERENCE)


def plain_trainer(trainer):
    """``("ProxyFDA", "CoOp")`` for ``ProxyFDACoOp``, ``("", "CoOp")`` for ``CoOp``."""
    for prefix in sorted(PREFIXES, key=len, reverse=True):
        if prefix and trainer.startswith(prefix) and trainer != prefix:
            return prefix, trainer[len(prefix) :]
    return "", trainer


def dataset_key(folder):
    """The config name of a benchmark known under several (``dtd`` for ``DescribableTextures``).

    Anything else stays as it is.
    """
    return _ALIASES.get(re.sub(r"[-_ ]", "", folder).lower(), folder)


def known_first(known, name):
    """Sort key: names in the order of ``known``, then all others by name."""
    known = list(known)
    return (known.index(name), "") if name in known else (len(known), name)


def trainer_order(trainer):
    """Sort key: zero-shot, then hosts as published, each plain, with FDA, with Proxy-FDA."""
    prefix, host = plain_trainer(trainer)
    return not is_zero_shot(trainer), known_first(HOSTS, host), PREFIXES.index(prefix)
