"""Caltech101: objects (Fei-Fei et al., CVPR workshop 2004)."""

from __future__ import annotations

from datasets.entry import Counts
from datasets.make_split import FolderDataset
from proxyfda.dassl import DATASET_REGISTRY


@DATASET_REGISTRY.register()
class Caltech101(FolderDataset):
    dataset_dir = "caltech-101"
    image_dir = "101_ObjectCategories"
    split_file = "split_zhou_Caltech101.json"
    split_sha256 = "52ce83205ff8ff8a1a18119aad6376120ae35c36e783a984bc560cbf10e73fa5"
    template = "a photo of a {}."
    ignored = ("BACKGROUND_Google", "Faces_easy")
    renamed = {
        "airplanes": "airplane",
        "Faces": "face",
        "Leopards": "leopard",
        "Motorbikes": "motorbike",
    }
    expected = Counts(classes=100, train=4128, val=1649, test=2465)
