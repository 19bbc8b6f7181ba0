"""ImageNet-A: photographs that mislead, of 200 classes (Hendrycks et al., CVPR 2021)."""

from __future__ import annotations

from datasets.entry import Counts
from datasets.imagenet import ImageNetTestSet
from proxyfda.dassl import DATASET_REGISTRY


@DATASET_REGISTRY.register()
class ImageNetA(ImageNetTestSet):
    dataset_dir = "imagenet-adversarial"
    image_dir = "imagenet-a"
    expected = Counts(classes=200, train=0, val=0, test=7500)
