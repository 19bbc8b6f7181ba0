"""What a model that speaks is tuned on and asked about: the rendered families, or files in the
official layouts of COCO captions and VQAv2."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from datasets.image_text import Example, families, of_family, one_text_each, subset
from datasets.local_texts import examples_of
from proxyfda.utils.errors import BadValue

__all__ = ["BUNDLED", "CAPTIONING", "VQA", "Part", "Rendered", "Stored", "source_of"]

CAPTIONING, VQA = "captioning", "vqa"
BUNDLED = "bundled"


@dataclass(frozen=True)
class Part:
    """Examples, and their images where these are no files.

    Attributes:
        examples: N of them.
        images: pixels [M, 3, H, W] as the model takes them, or None: the examples name files.
        picture: place of each example's image among them [N], or None.
    """

    examples: list[Example]
    images: torch.Tensor | None = None
    picture: torch.Tensor | None = None

    def pixels(self, places: Sequence[int]) -> torch.Tensor | None:
        """Images of the examples at some places."""
        if self.images is None or self.picture is None:
            return None
        return self.images[self.picture[torch.as_tensor(places)]]

    def to_train_on(self) -> Part:
        """The same with one text for each example, of captions one example for each."""
        each = [one_text_each([example]) for example in self.examples]
        examples = [example for group in each for example in group]
        if self.picture is None:
            return Part(examples)
        counts = torch.tensor([len(group) for group in each])
        return Part(examples, self.images, self.picture.repeat_interleave(counts))


class Rendered:
    """The families of :mod:`datasets.bundled.families`.

    Args:
        protocol: ``captioning`` or ``vqa``.
        splits: that stand for ``train`` and ``test``, such as ``{"test": "val"}``.
        count: pictures per class; None for all.

    Raises:
        BadValue: no such split.
    """

    def __init__(
        self, protocol: str, splits: dict[str, str] | None = None, count: int | None = None
    ):
        from datasets.bundled.families import FAMILIES, FAMILY_COUNTS

        self._ask, self._count, self.names = protocol == VQA, count, list(FAMILIES)
        self._splits = splits or {}
        for split in self._splits.values():
            if split not in FAMILY_COUNTS:
                raise BadValue(
                    f"the rendered families have no split {split!r}; use one of "
                    f"{', '.join(FAMILY_COUNTS)}"
                )

    def part(self, family: str, split: str) -> Part:
        """The examples of a family.

        Raises:
            BadValue: no such family.
        """
        found, images = self._pictures(family, split)
        return Part(found.examples, images, found.picture)

    def labelled(self, family: str, split: str) -> tuple[torch.Tensor, list[int]]:
        """Each picture of a family once, and its class, for linear probes."""
        found, images = self._pictures(family, split)
        return images, found.labels

    def _pictures(self, family, split):
        from datasets.bundled.families import pictures

        split = self._splits.get(split, split)
        found = pictures(family, split, ask=self._ask, count=self._count)
        return found, _pixels(family, split, self._count)


@functools.cache
def _pixels(family, split, count):
    from datasets.bundled.families import pictures
    from datasets.bundled.git_model import pixels

    return pixels(pictures(family, split, ask=False, count=count).images)


class Stored:
    """Files in the official layouts.

    Args:
        protocol: ``captioning`` or ``vqa``.
        folder: see :mod:`datasets.coco_captions` and :mod:`datasets.vqav2`.
        splits: of the file names, ``{"train": "train2017", "test": "val2017"}``.
        kinds: what families are made of, see :func:`datasets.local_texts.examples_of`.
        limit: examples of a family and split at most; None for all.

    Raises:
        NotFound, BadValue: what is wrong with the files.
    """

    def __init__(
        self, protocol: str, folder: str, splits: dict[str, str], kinds: str, limit: int | None
    ):
        self._folder, self._limit = folder, limit
        self._examples = {
            part: examples_of(f"{LAYOUT[protocol]}:{folder}:{split}", kinds)
            for part, split in splits.items()
        }
        self.names = list(families(self._examples["test"]))

    def part(self, family: str, split: str) -> Part:
        """See :meth:`Rendered.part`."""
        found = of_family(self._examples[split], family, self._folder)
        return Part(found if self._limit is None else subset(found, self._limit, seed=0))

    def labelled(self, family: str, split: str) -> None:
        """There are no classes to probe."""


LAYOUT = {CAPTIONING: "coco", VQA: "vqav2"}
SPLITS = {
    CAPTIONING: {"train": "train2017", "test": "val2017"},
    VQA: {"train": "train2014", "test": "val2014"},
}
"""Of the official files where none are named."""


def source_of(args) -> Rendered | Stored:
    """The data of a command line (``protocol``, ``data``, ``train_split``, ``test_split``,
    ``kinds``, ``limit``).

    Raises:
        BadValue, NotFound: see :class:`Stored`.
    """
    if args.limit is not None and args.limit < 1:
        raise BadValue(f"--limit is {args.limit}; use at least 1")
    given = {"train": args.train_split, "test": args.test_split}
    if args.data == BUNDLED:
        named = {part: split for part, split in given.items() if split}
        return Rendered(args.protocol, named, args.limit)
    splits = {part: given[part] or split for part, split in SPLITS[args.protocol].items()}
    return _stored(args.protocol, args.data, tuple(splits.items()), args.kinds, args.limit)


@functools.lru_cache(maxsize=2)
def _stored(protocol, folder, splits, kinds, limit):
    return Stored(protocol, folder, dict(splits), kinds, limit)
