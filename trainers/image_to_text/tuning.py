"""Tuning a model that speaks, image encoder and decoder, by the ``Trainer`` of transformers."""

from __future__ import annotations

import os
import shutil
import uuid
from contextlib import ExitStack

import torch
import transformers.trainer
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from proxyfda.integrations.transformers import attach_to_trainer
from proxyfda.regularisers import FDA, create, find
from proxyfda.utils.errors import UserError
from trainers.image_to_text import layers
from trainers.image_to_text.data import Part
from trainers.image_to_text.models import ImageToText, pooled

__all__ = ["MODEL", "tune"]

MODEL = "model"
"""Folder of what was tuned, in that of the run."""
CHECKPOINTS = "checkpoints"

# Our folder "datasets" passes for Hugging Face's library of that name, which Trainer would use.
transformers.trainer.is_datasets_available = lambda: False


class _Places(torch.utils.data.Dataset):
    """The places of N examples; what they are made of is collected batch by batch."""

    def __init__(self, count: int):
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: int) -> int:
        return place


class _Trainer(Trainer):
    """With a term on weights, such as L2SP's, in the loss; terms on features are attached."""

    weights_term = None
    weight = 0.0

    def compute_loss(self, model, inputs, return_outputs=False, **more):
        loss = super().compute_loss(model, inputs, return_outputs=return_outputs, **more)
        if self.weights_term is None:
            return loss
        term = self.weight * self.weights_term()
        # The Trainer divides by the number of accumulated batches only where the model does not
        # know how many tokens they have together.
        if self.model_accepts_loss_kwargs:
            term = term / self.current_gradient_accumulation_steps
        return (loss[0] + term, loss[1]) if return_outputs else loss + term


class _Lines(TrainerCallback):
    """What is logged, a line each."""

    def on_log(self, args, state, control, logs=None, **more):
        if logs and "loss" in logs:
            said = " ".join(f"{k} {float(v):.4f}" for k, v in logs.items() if k.startswith("loss"))
            print(f"step {state.global_step}/{state.max_steps} {said}", flush=True)


def tune(
    model: ImageToText,
    part: Part,
    folder: str,
    *,
    regulariser: str = "",
    weight: float = 1.0,
    epochs: int,
    batch_size: int,
    lr: float,
    seed: int,
    accumulate: int = 1,
    precision: str = "fp32",
    device: str = "auto",
    loader_workers: int = 0,
) -> None:
    """Tune image encoder and decoder; goes on from the last epoch that ``folder`` has.

    Args:
        model: is tuned in place, and written to ``folder/model`` at the end.
        part: to tune on.
        regulariser: name of one on the image encoder's pooled features, on its layers or on its
            weights; empty: none.
        weight: λ.
        epochs, batch_size, lr, accumulate: of the ``Trainer``; AdamW, decayed linearly to nothing
            after a tenth of warm-up.
        seed: of the order of examples, and of what a regulariser draws.
        precision: ``fp32`` or ``bf16`` (autocast).
        device: ``cpu``, or ``auto`` for a GPU where there is one.
        loader_workers: processes that read images and texts; they change no number.
    """
    chosen = part.to_train_on()
    model.check(chosen.examples)

    def collate(places):
        examples = [chosen.examples[i] for i in places]
        return model.batch(examples, chosen.pixels(places), device="cpu")  # the Trainer moves them

    checkpoints = os.path.join(folder, CHECKPOINTS)
    steps = -(-len(chosen.examples) // (batch_size * accumulate)) * epochs
    trainer = _Trainer(
        model.model,
        TrainingArguments(
            checkpoints,
            num_train_epochs=epochs,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulate,
            learning_rate=lr,
            warmup_steps=steps // 10,
            weight_decay=0.01,
            seed=seed,
            bf16=precision == "bf16",
            use_cpu=device == "cpu",
            logging_steps=10,
            logging_first_step=True,
            save_strategy="epoch",
            save_total_limit=1,
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            dataloader_num_workers=loader_workers,
        ),
        data_collator=collate,
        train_dataset=_Places(len(chosen.examples)),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Lines())
    last = get_last_checkpoint(checkpoints) if os.path.isdir(checkpoints) else None
    if last:
        print(f"going on from {last}")
    with ExitStack() as during:
        if regulariser:
            torch.manual_seed(seed)
            _regularise(trainer, model, regulariser, weight, during)
        try:
            trainer.train(resume_from_checkpoint=last)
        except UserError as error:
            raise _own_sentence(error) from error
    model.model.eval()
    _write(model, os.path.join(folder, MODEL))
    shutil.rmtree(checkpoints, ignore_errors=True)


def _regularise(
    trainer: _Trainer, model: ImageToText, name: str, weight: float, during: ExitStack
) -> None:
    kind = find(name)
    if kind.kind == "weights":
        trainer.weights_term, trainer.weight = kind(model.vision), weight
        return
    # What captioning was measured with; derived constants were not tried in it.
    literal = {"constants": "given"} if issubclass(kind, FDA) else {}
    made = create(name, model.vision.config.hidden_size, **literal).to(model.model.device)
    chosen: dict = {"features": pooled}
    if kind.takes_layers:
        during.enter_context(layers.handed_out(model.vision))
        chosen = {"output": layers.OUTPUT, "features": layers.listed}
    attach_to_trainer(trainer, model.vision, made, weight, **chosen)


def _own_sentence(error: UserError) -> UserError:
    """An error of a loader's worker, which torch makes again from its whole traceback as text."""
    return type(error)(str(error).rsplit(f"{type(error).__name__}: ", 1)[-1].strip())


def _write(model: ImageToText, folder: str) -> None:
    """Under its name only when it is whole."""
    partial = f"{folder}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        model.save(partial)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
