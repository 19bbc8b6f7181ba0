"""SVHN: digits of house numbers, cropped (Netzer et al., NeurIPS workshop 2011)."""

from __future__ import annotations

import torchvision

from datasets.array import ArrayDataset
from datasets.entry import Counts
from proxyfda.dassl import DATASET_REGISTRY
from proxyfda.utils.templates import TEMPLATES


@DATASET_REGISTRY.register()
class SVHN(ArrayDataset):
    """Without the images that the authors call extra, as LDIFS has it."""

    dataset_dir = "svhn"
    template = TEMPLATES["SVHN"]
    digits = True
    expected = Counts(classes=10, train=65932, val=7325, test=26032)

    def open(self, part):
        return torchvision.datasets.SVHN(self.dataset_dir, split=part, download=False)

    def labels(self, opened):
        return opened.labels
