"""What a model that speaks still knows: scores by family, and linear probes of its encoder."""

from __future__ import annotations

import torch

from proxyfda.diagnostics.linear_probe import fit_linear_probe
from trainers.image_to_text.data import VQA, Part
from trainers.image_to_text.models import ImageToText
from trainers.image_to_text.scores import cider, vqa_accuracy

__all__ = ["PROBE_STRENGTH", "probe", "score"]

PROBE_STRENGTH = 1e-4
"""The same for every encoder, so that nothing is chosen on test images."""


def score(model: ImageToText, part: Part, protocol: str, batch_size: int = 64) -> dict:
    """What a model says about the examples of a family, against what people said.

    Returns:
        ``score`` (CIDEr times 100, or VQA accuracy in percent), ``exact`` (percent of texts that
        are one of the references word for word) and the number of ``examples``.
    """
    examples = part.examples
    said = model.answers(examples, part.pixels(range(len(examples))), batch_size=batch_size)
    references = [example.texts for example in examples]
    found = (vqa_accuracy if protocol == VQA else cider)(said, references)
    exact = sum(text in wanted for text, wanted in zip(said, references)) / len(said)
    return {"score": found, "exact": 100 * exact, "examples": len(examples)}


def probe(model: ImageToText, train, test, batch_size: int = 256) -> dict:
    """A linear probe of the image encoder's pooled features, as ``result.json`` has it.

    Args:
        train, test: pixels [N, 3, H, W] and their classes.
    """
    (images, labels), (asked, wanted) = train, test
    fitted = fit_linear_probe(_features(model, images, batch_size), labels, strength=PROBE_STRENGTH)
    accuracy = fitted.accuracy(_features(model, asked, batch_size), wanted)
    return {
        "linear_probe": 100 * accuracy,
        "zero_shot": None,
        "strength": PROBE_STRENGTH,
        "classes": max(labels) + 1,
        "images": len(wanted),
    }


def _features(model, images, batch_size):
    return torch.cat([model.features(part).float() for part in images.split(batch_size)]).cpu()
