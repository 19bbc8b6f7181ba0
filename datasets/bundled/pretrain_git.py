"""Make the bundled GIT from a seed: ``python -m datasets.bundled.pretrain_git --seed 0``.

It learns captions and answers about general pictures of the rendered world, drawn once in the mild
style of the CLIP's own pre-training. The nouns of one family, :data:`HELD_OUT`, are never said:
to this model they are words without a meaning until it is tuned on them.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import torch
from open_clip_train.scheduler import cosine_lr
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from . import texts
from .git_model import FOLDER, image_processor, new_model, pixels, tokenizer
from .pretrain import draw_pool, keep_freed_memory
from .render import STRIPED_HALF_HEIGHTS
from .world import FAMILIES, random_scene, scene_for

HELD_OUT = "banner"
KNOWN = tuple(family for family in FAMILIES if family != HELD_OUT)
COUNTED = 0.15
"""Share of pictures whose stripes are counted."""


def striped_scene(shape: str, rng: random.Random) -> list[int]:
    """A row of an outline with one to four stripes, whose number stands behind it."""
    return [*scene_for(f"striped {shape}", rng), rng.randint(1, 4)]


def general_scene(rng: random.Random) -> list[int]:
    """A row for pre-training, with the number of stripes behind it (0: not counted)."""
    if rng.random() < COUNTED:
        return striped_scene(rng.choice(list(STRIPED_HALF_HEIGHTS)), rng)
    return [*random_scene(rng), 0]


class Remembered(nn.Module):
    """In place of an image encoder that stays as it is: gives back the tokens it is given."""

    def forward(self, tokens: Tensor, **_):
        """Tokens [N, 1, T, d], which have the place of pixels."""
        from transformers.modeling_outputs import BaseModelOutput

        return BaseModelOutput(last_hidden_state=tokens.squeeze(1).float())


@torch.no_grad()
def image_tokens(model: nn.Module, images: Tensor) -> Tensor:
    """Tokens [n, 1, T, d] of uint8 images by the image encoder, in bf16."""
    found = [model.git.image_encoder(pixels(part)).last_hidden_state for part in images.split(500)]
    return torch.cat([part.to(torch.bfloat16) for part in found]).unsqueeze(1)


def pretrain(seed: int, steps: int, batch: int, lr: float, pool: int, log=print):
    """Train; returns (model, tokenizer, facts for the model card)."""
    start = time.time()
    keep_freed_memory()
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    rows, images = draw_pool(pool, seed, scene=general_scene)
    seen = [texts.Seen(row, KNOWN) for row in rows]
    words = tokenizer()
    model = new_model(len(words), seed).train()
    seen_tokens = image_tokens(model, images)
    encoder, model.git.image_encoder = model.git.image_encoder, Remembered()
    learned = list(model.parameters())
    groups = [
        {"params": [p for p in learned if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in learned if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))
    schedule = cosine_lr(optimizer, lr, steps // 20, steps)
    known: dict[str, list[int]] = {}

    def encode(text: str) -> list[int]:
        if text not in known:
            known[text] = words(text, add_special_tokens=False).input_ids
        return known[text]

    def one_text(scene: texts.Seen) -> tuple[list[int], list[int]]:
        if rng.random() < 0.4:
            return [], encode(rng.choice(texts.captions(scene)))
        asked = texts.questions(scene, rng)
        kind = "stripes" if scene.stripes and rng.random() < 0.5 else rng.choice(list(asked))
        question, answer = asked[kind]
        return encode(question), encode(answer)

    began, smooth, order, at = time.time(), None, torch.randperm(pool, generator=generator), 0
    for step in tqdm(range(steps), desc="training", mininterval=5):
        schedule(step)
        if at + batch > pool:
            order, at = torch.randperm(pool, generator=generator), 0
        index, at = order[at : at + batch], at + batch
        pairs = [one_text(seen[i]) for i in index.tolist()]
        length = max(len(q) + len(a) for q, a in pairs) + 2
        ids = torch.zeros(batch, length, dtype=torch.long)
        labels = torch.full((batch, length), -100)
        for row, (question, answer) in enumerate(pairs):
            ids[row, 0], first = 1, len(question) + 1
            ids[row, 1:first] = torch.tensor(question, dtype=torch.long)
            said = torch.tensor([*answer, 2])
            ids[row, first : first + len(said)] = labels[row, first : first + len(said)] = said
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids, pixel_values=seen_tokens[index], use_cache=False).logits
        told = logits[:, -length:-1].float()
        loss = F.cross_entropy(told.flatten(0, 1), labels[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
        if step % 100 == 99:
            log(f"step {step + 1} loss {smooth:.4f} ({time.time() - began:.0f} s)")
    facts = {
        "seed": seed, "steps": steps, "batch": batch, "lr": lr, "pool": pool,
        "final_loss": round(smooth, 4), "parameters": sum(p.numel() for p in model.parameters()),
        "words": len(words), "seconds_drawing": round(began - start),
        "seconds_training": round(time.time() - began),
    }  # fmt: skip
    model.git.image_encoder = encoder
    return model.eval(), words, facts


def main(argv: list[str] | None = None) -> None:
    """Command line; ``--help`` lists the options."""
    parser = argparse.ArgumentParser(
        prog="python -m datasets.bundled.pretrain_git", description=__doc__
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder that is written")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--pool", type=int, default=20_000, help="pictures drawn before training")
    args = parser.parse_args(argv)
    model, words, facts = pretrain(args.seed, args.steps, args.batch, args.lr, args.pool)
    for part in (model.to(torch.float16), words, image_processor()):
        part.save_pretrained(args.out)
    (args.out / "model.safetensors").chmod(0o644)  # made for its owner alone
    settings = args.out / "tokenizer_config.json"
    # The name that transformers had for it before version 5, which newer ones know as well.
    settings.write_text(
        settings.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast")
    )
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
