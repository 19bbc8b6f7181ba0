"""One training run with a regulariser attached, as the callbacks for other trainers need it."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional, Union

import torch
from torch import Tensor, nn

from proxyfda.anchors.frozen_copy import FrozenCopy
from proxyfda.diagnostics.monitor import Monitor, check_monitor
from proxyfda.integrations.loop import Attached, attach
from proxyfda.regularisers.base import Features
from proxyfda.utils.errors import BadType, BadValue, Unusable

__all__ = ["Session"]


class Session:
    """What :func:`~proxyfda.integrations.loop.attach` does not do by itself: the generator's steps,
    values for the log, and a state that an interrupted run goes on from.

    The copy of the frozen side is made here, and not when training begins: by then a resumed run
    has loaded tuned weights into the module.

    Args:
        module, regulariser, weight, anchors, output, features, monitor: see
            :func:`~proxyfda.integrations.loop.attach`.
        generator_lr: learning rate of Adam over the regulariser's own parameters; None leaves them
            to an optimiser of yours.

    Attributes:
        handle: what ``attach`` returned; None outside a run.

    Raises:
        BadType: no module, or anchors or a monitor of another kind.
        BadValue: a learning rate that is no finite number above 0.
    """

    def __init__(
        self,
        module: nn.Module,
        regulariser: Callable[..., Tensor],
        weight: Optional[float] = None,
        anchors: Union[str, nn.Module, Callable[..., Any]] = "copy",
        *,
        output: Union[int, str, None] = None,
        features: Optional[Callable[[Tensor], Features]] = None,
        generator_lr: Optional[float] = 1e-3,
        monitor: Optional[Monitor] = None,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise BadType(
                f"module is a {type(module).__name__}; give the torch.nn.Module to regularise."
            )
        if generator_lr is not None and not 0 < generator_lr < float("inf"):
            raise BadValue(
                f"generator_lr is {generator_lr!r}; use a finite number above 0, or None."
            )
        self.module, self.regulariser, self.weight = module, regulariser, weight
        self.handle: Optional[Attached] = None
        self._anchors: Any = FrozenCopy(module) if anchors == "copy" else anchors
        self._copied = _outline(module) if anchors == "copy" else None
        self._output, self._features = output, features
        self._monitor = check_monitor(monitor)
        own: List[nn.Parameter] = []
        if isinstance(regulariser, nn.Module):
            own = [parameter for parameter in regulariser.parameters() if parameter.requires_grad]
        self._optimiser = torch.optim.Adam(own, lr=generator_lr) if own and generator_lr else None
        self._sums: Dict[str, Tensor] = {}
        self._count = 0

    def begin(self, scale: Any) -> None:
        """Attach the regulariser, on the device where the module is now.

        Args:
            scale: the factor by which the trainer scales its loss, see ``attach``.
        """
        self.end()
        device = next((parameter.device for parameter in self.module.parameters()), None)
        for part in (self.regulariser, self._anchors):
            if isinstance(part, nn.Module) and device is not None:
                part.to(device)
        self.handle = attach(
            self.module,
            self.regulariser,
            self.weight,
            self._anchors,
            scale=scale,
            output=self._output,
            features=self._features,
            monitor=self._monitor,
        )

    def end(self) -> None:
        """Take everything off the module again."""
        if self.handle is not None:
            self.weight = self.handle.weight
            self.handle.remove()
        self.handle = None

    def note(self) -> None:
        """Keep the terms of the last backward pass for :meth:`logs`."""
        for name, term in ({} if self.handle is None else self.handle.terms).items():
            self._sums[name] = self._sums[name] + term if name in self._sums else term
        self._count += 1

    def logs(self) -> Dict[str, float]:
        """Means of the terms, without λ, noted since the last call."""
        found = {name: (total / self._count).item() for name, total in self._sums.items()}
        self._sums, self._count = {}, 0
        return found

    def step(self, scaler: Any = None) -> None:
        """A step of the generator's optimiser, where it has gradients.

        Args:
            scaler: the ``GradScaler`` by which the trainer steps its own; whoever owns it updates
                it afterwards.
        """
        if self._optimiser is None:
            return
        parameters = self._optimiser.param_groups[0]["params"]
        if all(parameter.grad is None for parameter in parameters):
            return
        if scaler is None:
            self._optimiser.step()
        else:
            scaler.step(self._optimiser)
        self._optimiser.zero_grad(set_to_none=True)

    def state_dict(self) -> Dict[str, Any]:
        """All that a resumed run needs, in tensors and plain values."""
        state: Dict[str, Any] = {}
        if isinstance(self.regulariser, nn.Module):
            state["regulariser"] = self.regulariser.state_dict()
        if self._optimiser is not None:
            state["optimiser"] = self._optimiser.state_dict()
        if self._copied is not None:
            state["copied"] = self._copied
        if self._monitor is not None:
            state["batches"] = self._monitor.batches
        return state

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Take up :meth:`state_dict`.

        Raises:
            Unusable: the frozen copy is one of other weights than in that run.
        """
        copied = state.get("copied")
        if self._copied is not None and copied is not None and not _alike(self._copied, copied):
            raise Unusable(
                "the frozen copy holds other weights than in the run that is resumed; give the "
                "trainer the weights that the first run started from and let it load the "
                "checkpoint itself, or name the frozen side by anchors="
            )
        if isinstance(self.regulariser, nn.Module) and "regulariser" in state:
            self.regulariser.load_state_dict(state["regulariser"])
        if self._optimiser is not None and "optimiser" in state:
            self._optimiser.load_state_dict(state["optimiser"])
        if self._monitor is not None:
            self._monitor.batches = state.get("batches", 0)


def _outline(module: nn.Module) -> Tensor:
    """Sum of squares of each weight [n], fp64, on the CPU: enough to tell tuned weights apart."""
    sums = [weight.detach().double().square().sum().cpu() for weight in module.parameters()]
    return torch.stack(sums) if sums else torch.zeros(0, dtype=torch.float64)


def _alike(first: Tensor, second: Tensor) -> bool:
    # Another number of threads sums in another order.
    return first.shape == second.shape and torch.allclose(first, second.cpu(), rtol=1e-9, atol=0.0)
