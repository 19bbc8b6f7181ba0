"""LDIFS: the l2 distance in feature space, of several layers of the encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List

import torch
from torch import Tensor

from proxyfda.neighbours.cosines import full_precision, zero_loss
from proxyfda.regularisers.base import Features, Options, Regulariser, register
from proxyfda.utils.errors import BadValue

__all__ = ["LDIFS", "LDIFSOptions", "ldifs_loss"]

NORMALISED_OVER = ("tokens", "channels", "nothing")


@dataclass(frozen=True)
class LDIFSOptions(Options):
    """Options of :class:`LDIFS`.

    Attributes:
        normalise_over: what is brought to length 1 before the difference is taken.
            ``"tokens"`` is what the published code does, dimension 1 of [B, T, C], an idiom for
            images [B, C, H, W] (https://github.com/omegafragger/ldifs_code, loss/ldifs.py);
            ``"channels"``, the feature vector of each token, is evidently what is meant;
            ``"nothing"`` leaves the features as they are. For features [B, C] the first two are the
            same.
    """

    normalise_over: str = "tokens"

    def check(self) -> None:
        """See :meth:`Options.check`."""
        self._require(
            self.normalise_over in NORMALISED_OVER,
            "normalise_over",
            f"use one of {', '.join(NORMALISED_OVER)}",
        )


def _normalised(x: Tensor, dim: int) -> Tensor:
    return x / (torch.linalg.vector_norm(x, dim=dim, keepdim=True) + 1e-10)


def ldifs_loss(features: Features, anchors: Features, *, normalise_over: str = "tokens") -> Tensor:
    """Mean over layers of the mean squared difference of normalised tuned and frozen features.

        L = 1/|layers| Σ_l mean (x^l / |x^l| - x̂^l / |x̂^l|)²

    The mean is over samples, tokens and channels.

    Source: Mukhoti et al., "Fine-tuning can cripple your foundation model; preserving features may
    be the solution", TMLR 2024, arXiv 2308.13320, and its code. There: five layers (after
    ``ln_pre`` and after the blocks 3, 6, 9 and 12 of ViT-B), all tokens, weight 10.

    Args:
        features: tuned features of one layer, [B, T, C] with tokens or [B, C], or a list of those
            of several layers.
        anchors: their frozen counterparts, of the same shapes; no gradient flows into them.
        normalise_over: see :class:`LDIFSOptions`.

    Returns:
        Scalar, fp32 (float64 for float64 features); 0 for an empty batch.

    Raises:
        BadValue: shapes that differ, no layers, or another word.

    >>> x, y = torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]])
    >>> ldifs_loss([x], [y])
    tensor(0.0400)
    """
    dim = {"tokens": 1, "channels": -1, "nothing": 0}[LDIFSOptions(normalise_over).normalise_over]
    tuned = [features] if isinstance(features, Tensor) else list(features)
    frozen = [anchors] if isinstance(anchors, Tensor) else list(anchors)
    shapes, wanted = [tuple(x.shape) for x in tuned], [tuple(x.shape) for x in frozen]
    if shapes != wanted or not tuned or any(len(shape) not in (2, 3) for shape in shapes):
        raise BadValue(
            f"features have the shapes {shapes}, anchors {wanted}; give equal layers [B, C] or "
            "[B, T, C], one at least."
        )
    if not len(tuned[0]):
        return zero_loss(*tuned)
    losses: List[Tensor] = []
    with full_precision(tuned[0].device):
        for x, y in zip(tuned, frozen):
            x = x if x.dtype == torch.float64 else x.float()
            y = y.detach().to(x.dtype)
            if dim:
                x, y = _normalised(x, dim), _normalised(y, dim)
            losses.append((x - y).square().mean())
        return torch.stack(losses).mean()


@register
class LDIFS(Regulariser):
    """The l2 distance in feature space as a module, see :func:`ldifs_loss`."""

    name = "ldifs"
    options_class = LDIFSOptions
    takes_layers = True

    def terms(self, features: Any, anchors: Any = None, **more: Any) -> Dict[str, Tensor]:
        """See :meth:`Regulariser.terms`."""
        options = self.options
        loss = ldifs_loss(features, anchors, normalise_over=options.normalise_over, **more)
        return {self.log_name: loss}
