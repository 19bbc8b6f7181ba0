"""Small folders in the official layouts of COCO captions and VQAv2.

The images are some of CIFAR-10's in ``tests/datasets/cifar10_sample``; what is said about them is
made up.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

SAMPLE = Path(__file__).parent / "datasets" / "cifar10_sample"
THINGS = {  # class of CIFAR-10: its word and supercategory
    "frog": ("frog", "animal"),
    "airplane": ("plane", "vehicle"),
    "ship": ("ship", "vehicle"),
}
PLACES = {"animal": "grass", "vehicle": "water"}
CATEGORIES = [
    {"id": number, "name": name, "supercategory": kind}
    for number, (name, kind) in enumerate(THINGS.values(), 1)
]


def pictures(part, count):
    """``(path, class of CIFAR-10)`` of as many of each class."""
    for label in THINGS:
        for path in sorted((SAMPLE / part / label).glob("*.jpg"))[:count]:
            yield path, label


def write(path, content):
    """A JSON file and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def coco(root, split="val2017", part="test", count=2):
    """COCO captions and instances of one split; returns the folder as a text."""
    images, captions, instances = [], [], []
    (root / split).mkdir(parents=True, exist_ok=True)
    for number, (path, label) in enumerate(pictures(part, count), 100):
        name, kind = THINGS[label]
        place = PLACES[kind] if number % 2 == 0 else "road"
        images.append({"id": number, "file_name": f"{number:012d}.jpg", "height": 32, "width": 32})
        shutil.copy(path, root / split / images[-1]["file_name"])
        for text in (f"A {name} on the {place}.", f"a {name} stands in {place}"):
            captions.append({"image_id": number, "id": len(captions), "caption": text})
        category = next(entry["id"] for entry in CATEGORIES if entry["name"] == name)
        instances.append(
            {"id": number, "image_id": number, "category_id": category, "area": 300.5, "iscrowd": 0}
        )
    about = {"info": {"year": 2017}, "licenses": [], "images": images}
    folder = root / "annotations"
    write(folder / f"captions_{split}.json", {**about, "annotations": captions})
    write(
        folder / f"instances_{split}.json",
        {**about, "annotations": instances, "categories": CATEGORIES},
    )
    return str(root)


def vqa(root, split="val2014", part="test", count=2):
    """VQAv2 of one split, with three questions for each image; returns the folder as a text."""
    questions, annotations = [], []
    (root / split).mkdir(parents=True, exist_ok=True)
    for image, (path, label) in enumerate(pictures(part, count), 42):
        name, kind = THINGS[label]
        shutil.copy(path, root / split / f"COCO_{split}_{image:012d}.jpg")
        for place, (question, form, type_, answers) in enumerate(
            (
                ("Is it a ship?", "is it a", "yes/no", ["yes" if name == "ship" else "no"] * 10),
                ("How many?", "how many", "number", ["one"] * 7 + ["1", "2", "many"]),
                ("Where is it?", "where is the", "other", [PLACES[kind]] * 4 + ["sky"] * 6),
            )
        ):
            number = image * 1000 + place
            questions.append({"image_id": image, "question": question, "question_id": number})
            annotations.append(
                {
                    "question_id": number,
                    "image_id": image,
                    "question_type": form,
                    "answer_type": type_,
                    "multiple_choice_answer": answers[0],
                    "answers": [
                        {"answer": answer, "answer_confidence": "yes", "answer_id": i}
                        for i, answer in enumerate(answers, 1)
                    ],
                }
            )
    about = {"info": {"version": "2.0"}, "data_type": "mscoco", "data_subtype": split}
    write(
        root / f"v2_OpenEnded_mscoco_{split}_questions.json",
        {**about, "task_type": "Open-Ended", "questions": questions},
    )
    write(root / f"v2_mscoco_{split}_annotations.json", {**about, "annotations": annotations})
    return str(root)
