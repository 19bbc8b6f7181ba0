"""ImageNet-Sketch: drawings of ImageNet's classes (Wang et al., NeurIPS 2019)."""

from __future__ import annotations

from datasets.entry import Counts
from datasets.imagenet import ImageNetTestSet
from proxyfda.dassl import DATASET_REGISTRY


@DATASET_REGISTRY.register()
class ImageNetSketch(ImageNetTestSet):
    dataset_dir = "imagenet-sketch"
    image_dir = "images"
    expected = Counts(classes=1000, train=0, val=0, test=50889)
