"""A regulariser in the ``Trainer`` of Hugging Face's transformers."""

from __future__ import annotations

import os
from typing import Any, Callable, Optional, Union

import torch
from torch import Tensor, nn

from proxyfda.diagnostics.monitor import Monitor
from proxyfda.integrations.loop import Attached
from proxyfda.integrations.session import Session
from proxyfda.regularisers.base import Features
from proxyfda.utils.errors import BadType, NotFound, NotInstalled, Unusable
from proxyfda.utils.files import write_atomically

try:
    from transformers import Trainer, TrainerCallback
except ImportError as error:
    raise NotInstalled(
        f"the Trainer of transformers cannot be imported ({error}); pip install "
        f"'proxyfda[transformers]'"
    ) from error

__all__ = ["RegulariserCallback", "attach_to_trainer"]


def attach_to_trainer(
    trainer: Trainer,
    module: nn.Module,
    regulariser: Callable[..., Tensor],
    weight: Optional[float] = None,
    anchors: Union[str, nn.Module, Callable[..., Any]] = "copy",
    *,
    output: Union[int, str, None] = None,
    features: Optional[Callable[[Tensor], Features]] = None,
    generator_lr: Optional[float] = 1e-3,
    monitor: Optional[Monitor] = None,
) -> RegulariserCallback:
    """Regularise the features of a module in every ``trainer.train()`` from now on.

    The term is averaged over the batches of an optimiser's step (``gradient_accumulation_steps``)
    and follows the trainer's ``GradScaler``. The regulariser's own parameters (the proxies'
    generator) get an Adam. The terms are logged beside the loss, without λ; the loss itself stays
    the task's. Each checkpoint holds a small file, ``proxyfda.pt``, from which a resumed run goes
    on with the same numbers.

    Call it before anything tuned is loaded into the module: the copy of the frozen side is made
    here.

    Args:
        trainer: a ``transformers.Trainer``.
        module: a part of its model, whose output are the features; for most models the backbone
            below the head, such as ``model.vit``.
        regulariser, weight, anchors, output, features: see
            :func:`~proxyfda.integrations.loop.attach`.
        generator_lr: learning rate of the regulariser's own parameters; None leaves them to an
            optimiser of yours.
        monitor: looks at the features of every so many batches, of which an optimiser's step may
            have several; in a resumed run it goes on counting.

    Returns:
        The callback, already among the trainer's; ``trainer.remove_callback`` takes it off.

    Raises:
        BadType: no trainer, no module, or anchors or a monitor of another kind.
        BadValue: a weight or a learning rate that cannot work.
        Unusable: the trainer splits its batches over several GPUs.
    """
    if not isinstance(trainer, Trainer):
        raise BadType(f"trainer is a {type(trainer).__name__}; give a transformers.Trainer.")
    if trainer.args.n_gpu > 1:
        raise Unusable(
            f"the trainer would split each batch over {trainer.args.n_gpu} GPUs, and no part of it "
            f"holds all features; start it with torchrun, or set CUDA_VISIBLE_DEVICES=0"
        )
    session = Session(
        module,
        regulariser,
        weight,
        anchors,
        output=output,
        features=features,
        generator_lr=generator_lr,
        monitor=monitor,
    )
    callback = RegulariserCallback(trainer, session)
    # First, so that those who write logs find the terms in them.
    trainer.callback_handler.callbacks.insert(0, callback)
    return callback


class RegulariserCallback(TrainerCallback):
    """What :func:`attach_to_trainer` adds to a trainer.

    Attributes:
        handle: what ``attach`` returned, while the trainer trains; else None.
    """

    file_name = "proxyfda.pt"

    def __init__(self, trainer: Trainer, session: Session) -> None:
        self._trainer, self._session = trainer, session

    @property
    def handle(self) -> Optional[Attached]:
        """See the class."""
        return self._session.handle

    @property
    def _scaler(self) -> Any:
        return getattr(self._trainer.accelerator, "scaler", None)

    def _scale(self) -> Any:
        """The factor of the term of one batch.

        1/k for the k batches of this step, whether the trainer divides the loss by k itself or has
        the model divide a sum by the number of samples of all k.
        """
        share = 1.0 / self._trainer.current_gradient_accumulation_steps
        scaler = self._scaler
        if scaler is None or not scaler.is_enabled():
            return share
        return scaler.scale(torch.full((), share, device=self._trainer.args.device))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attach; in a resumed run, take up the checkpoint's state."""
        if state.global_step > 0:
            self._resume(args, state)
        self._session.begin(self._scale)

    def _resume(self, args: Any, state: Any) -> None:
        folders = [os.path.join(args.output_dir, f"checkpoint-{state.global_step}")]
        if isinstance(args.resume_from_checkpoint, str):
            folders.insert(0, args.resume_from_checkpoint)
        paths = [os.path.join(folder, self.file_name) for folder in folders]
        path = next(filter(os.path.isfile, paths), None)
        if path is not None:
            found = torch.load(path, map_location="cpu", weights_only=True)
            self._session.load_state_dict(found)
        elif "optimiser" in self._session.state_dict():
            raise NotFound(
                f"the generator's state is not in {paths[0]}; name the checkpoint in "
                f"TrainingArguments(resume_from_checkpoint=...) as well, or start anew"
            )

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One of several batches of a step."""
        self._session.note()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Step the generator beside the model."""
        self._session.note()
        self._session.step(self._scaler)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Put the terms beside the loss."""
        if logs is None or "loss" not in logs:
            return
        found = self._session.logs()
        logs.update(found)
        if state.log_history:
            state.log_history[-1].update(found)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put the state into the checkpoint."""
        folder = os.path.join(args.output_dir, f"checkpoint-{state.global_step}")
        if args.should_save and os.path.isdir(folder):
            state_dict = self._session.state_dict()
            path = os.path.join(folder, self.file_name)
            write_atomically(path, lambda file: torch.save(state_dict, file))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take everything off the module."""
        self._session.end()
