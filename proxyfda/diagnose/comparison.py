"""The measures between a frozen and a tuned encoder on a sample of images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from proxyfda.diagnose.samples import Encoded
from proxyfda.diagnostics import cka, fit_linear_probe, l2_drift, otdd
from proxyfda.diagnostics.overlap import neighbours_kept
from proxyfda.neighbours.cosines import unit_rows
from proxyfda.utils.errors import BadValue

__all__ = ["MEASURES", "Comparison", "compare", "halves"]

MEASURES = {
    "overlap": "neighbours kept",
    "cka": "CKA",
    "l2_drift": "L2 drift",
    "otdd": "OTDD",
}
"""Name of a measure in a :class:`Comparison` -> what tables call it."""


@dataclass(frozen=True)
class Comparison:
    """A tuned encoder beside a frozen one on N images; all on features of length 1.

    Attributes:
        overlap: share of the K nearest neighbours that are still neighbours.
        cka: linear CKA, debiased.
        l2_drift: mean distance of a feature to where it was.
        otdd: OTDD between the frozen features of one half of the images and the tuned ones of the
            other.
        otdd_before: the same with frozen features on both sides: what different images alone make.
        linear_probe, linear_probe_before: accuracy in percent of a linear probe that is fitted on
            the one half and tested on the other, tuned and frozen; None with one class.
        zero_shot, zero_shot_before: accuracy by the classes' texts; None without texts.
        kept: share of neighbours kept of each image [N].
        moved: distance of each feature to where it was [N].
        layers: after how many blocks, or at which stage -> mean distance of the tokens' mean to
            where it was.
    """

    overlap: float
    cka: float
    l2_drift: float
    otdd: float
    otdd_before: float
    linear_probe: float | None
    linear_probe_before: float | None
    zero_shot: float | None
    zero_shot_before: float | None
    kept: Tensor
    moved: Tensor
    layers: dict[int, float]

    @property
    def otdd_beyond(self) -> float:
        """OTDD beyond what different images alone make."""
        return self.otdd - self.otdd_before


def compare(
    name: str, frozen: Encoded, tuned: Encoded, labels: Tensor, *, k: int = 8, seed: int = 0
) -> Comparison:
    """The measures between two encodings of the same images.

    Args:
        name: of the dataset, for messages.
        frozen, tuned: the encodings.
        labels: classes of the images [N].
        k: neighbours.
        seed: of the two halves, see :func:`halves`.

    Raises:
        BadValue: features of unequal dimension, or fewer images than ``k + 2``, or than the halves
            need.
        NotInstalled: POT is missing.
    """
    count = len(labels)
    if count < max(k + 2, 8):
        raise BadValue(
            f"{name} has {count} images here, too few for {k} neighbours and two halves; give at "
            f"least {max(k + 2, 8)}, or fewer neighbours by --k"
        )
    before, after = unit_rows(frozen.features), unit_rows(tuned.features)
    if before.shape[1] != after.shape[1]:
        raise BadValue(
            f"the frozen model has features of {before.shape[1]} dimensions and the tuned one of "
            f"{after.shape[1]}; compare a model with the one that it was tuned from"
        )
    one, other = halves(count, seed)
    from_half = before[one], labels[one]
    probes: list[float | None] = [None, None]
    if len(labels.unique()) > 1:
        probes = [_probe(features, labels, one, other) for features in (after, before)]
    kept = neighbours_kept(before, after, k)
    return Comparison(
        overlap=kept.mean().item(),
        cka=cka(before, after, debiased=True),
        l2_drift=l2_drift(before, after),
        otdd=otdd(*from_half, after[other], labels[other], seed=seed),
        otdd_before=otdd(*from_half, before[other], labels[other], seed=seed),
        linear_probe=probes[0],
        linear_probe_before=probes[1],
        zero_shot=_zero_shot(tuned, labels),
        zero_shot_before=_zero_shot(frozen, labels),
        kept=kept,
        moved=(after - before).norm(dim=1),
        layers={
            at: l2_drift(old, tuned.layers[at], unit=True)
            for at, old in frozen.layers.items()
            if at in tuned.layers
        },
    )


def halves(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Places of two disjoint halves of some images, drawn by a seed."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[: count // 2], order[count // 2 :]


def _probe(features: Tensor, labels: Tensor, one: Tensor, other: Tensor) -> float | None:
    if len(labels[one].unique()) < 2:
        return None
    classes = int(labels.max()) + 1
    probe = fit_linear_probe(features[one], labels[one], classes=classes)
    return 100 * probe.accuracy(features[other], labels[other])


def _zero_shot(encoded: Encoded, labels: Tensor) -> float | None:
    if encoded.guesses is None:
        return None
    return 100 * (encoded.guesses == labels).double().mean().item()
