"""A tiny dataset and trainer on Dassl's names: `python scenario.py ACTION WORKDIR [KEY VALUE ...]`.

Run by the contract test in a process of its own for each engine. Prints as any run does; what the
test compares is written to WORKDIR/<ACTION>.json.
"""

import json
import os
import random
import sys

import torch
from PIL import Image
from torch import nn

from proxyfda import dassl
from proxyfda.dassl import (
    DATASET_REGISTRY,
    TRAINER_REGISTRY,
    DatasetBase,
    Datum,
    TrainerX,
    build_lr_scheduler,
    build_optimizer,
    build_trainer,
    compute_accuracy,
    get_cfg_default,
    set_random_seed,
    setup_logger,
)

CLASSES = ["red", "green", "blue"]


def make_images(root, per_class=6, size=12):
    """Noisy images of three colours, deterministic; returns {split: [(path, label)]}."""
    os.makedirs(root, exist_ok=True)
    draw = random.Random(0)
    splits = {"train": [], "val": [], "test": []}
    for split, items in splits.items():
        for label in range(len(CLASSES)):
            for number in range(per_class):
                path = os.path.join(root, f"{split}_{CLASSES[label]}_{number}.png")
                if not os.path.exists(path):
                    image = Image.new("RGB", (size, size))
                    base = [200 if channel == label else 80 for channel in range(3)]
                    noise = [
                        tuple(c + draw.randint(-70, 55) for c in base) for _ in range(size * size)
                    ]
                    image.putdata(noise)
                    image.save(path)
                items.append((path, label))
    return splits


@DATASET_REGISTRY.register()
class Colours(DatasetBase):
    def __init__(self, cfg):
        splits = {
            name: [
                Datum(impath=path, label=label, classname=CLASSES[label]) for path, label in rows
            ]
            for name, rows in make_images(cfg.DATASET.ROOT).items()
        }
        shots = cfg.DATASET.NUM_SHOTS
        train, val = self.generate_fewshot_dataset(splits["train"], splits["val"], num_shots=shots)
        super().__init__(train_x=train, val=val, test=splits["test"])


@TRAINER_REGISTRY.register()
class Linear(TrainerX):
    """A linear classifier with dropout, so that a step depends on torch's random numbers."""

    rates = ()

    def build_model(self):
        torch.manual_seed(0)  # the same start on either engine
        side = self.cfg.INPUT.SIZE[0]
        self.model = nn.Sequential(
            nn.Flatten(), nn.Dropout(0.1), nn.Linear(3 * side * side, self.num_classes)
        )
        self.model.to(self.device)
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("linear", self.model, self.optim, self.sched)
        self.seen = 0

    def before_epoch(self):
        self.rates = [*self.rates, self.get_current_lr()]
        if self.epoch == int(os.environ.get("STOP_BEFORE_EPOCH", -1)):
            raise KeyboardInterrupt

    def forward_backward(self, batch):
        images, labels, _ = self.parse_batch_train(batch)
        output = self.model(images)
        loss = nn.functional.cross_entropy(output, labels)
        if os.environ.get("NAN_LOSS"):
            loss = loss * float("nan")
        self.model_backward_and_update(loss)
        self.seen += len(labels)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(output, labels)[0].item()}

    def extra_state(self):
        return {**super().extra_state(), "seen": self.seen}

    def load_extra_state(self, state):
        super().load_extra_state(state)
        self.seen = state.get("seen", 0)


def make_cfg(workdir, options=()):
    cfg = get_cfg_default()
    cfg.merge_from_list(
        [
            "DATASET.NAME",
            "Colours",
            "DATASET.NUM_SHOTS",
            "4",
            "DATALOADER.NUM_WORKERS",
            "0",
            "INPUT.SIZE",
            "(8,8)",
            "INPUT.TRANSFORMS",
            "('random_resized_crop','random_flip','normalize')",
            "DATALOADER.TRAIN_X.BATCH_SIZE",
            "4",
            "DATALOADER.TEST.BATCH_SIZE",
            "8",
            "TRAINER.NAME",
            "Linear",
            "OPTIM.NAME",
            "sgd",
            "OPTIM.LR",
            "0.02",
            "OPTIM.LR_SCHEDULER",
            "cosine",
            "OPTIM.WARMUP_EPOCH",
            "1",
            "OPTIM.WARMUP_TYPE",
            "constant",
            "OPTIM.MAX_EPOCH",
            "2",
            "SEED",
            "1",
            "USE_CUDA",
            "False",
            "TEST.PER_CLASS_RESULT",
            "True",
        ]
    )
    cfg.DATASET.ROOT = os.path.join(workdir, "data")
    cfg.OUTPUT_DIR = os.path.join(workdir, "run")
    cfg.merge_from_list(list(options))
    cfg.freeze()
    return cfg


def main(action, workdir, *options):
    cfg = make_cfg(workdir, options)
    set_random_seed(cfg.SEED)
    setup_logger(cfg.OUTPUT_DIR)
    dassl.announce_engine()
    dassl.announce_engine()
    trainer = build_trainer(cfg)
    accuracy = None
    if action == "train":
        trainer.train()
    else:
        trainer.load_model(cfg.RESUME or cfg.OUTPUT_DIR)
        accuracy = trainer.test()
    report = {
        "engine": dassl.ENGINE,
        "accuracy": accuracy,
        "train_x": [os.path.basename(item.impath) for item in trainer.dm.dataset.train_x],
        "val": [os.path.basename(item.impath) for item in trainer.dm.dataset.val],
        "rates": list(trainer.rates),
        "seen": trainer.seen,
        "best_result": trainer.best_result,
        "correct": trainer.evaluator._correct,
        "total": trainer.evaluator._total,
        "weights": [p.tolist() for p in trainer.model.parameters()],
        "batch_keys": sorted(next(iter(trainer.test_loader))),
    }
    with open(os.path.join(workdir, f"{action}.json"), "w") as f:
        json.dump(report, f)


if __name__ == "__main__":
    main(*sys.argv[1:])
