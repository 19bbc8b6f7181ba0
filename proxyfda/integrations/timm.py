"""A regulariser in a training task of timm."""

from __future__ import annotations

import copy
from typing import Any, Callable, Dict, List, Optional

import torch
from torch import Tensor, nn

from proxyfda.anchors.frozen_copy import FrozenCopy
from proxyfda.diagnostics.monitor import Monitor, check_monitor
from proxyfda.integrations.loop import own_weight
from proxyfda.regularisers.base import Regulariser
from proxyfda.utils.errors import BadModel, BadType, NotInstalled

try:
    from timm.task import ClassificationTask
    from timm.utils.model import unwrap_model
except ImportError as error:
    raise NotInstalled(
        f"timm.task cannot be imported ({error}); pip install 'proxyfda[timm]'"
    ) from error

__all__ = ["RegularisedTask"]


class RegularisedTask(ClassificationTask):
    """timm's classification task with a regulariser on the features below the classifier.

    A task hands out its loss, so that the term simply stands in it: accumulation, ``GradScaler``
    and distributed training are the loop's, as without it. The features [N, d] are what enters
    ``model.get_classifier()``; the frozen ones come from a copy of the model, made here, without
    its classifier.

    ``create_optimizer_v2(task, ...)`` trains the regulariser's own parameters (the proxies'
    generator) beside the model, and ``task.get_checkpoint_state()`` saves them.

    Args:
        model: a model of timm.
        regulariser: one of :mod:`proxyfda.regularisers`, or a function of (features, anchors) that
            gives one scalar.
        weight: λ; may be changed later as ``task.weight``. None: the regulariser's own
            (``default_weight``), for a function 1.
        monitor: looks at the features of every so many batches that are trained, also with weight
            0; checkpoints have its count of batches.
        task_settings: those of ``ClassificationTask``, such as ``criterion`` and ``device``.

    Raises:
        BadModel: the model has no single classifier.
        BadType: a regulariser on weights, or a monitor of another kind.
    """

    def __init__(
        self,
        model: nn.Module,
        regulariser: Callable[..., Tensor],
        weight: Optional[float] = None,
        *,
        monitor: Optional[Monitor] = None,
        **task_settings: Any,
    ) -> None:
        super().__init__(model, **task_settings)
        if isinstance(regulariser, Regulariser) and regulariser.kind == "weights":
            raise BadType(
                f"{type(regulariser).__name__} acts on weights and not on features; add "
                f"weight * regulariser() to the loss."
            )
        _classifier(model)
        headless = copy.deepcopy(model)
        headless.reset_classifier(0)  # type: ignore[operator]
        self.frozen = FrozenCopy(headless).to(self.device)
        self.regulariser = regulariser
        self.weight = own_weight(regulariser) if weight is None else weight
        self.monitor = check_monitor(monitor)
        if isinstance(regulariser, nn.Module):
            regulariser.to(self.device)

    def forward(self, input: Tensor, target: Tensor) -> Dict[str, Tensor]:
        """See ``ClassificationTask``; ``loss`` is the sum.

        Returns:
            Beside ``loss`` and ``output``, ``loss_task`` and the terms without λ, detached.
        """
        entered: List[Tensor] = []
        handle = _classifier(unwrap_model(self.trainable_module)).register_forward_pre_hook(
            lambda _, args: entered.append(args[0])
        )
        try:
            result: Dict[str, Tensor] = super().forward(input, target)
        finally:
            handle.remove()
        if not entered or not entered[-1].requires_grad:
            return result
        looked = self.monitor is not None and self.monitor.due()
        if not self.weight and not looked:
            return result
        anchors = self.frozen(input)
        if self.monitor is not None and looked:
            self.monitor.look(entered[-1], anchors)
        if not self.weight:
            return result
        if isinstance(self.regulariser, Regulariser):
            terms = self.regulariser.terms(entered[-1], anchors)
        else:
            terms = {"loss_regulariser": self.regulariser(entered[-1], anchors)}
        total = torch.stack(list(terms.values())).sum()
        found = {name: term.detach() for name, term in terms.items()}
        task = result["loss"]
        return {**result, "loss": task + self.weight * total, "loss_task": task.detach(), **found}

    def get_task_state(
        self, module: Optional[nn.Module] = None, ema: bool = False
    ) -> Dict[str, Any]:
        """The regulariser's state and the monitor's count of batches, for timm's checkpoints."""
        state: Dict[str, Any] = {}
        if not ema and isinstance(self.regulariser, nn.Module):
            state["regulariser"] = self.regulariser.state_dict()
        if not ema and self.monitor is not None:
            state["batches"] = self.monitor.batches
        return state

    def load_task_state(
        self,
        state: Optional[Dict[str, Any]],
        strict: bool = True,
        module: Optional[nn.Module] = None,
        ema: bool = False,
    ) -> None:
        """Take up :meth:`get_task_state`."""
        if not state or ema:
            return
        if isinstance(self.regulariser, nn.Module):
            self.regulariser.load_state_dict(state["regulariser"], strict=strict)
        if self.monitor is not None:
            self.monitor.batches = state.get("batches", 0)


def _classifier(model: nn.Module) -> nn.Module:
    find = getattr(model, "get_classifier", None)
    found = find() if callable(find) else None
    if not isinstance(found, nn.Module):
        raise BadModel(
            f"{type(model).__name__} has no single classifier whose input would be the features; "
            f"use proxyfda.attach on the module that returns them."
        )
    return found
