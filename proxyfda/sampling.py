"""Class-balanced batches: m classes x n images, at random or with hard class mining.

Huang et al., ICML 2025, arXiv 2505.24088: 16 classes x 4 images, and classes that are close in the
frozen feature space share a batch. Everything about shapes that do not divide evenly is *ours*.
"""

from __future__ import annotations

from typing import Iterator, List, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor
from torch.utils.data import Sampler

from proxyfda.utils.errors import BadValue

__all__ = ["ClassBalancedBatchSampler", "class_similarity"]

_CHUNK = 1 << 20  # random numbers that are drawn at once to pass over them


def class_similarity(features: Tensor, labels: Union[Tensor, Sequence[int]]) -> Tensor:
    """Cosine similarities between the class means of unit features.

    Args:
        features: [N, d], need not be normalised.
        labels: class of each feature [N].

    Returns:
        [C, C] in fp32 for the C classes present, in ascending order of label.

    Raises:
        ValueError: the lengths differ.
    """
    labels = torch.as_tensor(labels)
    if features.dim() != 2 or labels.shape != features.shape[:1]:
        raise BadValue(
            f"features have shape {tuple(features.shape)}, labels {tuple(labels.shape)}; "
            "give [N, d] and [N]."
        )
    unit = torch.nn.functional.normalize(features.detach().float(), dim=1)
    classes, position = labels.to(unit.device).unique(return_inverse=True)
    sums = unit.new_zeros(len(classes), unit.shape[1]).index_add_(0, position, unit)
    means = torch.nn.functional.normalize(sums, dim=1)  # the scale of a mean does not count
    return means @ means.t()


class ClassBalancedBatchSampler(Sampler):
    """Batch sampler of m classes x n images; give it to a DataLoader as ``batch_sampler``.

    Every image is used exactly once in an epoch, with two exceptions, where it is used at most
    once and the ones left out are drawn anew in each epoch: with ``drop_last``, and where a batch
    would otherwise hold a single class (one class far larger than the rest).

    The shape adapts to the data, keeping batches as close to m·n images as it allows:

    - shots < n: n becomes the size of the largest class and more classes share a batch;
    - classes < m: all classes are in a batch, with more images of each, but no more than
      ``most_per_class``: batches are then smaller than m·n;
    - a class is cut into as few parts of at most n images as possible, equal up to one image; a
      batch takes one part of each of its classes;
    - parts are spread over the fewest batches that hold them, so batches differ by at most one
      class and none is a short remainder.

    The same seed and epoch give the same batches, whatever was drawn before; call ``set_epoch`` at
    the start of each epoch. The global random streams are neither read nor moved. An epoch's
    batches are made while they are used.

    Args:
        labels: class of every image, in the data set's order.
        m: classes per batch.
        n: images per class.
        similarity: [C, C] similarity of the classes present in ascending order of label, see
            ``class_similarity``. Given, a batch starts from a class at random and adds the class
            that is on average most similar to those it has; None: classes at random.
        seed: of the sampler's own generator.
        drop_last: give only batches of the full number of classes (but at least one batch).
        most_per_class: bound of n. (Proxy-)FDA with K neighbours needs n < K, or all neighbours
            of an image are of its own class: give K - 1. None: no bound.

    Attributes:
        m: classes in a batch (at most).
        n: images of a class in a batch (at most).
        shape_note: a sentence saying why these are not those asked for; empty if they are.

    Raises:
        ValueError: no labels, m, n or most_per_class below 1, or a similarity of the wrong shape
            or with values that are not finite.
    """

    def __init__(
        self,
        labels: Union[Tensor, Sequence[int]],
        m: int = 16,
        n: int = 4,
        *,
        similarity: Optional[Tensor] = None,
        seed: int = 0,
        drop_last: bool = False,
        most_per_class: Optional[int] = None,
    ) -> None:
        labels = torch.as_tensor(labels).reshape(-1)
        if len(labels) == 0:
            raise BadValue("labels are empty; give the class of at least one image.")
        if m < 1 or n < 1:
            raise BadValue(f"m is {m} and n {n}; give at least 1 of each.")
        if most_per_class is not None and most_per_class < 1:
            raise BadValue(f"most_per_class is {most_per_class}; give at least 1, or None.")
        classes, position = labels.unique(return_inverse=True)
        counts = position.bincount()
        self._members = position.sort(stable=True).indices.split(counts.tolist())
        self._similarity = None
        if similarity is not None:
            self._similarity = _check_similarity(similarity, len(classes))
        self.seed, self.epoch = int(seed), 0

        largest = int(counts.max())
        most = largest if most_per_class is None else min(largest, most_per_class)
        self.m, self.n = _fit_shape(m, n, len(classes), most)
        self.shape_note = ""
        if (self.m, self.n) != (m, n):
            reasons = []
            if len(classes) < m:
                reasons.append(f"the number of classes is {len(classes)}")
            if largest < n:
                reasons.append(f"the largest class has {largest} images")
            if (self.m, self.n) != _fit_shape(m, n, len(classes), largest):
                reasons.append(f"a batch may hold at most {most} images of a class")
            self.shape_note = (
                f"Batches of {m} classes x {n} images were asked for and become {self.m} x "
                f"{self.n}, because {' and '.join(reasons)}."
            )
        parts = torch.tensor([-(-count // self.n) for count in counts.tolist()])
        total = int(parts.sum())
        batches = max(1, total // self.m) if drop_last else -(-total // self.m)
        least = min(2, self.m)
        while int(parts.clamp(max=batches).sum()) < least * batches:
            batches -= 1
        self._parts = parts.clamp(max=batches)
        total = min(int(self._parts.sum()), batches * self.m)
        self._sizes = [total // batches + (b < total % batches) for b in range(batches)]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches the next iteration gives."""
        self.epoch = int(epoch)

    def __len__(self) -> int:
        return len(self._sizes)

    def __iter__(self) -> Iterator[List[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        mixed = [
            images[torch.randperm(len(images), generator=generator)] for images in self._members
        ]
        parts = self._parts.tolist()
        left, made, choices = list(parts), [], self._choose_classes(generator)
        # The first batches had the freest choice of classes: do not always begin with them.
        for b in self._draw_order(generator).tolist():
            while len(made) <= b:
                chosen = next(choices)
                for c in chosen:
                    left[c] -= 1
                made.append([(c, left[c]) for c in chosen])
            batch = []
            for c, part in made[b]:
                # Number ``part`` of the parts of class c, which are equal up to one image.
                size, larger = divmod(min(len(mixed[c]), parts[c] * self.n), parts[c])
                start = part * size + min(part, larger)
                batch += mixed[c][start : start + size + (part < larger)].tolist()
            made[b] = []
            yield batch

    def _draw_order(self, generator: torch.Generator) -> Tensor:
        """The order in which the batches are given.

        It is drawn after all choices of classes, so a copy of the generator runs ahead.
        """
        ahead = torch.Generator()
        ahead.set_state(generator.get_state())
        torch.randperm(int(self._parts.sum()), generator=ahead)
        keys = len(self._sizes) * len(self._parts)
        for start in range(0, keys, _CHUNK):
            torch.rand(min(_CHUNK, keys - start), generator=ahead, dtype=torch.float64)
        return torch.randperm(len(self._sizes), generator=ahead)

    def _choose_classes(self, generator: torch.Generator) -> Iterator[List[int]]:
        """Distinct classes for each batch, each class as often as it has parts."""
        parts = torch.arange(len(self._parts)).repeat_interleave(self._parts)
        used = torch.randperm(len(parts), generator=generator)[: sum(self._sizes)]
        left = parts[used].bincount(minlength=len(self._parts))
        minus_one = torch.full_like(left, -1)
        for b, size in enumerate(self._sizes):
            key = torch.rand(len(left), generator=generator, dtype=torch.float64)
            # A class with a part for every batch to come cannot wait, or it would be left over.
            waits = left < len(self._sizes) - b
            must = [] if waits.all() else (~waits).nonzero().flatten().tolist()
            used_up = None if left.all() else left == 0
            if self._similarity is None:
                key[must] += 2.0
                if used_up is not None:
                    key.masked_fill_(used_up, -1.0)
                chosen = key.topk(size).indices.tolist()
            else:
                if used_up is not None:
                    key.masked_fill_(used_up, -1.0)
                chosen = self._mine(must or [int(key.argmax())], size, used_up)
            left.index_add_(0, torch.tensor(chosen), minus_one[:size])
            yield chosen

    def _mine(self, start: List[int], size: int, used_up: Optional[Tensor]) -> List[int]:
        """``start`` and the classes that are closest to those chosen, ``size`` in all; not those
        that are used up [C]."""
        chosen = list(start)
        closeness = self._similarity[chosen].sum(0)
        if used_up is not None:
            closeness.masked_fill_(used_up, -float("inf"))
        while len(chosen) < size:
            nearest = int(closeness.argmax())
            chosen.append(nearest)
            closeness += self._similarity[nearest]
        return chosen


def _fit_shape(m: int, n: int, classes: int, most: int) -> Tuple[int, int]:
    """Classes and images of each in a batch of about m·n images, where there are ``classes``, and
    a batch may have ``most`` images of each."""
    share = min(classes, m * n // min(n, most))
    return share, min(most, m * n // share)


def _check_similarity(similarity: Tensor, classes: int) -> Tensor:
    """A copy [C, C] in fp64 in which no class can be taken for its own neighbour."""
    similarity = torch.as_tensor(similarity).detach().to("cpu", torch.float64)
    if similarity.shape != (classes, classes):
        raise BadValue(
            f"similarity has shape {tuple(similarity.shape)}, but there are {classes} classes; "
            "give one row and column per class."
        )
    if not similarity.isfinite().all():
        raise BadValue("similarity has values that are not finite; check the features behind it.")
    return similarity.clone().fill_diagonal_(-float("inf"))
