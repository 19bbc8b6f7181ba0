"""RESISC45: scenes from above (Cheng et al., Proceedings of the IEEE 2017)."""

from __future__ import annotations

from datasets.entry import Counts, Entry
from datasets.ldifs import cut
from datasets.make_split import AnnotatedDataset
from datasets.split_file import check_parts
from proxyfda.dassl import DATASET_REGISTRY
from proxyfda.utils.templates import TEMPLATES


@DATASET_REGISTRY.register()
class RESISC45(AnnotatedDataset):
    """Images in class folders with the lists of "In-domain representation learning for remote
    sensing" (Neumann et al., arXiv 1911.06721), as torchgeo and LDIFS read them.

    Train and val are the listed training images, sorted by class and name, cut as LDIFS cuts them
    (:mod:`datasets.ldifs`). The list of validation images is not used, as there.
    """

    dataset_dir = "resisc45"
    image_dir = "NWPU-RESISC45"
    template = TEMPLATES["RESISC45"]
    expected = Counts(classes=45, train=17010, val=1890, test=6300)

    def parts(self):
        self.require("folder", self.dataset_dir)
        paths = {part: self._listed(part) for part in ("train", "test")}
        self.require("image folder", self.image_dir)
        classes = sorted({folder for listed in paths.values() for folder, _ in listed})
        label = {folder: number for number, folder in enumerate(classes)}
        found = {
            part: [
                Entry(f"{folder}/{name}", label[folder], folder.replace("_", " "))
                for folder, name in listed
            ]
            for part, listed in paths.items()
        }
        train, val = cut(found["train"], self.name)
        return check_parts({"train": train, "val": val, "test": found["test"]}, self._fault)

    def ldifs_parts(self):
        return self.parts()

    def _listed(self, part):
        """``(class folder, image name)`` of a list, sorted; ``dense_residential_001.jpg`` lies in
        the folder ``dense_residential``."""
        file = f"resisc45-{part}.txt"
        listed = [(name.rpartition("_")[0], name) for (name,) in self.rows(file)]
        odd = [name for folder, name in listed if not folder]
        if odd:
            raise self._fault(f"{file} names {odd[0]!r}, which has no class")
        return sorted(listed)
