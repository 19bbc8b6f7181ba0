"""Point-wise: every feature is pulled to where it was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict

from torch import Tensor

from proxyfda.neighbours.cosines import check_features, full_precision, unit_rows, zero_loss
from proxyfda.regularisers.base import Options, Regulariser, register
from proxyfda.utils.errors import BadValue

__all__ = ["Pointwise", "PointwiseOptions", "pointwise_loss"]


@dataclass(frozen=True)
class PointwiseOptions(Options):
    """:class:`Pointwise` has no options."""


def pointwise_loss(features: Tensor, anchors: Tensor) -> Tensor:
    """Pull to the frozen features, mean_i (1 - cos(x_i, x̂_i)): the baseline FDA is compared with.

    Source: on class texts this is the distance of Yao et al., "Visual-Language Prompt Tuning with
    Knowledge-guided Context Optimization" (KgCoOp), CVPR 2023, arXiv 2303.13283, up to a factor 2:
    there it is the squared Euclidean distance of unit features.

    Args:
        features: tuned features [N, d].
        anchors: frozen features of the same samples [N, d]; no gradient flows into them.

    Returns:
        Scalar, fp32 (float64 for float64 features); 0 for an empty batch.

    Raises:
        BadValue: the shapes differ.

    >>> import torch
    >>> pointwise_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
    tensor(1.)
    """
    check_features("features", features)
    if features.shape != anchors.shape:
        raise BadValue(
            f"features have shape {tuple(features.shape)}, anchors {tuple(anchors.shape)}; "
            "give one anchor per feature."
        )
    if len(features) == 0:
        return zero_loss(features)
    with full_precision(features.device):
        return (1.0 - (unit_rows(features) * unit_rows(anchors.detach())).sum(1)).mean()


@register
class Pointwise(Regulariser):
    """The point-wise pull as a module, see :func:`pointwise_loss`."""

    name = "pointwise"
    options_class = PointwiseOptions
    default_weight = 3.0

    def terms(self, features: Any, anchors: Any = None, **more: Any) -> Dict[str, Tensor]:
        """See :meth:`Regulariser.terms`."""
        return {self.log_name: pointwise_loss(features, anchors, **more)}
