"""FGVC-Aircraft: variants of aircraft (Maji et al., arXiv 1306.5151)."""

from __future__ import annotations

from datasets.entry import PARTS, Counts, Entry
from datasets.make_split import AnnotatedDataset
from datasets.split_file import check_parts
from proxyfda.dassl import DATASET_REGISTRY
from proxyfda.utils.templates import TEMPLATES


@DATASET_REGISTRY.register()
class FGVCAircraft(AnnotatedDataset):
    """The authors' own three lists are used; there is no split file."""

    dataset_dir = "fgvc_aircraft"
    image_dir = "images"
    template = TEMPLATES["FGVCAircraft"]
    expected = Counts(classes=100, train=3334, val=3333, test=3333)

    def parts(self):
        self.require("folder", self.dataset_dir)
        labels = {name: label for label, (name,) in enumerate(self.rows("variants.txt"))}
        parts = {}
        for part in PARTS:
            parts[part] = []
            for stem, name in self.rows(f"images_variant_{part}.txt", types=(str, str)):
                if name not in labels:
                    raise self._fault(f"variants.txt lacks {name!r}, which the {part} list names")
                parts[part].append(Entry(f"{stem}.jpg", labels[name], name))
        self.require("image folder", self.image_dir)
        return check_parts(parts, self._fault)
