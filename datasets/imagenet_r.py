"""ImageNet-R: renditions of 200 classes (Hendrycks et al., ICCV 2021)."""

from __future__ import annotations

from datasets.entry import Counts
from datasets.imagenet import ImageNetTestSet
from proxyfda.dassl import DATASET_REGISTRY


@DATASET_REGISTRY.register()
class ImageNetR(ImageNetTestSet):
    dataset_dir = "imagenet-rendition"
    image_dir = "imagenet-r"
    expected = Counts(classes=200, train=0, val=0, test=30000)
