"""Datasets; importing this package registers them all in ``proxyfda.dassl.DATASET_REGISTRY``.

The modules have the names that they have in the CoOp family, so that ``from .oxford_pets import
OxfordPets`` in a reader written for it goes on working.
"""

from importlib import import_module
from importlib.util import find_spec

from datasets.folder import ImageFolder
from datasets.split import SplitDataset

BENCHMARKS = (
    "imagenet",
    "caltech101",
    "oxford_pets",
    "stanford_cars",
    "oxford_flowers",
    "food101",
    "fgvc_aircraft",
    "sun397",
    "dtd",
    "eurosat",
    "ucf101",
)
IMAGENET_TEST_SETS = ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")

for _module in (*BENCHMARKS, *IMAGENET_TEST_SETS):
    import_module(f"datasets.{_module}")
if find_spec("datasets.bundled") is not None:
    import datasets.bundled  # noqa: F401  (registers the rendered datasets)

__all__ = ["BENCHMARKS", "IMAGENET_TEST_SETS", "ImageFolder", "SplitDataset"]
