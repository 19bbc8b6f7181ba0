"""MNIST: handwritten digits (LeCun et al., Proceedings of the IEEE 1998)."""

from __future__ import annotations

import torchvision

from datasets.array import ArrayDataset
from datasets.entry import Counts
from proxyfda.dassl import DATASET_REGISTRY
from proxyfda.utils.templates import TEMPLATES


@DATASET_REGISTRY.register()
class MNIST(ArrayDataset):
    dataset_dir = "MNIST"
    template = TEMPLATES["MNIST"]
    digits = True
    expected = Counts(classes=10, train=54000, val=6000, test=10000)

    def open(self, part):
        return torchvision.datasets.MNIST(self.root, train=part == "train", download=False)
