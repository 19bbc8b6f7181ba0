"""UCF101: actions, as the middle frames of videos (Soomro et al., arXiv 1212.0402)."""

from __future__ import annotations

import re

from datasets.entry import Counts, Entry
from datasets.make_split import AnnotatedDataset
from proxyfda.dassl import DATASET_REGISTRY
from proxyfda.utils.templates import TEMPLATES

FOLDER = "ucfTrainTestlist"
LISTS = {"trainval": "trainlist01.txt", "test": "testlist01.txt"}


@DATASET_REGISTRY.register()
class UCF101(AnnotatedDataset):
    dataset_dir = "ucf101"
    image_dir = "UCF-101-midframes"
    split_file = "split_zhou_UCF101.json"
    split_sha256 = "d78cb834f7c5792ceaff2c5ee2d7c76a9e4086e48a3a6b01232989d29cbefdd8"
    template = TEMPLATES["UCF101"]
    expected = Counts(classes=101, train=7639, val=1898, test=3783)

    def official(self, part):
        numbers = {
            name: number for number, name in self.rows(FOLDER, "classInd.txt", types=(int, str))
        }
        for (line,) in self.rows(FOLDER, LISTS[part]):
            action, _, video = line.split()[0].partition("/")  # the train list adds the number
            if action not in numbers:
                raise self._fault(f"classInd.txt lacks {action}, which {LISTS[part]} names")
            words = "_".join(re.findall("[A-Z][^A-Z]*", action))  # YoYo: Yo_Yo
            frame = video.replace(".avi", ".jpg")
            yield Entry(f"{words}/{frame}", numbers[action] - 1, words)
