"""Zero-shot accuracy of the bundled CLIPs: ``python -m datasets.bundled.zeroshot --out FILE``.

Writes a JSON with accuracy (percent) per dataset on val and test, of the base and of the new half
or of the whole task and of a linear probe on it, each with the CLIP of its world, and prints the
rows of the model card's tables.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from .atlas.datasets import PLATES
from .specs import ALL, TASKS, Rendered

WORLDS: dict[str, tuple[Rendered, ...]] = {"atlas": PLATES, "bundled": ALL}
"""``MODEL.BACKBONE.WEIGHTS`` -> the datasets of the world that they know."""


@torch.no_grad()
def _features(clip, spec: Rendered, split: str, count: int | None = None):
    import open_clip  # here, so that rendering needs no open_clip

    images, labels = spec.draw(split, count)
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN)[:, None, None]
    std = torch.tensor(open_clip.OPENAI_DATASET_STD)[:, None, None]
    features = [
        clip.encode_image((b / 255 - mean) / std, normalize=True) for b in images.split(500)
    ]
    return torch.cat(features), torch.tensor(labels)


@torch.no_grad()
def zero_shot(clip, spec: Rendered, split: str, count: int | None = None) -> dict[str, float]:
    """Accuracy in percent on each of ``spec.groups``, among that group's own classes.

    ``clip`` is what ``proxyfda.backbones.clip.load_clip`` returns; ``count`` as in ``spec.draw``.
    """
    features, labels = _features(clip, spec, split, count)
    prompts = [spec.template.format(name) for name, _ in spec.classes]
    text = clip.encode_text(clip.tokenizer(prompts), normalize=True)
    scores = {}
    for name, group in spec.groups.items():
        mine = (labels >= group.start) & (labels < group.stop)
        guess = (features[mine] @ text[group.start : group.stop].T).argmax(1)
        scores[name] = 100 * (guess == labels[mine] - group.start).double().mean().item()
    return scores


def linear_probe(clip, spec: Rendered, splits: tuple[str, ...]) -> list[float]:
    """Accuracy in percent on each of ``splits`` of a logistic regression on the unit features of
    the training pictures (scikit-learn's, C = 30)."""
    from sklearn.linear_model import LogisticRegression

    features, labels = _features(clip, spec, "train")
    probe = LogisticRegression(C=30, max_iter=2000).fit(features.numpy(), labels.numpy())
    scores = []
    for split in splits:
        features, labels = _features(clip, spec, split)
        scores.append(100 * probe.score(features.numpy(), labels.numpy()))
    return scores


def measure(clip, spec: Rendered) -> dict:
    """The entry of a dataset in the JSON: its number of classes, and accuracy on val and test."""
    entry: dict = {"classes": len(spec.classes)}
    for split in ("val", "test"):
        scores = zero_shot(clip, spec, split)
        entry[split] = {group: round(score, 2) for group, score in scores.items()}
    if spec in TASKS:
        for split, score in zip(("val", "test"), linear_probe(clip, spec, ("val", "test"))):
            entry[split]["probe"] = round(score, 2)
    return entry


def main(argv: list[str] | None = None) -> None:
    """Command line; ``--help`` lists the options."""
    from proxyfda.backbones.clip import load_clip

    parser = argparse.ArgumentParser(
        prog="python -m datasets.bundled.zeroshot", description=__doc__
    )
    parser.add_argument("--world", choices=WORLDS, help="(default: both)")
    parser.add_argument("--weights", help="file in place of the world's own; needs --world")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    if args.weights and not args.world:
        parser.error("--weights are of one world; give --world as well")
    table = {}
    for world in [args.world] if args.world else WORLDS:
        clip = load_clip("ViT-Bundled", args.weights or world)
        for spec in WORLDS[world]:
            entry = table[spec.folder] = measure(clip, spec)
            figures = [f"{v:.2f}" for split in ("val", "test") for v in entry[split].values()]
            print(f"| {' | '.join((spec.folder, str(entry['classes']), *figures))} |")
    args.out.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    from proxyfda.utils.errors import show_user_errors

    show_user_errors()
    main()
