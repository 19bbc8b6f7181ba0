"""For the tests of tuning end to end: trainers on the tiny CLIP, batches, formulas in float64."""

import copy

import random_clip
import torch

BATCH = {
    "img": random_clip.tensor((8, 3, 32, 32), 5),
    "label": torch.tensor([0, 1, 2, 3, 4, 5, 6, 0]),
    "index": torch.arange(8),
}
LAYERS = 4  # of the tiny tower: before the first of its three blocks and behind each


def tuned(make_trainer, name, *opts, drift=0.02, **more):
    """A trainer, and a copy of its backbone in float64 as it was pre-trained and another as it is,
    a little off from there."""
    trainer = make_trainer(
        name, "INPUT.TRANSFORMS", ("normalize",), "TRAINER.FINETUNE.CLIP_GRAD", 0.0,
        "SEED", 1, *opts, **more
    )  # fmt: skip
    frozen = in_float64(trainer.backbone)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in trainer.backbone.image_tower.parameters():
            weight += drift * torch.randn(weight.shape, generator=generator)
    return trainer, frozen, in_float64(trainer.backbone)


def in_float64(backbone):
    """A copy, with the same tokenizer, whose tables take longer to copy than the weights."""
    tokenizer = backbone.text_tower.tokenizer
    return copy.deepcopy(backbone, {id(tokenizer): tokenizer}).double()


def step(trainer, batch=BATCH):
    """The values of one step as numbers, and the gradient that it left in the image tower."""
    trainer.epoch, trainer.batch_idx, trainer.num_batches = 0, 0, 9
    trainer.set_model_mode("train")
    values = {name: float(value) for name, value in trainer.forward_backward(batch).items()}
    return values, gradient_of(trainer.backbone.image_tower)


def gradient_of(module):
    return torch.cat([weight.grad.flatten().double() for weight in module.parameters()])


def naive_layers(tower, images):
    """The tokens [B, T, C] before the first block and behind each, and the features, by hand."""
    x = tower.conv1(images).flatten(2).transpose(1, 2)
    x = torch.cat([tower.class_embedding.expand(len(x), 1, -1), x], 1) + tower.positional_embedding
    x = tower.ln_pre(x)
    found = [x]
    for block in tower.transformer.resblocks:
        y = block.ln_1(x)
        x = x + block.attn(y, y, y, need_weights=False)[0]
        x = x + block.mlp(block.ln_2(x))
        found.append(x)
    return tower.ln_post(x[:, 0]) @ tower.proj, found


def cosines(x, y):
    return torch.stack([torch.stack([(a @ b) / (a.norm() * b.norm()) for b in y]) for a in x])


def naive_head_loss(features, labels, weight, bias):
    """Mean cross-entropy of a linear layer on features of length 1."""
    logits = torch.stack([weight @ (x / x.norm()) + bias for x in features])
    return torch.stack([logits[i].exp().sum().log() - logits[i, y] for i, y in enumerate(labels)])
