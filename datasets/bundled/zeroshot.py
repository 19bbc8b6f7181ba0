"""Zero-shot accuracy of the bundled CLIP: ``python -m datasets.bundled.zeroshot --out FILE``.

Writes a JSON with base and new accuracy (percent) per dataset on val and test, and prints the rows
of the model card's table.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F

from .specs import SPECS, Spec


@torch.no_grad()
def zero_shot(clip, spec: Spec, split: str, count: int | None = None) -> tuple[float, float]:
    """Accuracy in percent on the base and on the new half, each among its own classes.

    ``clip`` is what ``proxyfda.backbones.clip.load_clip`` returns; ``count`` as in ``Spec.draw``.
    """
    import open_clip  # here, so that rendering needs no open_clip

    images, labels = spec.draw(split, count)
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN)[:, None, None]
    std = torch.tensor(open_clip.OPENAI_DATASET_STD)[:, None, None]
    features = [
        clip.encode_image((b / 255 - mean) / std, normalize=True) for b in images.split(500)
    ]
    features, labels = torch.cat(features), torch.tensor(labels)
    prompts = [spec.template.format(name) for name, _ in spec.classes]
    text = clip.encode_text(clip.tokenizer(prompts), normalize=True)
    half = math.ceil(len(spec.classes) / 2)
    scores = []
    for first, last in ((0, half), (half, len(spec.classes))):
        mine = (labels >= first) & (labels < last)
        guess = (F.normalize(features[mine], dim=-1) @ text[first:last].T).argmax(1)
        scores.append(100 * (guess == labels[mine] - first).double().mean().item())
    return scores[0], scores[1]


def main(argv: list[str] | None = None) -> None:
    """Command line; ``--help`` lists the options."""
    from proxyfda.backbones.clip import load_clip

    parser = argparse.ArgumentParser(
        prog="python -m datasets.bundled.zeroshot", description=__doc__
    )
    parser.add_argument("--weights", default="bundled", help="'bundled' or a file")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    clip = load_clip("ViT-Bundled", args.weights)
    table = {}
    for spec in SPECS:
        entry = {"classes": len(spec.classes)}
        for split in ("val", "test"):
            base, new = zero_shot(clip, spec, split)
            entry[split] = {"base": round(base, 2), "new": round(new, 2)}
        table[spec.folder] = entry
        v, t = entry["val"], entry["test"]
        print(
            f"| {spec.folder} | {entry['classes']} | {v['base']:.2f} | {v['new']:.2f} "
            f"| {t['base']:.2f} | {t['new']:.2f} |"
        )
    args.out.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
