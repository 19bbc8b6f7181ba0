"""DTD: textures (Cimpoi et al., CVPR 2014)."""

from __future__ import annotations

import os

from datasets.entry import Counts, Entry
from datasets.ldifs import cut
from datasets.make_split import FolderDataset, read_rows
from datasets.split_file import check_parts
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

    def ldifs_parts(self):
        """The authors' first partition: ``labels/train1.txt`` is cut, ``labels/test1.txt`` is test,
        and the images of ``labels/val1.txt`` take no part."""
        self.require("folder", self.dataset_dir)
        self.require("image folder", self.image_dir)
        found = {part: self._listed(f"{part}1.txt") for part in ("train", "test")}
        classes = sorted({path.partition("/")[0] for path in found["train"]})
        labels = {name: label for label, name in enumerate(classes)}
        entries = {}
        for part, paths in found.items():
            entries[part] = []
            for path in paths:
                name = path.partition("/")[0]
                if name not in labels:
                    raise self._fault(f"labels/train1.txt has no {name}, which {part}1.txt names")
                entries[part].append(Entry(path, labels[name], name))
        train, val = cut(entries["train"], self.name)
        return check_parts({"train": train, "val": val, "test": entries["test"]}, self._fault)

    def _listed(self, file):
        path = self.require("list of images", os.path.join(self.dataset_dir, "labels", file))
        return [row for (row,) in read_rows(path, (str,))]
