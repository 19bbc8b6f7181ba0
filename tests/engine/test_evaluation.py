"""Accuracy and mistakes of each class."""

import json
import random

import numpy as np
from sklearn.metrics import confusion_matrix

from proxyfda.engine.evaluation import per_class


def matrix_of(classes, names):
    """The confusion matrix that the classes are the rows of."""
    places = {name: place for place, name in enumerate(names)}
    matrix = np.zeros((len(names), len(names)), int)
    for one in classes:
        row = places[one["name"]]
        matrix[row, row] = one["images"] - sum(one["taken_for"].values())
        for other, count in one["taken_for"].items():
            matrix[row, places[other]] = count
    return matrix


def test_it_is_the_confusion_matrix():
    stream = random.Random(1)
    labels = [stream.randrange(6) for _ in range(400)]
    predictions = [stream.choice([label, stream.randrange(6)]) for label in labels]
    names = dict(enumerate("abcdef"))
    classes = per_class(labels, predictions, names)
    expected = confusion_matrix(labels, predictions)
    assert (matrix_of(classes, list("abcdef")) == expected).all()
    accuracies = [one["accuracy"] for one in classes]
    assert np.allclose(accuracies, 100 * expected.diagonal() / expected.sum(1))
    assert [one["name"] for one in classes] == list("abcdef")


def test_a_class_without_images_has_no_accuracy_and_is_named_where_it_was_guessed():
    assert per_class([0, 0, 0], [0, 2, 2], {0: "cat", 1: "dog", 2: "owl"}) == [
        {"name": "cat", "images": 3, "accuracy": 100 / 3, "taken_for": {"owl": 2}}
    ]


def test_labels_stand_for_names_that_are_not_given():
    assert per_class([5, 5], [5, 7])[0] == {
        "name": "5", "images": 2, "accuracy": 50.0, "taken_for": {"7": 1},
    }  # fmt: skip


def test_mistakes_for_two_classes_of_one_name_are_added():
    assert per_class([0], [0], {0: "crane"})[0]["taken_for"] == {}
    found = per_class([0, 0, 0], [1, 2, 2], {0: "cat", 1: "crane", 2: "crane"})
    assert found[0]["taken_for"] == {"crane": 3}


def test_a_thousand_classes_stay_below_a_megabyte():
    # As ImageNet's validation images: 50 of each class, a third of them wrong, in a few ways.
    stream = random.Random(1)
    labels = [label for label in range(1000) for _ in range(50)]
    predictions = [
        label if stream.random() < 0.67 else (label + stream.randrange(1, 25)) % 1000
        for label in labels
    ]
    classes = per_class(labels, predictions, {i: f"a class of name {i}" for i in range(1000)})
    assert len(json.dumps(classes, indent=2)) < 1e6
    assert sum(len(one["taken_for"]) for one in classes) > 10_000
