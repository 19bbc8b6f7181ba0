"""A trainer on Dassl: the term by hand, the three lines, and what was forgotten.

    python examples/dassl_dropin.py

A host as people have it on Dassl fine-tunes CLIP's image encoder on a few classes, with the texts
of the classes as the classifier. Three lines give it the term. What is forgotten shows in the
zero-shot accuracy on other classes. Runs on the CPU within half a minute, without any download;
where Dassl is not installed, the engine that comes with the repository stands in.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from pathlib import Path

import _toy
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

# --8<-- [start:line_1]
import proxyfda

# --8<-- [end:line_1]
from proxyfda.backbones.clip import ImageEncoder, TextEncoder, load_clip
from proxyfda.dassl import (
    DATASET_REGISTRY,
    TRAINER_REGISTRY,
    DatasetBase,
    Datum,
    TrainerX,
    build_lr_scheduler,
    build_optimizer,
    build_trainer,
    get_cfg_default,
    set_random_seed,
)


# --8<-- [start:host]
class Model(nn.Module):
    """CLIP with its image encoder tuned; the class texts are the classifier."""

    def __init__(self, clip, texts):
        super().__init__()
        self.image_encoder = ImageEncoder(clip)
        self.text_encoder = TextEncoder(clip)
        self.logit_scale = clip.logit_scale.exp().item()
        with torch.no_grad():
            self.register_buffer("texts", F.normalize(self.text_encoder.encode(texts), dim=-1))

    def forward(self, images):
        features = F.normalize(self.image_encoder(images), dim=-1)
        return self.logit_scale * features @ self.texts.t()


@TRAINER_REGISTRY.register()
class FineTune(TrainerX):
    """A host that knows nothing of the term."""

    def build_model(self):
        clip = load_clip("ViT-Bundled", "bundled")
        names = self.dm.dataset.classnames
        self.model = Model(clip, [self.dm.dataset.template.format(name) for name in names])
        self.model.requires_grad_(False)
        self.model.image_encoder.requires_grad_(True)
        self.optim = build_optimizer(self.model.image_encoder, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("model", self.model, self.optim, self.sched)

    def forward_backward(self, batch):
        images, labels = batch["img"].to(self.device), batch["label"].to(self.device)
        loss = F.cross_entropy(self.model(images), labels)
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}


# --8<-- [end:host]


# --8<-- [start:by_hand]
class SummedFineTune(FineTune):
    """The sum by hand."""

    def build_model(self):
        super().build_model()
        self.frozen = proxyfda.FrozenCopy(self.model.image_encoder)
        self.regulariser = proxyfda.ProxyFDA(128, k=8, proxy_seed=self.cfg.SEED)
        self.generator_optim = torch.optim.Adam(self.regulariser.parameters(), lr=1e-3)

    def forward_backward(self, batch):
        images, labels = batch["img"].to(self.device), batch["label"].to(self.device)
        features = self.model.image_encoder(images)
        logits = self.model.logit_scale * F.normalize(features, dim=-1) @ self.model.texts.t()
        task = F.cross_entropy(logits, labels)
        term = self.regulariser(features, self.frozen(images))
        self.generator_optim.zero_grad()
        self.model_backward_and_update(task + self.cfg.TRAINER.PROXYFDA.WEIGHT * term)
        self.generator_optim.step()
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": task.item(), "loss_term": term.item()}


# --8<-- [end:by_hand]


@DATASET_REGISTRY.register()
class ToyDataset(DatasetBase):
    """The first rendered dataset, written to files as Dassl wants it."""

    def __init__(self, cfg):
        spec, root = _toy.SPECS[0], Path(cfg.DATASET.ROOT)
        self.template = spec.template
        parts = {}
        for part, count in (("train", 8), ("val", 4)):
            parts[part] = []
            images, labels = spec.draw(part, count)
            for number, (image, label) in enumerate(zip(images, labels)):
                path = root / f"{part}_{number}.png"
                if not path.exists():
                    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
                parts[part].append(Datum(str(path), label, classname=spec.classes[label][0]))
        super().__init__(train_x=parts["train"], val=parts["val"], test=parts["val"])


def make_config(trainer, folder, args, *options):
    """A config of Dassl's with the options of the term."""
    cfg = get_cfg_default()
    # --8<-- [start:line_3]
    proxyfda.extend_cfg(cfg)
    # --8<-- [end:line_3]
    encoder = ImageEncoder(load_clip("ViT-Bundled", "bundled"))
    cfg.merge_from_list(
        ["TRAINER.NAME", trainer, "DATASET.NAME", "ToyDataset", "DATASET.ROOT", f"{folder}/data",
         "OUTPUT_DIR", tempfile.mkdtemp(dir=folder), "SEED", 1, "USE_CUDA", False,
         "INPUT.SIZE", (32, 32), "INPUT.TRANSFORMS", ("normalize",),
         "INPUT.PIXEL_MEAN", list(encoder.image_mean), "INPUT.PIXEL_STD", list(encoder.image_std),
         "DATALOADER.NUM_WORKERS", 0, "DATALOADER.TRAIN_X.BATCH_SIZE", 64,
         "OPTIM.NAME", "adamw", "OPTIM.LR", args.lr, "OPTIM.MAX_EPOCH", args.epochs,
         "TEST.NO_TEST", True, "TRAINER.PROXYFDA.WEIGHT", args.weight, *options]
    )  # fmt: skip
    return cfg


def train(cfg):
    """Train as Dassl's ``train.py`` does; returns the trainer and its losses of each step."""
    Path(cfg.DATASET.ROOT).mkdir(parents=True, exist_ok=True)
    set_random_seed(cfg.SEED)
    losses = []
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = build_trainer(cfg)
        step = trainer.forward_backward

        def noted(batch):
            summary = step(batch)
            term = sum(float(value) for name, value in summary.items() if name != "loss")
            losses.append({"task": summary["loss"], "term": term})
            return summary

        trainer.forward_backward = noted
        trainer.train()
    trainer.set_model_mode("eval")
    return trainer, losses


def questions(clip, spec, count=8):
    """Pictures of a dataset's classes, and the classifier [d, C] of the classes' texts."""
    texts = [spec.template.format(name) for name, _ in spec.classes]
    with torch.no_grad():
        classifier = F.normalize(TextEncoder(clip).encode(texts), dim=-1).t()
    return _toy.pictures(spec, "val", count), classifier


def zero_shot(model, asked):
    """Accuracy in percent; the mean over the datasets."""
    found = []
    for pictures, classifier in asked:
        logits = lambda x, texts=classifier: model.image_encoder(x) @ texts  # noqa: E731
        found.append(_toy.accuracy(logits, pictures))
    return sum(found) / len(found)


def main() -> None:
    """Print the curves and the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weight", type=float, default=10.0, help="λ")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1e-3)
    args = parser.parse_args()
    folder = tempfile.mkdtemp()

    TRAINER_REGISTRY.register()(SummedFineTune)
    _, by_hand = train(
        make_config("SummedFineTune", folder, args, "TRAINER.PROXYFDA.ENABLED", False)
    )

    # --8<-- [start:line_2]
    proxyfda.register()
    # --8<-- [end:line_2]
    off = ("TRAINER.PROXYFDA.ENABLED", False)
    runs = {
        "plain FineTune": train(make_config("FineTune", folder, args, *off)),
        "ProxyFDAFineTune": train(make_config("ProxyFDAFineTune", folder, args)),
        "FineTune, rkd": train(
            make_config("FineTune", folder, args, "TRAINER.PROXYFDA.REGULARISER", "rkd")
        ),
    }
    _toy.curves(by_hand, runs["ProxyFDAFineTune"][1])

    clip = load_clip("ViT-Bundled", "bundled")
    first, *others = [questions(clip, spec) for spec in _toy.SPECS]
    models = {"before tuning": Model(clip, ["a photo"])}
    models.update((name, trainer.model) for name, (trainer, _) in runs.items())
    print("\nZero-shot accuracy, in percent\n" + " " * 18 + "tuned classes   held-out classes")
    for name, model in models.items():
        print(f"{name:17s} {zero_shot(model, [first]):14.1f} {zero_shot(model, others):18.1f}")


if __name__ == "__main__":
    main()
