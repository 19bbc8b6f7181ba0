"""Images of datasets, and the form of what models make of them."""

from __future__ import annotations

import contextlib
import io
import numbers
import os.path as osp
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torchvision.transforms as T
from torch import Tensor

from proxyfda.backbones import ImageBackbone
from proxyfda.backbones.zero_shot import templates_of
from proxyfda.dassl import build_dataset, read_image
from proxyfda.experiments.config import default_config, merge_file
from proxyfda.utils.errors import BadValue

__all__ = ["Encoded", "Sample", "read_sample"]

SPLITS = {"test": "test", "val": "val", "train": "train_x"}
_BATCH = 100
_KEPT_BYTES = 1 << 28  # of images as an encoder takes them, which the next encoder takes as well


@dataclass
class Sample:
    """Some images of a dataset.

    Attributes:
        name: of the dataset, that of its config file.
        items: the images' entries, N of them.
        labels: their classes [N].
        classnames: by label.
        templates: of the texts of classes.
        total: images that there are to draw from.
        path, root: the dataset's config file, and the folder of the datasets; empty for what the
            config says.
    """

    name: str
    items: Sequence[Any]
    labels: Tensor
    classnames: Sequence[str]
    templates: Sequence[str]
    total: int
    path: str = ""
    root: str = ""
    _kept: dict[tuple, list[Tensor]] = field(default_factory=dict, repr=False)

    def image(self, place: int) -> Any:
        """An image as it is in its file."""
        item = self.items[place]
        return item.read() if hasattr(item, "read") else read_image(item.impath)

    def batches(self, backbone: ImageBackbone) -> Iterator[Tensor]:
        """The images [B, 3, H, W] in their order, as a backbone takes them."""
        side = backbone.image_size
        key = side, *backbone.image_mean, *backbone.image_std, backbone.interpolation
        if key in self._kept:
            yield from self._kept[key]
            return
        prepare = T.Compose(
            [
                T.Resize(side, T.InterpolationMode(backbone.interpolation)),
                T.CenterCrop(side),
                T.ToTensor(),
                T.Normalize(backbone.image_mean, backbone.image_std),
            ]
        )
        fits = 12 * side**2 * len(self.items) <= _KEPT_BYTES
        made = []
        for start in range(0, len(self.items), _BATCH):
            places = range(start, min(start + _BATCH, len(self.items)))
            batch = torch.stack([prepare(self.image(place)) for place in places])
            if fits:
                made.append(batch)
            yield batch
        if fits:
            self._kept[key] = made


@dataclass(frozen=True)
class Encoded:
    """What a model makes of a sample.

    Attributes:
        features: [N, d], fp32 on the CPU, not normalised.
        layers: after how many blocks, or at which stage -> mean over the tokens or pixels there
            [N, C]; empty where it has none.
        guesses: the class that each image is taken for [N], by texts; None without texts.
        note: what has to be said of it, else empty.
    """

    features: Tensor
    layers: dict[int, Tensor] = field(default_factory=dict)
    guesses: Tensor | None = None
    note: str = ""


def read_sample(path: str, root: str, *, split: str = "test", most: int = 2000, seed: int = 0):
    """Images of a dataset, drawn by a seed where there are more than are wanted.

    Args:
        path: the dataset's config file; its reader has to be registered.
        root: folder of the datasets; empty for what the config says.
        split: ``test``, ``val`` or ``train``.
        most: images.
        seed: of the draw.

    Returns:
        :class:`Sample`, in the dataset's order.

    Raises:
        NotFound: no such config file, or no data.
        BadValue: the split is none or empty, images have no class, or ``most`` is below 1.
    """
    if split not in SPLITS:
        raise BadValue(f"the split is {split!r}; use one of {', '.join(SPLITS)}")
    if most < 1:
        raise BadValue(f"the number of images is {most}; use at least 1")
    cfg = default_config()
    merge_file(cfg, path, "--datasets")
    if root:
        cfg.DATASET.ROOT = root
    with contextlib.redirect_stdout(io.StringIO()):  # readers say what they read
        dataset = build_dataset(cfg)
    name = osp.splitext(osp.basename(path))[0]
    found = list(getattr(dataset, SPLITS[split]) or ())
    if not found:
        raise BadValue(f"{name} has no {split} images; use another --split")
    items = found
    if len(found) > most:
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))
        items = [found[place] for place in sorted(order[:most].tolist())]
    unlabelled = sum(
        not isinstance(item.label, numbers.Integral) or item.label < 0 for item in items
    )
    if unlabelled:
        raise BadValue(
            f"{name} has {unlabelled} {split} images without a class, which OTDD and the probes "
            "need; use another --split, or a dataset with labels"
        )
    labels = torch.tensor([item.label for item in items])
    names, texts = dataset.classnames, templates_of(dataset)
    return Sample(name, items, labels, names, texts, len(found), path, root)
