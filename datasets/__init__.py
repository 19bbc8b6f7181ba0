"""Datasets; importing this package registers them all in ``proxyfda.dassl.DATASET_REGISTRY``."""

from importlib.util import find_spec

from datasets.folder import ImageFolder
from datasets.split import SplitDataset

if find_spec("datasets.bundled") is not None:
    import datasets.bundled  # noqa: F401  (registers the rendered datasets)

__all__ = ["ImageFolder", "SplitDataset"]
