"""Lightning: the term by hand, the term by a callback, and what was forgotten.

    pip install 'proxyfda[lightning]'
    python examples/lightning_callback.py

The bundled CLIP's image tower with a linear head is tuned; two batches are accumulated before each
step. Runs on the CPU within half a minute, without any download.
"""

from __future__ import annotations

import logging
import warnings

import _toy
import lightning
import torch
from torch import nn
from torch.nn import functional as F

from proxyfda import FrozenCopy
from proxyfda.integrations.lightning import RegulariserCallback
from proxyfda.regularisers import create

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning")


# --8<-- [start:module]
class Classifier(lightning.LightningModule):
    """An encoder and a linear head."""

    def __init__(self, encoder, head, lr):
        super().__init__()
        self.encoder, self.head, self.lr = encoder, head, lr

    def training_step(self, batch, batch_idx):
        images, labels = batch
        loss = F.cross_entropy(self.head(self.encoder(images)), labels)
        self.log("loss_task", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


# --8<-- [end:module]


# --8<-- [start:by_hand]
class SummedClassifier(Classifier):
    """The sum by hand."""

    def __init__(self, encoder, head, lr, regulariser, weight):
        super().__init__(encoder, head, lr)
        self.frozen, self.regulariser, self.weight = FrozenCopy(encoder), regulariser, weight

    def training_step(self, batch, batch_idx):
        images, labels = batch
        features = self.encoder(images)
        task = F.cross_entropy(self.head(features), labels)
        term = self.regulariser(features, self.frozen(images))
        self.log_dict({"loss_task": task, "loss_term": term})
        return task + self.weight * term

    def configure_optimizers(self):
        return torch.optim.AdamW(
            [
                {"params": [*self.encoder.parameters(), *self.head.parameters()]},
                {"params": self.regulariser.parameters(), "lr": 1e-3, "weight_decay": 0.0},
            ],
            lr=self.lr,
        )


# --8<-- [end:by_hand]


class Losses(lightning.Callback):
    """Keeps what is logged, step by step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        logged = {name: value.item() for name, value in trainer.logged_metrics.items()}
        task = logged.pop("loss_task")
        self.seen.append({"task": task, "term": sum(logged.values())})


def fit(model, toy, args, callbacks):
    """Tune; returns the losses of each batch."""
    losses = Losses()
    callbacks = [*callbacks, losses]
    torch.manual_seed(2)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(*toy.train), batch_size=32, shuffle=True
    )
    # --8<-- [start:trainer]
    trainer = lightning.Trainer(
        max_epochs=args.epochs, accumulate_grad_batches=2, callbacks=callbacks,
        # --8<-- [end:trainer]
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, loader)
    return losses.seen


def main() -> None:
    """Print the curves and the table."""
    args = _toy.options(__doc__)
    toy = _toy.load_toy()

    def parts():
        torch.manual_seed(0)
        return _toy.image_tower(), nn.Linear(128, toy.classes), args.lr

    def make():
        torch.manual_seed(1)
        return create(args.regulariser, dim=128)

    by_hand = fit(SummedClassifier(*parts(), make(), args.weight), toy, args, [])
    plain = Classifier(*parts())
    fit(plain, toy, args, [])
    model, regulariser, weight = Classifier(*parts()), make(), args.weight
    # --8<-- [start:callback]
    callbacks = [RegulariserCallback("encoder", regulariser, weight)]
    # --8<-- [end:callback]
    _toy.curves(by_hand, fit(model, toy, args, callbacks))

    frozen = _toy.image_tower()
    rows = [("before tuning", None, _toy.look(toy, frozen, frozen))]
    for name, tuned in (("plain tuning", plain), (f"with {args.regulariser}", model)):
        right = _toy.accuracy(nn.Sequential(tuned.encoder, tuned.head), toy.val)
        rows.append((name, right, _toy.look(toy, tuned.encoder, frozen)))
    _toy.table(rows)


if __name__ == "__main__":
    main()
