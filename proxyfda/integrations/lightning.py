"""A regulariser as a callback of Lightning."""

from __future__ import annotations

from typing import Any, Callable, Dict, Optional, Union

import torch
from torch import Tensor, nn

from proxyfda.diagnostics.monitor import Monitor, check_monitor
from proxyfda.integrations.loop import Attached
from proxyfda.integrations.session import Session
from proxyfda.regularisers.base import Features
from proxyfda.utils.errors import BadModel, NotInstalled

try:
    from lightning.pytorch import Callback
except ImportError as error:
    raise NotInstalled(
        f"lightning cannot be imported ({error}); pip install 'proxyfda[lightning]'"
    ) from error

__all__ = ["RegulariserCallback"]


class RegulariserCallback(Callback):
    """Regularises the features of a module while a ``Trainer`` fits.

    The term is scaled as the trainer scales the loss: divided by ``accumulate_grad_batches``, times
    the precision plugin's ``GradScaler``. The regulariser's own parameters (the proxies' generator)
    get an Adam. The terms are logged, without λ; the loss itself stays the task's. Checkpoints hold
    all that a resumed fit needs to go on with the same numbers.

    The copy of the frozen side is made when the first fit is set up, before a checkpoint is loaded.

    Args:
        module: what returns the features: its name in the ``LightningModule``, such as
            ``"encoder"``, or the module itself.
        regulariser, weight, anchors, output, features: see
            :func:`~proxyfda.integrations.loop.attach`.
        generator_lr: learning rate of the regulariser's own parameters; None leaves them to your
            ``configure_optimizers``.
        monitor: looks at the features of every so many batches; in a resumed fit it goes on
            counting.

    Attributes:
        handle: what ``attach`` returned, while the trainer fits; else None.

    Raises:
        BadType: a monitor of another kind.
        BadModel: when the fit is set up: the ``LightningModule`` has no module of that name.
        BadType, BadValue: then as well, as ``attach`` does.
    """

    def __init__(
        self,
        module: Union[str, nn.Module],
        regulariser: Callable[..., Tensor],
        weight: Optional[float] = None,
        anchors: Union[str, nn.Module, Callable[..., Any]] = "copy",
        *,
        output: Union[int, str, None] = None,
        features: Optional[Callable[[Tensor], Features]] = None,
        generator_lr: Optional[float] = 1e-3,
        monitor: Optional[Monitor] = None,
    ) -> None:
        super().__init__()
        self._module = module
        self._settings: Dict[str, Any] = {
            "regulariser": regulariser,
            "weight": weight,
            "anchors": anchors,
            "output": output,
            "features": features,
            "generator_lr": generator_lr,
            "monitor": check_monitor(monitor),
        }
        self._session: Optional[Session] = None

    @property
    def handle(self) -> Optional[Attached]:
        """See the class."""
        return None if self._session is None else self._session.handle

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Copy the frozen side, once for each module."""
        if stage != "fit":
            return
        module: Any = self._module
        if isinstance(module, str):
            found = dict(pl_module.named_modules())
            if module not in found:
                direct = ", ".join(name for name in found if name and "." not in name)
                raise BadModel(
                    f"{type(pl_module).__name__} has no module {module!r} when the fit is set up; "
                    f"it has {direct or 'none'}."
                )
            module = found[module]
        if self._session is None or self._session.module is not module:
            self._session = Session(module, **self._settings)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach."""

        def scale() -> Any:
            share = 1.0 / trainer.accumulate_grad_batches
            scaler = _scaler(trainer)
            if scaler is None or not scaler.is_enabled():
                return share
            return scaler.scale(torch.full((), share, device=pl_module.device))

        if self._session is not None:
            self._session.begin(scale)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Step the generator beside the model."""
        if self._session is not None:
            self._session.step(_scaler(trainer))

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the terms of the batch."""
        if self.handle is not None and self.handle.terms:
            pl_module.log_dict(dict(self.handle.terms))

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Take everything off the module."""
        if self._session is not None:
            self._session.end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Take everything off the module."""
        self.on_fit_end(trainer, pl_module)

    def state_dict(self) -> Dict[str, Any]:
        """The generator and its optimiser, and what tells the frozen copy."""
        return {} if self._session is None else self._session.state_dict()

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        """Take up :meth:`state_dict`; only where a fit goes on."""
        if self._session is not None and state_dict:
            self._session.load_state_dict(state_dict)


def _scaler(trainer: Any) -> Any:
    return getattr(trainer.precision_plugin, "scaler", None)
