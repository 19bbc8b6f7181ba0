"""SUN397: scenes (Xiao et al., CVPR 2010)."""

from __future__ import annotations

from datasets.entry import Counts, Entry
from datasets.ldifs import pooled
from datasets.make_split import AnnotatedDataset
from proxyfda.dassl import DATASET_REGISTRY

LISTS = {"trainval": "Training_01.txt", "test": "Testing_01.txt"}


@DATASET_REGISTRY.register()
class SUN397(AnnotatedDataset):
    dataset_dir = "sun397"
    image_dir = "SUN397"
    split_file = "split_zhou_SUN397.json"
    split_sha256 = "9847f9ef611008073ac42adee6614bbb83f877cfbcfbd3115fc8284e0c8c1c47"
    template = "a photo of a {}."
    expected = Counts(classes=397, train=15880, val=3970, test=19850)

    def ldifs_parts(self):
        """The images of ``Training_01.txt`` in the order of class folders named as LDIFS has them,
        ``a_apartment_building_outdoor``; test is ``Testing_01.txt``."""

        def order(entry):
            folder, _, name = entry.path.rpartition("/")
            return folder.replace("/", "_"), name

        return pooled(self.parts(), self.name, order)

    def official(self, part):
        labels = {name: label for label, (name,) in enumerate(self.rows("ClassName.txt"))}
        for (path,) in self.rows(LISTS[part]):
            scene = path.rpartition("/")[0]
            if scene not in labels:
                raise self._fault(f"ClassName.txt lacks {scene}, which {LISTS[part]} names")
            # /a/apartment_building/outdoor: the qualifier goes to the front
            words = scene.split("/")[:1:-1]
            yield Entry(path.lstrip("/"), labels[scene], " ".join(words))
