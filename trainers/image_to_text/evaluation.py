"""What a model that speaks still knows: scores by family, and linear probes of its encoder."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence

import torch

from proxyfda.diagnostics.linear_probe import fit_linear_probe
from trainers.image_to_text.data import VQA, Part
from trainers.image_to_text.models import ImageToText
from trainers.image_to_text.scores import ciders, vqa_accuracy

__all__ = ["PROBE_STRENGTH", "probe", "scores"]

PROBE_STRENGTH = 1e-4
"""The same for every encoder, so that nothing is chosen on test images."""


def scores(said: Mapping[str, Sequence[str]], parts: Mapping[str, Part], protocol: str) -> dict:
    """What a model said about the examples of families, against what people said.

    How rare words are, which CIDEr weighs them by, is taken from the references of all families
    together: what tells one family from another is in most references of its own.

    Args:
        said: by family, a text for each example.
        parts: by family, the examples.

    Returns:
        By family ``score`` (CIDEr times 100, or VQA accuracy in percent), ``exact`` (percent of
        texts that are one of the references word for word) and the number of ``examples``.
    """
    references = {name: [example.texts for example in parts[name].examples] for name in said}
    found = {}
    if protocol != VQA:
        each = iter(ciders(sum(map(list, said.values()), []), sum(references.values(), [])))
    for name, texts in said.items():
        wanted = references[name]
        if protocol == VQA:
            mean = vqa_accuracy(texts, wanted)
        else:
            mean = statistics.fmean(itertools.islice(each, len(texts)))
        exact = sum(text in given for text, given in zip(texts, wanted)) / len(texts)
        found[name] = {"score": mean, "exact": 100 * exact, "examples": len(texts)}
    return found


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
