"""Hugging Face's Trainer: the term by hand, the term attached, and what was forgotten.

    pip install 'proxyfda[transformers]'
    python examples/transformers_trainer.py

CLIP's vision model of transformers is built from a config and given the bundled weights; nothing is
downloaded. Two batches are accumulated before each step. Runs on the CPU within half a minute.
"""

from __future__ import annotations

import logging
import tempfile

import _toy
import torch
import transformers
from torch import nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel, Trainer, TrainingArguments

from proxyfda import FrozenCopy
from proxyfda.backbones.clip.as_transformers import vision_weights
from proxyfda.integrations.transformers import attach_to_trainer
from proxyfda.regularisers import create

transformers.logging.set_verbosity_error()
logging.getLogger("accelerate").setLevel(logging.ERROR)


# --8<-- [start:model]
class Classifier(nn.Module):
    """A vision model of transformers and a linear head."""

    def __init__(self, config, classes):
        super().__init__()
        self.backbone = CLIPVisionModel(config)
        self.head = nn.Linear(config.hidden_size, classes)

    def forward(self, pixel_values, labels=None):
        logits = self.head(self.backbone(pixel_values).pooler_output)
        if labels is None:
            return {"logits": logits}
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


# --8<-- [end:model]


def build(toy):
    """A classifier with the bundled CLIP's image tower and a new head, always the same."""
    config = CLIPVisionConfig(
        hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        image_size=32, patch_size=8, hidden_act="gelu",
    )  # fmt: skip
    torch.manual_seed(0)
    model = Classifier(config, toy.classes)
    weights = vision_weights(_toy.image_tower().state_dict())
    names = model.backbone.state_dict()
    inner = "vision_model." if any(name.startswith("vision_model.") for name in names) else ""
    model.backbone.load_state_dict(
        {inner + name: weight for name, weight in weights.items()}, strict=False
    )
    return model


# --8<-- [start:by_hand]
class SummedTrainer(Trainer):
    """The sum by hand."""

    def regularise(self, regulariser, weight):
        self.frozen = FrozenCopy(self.model.backbone)
        self.regulariser, self.weight = regulariser, weight
        self.generator_optimiser = torch.optim.Adam(regulariser.parameters(), lr=1e-3)
        self.terms = []

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        images, labels = inputs["pixel_values"], inputs["labels"]
        features = model.backbone(images).pooler_output
        task = F.cross_entropy(model.head(features), labels)
        term = self.regulariser(features, self.frozen(images).pooler_output)
        self.terms.append(term.item())
        return task + self.weight * term

    # --8<-- [end:by_hand]

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        if len(self.terms) % self.args.gradient_accumulation_steps == 0:
            self.generator_optimiser.step()
            self.generator_optimiser.zero_grad()
        return loss


def arguments(folder, args):
    """The same for every run."""
    # --8<-- [start:arguments]
    return TrainingArguments(
        folder,
        num_train_epochs=args.epochs,
        per_device_train_batch_size=32,
        gradient_accumulation_steps=2,
        learning_rate=args.lr,
        # --8<-- [end:arguments]
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )


def train(trainer):
    """Tune; returns what the trainer logged at each step, with losses that it has not rounded."""
    losses, step = [], trainer.training_step

    def noted(*inputs, **more):
        losses.append(step(*inputs, **more))
        return losses[-1]

    trainer.training_step = noted
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    pairs = zip(losses[::2], losses[1::2])
    return [{**entry, "loss": (a + b).item()} for entry, (a, b) in zip(logs, pairs)]


def main() -> None:
    """Print the curves and the table."""
    args = _toy.options(__doc__)

    toy = _toy.load_toy()
    dataset = [{"pixel_values": x, "labels": int(y)} for x, y in zip(*toy.train)]
    folder = tempfile.mkdtemp()

    def make():
        torch.manual_seed(1)
        return create(args.regulariser, dim=128)

    regulariser = make()
    summed = SummedTrainer(build(toy), arguments(folder, args), train_dataset=dataset)
    summed.regularise(regulariser, args.weight)
    logs = train(summed)
    by_hand = []
    for step, entry in enumerate(logs):
        term = sum(summed.terms[2 * step : 2 * step + 2]) / 2
        by_hand.append({"task": entry["loss"] - args.weight * term, "term": term})

    plain = Trainer(build(toy), arguments(folder, args), train_dataset=dataset)
    train(plain)

    model, regulariser, weight = build(toy), make(), args.weight
    # --8<-- [start:attach]
    trainer = Trainer(model, arguments(folder, args), train_dataset=dataset)
    attach_to_trainer(trainer, model.backbone, regulariser, weight, output="pooler_output")
    # --8<-- [end:attach]
    attached = []
    for entry in train(trainer):
        term = sum(value for name, value in entry.items() if name.startswith("loss_"))
        attached.append({"task": entry["loss"], "term": term})
    _toy.curves(by_hand, attached)

    def encoder(model):
        return lambda images: model.backbone(images).pooler_output

    start = build(toy)
    rows = [("before tuning", None, _toy.look(toy, encoder(start), encoder(start)))]
    for name, tuned in (("plain tuning", plain.model), (f"with {args.regulariser}", model)):
        tuned.eval()
        right = _toy.accuracy(lambda images, tuned=tuned: tuned(images)["logits"], toy.val)
        rows.append((name, right, _toy.look(toy, encoder(tuned), encoder(start))))
    _toy.table(rows)


if __name__ == "__main__":
    main()
