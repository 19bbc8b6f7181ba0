"""COCO captions, and own images and captions in the same layout.

Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014, arXiv 1405.0312; Chen et al.,
"Microsoft COCO Captions: Data Collection and Evaluation Server", arXiv 1504.00325. Files as they
come from https://cocodataset.org/#download::

    FOLDER/annotations/captions_val2017.json    images: id, file_name; annotations: image_id,
                                                caption
    FOLDER/annotations/instances_val2017.json   optional: makes families of kinds of things
    FOLDER/val2017/000000397133.jpg             or FOLDER/images/val2017/

and, optional, the split of Karpathy and Fei-Fei ("Deep Visual-Semantic Alignments for Generating
Image Descriptions", CVPR 2015), ``dataset_coco.json`` in FOLDER or its ``annotations``, on the
images of 2014.
"""

from __future__ import annotations

import os
from collections import defaultdict

from datasets.image_text import Example
from datasets.official_json import first_folder, images_found, records, the_file, the_folder
from proxyfda.utils.errors import BadValue

__all__ = ["KARPATHY", "read"]

KARPATHY = {
    "karpathy_train": ("train", "restval"),
    "karpathy_val": ("val",),
    "karpathy_test": ("test",),
}
"""Names of splits -> the words of ``dataset_coco.json``. The images of ``restval`` are trained on
with those of ``train``, as is usual: 113,287 images, with 5,000 each to validate and test."""

NOTHING = "nothing"
"""Family of images in which no thing is annotated."""


def read(folder, split="val2017"):
    """One example for each image that has captions, in the order of the file.

    Where ``instances_*.json`` is there, the family of an image is the supercategory (person,
    animal, vehicle, ...) whose things have the largest area in it together; without that file all
    examples are of one family, ``""``.

    Args:
        folder: as the module says.
        split: the part of the file names, such as ``train2017``, or one of :data:`KARPATHY`.

    Raises:
        NotFound: files, folders or images that are not there.
        BadValue: a file that is no JSON or not of this layout, or without a caption.
    """
    folder = the_folder(folder)
    if split in KARPATHY:
        source, listed = _karpathy(folder, split)
    else:
        source, listed = _official(folder, split)
    if not listed:
        raise BadValue(f"{source} has no captions for {split}; fetch it again")
    paths = images_found([path for path, _, _ in listed], source)
    kinds = {}
    for part in sorted({os.path.basename(os.path.dirname(path)) for path, _, _ in listed}):
        kinds.update(
            _supercategories(os.path.join(folder, "annotations", f"instances_{part}.json"))
        )
    return [
        Example(path, tuple(texts), family=kinds.get(number, NOTHING) if kinds else "")
        for path, (_, number, texts) in zip(paths, listed)
    ]


def _official(folder, split):
    """The file, and what it lists: path, id and captions of each image."""
    source = the_file([os.path.join(folder, "annotations", f"captions_{split}.json")], "captions")
    images = records(source, "images", id=int, file_name=str)
    captions = defaultdict(list)
    for entry in records(source, "annotations", image_id=int, caption=str):
        if entry["caption"].strip():
            captions[entry["image_id"]].append(entry["caption"].strip())
    unknown = set(captions) - {image["id"] for image in images}
    if unknown:
        raise BadValue(
            f"{source} has captions for the image {min(unknown)}, which it does not list; fetch it "
            "again"
        )
    place = _images(folder, split)
    listed = [
        (os.path.join(place, image["file_name"]), image["id"], captions[image["id"]])
        for image in images
        if image["id"] in captions
    ]
    if len(listed) < len(images):
        print(f"{source}: {len(images) - len(listed)} of {len(images)} images have no caption")
    return source, listed


def _karpathy(folder, split):
    """As :func:`_official`."""
    name = "dataset_coco.json"
    source = the_file(
        [os.path.join(folder, name), os.path.join(folder, "annotations", name)], "Karpathy split"
    )
    listed = []
    for entry in records(
        source, "images", split=str, filename=str, filepath=str, cocoid=int, sentences=list
    ):
        if entry["split"] in KARPATHY[split]:
            texts = [str(text.get("raw", "")).strip() for text in entry["sentences"]]
            place = _images(folder, entry["filepath"])
            path = os.path.join(place, entry["filename"])
            listed.append((path, entry["cocoid"], [text for text in texts if text]))
    return source, [entry for entry in listed if entry[2]]


def _images(folder, split):
    places = [os.path.join(folder, split), os.path.join(folder, "images", split)]
    return first_folder(places, "image folder")


def _supercategories(path):
    """Image id -> supercategory with the largest area; empty without the file."""
    if not os.path.isfile(path):
        return {}
    kinds = {
        entry["id"]: entry["supercategory"]
        for entry in records(path, "categories", id=int, supercategory=str)
    }
    areas = defaultdict(lambda: defaultdict(float))
    for number, entry in enumerate(
        records(path, "annotations", image_id=int, category_id=int, area=(int, float))
    ):
        if entry["category_id"] not in kinds:
            raise BadValue(
                f"entry {number} of 'annotations' in {path} is of the category "
                f"{entry['category_id']}, which it does not list; fetch it again"
            )
        areas[entry["image_id"]][kinds[entry["category_id"]]] += entry["area"]
    return {image: max(sorted(found), key=found.get) for image, found in areas.items()}
