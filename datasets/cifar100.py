"""CIFAR-100: objects in 32 x 32 pixels (Krizhevsky, 2009)."""

from __future__ import annotations

import torchvision

from datasets.array import ArrayDataset
from datasets.entry import Counts
from proxyfda.dassl import DATASET_REGISTRY


@DATASET_REGISTRY.register()
class CIFAR100(ArrayDataset):
    """The files are pickles, which torchvision opens only if their MD5 is the known one."""

    dataset_dir = "cifar-100-python"
    template = "a photo of a {}."  # the first of CLIP's, data/prompts.md of openai/CLIP
    expected = Counts(classes=100, train=45000, val=5000, test=10000)

    def open(self, part):
        return torchvision.datasets.CIFAR100(self.root, train=part == "train", download=False)
