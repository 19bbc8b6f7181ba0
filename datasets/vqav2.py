"""VQAv2, and own images and questions in the same layout.

Goyal et al., "Making the V in VQA Matter: Elevating the Role of Image Understanding in Visual
Question Answering", CVPR 2017, arXiv 1612.00837. Files as they come from
https://visualqa.org/download.html::

    FOLDER/v2_OpenEnded_mscoco_val2014_questions.json   questions: question_id, image_id,
                                                        question
    FOLDER/v2_mscoco_val2014_annotations.json           annotations: question_id, answers,
                                                        answer_type, question_type
    FOLDER/val2014/COCO_val2014_000000393225.jpg        or FOLDER/images/val2014/

The JSON files may also lie in ``FOLDER/annotations``. Own images may have any name: an
``image_id`` that is a text is the name of a file.
"""

from __future__ import annotations

import os

from datasets.image_text import Example
from datasets.official_json import (
    check_key,
    first_folder,
    images_found,
    records,
    the_file,
    the_folder,
)
from proxyfda.utils.errors import BadValue

__all__ = ["read"]


def read(folder, split="val2014", family="answer_type"):
    """One example for each question, in the order of the file, with the answers of all annotators.

    Args:
        folder: as the module says.
        split: the part of the file names, ``train2014`` or ``val2014``.
        family: the key of the annotations that is the family of an example: ``answer_type``
            (``yes/no``, ``number``, ``other``), ``question_type`` (``what color is the``, ``is
            this``, ...), or one of your own.

    Raises:
        NotFound: files, folders or images that are not there.
        BadValue: a file that is no JSON or not of this layout, a question without annotation or
            answers, or a key that the annotations have not.
    """
    folder = the_folder(folder)
    asked = _file(folder, f"v2_OpenEnded_mscoco_{split}_questions.json", "questions")
    told = _file(folder, f"v2_mscoco_{split}_annotations.json", "answers")
    questions = records(asked, "questions", question_id=int, image_id=(int, str), question=str)
    annotations = records(told, "annotations", question_id=int, answers=list)
    if not questions:
        raise BadValue(f"{asked} has no questions; fetch it again")
    for entry in annotations:
        check_key(family, entry, told)
    found = {entry["question_id"]: entry for entry in annotations}
    place = first_folder(
        [os.path.join(folder, split), os.path.join(folder, "images", split)], "image folder"
    )
    paths = images_found(
        [os.path.join(place, _image_name(entry["image_id"], split)) for entry in questions], asked
    )
    examples = []
    for path, entry in zip(paths, questions):
        number = entry["question_id"]
        if number not in found:
            raise BadValue(f"the question {number} of {asked} has no annotation in {told}")
        texts = _answers(found[number], told)
        examples.append(Example(path, texts, entry["question"].strip(), found[number][family]))
    return examples


def _file(folder, name, what):
    places = [os.path.join(folder, name), os.path.join(folder, "annotations", name)]
    return the_file(places, f"file of {what}")


def _image_name(image, split):
    return image if isinstance(image, str) else f"COCO_{split}_{image:012d}.jpg"


def _answers(annotation, source):
    number = annotation["question_id"]
    texts = [a.get("answer") if isinstance(a, dict) else None for a in annotation["answers"]]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise BadValue(
            f"the question {number} has answers in {source} that are none (a list of objects with "
            "an answer each is wanted); mend or fetch it again"
        )
    return tuple(texts)
