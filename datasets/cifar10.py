"""CIFAR-10: objects in 32 x 32 pixels (Krizhevsky, 2009)."""

from __future__ import annotations

import torchvision

from datasets.array import ArrayDataset
from datasets.entry import Counts
from proxyfda.dassl import DATASET_REGISTRY


@DATASET_REGISTRY.register()
class CIFAR10(ArrayDataset):
    """The files are pickles, which torchvision opens only if their MD5 is the known one."""

    dataset_dir = "cifar-10-batches-py"
    template = "a photo of a {}."  # the first of CLIP's, data/prompts.md of openai/CLIP
    expected = Counts(classes=10, train=45000, val=5000, test=10000)

    def open(self, part):
        return torchvision.datasets.CIFAR10(self.root, train=part == "train", download=False)
