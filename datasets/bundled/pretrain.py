"""Make a bundled CLIP from a seed: ``python -m datasets.bundled.pretrain --world atlas --seed 0``.

There are two worlds, each with a CLIP of its own: ``bundled`` (the small datasets) and ``atlas``.
The steps and the pool of the files that come with the package are in its model card. A model is
built by open_clip from ``proxyfda/backbones/clip/bundled/ViT-Bundled.json`` and
trained with open_clip's contrastive loss and learning-rate schedule on captioned pictures that are
drawn first and then read many times, each time with a new caption. On a CPU three things make it
quick: bf16 autocast (where the CPU has it), the plain instead of the fused attention, whose
backward pass is slow, and keeping freed memory instead of giving it back to the system at each
step.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.loss import ClipLoss
from open_clip_train.scheduler import cosine_lr
from safetensors.torch import save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from proxyfda.utils.errors import NotFinite

from . import render as renderer
from .atlas import scenes as atlas
from .world import Captioner, random_scene, vocabulary

BACKBONE = Path(__file__).resolve().parents[2] / "proxyfda" / "backbones" / "clip"
CONFIG = BACKBONE / "bundled" / "ViT-Bundled.json"


def keep_freed_memory() -> None:
    """Ask glibc not to return freed blocks (a no-op elsewhere); page faults cost most of a step."""
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
    mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD


def draw_pool(
    size: int,
    seed: int,
    style: renderer.Style = renderer.PRETRAIN,
    chunk: int = 1000,
    scene: Callable[[random.Random], list[int]] = random_scene,
) -> tuple[list[list[int]], torch.Tensor]:
    """``size`` rows that ``scene`` draws, and their pictures as uint8 [size, 3, 32, 32]."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    rows = [scene(rng) for _ in range(size)]
    images = torch.empty(size, 3, renderer.SIZE, renderer.SIZE, dtype=torch.uint8)
    for i in tqdm(range(0, size, chunk), desc="drawing", unit="k"):
        batch = renderer.render(torch.tensor(rows[i : i + chunk]), style, generator)
        images[i : i + chunk] = (batch * 255).round().to(torch.uint8)
    return rows, images


def encode_text(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Normalised text features [n, d] of tokens [n, L], L at most the context length.

    Positions after the last end-of-text token cannot reach it through the causal mask, so cutting
    them off changes nothing.
    """
    length = tokens.shape[1]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
    x = model.ln_final(x)[torch.arange(len(x)), tokens.argmax(1)] @ model.text_projection
    return torch.nn.functional.normalize(x, dim=-1)


def compact_state(model: torch.nn.Module, kept: torch.Tensor) -> dict[str, torch.Tensor]:
    """The state dict in fp16 with only the ``kept`` [r] rows of the token embedding."""
    state = {k: v.detach().to(torch.float16).contiguous() for k, v in model.state_dict().items()}
    state["token_embedding.rows"] = kept.to(torch.int32)
    return state


@dataclass(frozen=True)
class World:
    """What a CLIP is trained on.

    Attributes:
        draw: of a number and a seed, that many scenes and their pictures, uint8 [n, 3, 32, 32]. A
            scene is a row (``world.FIELDS``), in the atlas with the word for its medium.
        captioner: of a ``random.Random``, what writes a caption of a scene, with the words early or
            (``long``) late.
        vocabulary: all words of captions and class names.
        file: name of the weights, beside the model's config.
    """

    draw: Callable[[int, int], tuple[list[Any], torch.Tensor]]
    captioner: Callable[[random.Random], Callable[[Any, bool], str]]
    vocabulary: Callable[[], list[str]]
    file: str


WORLDS = {
    "bundled": World(draw_pool, Captioner, vocabulary, "ViT-Bundled.safetensors"),
    "atlas": World(
        atlas.draw_pool, atlas.Captioner, atlas.vocabulary, "ViT-Bundled-atlas.safetensors"
    ),
}


def pretrain(
    world: World,
    seed: int,
    steps: int,
    batch: int,
    lr: float,
    weight_decay: float,
    pool: int,
    log: Callable[[str], None] = print,
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Train from scratch; returns (compact state dict, facts for the model card).

    Args:
        batch: pairs in a step, at most ``pool``.
        pool: pictures that are drawn before training.

    Raises:
        NotFinite: the loss is not finite, as with too high a learning rate.
    """
    start = time.time()
    keep_freed_memory()
    torch.manual_seed(seed)
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    model = open_clip.model.CLIP(**json.loads(CONFIG.read_text()))
    tokenizer = open_clip.tokenizer.SimpleTokenizer()

    # Only rows that some caption uses are trained: the dense gradient of all 49,408 would cost more
    # than the model. Ascending order keeps end-of-text the largest id, as pooling by argmax wants.
    used = {t for text in world.vocabulary() for t in tokenizer.encode(text)}
    kept = sorted(used | {49406, 49407})
    place = {token: i for i, token in enumerate(kept)}
    table = torch.nn.Embedding(len(kept), model.token_embedding.embedding_dim)
    table.weight.data = model.token_embedding.weight.data[kept].clone()
    model.token_embedding = table
    words: dict[str, list[int]] = {}

    def tokenize(captions: list[str]) -> torch.Tensor:
        ids = []
        for caption in captions:
            if caption not in words:
                words[caption] = [place[t] for t in tokenizer.encode(caption)]
            ids.append([len(kept) - 2, *words[caption], len(kept) - 1])
        out = torch.zeros(len(ids), max(map(len, ids)), dtype=torch.long)
        for row, seq in zip(out, ids):
            row[: len(seq)] = torch.tensor(seq)
        return out

    scenes, images = world.draw(pool, seed)
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN)[:, None, None]
    std = torch.tensor(open_clip.OPENAI_DATASET_STD)[:, None, None]
    caption = world.captioner(rng)

    decay = [p for n, p in model.named_parameters() if p.ndim >= 2 and "logit" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim < 2 or "logit" in n]
    groups = [{"params": decay, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), eps=1e-6)
    schedule = cosine_lr(optimizer, lr, min(500, steps // 10), steps)
    criterion = ClipLoss()
    model.train()
    began, smooth = time.time(), None
    order = torch.randperm(pool, generator=generator)
    at = 0
    bar = tqdm(range(steps), desc="training", mininterval=5)
    for step in bar:
        schedule(step)
        if at + batch > pool:
            order, at = torch.randperm(pool, generator=generator), 0
        index, at = order[at : at + batch], at + batch
        picture = (images[index].float() / 255 - mean) / std
        if rng.random() < 0.5:
            picture = picture.flip(-1)
        long = rng.random() < 0.4  # by batch, since the longest caption sets the cost of all
        tokens = tokenize([caption(scenes[i], long) for i in index.tolist()])
        with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", torch.bfloat16):
            image_features = model.encode_image(picture, normalize=True)
            text_features = encode_text(model, tokens)
        loss = criterion(image_features.float(), text_features.float(), model.logit_scale.exp())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
        if not math.isfinite(smooth):
            raise NotFinite(f"the loss is not finite at step {step}; lower --lr ({lr})")
        if step % 50 == 0:
            bar.set_postfix(loss=f"{smooth:.3f}", scale=f"{model.logit_scale.exp():.1f}")
        if step % 500 == 499:
            log(f"step {step + 1} loss {smooth:.4f} scale {model.logit_scale.exp():.1f}")
    facts = {
        "seed": seed, "steps": steps, "batch": batch, "lr": lr, "weight_decay": weight_decay,
        "pool": pool, "pairs": steps * batch, "final_loss": round(smooth, 4),
        "logit_scale": round(model.logit_scale.exp().item(), 2),
        "token_rows": len(kept), "parameters": sum(p.numel() for p in model.parameters()),
        "threads": torch.get_num_threads(), "torch": torch.__version__,
        "open_clip": open_clip.__version__,
        "seconds_drawing": round(began - start), "seconds_training": round(time.time() - began),
    }  # fmt: skip
    return compact_state(model, torch.tensor(kept)), facts


def main(argv: list[str] | None = None) -> None:
    """Command line; ``--help`` lists the options."""
    parser = argparse.ArgumentParser(
        prog="python -m datasets.bundled.pretrain", description=__doc__
    )
    parser.add_argument("--world", choices=WORLDS, default="bundled", help="(default: bundled)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, help="file of the weights (default: where the package has that world's)"
    )
    parser.add_argument("--steps", type=int, default=2300)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--pool", type=int, default=160_000, help="pictures drawn before training")
    args = parser.parse_args(argv)
    world = WORLDS[args.world]
    out = args.out or CONFIG.parent / world.file
    state, facts = pretrain(
        world, args.seed, args.steps, args.batch, args.lr, args.weight_decay, args.pool
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, out, metadata={"format": "pt", "made_by": json.dumps(facts)})
    out.chmod(0o644)  # safetensors makes files that only their owner can read
    print(json.dumps(facts, indent=1))
    print(f"wrote {out} ({out.stat().st_size / 2**20:.2f} MiB)")


if __name__ == "__main__":
    main()
