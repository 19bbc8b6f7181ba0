"""GTSRB: German traffic signs (Stallkamp et al., Neural Networks 2012)."""

from __future__ import annotations

import os

import torchvision

from datasets.entry import Counts, Entry
from datasets.ldifs import cut
from datasets.split import SplitDataset
from datasets.split_file import check_parts
from proxyfda.dassl import DATASET_REGISTRY
from proxyfda.utils.errors import NotFound
from proxyfda.utils.templates import TEMPLATES

# As CLIP names them, its spelling included: data/prompts.md of openai/CLIP.
NAMES = (
    "red and white circle 20 kph speed limit",
    "red and white circle 30 kph speed limit",
    "red and white circle 50 kph speed limit",
    "red and white circle 60 kph speed limit",
    "red and white circle 70 kph speed limit",
    "red and white circle 80 kph speed limit",
    "end / de-restriction of 80 kph speed limit",
    "red and white circle 100 kph speed limit",
    "red and white circle 120 kph speed limit",
    "red and white circle red car and black car no passing",
    "red and white circle red truck and black car no passing",
    "red and white triangle road intersection warning",
    "white and yellow diamond priority road",
    "red and white upside down triangle yield right-of-way",
    "stop",
    "empty red and white circle",
    "red and white circle no truck entry",
    "red circle with white horizonal stripe no entry",
    "red and white triangle with exclamation mark warning",
    "red and white triangle with black left curve approaching warning",
    "red and white triangle with black right curve approaching warning",
    "red and white triangle with black double curve approaching warning",
    "red and white triangle rough / bumpy road warning",
    "red and white triangle car skidding / slipping warning",
    "red and white triangle with merging / narrow lanes warning",
    "red and white triangle with person digging / construction / road work warning",
    "red and white triangle with traffic light approaching warning",
    "red and white triangle with person walking warning",
    "red and white triangle with child and person walking warning",
    "red and white triangle with bicyle warning",
    "red and white triangle with snowflake / ice warning",
    "red and white triangle with deer warning",
    "white circle with gray strike bar no speed limit",
    "blue circle with white right turn arrow mandatory",
    "blue circle with white left turn arrow mandatory",
    "blue circle with white forward arrow mandatory",
    "blue circle with white forward or right turn arrow mandatory",
    "blue circle with white forward or left turn arrow mandatory",
    "blue circle with white keep right arrow mandatory",
    "blue circle with white keep left arrow mandatory",
    "blue circle with white arrows indicating a traffic circle",
    "white circle with gray strike bar indicating no passing for cars has ended",
    "white circle with gray strike bar indicating no passing for trucks has ended",
)


@DATASET_REGISTRY.register()
class GTSRB(SplitDataset):
    """Image files in torchvision's layout; train and val are the official training images cut as
    LDIFS cuts them (:mod:`datasets.ldifs`) in torchvision's order, and there is no other split."""

    dataset_dir = "gtsrb"
    template = TEMPLATES["GTSRB"]
    expected = Counts(classes=43, train=23976, val=2664, test=12630)

    def parts(self):
        self.require("folder", self.dataset_dir)
        self.require("list of test labels", os.path.join(self.dataset_dir, "GT-final_test.csv"))
        train, val = cut(self._listed("train"), self.name)
        return check_parts({"train": train, "val": val, "test": self._listed("test")}, self._fault)

    def ldifs_parts(self):
        return self.parts()

    def _listed(self, part):
        try:
            # torchvision lists the images here and nowhere else, and does so at once
            listed = torchvision.datasets.GTSRB(self.root, split=part, download=False)._samples
        except RuntimeError:
            raise NotFound(
                f"{self.name}: the {part} images below {self.dataset_dir}/GTSRB are missing; "
                f"{self.hint}"
            ) from None
        except (ValueError, KeyError, FileNotFoundError) as error:
            raise self._fault(f"{part}: {error}") from None
        odd = {label for _, label in listed} - set(range(len(NAMES)))
        if odd:
            raise self._fault(f"{part} has the label {min(odd)}, beyond its {len(NAMES)} classes")
        return [
            Entry(os.path.relpath(path, self.image_dir).replace(os.sep, "/"), label, NAMES[label])
            for path, label in listed
        ]
