"""Oxford-IIIT Pet: breeds of cats and dogs (Parkhi et al., CVPR 2012)."""

from __future__ import annotations

from datasets.entry import Counts, Entry
from datasets.make_split import AnnotatedDataset
from proxyfda.dassl import DATASET_REGISTRY
from proxyfda.utils.templates import TEMPLATES


@DATASET_REGISTRY.register()
class OxfordPets(AnnotatedDataset):
    dataset_dir = "oxford_pets"
    image_dir = "images"
    split_file = "split_zhou_OxfordPets.json"
    split_sha256 = "d7f3ffe65b3919f95132e51422894ae18686b83c331fd8c0adcdc3dc2de6301e"
    template = TEMPLATES["OxfordPets"]
    expected = Counts(classes=37, train=2944, val=736, test=3669)

    def official(self, part):
        rows = self.rows("annotations", f"{part}.txt", types=(str, int, int, int))
        for stem, number, _species, _breed in rows:
            yield Entry(f"{stem}.jpg", number - 1, stem.rpartition("_")[0].lower())
