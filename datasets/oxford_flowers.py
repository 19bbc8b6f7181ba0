"""Oxford Flowers 102 (Nilsback and Zisserman, ICVGIP 2008)."""

from __future__ import annotations

import json

from datasets.entry import Counts, Entry
from datasets.fewshot import seeded_random
from datasets.make_split import SPLIT_SEED, AnnotatedDataset, cut
from proxyfda.dassl import DATASET_REGISTRY
from proxyfda.utils.templates import TEMPLATES


@DATASET_REGISTRY.register()
class OxfordFlowers(AnnotatedDataset):
    dataset_dir = "oxford_flowers"
    image_dir = "jpg"
    split_file = "split_zhou_OxfordFlowers.json"
    split_sha256 = "2f50c42fc1a17ca13c271cb4269b1347bdb43d2be672e34f74a4e4cbfbcca794"
    template = TEMPLATES["OxfordFlowers"]
    expected = Counts(classes=102, train=4093, val=1633, test=2463)

    def build_split(self):
        """As for class folders, the classes in order of first appearance; the authors' lists
        (``setid.mat``) are not used."""
        labels = self.mat("imagelabels.mat", key="labels")[0]
        names = self._names()
        groups = {}
        for number, given in enumerate(map(int, labels), 1):
            if str(given) not in names:
                raise self._fault(f"cat_to_name.json has no name for label {given}")
            entry = Entry(f"image_{number:05d}.jpg", given - 1, names[str(given)])
            groups.setdefault(given, []).append(entry)
        with seeded_random(SPLIT_SEED):
            return cut(groups.values())

    def _names(self):
        try:
            with open(self.annotation("cat_to_name.json"), encoding="utf-8") as file:
                return dict(json.load(file))
        except ValueError as error:
            raise self._fault(f"cat_to_name.json is not valid: {error}") from None
