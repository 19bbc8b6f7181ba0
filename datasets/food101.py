"""Food-101: dishes (Bossard et al., ECCV 2014)."""

from __future__ import annotations

from datasets.entry import Counts
from datasets.make_split import FolderDataset
from proxyfda.dassl import DATASET_REGISTRY
from proxyfda.utils.templates import TEMPLATES


@DATASET_REGISTRY.register()
class Food101(FolderDataset):
    dataset_dir = "food-101"
    image_dir = "images"
    split_file = "split_zhou_Food101.json"
    split_sha256 = "7c3d456c4f348255e1a363e0ea5118318936488f3ec20d83758e0ee67cb9037c"
    template = TEMPLATES["Food101"]
    expected = Counts(classes=101, train=50500, val=20200, test=30300)
