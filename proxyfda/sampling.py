"""Class-balanced batches: m classes x n images, at random or with hard class mining.

Huang et al., ICML 2025, arXiv 2505.24088: 16 classes x 4 images, and classes that are close in the
frozen feature space share a batch. Everything about shapes that do not divide evenly is *ours*.
"""

from __future__ import annotations

from typing import Iterator, List, Optional, Sequence, Union

import torch
from torch import Tensor
from torch.utils.data import Sampler

from proxyfda.utils.errors import BadValue

__all__ = ["ClassBalancedBatchSampler", "class_similarity"]


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
    - classes < m: all classes are in a batch, with more images of each;
    - a class is cut into as few parts of at most n images as possible, equal up to one image; a
      batch takes one part of each of its classes;
    - parts are spread over the fewest batches that hold them, so batches differ by at most one
      class and none is a short remainder.

    The same seed and epoch give the same batches, whatever was drawn before; call ``set_epoch`` at
    the start of each epoch. The global random streams are neither read nor moved.

    Args:
        labels: class of every image, in the data set's order.
        m: classes per batch.
        n: images per class.
        similarity: [C, C] similarity of the classes present in ascending order of label, see
            ``class_similarity``. Given, a batch starts from a class at random and adds the class
            that is on average most similar to those it has; None: classes at random.
        seed: of the sampler's own generator.
        drop_last: give only batches of the full number of classes (but at least one batch).

    Attributes:
        m: classes in a batch (at most).
        n: images of a class in a batch (at most).

    Raises:
        ValueError: no labels, m or n below 1, or a similarity of the wrong shape.
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
    ) -> None:
        labels = torch.as_tensor(labels).reshape(-1)
        if len(labels) == 0:
            raise BadValue("labels are empty; give the class of at least one image.")
        if m < 1 or n < 1:
            raise BadValue(f"m is {m} and n {n}; give at least 1 of each.")
        classes, position = labels.unique(return_inverse=True)
        self._members = [(position == c).nonzero().flatten() for c in range(len(classes))]
        self._similarity = None
        if similarity is not None:
            similarity = torch.as_tensor(similarity).detach().to("cpu", torch.float64)
            if similarity.shape != (len(classes), len(classes)):
                raise BadValue(
                    f"similarity has shape {tuple(similarity.shape)}, but there are "
                    f"{len(classes)} classes; give one row and column per class."
                )
            self._similarity = similarity
        self.seed, self.epoch = int(seed), 0

        largest = max(len(members) for members in self._members)
        self.n = min(n, largest)
        self.m = min(len(classes), m * n // self.n)
        self.n = min(largest, m * n // self.m)
        parts = torch.tensor([-(-len(members) // self.n) for members in self._members])
        count = int(parts.sum())
        batches = max(1, count // self.m) if drop_last else -(-count // self.m)
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
        queues = []
        for members, parts in zip(self._members, self._parts.tolist()):
            mixed = members[torch.randperm(len(members), generator=generator)]
            queues.append(list(mixed[: parts * self.n].tensor_split(parts)))
        batches = [
            [i for c in chosen for i in queues[c].pop().tolist()]
            for chosen in self._choose_classes(generator)
        ]
        # The first batches had the freest choice of classes: do not always begin with them.
        for b in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[b]

    def _choose_classes(self, generator: torch.Generator) -> Iterator[List[int]]:
        """Distinct classes for each batch, each class as often as it has parts."""
        parts = torch.arange(len(self._parts)).repeat_interleave(self._parts)
        used = torch.randperm(len(parts), generator=generator)[: sum(self._sizes)]
        left = parts[used].bincount(minlength=len(self._parts))
        for b, size in enumerate(self._sizes):
            # A class with a part for every batch to come cannot wait, or it would be left over.
            key = torch.rand(len(left), generator=generator, dtype=torch.float64)
            key = (key + 2.0 * (left >= len(self._sizes) - b)).masked_fill(left == 0, -1.0)
            if self._similarity is None:
                chosen = key.topk(size).indices.tolist()
            else:
                chosen = self._mine(key, size)
            left[chosen] -= 1
            yield chosen

    def _mine(self, key: Tensor, size: int) -> List[int]:
        """Classes that are close to each other: key >= 2 must be in, key < 0 cannot."""
        chosen = (key >= 2.0).nonzero().flatten().tolist() or [int(key.argmax())]
        closeness = self._similarity[chosen].sum(0)
        free = key >= 0.0
        free[chosen] = False
        while len(chosen) < size:
            nearest = int(closeness.masked_fill(~free, -float("inf")).argmax())
            chosen.append(nearest)
            free[nearest] = False
            closeness = closeness + self._similarity[nearest]
        return chosen
