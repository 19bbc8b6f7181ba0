"""ImageNetV2, matched frequency (Recht et al., ICML 2019)."""

from __future__ import annotations

import os

from datasets.entry import Counts, Entry
from datasets.imagenet import CLASSNAMES, ImageNetTestSet
from datasets.make_split import class_folders, report_skipped
from proxyfda.dassl import DATASET_REGISTRY


@DATASET_REGISTRY.register()
class ImageNetV2(ImageNetTestSet):
    """The class folders are numbered; a number is the label and the line of ``classnames.txt``."""

    dataset_dir = "imagenetv2"
    image_dir = "imagenetv2-matched-frequency-format-val"
    expected = Counts(classes=1000, train=0, val=0, test=10000)

    def folder_entries(self, folder):
        names = list(self.read_classnames(self.classnames_file()).values())
        found, skipped = class_folders(folder)
        report_skipped(self.name, skipped)
        strange = sorted(set(found) ^ {str(label) for label in range(len(names))})
        if strange:
            raise self._fault(
                f"{CLASSNAMES} has {len(names)} lines, so the class folders have to be 0 to "
                f"{len(names) - 1}, but {os.path.join(folder, strange[0])} is "
                + ("there" if strange[0] in found else "not there")
            )
        return [
            Entry(f"{label}/{image}", label, name)
            for label, name in enumerate(names)
            for image in found[str(label)]
        ]
