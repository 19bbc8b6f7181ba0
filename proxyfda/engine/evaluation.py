"""Accuracy, macro F1 and their report."""

from __future__ import annotations

import operator
import os
from collections import Counter, OrderedDict, defaultdict

import numpy as np
import torch
from sklearn.metrics import confusion_matrix, f1_score

from proxyfda.utils.errors import BadValue

from .registry import EVALUATOR_REGISTRY


def compute_accuracy(output, target, topk=(1,)):
    """Per cent of rows whose label is among the k largest logits, for each k.

    `output` [B, C] (or a tuple that begins with it), `target` [B]; returns a list of tensors [1].
    """
    if isinstance(output, (tuple, list)):
        output = output[0]
    best = output.topk(max(topk), dim=1).indices
    hits = best.eq(target.unsqueeze(1))
    return [100.0 * hits[:, :k].any(dim=1).float().mean().reshape(1) for k in topk]


def per_class(labels, predictions, names=None):
    """Accuracy and mistakes of each class, which are the rows of the confusion matrix.

    Args:
        labels, predictions: of the images, whole numbers.
        names: of the classes by label; without them the labels stand for them.

    Returns:
        A list with a dict for each class that has images, by label: its `name`, the number of
        `images`, the `accuracy` in per cent, and `taken_for`, the numbers of images by the name of
        the wrong class, without zeros.
    """
    names = {} if names is None else names
    pairs = Counter(zip(labels, predictions))
    images, taken = Counter(labels), defaultdict(dict)
    for (label, prediction), count in sorted(pairs.items()):
        if label != prediction:
            name = str(names.get(prediction, prediction))
            taken[label][name] = taken[label].get(name, 0) + count
    return [
        {
            "name": str(names.get(label, label)),
            "images": images[label],
            "accuracy": 100.0 * pairs[label, label] / images[label],
            "taken_for": taken[label],
        }
        for label in sorted(images)
    ]


class EvaluatorBase:
    """Collects predictions batch by batch and sums them up."""

    def __init__(self, cfg):
        self.cfg = cfg

    def reset(self):
        raise NotImplementedError

    def process(self, mo, gt):
        raise NotImplementedError

    def evaluate(self):
        raise NotImplementedError


@EVALUATOR_REGISTRY.register()
class Classification(EvaluatorBase):
    """Top-1 accuracy, error rate and macro F1 in per cent."""

    def __init__(self, cfg, lab2cname=None, **kwargs):
        super().__init__(cfg)
        if cfg.TEST.PER_CLASS_RESULT and lab2cname is None:
            raise BadValue("TEST.PER_CLASS_RESULT needs the class names (lab2cname)")
        self._lab2cname = lab2cname
        self.reset()

    def reset(self):
        self._correct = self._total = 0
        self._y_true, self._y_pred = [], []

    def process(self, mo, gt):
        """Add a batch: logits `mo` [B, C] and labels `gt` [B]."""
        # Both in one transfer: each one waits for the device.
        labels, predictions = torch.stack([gt, mo.max(1)[1]]).tolist()
        self._correct += sum(map(operator.eq, labels, predictions))
        self._total += len(labels)
        self._y_true.extend(labels)
        self._y_pred.extend(predictions)

    def evaluate(self):
        """Print the report; return accuracy, error_rate, macro_f1 (and perclass_accuracy)."""
        if not self._total:
            raise BadValue("There is nothing to evaluate: the split holds no image")
        accuracy = 100.0 * self._correct / self._total
        results = OrderedDict(accuracy=accuracy, error_rate=100.0 - accuracy)
        # only classes that occur in the ground truth: a wrong guess outside them adds no class
        present = np.unique(self._y_true)
        f1 = f1_score(self._y_true, self._y_pred, average="macro", labels=present)
        results["macro_f1"] = 100.0 * float(f1)
        print("=> result")
        print(f"* total: {self._total:,}")
        print(f"* correct: {self._correct:,}")
        print(f"* accuracy: {accuracy:.1f}%")
        print(f"* error: {results['error_rate']:.1f}%")
        print(f"* macro_f1: {results['macro_f1']:.1f}%")
        if self.cfg.TEST.PER_CLASS_RESULT:
            results["perclass_accuracy"] = self._report_classes()
        if self.cfg.TEST.COMPUTE_CMAT:
            path = os.path.join(self.cfg.OUTPUT_DIR, "cmat.pt")
            torch.save(confusion_matrix(self._y_true, self._y_pred, normalize="true"), path)
            print(f"Confusion matrix is saved to {path}")
        return results

    def _report_classes(self):
        matches = defaultdict(list)
        for label, pred in zip(self._y_true, self._y_pred):
            matches[label].append(label == pred)
        print("=> per-class result")
        for label, hits in sorted(matches.items()):
            print(
                f"* class: {label} ({self._lab2cname[label]})\ttotal: {len(hits):,}\t"
                f"correct: {sum(hits):,}\tacc: {100.0 * np.mean(hits):.1f}%"
            )
        average = 100.0 * float(np.mean([np.mean(hits) for hits in matches.values()]))
        print(f"* average: {average:.1f}%")
        return average
