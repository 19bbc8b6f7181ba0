"""A tiny dataset and trainer on Dassl's names, taken through the life of a run.

`python scenario.py FOLDER` is run by the contract test, in a process of its own for each engine.
Every run prints to its own log; what else the test looks at goes to FOLDER/report.json.
"""

import contextlib
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
STREAMS = [sys.stdout]  # kept: Dassl's logger closes the console when it is collected
OPTIONS = {
    "DATASET.NAME": "Colours",
    "DATASET.NUM_SHOTS": 4,
    "DATALOADER.NUM_WORKERS": 0,
    "DATALOADER.TRAIN_X.BATCH_SIZE": 4,
    "DATALOADER.TEST.BATCH_SIZE": 8,
    "INPUT.SIZE": (8, 8),
    "INPUT.TRANSFORMS": ("random_resized_crop", "random_flip", "normalize"),
    "TRAINER.NAME": "Linear",
    "OPTIM.NAME": "sgd",
    "OPTIM.LR": 0.002,
    "OPTIM.LR_SCHEDULER": "cosine",
    "OPTIM.WARMUP_EPOCH": 1,
    "OPTIM.WARMUP_TYPE": "constant",
    "OPTIM.MAX_EPOCH": 10,
    "TEST.PER_CLASS_RESULT": True,
    "TEST.COMPUTE_CMAT": True,
    "SEED": 1,
    "USE_CUDA": False,
}


def make_images(root, per_class=6, size=12):
    """Write noisy images of three colours, always the same; returns `{split: [(path, label)]}`."""
    os.makedirs(root, exist_ok=True)
    draw = random.Random(0)
    splits = {"train": [], "val": [], "test": []}
    for split, items in splits.items():
        for label, name in enumerate(CLASSES):
            colour = [130 if channel == label else 115 for channel in range(3)]
            for number in range(per_class):
                noise = [c + draw.randint(-100, 100) for _ in range(size * size) for c in colour]
                path = os.path.join(root, f"{split}_{name}_{number}.png")
                Image.frombytes("RGB", (size, size), bytes(noise)).save(path)
                items.append((path, label))
    return splits


@DATASET_REGISTRY.register()
class Colours(DatasetBase):
    def __init__(self, cfg):
        splits = {
            split: [Datum(path, label, classname=CLASSES[label]) for path, label in items]
            for split, items in make_images(cfg.DATASET.ROOT).items()
        }
        train, val = self.generate_fewshot_dataset(
            splits["train"], splits["val"], num_shots=cfg.DATASET.NUM_SHOTS
        )
        super().__init__(train_x=train, val=val, test=splits["test"])


@TRAINER_REGISTRY.register()
class Linear(TrainerX):
    """A linear classifier with dropout, so that a step depends on torch's random numbers."""

    stop_before = -1
    poison = False

    def build_model(self):
        torch.manual_seed(0)
        side = self.cfg.INPUT.SIZE[0]
        self.model = nn.Sequential(
            nn.Flatten(), nn.Dropout(0.1), nn.Linear(3 * side * side, self.num_classes)
        )
        self.model.to(self.device)
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("linear", self.model, self.optim, self.sched)
        self.rates, self.seen, self.val_results = [], 0, []

    def before_epoch(self):
        if self.epoch == self.stop_before:
            raise KeyboardInterrupt
        self.rates.append(self.get_current_lr())

    def forward_backward(self, batch):
        images, labels, _ = self.parse_batch_train(batch)
        output = self.model(images)
        loss = nn.functional.cross_entropy(output, labels)
        if self.poison and self.epoch == 1:
            loss = loss * float("nan")
        self.model_backward_and_update(loss)
        self.seen += len(labels)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(output, labels)[0].item()}

    def test(self, split=None):
        result = super().test(split)
        if split == "val":
            self.val_results.append(result)
        return result

    def extra_state(self):
        return {**super().extra_state(), "seen": self.seen}

    def load_extra_state(self, state):
        super().load_extra_state(state)
        self.seen = state["seen"]


def build(folder, run, **options):
    """A trainer with its log set up; `__` in an option's name stands for the dot."""
    cfg = get_cfg_default()
    changes = {key.replace("__", "."): value for key, value in options.items()}
    for key, value in {**OPTIONS, **changes}.items():
        cfg.merge_from_list([key, value])
    cfg.DATASET.ROOT = os.path.join(folder, "data")
    cfg.OUTPUT_DIR = os.path.join(folder, run)
    cfg.freeze()
    set_random_seed(cfg.SEED)
    sys.stdout = STREAMS[0]
    setup_logger(cfg.OUTPUT_DIR)
    STREAMS.append(sys.stdout)
    return build_trainer(cfg)


def state_of(trainer):
    return {
        "weights": [p.tolist() for p in trainer.model.parameters()],
        "rates": trainer.rates,
        "seen": trainer.seen,
        "best_result": trainer.best_result,
        "val_results": trainer.val_results,
        "correct": trainer.evaluator._correct,
        "total": trainer.evaluator._total,
    }


def interrupted(folder, run, stop_before, **options):
    """Train, be interrupted before an epoch, start again elsewhere in the random numbers."""
    trainer = build(folder, run, **options)
    trainer.stop_before = stop_before
    with contextlib.suppress(KeyboardInterrupt):
        trainer.train()
    trainer = build(folder, run, **options)
    set_random_seed(99)
    trainer.train()
    return state_of(trainer)


def main(folder):
    dassl.announce_engine()
    dassl.announce_engine()
    report = {"engine": dassl.ENGINE}

    trainer = build(folder, "full")
    data = trainer.dm.dataset
    for split in ("train_x", "val"):
        report[split] = [os.path.basename(item.impath) for item in getattr(data, split)]
    report["classnames"] = data.classnames
    trainer.train()
    report["full"] = state_of(trainer)
    report["batch_keys"] = sorted(next(iter(trainer.test_loader)))

    report["cut"] = interrupted(folder, "cut", 5, TRAIN__CHECKPOINT_FREQ=2)

    best = {"TEST__FINAL_MODEL": "best_val", "OPTIM__MAX_EPOCH": 6, "OPTIM__LR": 0.02}
    trainer = build(folder, "best", **best)
    trainer.train()
    report["best"] = state_of(trainer)
    report["best_cut"] = interrupted(folder, "best_cut", 4, **best)

    trainer = build(folder, "evaluation")
    report["accuracy"] = None
    trainer.load_model(os.path.join(folder, "full"))
    report["accuracy"] = trainer.test()
    report["evaluation"] = state_of(trainer)

    trainer = build(folder, "nan")
    trainer.poison = True
    try:
        trainer.train()
    except FloatingPointError as error:
        report["nan"] = str(error)

    with open(os.path.join(folder, "report.json"), "w") as f:
        json.dump(report, f)


if __name__ == "__main__":
    main(sys.argv[1])
