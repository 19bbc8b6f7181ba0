"""DTD: textures (Cimpoi et al., CVPR 2014)."""

from __future__ import annotations

from datasets.entry import Counts
from datasets.make_split import FolderDataset
from proxyfda.dassl import DATASET_REGISTRY
from proxyfda.utils.templates import TEMPLATES


@DATASET_REGISTRY.register()
class DescribableTextures(FolderDataset):
    dataset_dir = "dtd"
    image_dir = "images"
    split_file = "split_zhou_DescribableTextures.json"
    split_sha256 = "f26ebeccd2b58e68d70f07a0dc39fe49bf7b69024bac34396b954dfd87969c38"
    template = TEMPLATES["DescribableTextures"]
    expected = Counts(classes=47, train=2820, val=1128, test=1692)
