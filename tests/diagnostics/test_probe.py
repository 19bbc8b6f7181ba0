"""K nearest neighbours vote, counted query by query."""

from collections import defaultdict

import pytest
import torch
from naive import cosine, features

from proxyfda.diagnostics import knn_accuracy


def naive(x, labels, queries, query_labels, k):
    right = 0
    for query, label in zip(queries, query_labels):
        near = sorted(range(len(x)), key=lambda j: -cosine(query, x[j]).item())[:k]
        votes = defaultdict(float)
        for j in near:
            votes[labels[j]] += cosine(query, x[j]).item()
        right += max(votes, key=votes.get) == label
    return right / len(queries)


@pytest.mark.parametrize("k", [1, 5, 50])
def test_share_of_queries_with_the_right_vote(k):
    x, queries = features(30, 1), features(20, 2)
    labels, wanted = [i % 3 for i in range(30)], [i % 3 for i in range(20)]
    want = naive(x, labels, queries, wanted, k)
    assert 0 < want < 1
    assert knn_accuracy(x, labels, queries, wanted, k) == pytest.approx(want)
    assert knn_accuracy(2 * x.numpy(), torch.tensor(labels), queries, wanted, k) == want


def test_default_is_5_neighbours():
    x, queries = features(30, 1), features(20, 2)
    labels, wanted = [i % 3 for i in range(30)], [i % 3 for i in range(20)]
    assert knn_accuracy(x, labels, queries, wanted) == pytest.approx(
        naive(x, labels, queries, wanted, 5)
    )


@pytest.mark.parametrize(
    "change, words",
    [
        ({"labels": [0, 1]}, "labels has shape .2. for 6 features"),
        ({"queries": torch.zeros(4, 2)}, "dimensions and queries 2"),
        ({"query_labels": [0]}, "query_labels has shape .1. for 4 features"),
        ({"k": 0}, "k is 0"),
        ({"x": torch.zeros(6)}, "x has shape"),
    ],
    ids=["labels", "dimensions", "query labels", "k", "vector"],
)
def test_bad_input_is_one_sentence(change, words):
    good = {
        "x": features(6),
        "labels": [0, 0, 1, 1, 2, 2],
        "queries": features(4),
        "query_labels": [0, 1, 2, 0],
        "k": 3,
    }
    with pytest.raises(ValueError, match=words):
        knn_accuracy(**{**good, **change})
