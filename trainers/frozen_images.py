"""Evaluation on image features that no prompt changes: encoded once for all that look at them.

They are the same in every epoch, and for all trainers, seeds and protocols with the same frozen
image encoder, so they are kept in files that runs share (:class:`FeatureCache`). Features are kept
in the type in which the encoder gives them, and what they depend on besides the encoder (the batch
size, the device) is part of a file's name: an evaluation gives the same number whether they were
just computed or read.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from tqdm import tqdm

from proxyfda.experiments.features import FeatureCache, Features, cache_of


class FeatureBatches:
    """Image features in place of a loader's images, in the same batches: dicts with ``img`` [B, d]
    and ``label`` [B]."""

    def __init__(self, features: Tensor, labels: Tensor, batch_size: int):
        self._batches = list(zip(features.split(batch_size), labels.split(batch_size)))

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self):
        return ({"img": features, "label": labels} for features, labels in self._batches)


class FrozenImages:
    """The features of the images in loaders, each loader's encoded once.

    Args:
        encoder: with ``encode``, frozen.
        cfg: of the run; it says where features are kept.
    """

    def __init__(self, encoder: nn.Module, cfg):
        self.encoder, self.cfg = encoder, cfg
        self._cache: FeatureCache | None = None
        self._digests: dict[str, str] = {}
        self._found: dict[int, FeatureBatches] = {}

    def batches(self, loader):
        """What an evaluation iterates over in place of a loader: features of its images, or the
        loader itself where it does not give images from files or memory in their order."""
        items = getattr(loader.dataset, "data_source", None)
        if items is None or not isinstance(loader.sampler, SequentialSampler):
            return loader
        # What a pass over the loader takes from torch's stream: training goes on as after one.
        torch.empty((), dtype=torch.int64).random_()
        if id(loader) not in self._found:
            features = self._features(loader).of(items)
            labels = torch.tensor([item.label for item in items])
            self._found[id(loader)] = FeatureBatches(features, labels, loader.batch_size)
        return self._found[id(loader)]

    def _features(self, loader) -> Features:
        if self._cache is None:
            self._cache = cache_of(self.cfg)

        def images(items):
            with torch.random.fork_rng(devices=[]):
                yield from tqdm(loader, desc="image features")

        return Features(
            self.encoder,
            loader.dataset.transform,
            images,
            self._cache,
            conditions=[str(loader.batch_size), *_device(self.encoder)],
            digests=self._digests,
            keep_images=False,
        )


def _device(module: nn.Module) -> list[str]:
    """What the last bits of a result depend on besides what is computed."""
    device = next(module.parameters()).device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return [name, torch.__version__, torch.get_float32_matmul_precision()]
