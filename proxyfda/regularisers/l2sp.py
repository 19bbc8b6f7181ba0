"""L2SP: every weight is pulled to where it started."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Iterable, List, Optional, Sequence, Union

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from proxyfda.neighbours.cosines import zero_loss
from proxyfda.regularisers.base import Options, Regulariser, register
from proxyfda.utils.errors import BadValue

__all__ = ["L2SP", "L2SPOptions", "l2sp_loss"]


@dataclass(frozen=True)
class L2SPOptions(Options):
    """:class:`L2SP` has no options."""


def l2sp_loss(weights: Sequence[Tensor], starting_weights: Sequence[Tensor]) -> Tensor:
    """Squared distance of weights from where they started, Σ |w - w⁰|².

    Source: Li et al., "Explicit Inductive Bias for Transfer Learning with Convolutional Networks",
    ICML 2018, arXiv 1802.01483, without its term on the new head. Weights in use elsewhere: 0.5
    (https://github.com/omegafragger/ldifs_code), 0.01 (https://github.com/thuml/Transfer-Learning-Library).

    Args:
        weights: tensors of any shapes.
        starting_weights: tensors of the same shapes; no gradient flows into them.

    Returns:
        Scalar, fp32 (float64 for float64 weights); 0 without weights.

    Raises:
        BadValue: the shapes differ.

    >>> l2sp_loss([torch.tensor([1.0, 2.0])], [torch.zeros(2)])
    tensor(5.)
    """
    shapes, wanted = [tuple(w.shape) for w in weights], [tuple(w.shape) for w in starting_weights]
    if shapes != wanted:
        raise BadValue(
            f"weights have the shapes {shapes}, starting weights {wanted}; give the same weights."
        )
    if not shapes:
        return zero_loss()
    terms = []
    for weight, start in zip(weights, starting_weights):
        weight = weight if weight.dtype == torch.float64 else weight.float()
        # One pass each way, and no difference as large as the model is kept for the backward pass.
        terms.append(mse_loss(weight, start.detach().to(weight), reduction="sum"))
    return torch.stack([term.to(terms[0].device) for term in terms]).sum()


@register
class L2SP(Regulariser):
    """The pull to the starting weights as a module, see :func:`l2sp_loss`.

    ``L2SP(model)`` keeps a copy of the weights that are trained; call it without arguments, or with
    features and anchors like any other regulariser, which it ignores. Without a model it is called
    with the weights and their starting values in their place.

    Args:
        model: a module, or its parameters.
        options, settings: see :class:`Regulariser`.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> regulariser = L2SP(model)
    >>> _ = model.weight.data.add_(1.0)
    >>> round(regulariser().item(), 4)
    2.0
    """

    name = "l2sp"
    options_class = L2SPOptions
    kind = "weights"

    def __init__(
        self,
        model: Union[nn.Module, Iterable[nn.Parameter], None] = None,
        options: Optional[Options] = None,
        **settings: Any,
    ) -> None:
        super().__init__(options, **settings)
        parameters = model.parameters() if isinstance(model, nn.Module) else (model or ())
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        # In a tuple, so that the model does not become a part of the regulariser.
        self._trained = (trained,)
        for i, parameter in enumerate(trained):
            self.register_buffer(f"start_{i}", parameter.detach().clone())

    def terms(self, features: Any = None, anchors: Any = None, **more: Any) -> Dict[str, Tensor]:
        """See :meth:`Regulariser.terms`."""
        (trained,) = self._trained
        if not trained:
            if isinstance(features, Tensor) or features is None or anchors is None:
                raise BadValue(
                    "L2SP knows no weights; build it as L2SP(model), or give lists of weights and "
                    "of their starting values."
                )
            return {self.log_name: l2sp_loss(features, anchors)}
        starts: List[Tensor] = [getattr(self, f"start_{i}") for i in range(len(trained))]
        return {self.log_name: l2sp_loss(trained, starts)}

    def forward(self, features: Any = None, anchors: Any = None, **more: Any) -> Tensor:
        """See :meth:`Regulariser.forward`."""
        return super().forward(features, anchors, **more)
