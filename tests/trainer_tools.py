"""For the trainers' tests: a batch, a step, logits, checkpoints where a trainer looks for them."""

from pathlib import Path

import torch

IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def one_step(trainer, batch=None):
    """One training step in the middle of an epoch; its values as numbers."""
    trainer.epoch, trainer.batch_idx, trainer.num_batches = 0, 0, 9
    batch = batch or {"img": IMAGES, "label": torch.arange(4)}
    summary = trainer.forward_backward(batch)
    return {name: float(value) for name, value in summary.items()}


def logits(trainer):
    with torch.no_grad():
        return trainer.model(IMAGES)


def checkpoint_file(trainer, epoch=2):
    return Path(trainer.output_dir) / trainer.model_name / f"model.pth.tar-{epoch}"


def save(trainer, state, epoch=2, **entries):
    path = checkpoint_file(trainer, epoch)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state, "epoch": epoch, **entries}, path)
