"""Stanford Cars: makes and models (Krause et al., 3dRR 2013)."""

from __future__ import annotations

from datasets.entry import Counts, Entry
from datasets.ldifs import pooled
from datasets.make_split import AnnotatedDataset
from proxyfda.dassl import DATASET_REGISTRY

LISTS = {
    "trainval": ("cars_train", ("devkit", "cars_train_annos.mat")),
    "test": ("cars_test", ("cars_test_annos_withlabels.mat",)),
}


@DATASET_REGISTRY.register()
class StanfordCars(AnnotatedDataset):
    dataset_dir = "stanford_cars"
    split_file = "split_zhou_StanfordCars.json"
    split_sha256 = "40acee7aa65c8e4727a32d90e884b7c3f8960b523422317e163f7af65432959d"
    template = "a photo of a {}."
    expected = Counts(classes=196, train=6509, val=1635, test=8041)

    def ldifs_parts(self):
        """The official training images in the authors' order, which is that of their numbers."""
        return pooled(self.parts(), self.name, order=lambda entry: entry.path)

    def official(self, part):
        folder, where = LISTS[part]
        names = self.mat("devkit", "cars_meta.mat", key="class_names")[0]
        for row in self.mat(*where, key="annotations")[0]:
            label = int(row["class"][0, 0]) - 1
            *words, year = str(names[label][0]).split(" ")
            yield Entry(f"{folder}/{row['fname'][0]}", label, " ".join([year, *words]))
