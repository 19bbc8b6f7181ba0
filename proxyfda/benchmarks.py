"""The benchmarks of the CoOp family and of fine-tuning: their names, in the order of the tables.

Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022, arXiv 2109.01134.
"""

from __future__ import annotations

import re

__all__ = [
    "BENCHMARKS",
    "BUNDLED",
    "BUNDLED_TASKS",
    "FINETUNE",
    "RENDERED",
    "SHIFTED",
    "SMALL",
    "TITLES",
    "dataset_key",
]

# Names of the config files and of the readers' modules -> names in the papers and of the readers.
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
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "mnist": "MNIST",
    "svhn": "SVHN",
    "gtsrb": "GTSRB",
    "resisc45": "RESISC45",
}

SHIFTED = ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")
"""Test sets of ImageNet's classes, for domain generalisation."""

FINETUNE = (
    "stanford_cars", "cifar10", "cifar100", "dtd", "eurosat", "gtsrb", "mnist", "resisc45", "svhn",
    "imagenet",
)  # fmt: skip
"""The ten datasets of end-to-end fine-tuning without forgetting: Mukhoti et al., "Fine-tuning can
cripple your foundation model; preserving features may be the solution", TMLR 2024."""

_ONLY_FINETUNE = ("cifar10", "cifar100", "mnist", "svhn", "gtsrb", "resisc45")

BENCHMARKS = tuple(name for name in TITLES if name not in (*SHIFTED, *_ONLY_FINETUNE))
"""The eleven datasets of base-to-new generalisation and few-shot learning."""

BUNDLED = (
    "atlas_banners", "atlas_creatures", "atlas_fabrics", "atlas_flowers", "atlas_fruits",
    "atlas_grounds", "atlas_scenes", "atlas_things", "atlas_tools",
)  # fmt: skip
"""The bundled benchmark: rendered datasets that stand in for these eleven, without downloads."""

SMALL = ("bundled_banners", "bundled_creatures", "bundled_fruits", "bundled_scenes")
"""Small rendered ones of few classes, for examples and tests."""

BUNDLED_TASKS = (
    *SMALL,
    "bundled_shapes", "bundled_colours", "bundled_textures", "bundled_grounds", "bundled_fabrics",
    "bundled_toys",
)  # fmt: skip
"""The same and others, for tuning end to end and probing what is forgotten."""

RENDERED = (*BUNDLED, *BUNDLED_TASKS)
"""All that need no data."""

_ALIASES = {"flowers102": "oxford_flowers", "cars": "stanford_cars"}
_ALIASES.update((key.replace("_", ""), key) for key in TITLES)
_ALIASES.update((title.lower(), key) for key, title in TITLES.items())


def dataset_key(name: str) -> str:
    """The config name of a benchmark that is known under several names.

    Any other name stays as it is.

    >>> dataset_key("DescribableTextures"), dataset_key("my_birds")
    ('dtd', 'my_birds')
    """
    return _ALIASES.get(re.sub(r"[-_ ]", "", name).lower(), name)
