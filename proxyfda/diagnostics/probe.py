"""Whether the features of classes that were not tuned on still tell them apart."""

from __future__ import annotations

from typing import Any

import torch

from proxyfda.neighbours.cosines import check_features, unit_rows
from proxyfda.utils.errors import BadValue

__all__ = ["knn_accuracy"]


def knn_accuracy(x: Any, labels: Any, queries: Any, query_labels: Any, k: int = 5) -> float:
    """Share of queries whose class is that of most of their K nearest labelled features.

    Nearest by cosine, and each neighbour's vote is its cosine. No training, so that it can be asked
    of any classes at any time: before and after tuning on others, the difference is what was
    forgotten.

    Args:
        x: labelled features [N, d], a tensor or an array.
        labels: their classes [N], whole numbers from 0.
        queries: features [M, d].
        query_labels: their classes [M].
        k: neighbours that vote, at most N of them.

    Returns:
        0 to 1.

    Raises:
        BadValue: no matrices, of unequal dimension or length, or no neighbour.

    >>> x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    >>> knn_accuracy(x, [0, 0, 1], [[2.0, 0.1], [0.1, 1.0]], [0, 1], k=1)
    1.0
    """
    features, asked = torch.as_tensor(x).detach(), torch.as_tensor(queries).detach()
    for name, matrix in (("x", features), ("queries", asked)):
        check_features(name, matrix)
    if features.shape[1] != asked.shape[1]:
        raise BadValue(
            f"x has {features.shape[1]} dimensions and queries {asked.shape[1]}; give features of "
            f"the same model."
        )
    classes = torch.as_tensor(labels, device=features.device)
    wanted = torch.as_tensor(query_labels, device=features.device)
    for name, rows, found in (("labels", features, classes), ("query_labels", asked, wanted)):
        if found.shape != rows.shape[:1] or not len(found):
            raise BadValue(
                f"{name} has shape {list(found.shape)} for {len(rows)} features; give each one "
                f"class."
            )
    if k < 1:
        raise BadValue(f"k is {k!r}; use at least 1 neighbour.")
    cosines = unit_rows(asked.to(features.device)) @ unit_rows(features).t()
    near, index = cosines.topk(min(k, len(features)), dim=1)
    votes = near.new_zeros(len(asked), int(classes.max()) + 1)
    votes.scatter_add_(1, classes[index], near)
    return (votes.argmax(1) == wanted).double().mean().item()
