"""Datasets; importing this package registers them all in ``proxyfda.dassl.DATASET_REGISTRY``.

The modules have the names that they have in the CoOp family, so that ``from .oxford_pets import
OxfordPets`` in a reader written for it goes on working.
"""

from importlib import import_module
from importlib.util import find_spec

from datasets.folder import ImageFolder
from datasets.split import SplitDataset
from proxyfda.benchmarks import BENCHMARKS, FINETUNE, SHIFTED

for _module in (*BENCHMARKS, *SHIFTED, *FINETUNE):
    import_module(f"datasets.{_module}")
if find_spec("datasets.bundled") is not None:
    import datasets.bundled  # noqa: F401  (registers the rendered datasets)

__all__ = ["ImageFolder", "SplitDataset"]
