"""EuroSAT: land use in Sentinel-2 images (Helber et al., J-STARS 2019)."""

from __future__ import annotations

import os

from datasets.entry import PARTS, Counts, Entry
from datasets.make_split import FolderDataset, class_folders, report_skipped
from datasets.split_file import check_parts
from proxyfda.dassl import DATASET_REGISTRY
from proxyfda.utils.templates import TEMPLATES


@DATASET_REGISTRY.register()
class EuroSAT(FolderDataset):
    dataset_dir = "eurosat"
    image_dir = "2750"
    split_file = "split_zhou_EuroSAT.json"
    split_sha256 = "541503a77d0b26b735d85ec7a3e672804fe0aa466c2e5f07da772cc6c0af8ad2"
    template = TEMPLATES["EuroSAT"]
    renamed = {
        "AnnualCrop": "Annual Crop Land",
        "HerbaceousVegetation": "Herbaceous Vegetation Land",
        "Highway": "Highway or Road",
        "Industrial": "Industrial Buildings",
        "Pasture": "Pasture Land",
        "PermanentCrop": "Permanent Crop Land",
        "Residential": "Residential Buildings",
        "SeaLake": "Sea or Lake",
    }
    expected = Counts(classes=10, train=13500, val=5400, test=8100)

    def ldifs_parts(self):
        """LDIFS reads class folders in ``EuroSAT_splits/train``, ``val`` and ``test`` beside the
        dataset's folder. How they were drawn is not published with it: whoever has them has the
        split."""
        self.image_dir = self.require(
            "folder of LDIFS's split", os.path.join(self.root, "EuroSAT_splits")
        )
        parts = {}
        for part in PARTS:
            folder = self.require(
                f"folder of the {part} images", os.path.join(self.image_dir, part)
            )
            found, skipped = class_folders(folder)
            report_skipped(self.name, skipped)
            parts[part] = [
                Entry(f"{part}/{name}/{image}", label, self.renamed.get(name, name))
                for label, (name, images) in enumerate(found.items())
                for image in images
            ]
        return check_parts(parts, self._fault)
