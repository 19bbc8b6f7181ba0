"""Nodes of the neighbour graph beyond the batch: words that are no class, images made of others.

Both are *ours*. Each runs within the host's own calls of its encoders, behind its classes and
images, so that gradients reach the prompts in the host's own backward pass. The paper enriches a
batch by proxies made of its own features (Huang et al., ICML 2025, Section 3.2); these are new
inputs of the encoders, tuned and frozen, which cost no data.

Of words. A prompt is a function of the class name, and training sees it at the base classes alone.
Others have held it at further names: SAR aligns cosine relations among texts of learned and of
hand-written prompts over base classes and names that a language model made (arXiv 2502.11969);
LASP adds "virtual" classes (Bulat and Tzimiropoulos, CVPR 2023, arXiv 2210.01115), in whose public
code they are the new classes' own names, which is no fair setting; ATPrompt adds attribute words to
the prompt (Li et al., ICCV 2025, arXiv 2412.09442). Here names come from a generic vocabulary,
never one of the dataset's classes, and anew in each step.

Of images. Where the image encoder is tuned, mixtures of two images of the batch are further points
at which it is held: it has to agree with the frozen one there, whatever their label would be. The
blend is that of mixup (Zhang et al., ICLR 2018, arXiv 1710.09412), halves and patches are those of
CutMix (Yun et al., ICCV 2019, arXiv 1905.04899), without their labels.
"""

from __future__ import annotations

import random
from typing import Callable, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from proxyfda.utils.errors import BadValue
from proxyfda.vocabulary import draw_names

__all__ = ["MIXTURES", "MixedImages", "Words", "mix"]

MIXTURES = ("halves", "patches", "blend")
_GRID = 4  # cells of ``patches`` in a row


class Words:
    """Some names of a vocabulary for each step, and their anchors.

    Args:
        names: the vocabulary, without the dataset's classes.
        count: names in a step.
        seed: of the draws, each of which follows from it and the numbers of the step alone.
        frozen: names -> [n, d], frozen features of the hand-written prompt.

    Raises:
        BadValue: fewer names than a step wants.
    """

    def __init__(
        self,
        names: Sequence[str],
        count: int,
        seed: int,
        frozen: Callable[[Sequence[str]], Tensor],
    ) -> None:
        if len(names) < count:
            raise BadValue(
                f"TRAINER.PROXYFDA.WORDS is {count}, but without the dataset's classes the "
                f"vocabulary has {len(names)} names; give a larger TRAINER.PROXYFDA.VOCABULARY or "
                "fewer WORDS"
            )
        self.names, self.count = list(names), count
        self._seed, self._frozen = seed, frozen
        self._drawn: List[int] = []
        self._features: Optional[Tensor] = None

    def draw(self, epoch: int, batch: int) -> List[str]:
        """The names of a step."""
        self._drawn = draw_names(self.names, self.count, self._seed, epoch, batch)
        return [self.names[position] for position in self._drawn]

    def anchors(self) -> Tensor:
        """Frozen features of the names drawn last, [W, d].

        Those of the whole vocabulary are computed once.
        """
        if self._features is None:
            with torch.no_grad():
                self._features = self._frozen(self.names).detach().float()
        return self._features[self._drawn]


class MixedImages:
    """Mixtures of the images of a step.

    Args:
        count: how many.
        kind: one of ``MIXTURES``.
        seed: of the draws, each of which follows from it and the numbers of the step alone.
    """

    def __init__(self, count: int, kind: str, seed: int) -> None:
        self._count, self._kind, self._seed = count, kind, seed
        self._step = (0, 0)

    def start(self, epoch: int, batch: int) -> None:
        """Begin a step."""
        self._step = (epoch, batch)

    def __call__(self, images: Tensor) -> Optional[Tensor]:
        """Images [B, 3, H, W] to mixtures [n, 3, H, W]; None of fewer than two images.

        Within a step the same for the same images, so that they may be computed again.

        Raises:
            BadValue: no images of two dimensions.
        """
        if images.dim() != 4:
            raise BadValue(
                f"TRAINER.PROXYFDA.MIXED is {self._count}, but the image encoder is given a tensor "
                f"of shape {tuple(images.shape)} and no images [B, 3, H, W] to mix; set MIXED 0"
            )
        if len(images) < 2:
            return None
        stream = random.Random(f"{self._seed} {self._step[0]} {self._step[1]} mixed")
        return mix(images, self._count, self._kind, stream)


def mix(images: Tensor, count: int, kind: str, stream: random.Random) -> Tensor:
    """Mixtures [count, 3, H, W] of two different images each, of a batch [B, 3, H, W], B >= 2.

    Of ``halves`` the left or the upper one is of one image and the rest of the other; ``patches``
    are 16 cells, half of them of the other image; ``blend`` is the mean of both.

    >>> pair = torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)])
    >>> [mix(pair, 2, kind, random.Random(0)).mean().item() for kind in MIXTURES]
    [0.5, 0.5, 0.5]
    """
    pairs = [stream.sample(range(len(images)), 2) for _ in range(count)]
    ones, others = (images[[pair[side] for pair in pairs]] for side in (0, 1))
    if kind == "blend":
        return 0.5 * ones + 0.5 * others
    size: Tuple[int, int] = (images.shape[2], images.shape[3])
    masks = torch.stack([_mask(kind, size, stream) for _ in pairs]).to(images.device)
    return torch.where(masks.unsqueeze(1), ones, others)


def _mask(kind: str, size: Tuple[int, int], stream: random.Random) -> Tensor:
    """Where [H, W] the first of two images shows."""
    if kind == "halves":
        cells = [[True, False]] if stream.random() < 0.5 else [[True], [False]]
    else:
        shown = set(stream.sample(range(_GRID**2), _GRID**2 // 2))
        cells = [[row * _GRID + column in shown for column in range(_GRID)] for row in range(_GRID)]
    rows, columns = (
        torch.arange(pixels) * parts // pixels
        for pixels, parts in zip(size, (len(cells), len(cells[0])))
    )
    return torch.tensor(cells)[rows][:, columns]
