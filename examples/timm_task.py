"""timm: the term by hand, attached, and by a training task, and what was forgotten.

    pip install 'proxyfda[timm]'
    python examples/timm_task.py

A ViT of timm with the bundled CLIP's weights is tuned in a loop as timm's own: a training task, two
batches to a step. Runs on the CPU within half a minute, without any download.
"""

from __future__ import annotations

import _toy
import timm
import torch
from timm.models.vision_transformer import checkpoint_filter_fn
from timm.optim import create_optimizer_v2
from timm.task import ClassificationTask
from torch import nn

from proxyfda import FrozenCopy, attach
from proxyfda.integrations.timm import RegularisedTask
from proxyfda.regularisers import create


def build(toy):
    """A ViT of timm with the bundled tower's weights and a new classifier, always the same."""
    model = timm.create_model(
        "vit_base_patch16_clip_224", num_classes=0, img_size=32, patch_size=8, embed_dim=128,
        depth=4, num_heads=4,
    )  # fmt: skip
    weights = {f"visual.{name}": w for name, w in _toy.image_tower().state_dict().items()}
    found = checkpoint_filter_fn(weights, model)
    model.load_state_dict({k: w for k, w in found.items() if not k.startswith("head.")})
    torch.manual_seed(0)
    model.reset_classifier(toy.classes)
    return model


def tune(task, batches, optimiser, step_losses):
    """A loop in timm's manner; ``step_losses`` makes the losses to show of a task's result."""
    losses = []
    # --8<-- [start:loop]
    for number, (images, labels) in enumerate(batches, 1):
        result = task(images, labels)
        (result["loss"] / 2).backward()
        if number % 2 == 0:
            optimiser.step()
            optimiser.zero_grad()
        # --8<-- [end:loop]
        losses.append(step_losses(result))
    return losses


# --8<-- [start:by_hand]
class SummedTask(ClassificationTask):
    """The sum by hand."""

    def __init__(self, model, regulariser, weight):
        super().__init__(model, nn.CrossEntropyLoss())
        self.frozen, self.regulariser, self.weight = FrozenCopy(model.trunk), regulariser, weight

    def forward(self, images, labels):
        features = self.trainable_module.trunk(images)
        output = self.trainable_module.head(features)
        task = self.criterion(output, labels)
        term = self.regulariser(features, self.frozen(images))
        return {"loss": task + self.weight * term, "output": output, "task": task, "term": term}


# --8<-- [end:by_hand]


class TrunkAndHead(nn.Module):
    """A model of timm, cut where its classifier begins, so that one module returns the features."""

    def __init__(self, model):
        super().__init__()
        self.head = model.get_classifier()
        model.reset_classifier(0)
        self.trunk = model

    def forward(self, images):
        return self.head(self.trunk(images))


def main() -> None:
    """Print the curves and the table."""
    args = _toy.options(__doc__)
    toy = _toy.load_toy()
    batches = toy.batches(args.epochs, 32)

    def make():
        torch.manual_seed(1)
        return create(args.regulariser, dim=128)

    def optimiser_of(module):
        return create_optimizer_v2(module, opt="adamw", lr=args.lr, weight_decay=0.01)

    summed = SummedTask(TrunkAndHead(build(toy)), make(), args.weight)
    by_hand = tune(
        summed,
        batches,
        optimiser_of(summed),
        lambda result: {"task": result["task"].item(), "term": result["term"].item()},
    )

    model, regulariser, weight = TrunkAndHead(build(toy)), make(), args.weight
    # --8<-- [start:attach]
    handle = attach(model.trunk, regulariser, weight, scale=1 / 2)
    task = ClassificationTask(model, nn.CrossEntropyLoss())
    optimiser = optimiser_of(nn.ModuleList([model, regulariser]))
    # --8<-- [end:attach]
    attached = tune(
        task,
        batches,
        optimiser,
        lambda result: {
            "task": result["loss"].item(),
            "term": sum(handle.terms.values()).item(),
        },
    )
    handle.remove()
    _toy.curves(by_hand, attached)

    print("\nThe same by hand and by RegularisedTask")
    tuned, regulariser = build(toy), make()
    # --8<-- [start:task]
    task = RegularisedTask(tuned, regulariser, weight, criterion=nn.CrossEntropyLoss())
    optimiser = create_optimizer_v2(task, opt="adamw", lr=args.lr, weight_decay=0.01)
    # --8<-- [end:task]
    by_task = tune(
        task,
        batches,
        optimiser,
        lambda result: {
            "task": result["loss_task"].item(),
            "term": (result["loss"] - result["loss_task"]).item() / weight,
        },
    )
    _toy.curves(by_hand, by_task)

    plain = build(toy)
    task = ClassificationTask(plain, nn.CrossEntropyLoss())
    tune(task, batches, optimiser_of(plain), lambda result: {})

    def encoder(model):
        return lambda images: model.forward_head(model.forward_features(images), pre_logits=True)

    start = build(toy)
    rows = [("before tuning", None, _toy.look(toy, encoder(start), encoder(start)))]
    for name, model in (("plain tuning", plain), (f"with {args.regulariser}", tuned)):
        lost = _toy.look(toy, encoder(model), encoder(start))
        rows.append((name, _toy.accuracy(model, toy.val), lost))
    _toy.table(rows)


if __name__ == "__main__":
    main()
