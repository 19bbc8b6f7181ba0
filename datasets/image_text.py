"""Images with texts: captions of an image, or answers to a question about it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from PIL import Image

from proxyfda.utils.errors import BadValue, NotFound
from proxyfda.utils.suggest import did_you_mean

__all__ = ["Example", "families", "of_family", "one_text_each", "read_image", "subset"]


@dataclass(frozen=True)
class Example:
    """An image and what people said about it.

    Attributes:
        image: path of its file.
        texts: all reference captions, or the answers of all annotators.
        question: about the image; empty for captions.
        family: what the example belongs to; one family is tuned on, the others may be forgotten.
    """

    image: str
    texts: tuple[str, ...]
    question: str = ""
    family: str = ""


def families(examples: Iterable[Example]) -> dict[str, int]:
    """The families of examples, the most frequent first, with how many examples each has.

    >>> families([Example("a", ("x",), family="dog"), Example("b", ("y",), family="dog")])
    {'dog': 2}
    """
    counts = Counter(example.family for example in examples)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def of_family(examples: Sequence[Example], family: str, source: str = "the data") -> list[Example]:
    """The examples of one family.

    Raises:
        BadValue: there are none; the message names the families that ``source`` has.
    """
    found = [example for example in examples if example.family == family]
    if found:
        return found
    there = list(families(examples))
    listed = ", ".join(map(repr, there[:12])) + (", ..." if len(there) > 12 else "")
    raise BadValue(
        f"{source} has no family {family!r}{did_you_mean(family, there)}; there are {listed}"
    )


def subset(examples: Sequence[Example], count: int, seed: int) -> list[Example]:
    """``count`` of the examples in their order, drawn with ``seed``; all if there are fewer.

    >>> subset("abcdef", 3, seed=1) == subset("abcdef", 3, seed=1)
    True
    """
    if count >= len(examples):
        return list(examples)
    chosen = random.Random(seed).sample(range(len(examples)), count)
    return [examples[i] for i in sorted(chosen)]


def one_text_each(examples: Iterable[Example]) -> list[Example]:
    """Examples to train on, with one text each.

    Of captions every one makes an example of its own, as is usual on COCO; of answers the most
    frequent is taken, the first of equally frequent ones.

    >>> [e.texts for e in one_text_each([Example("a", ("x", "y"))])]
    [('x',), ('y',)]
    >>> [e.texts for e in one_text_each([Example("a", ("no", "yes", "yes"), "is it?")])]
    [('yes',)]
    """
    found = []
    for example in examples:
        kept = example.texts
        if example.question:
            kept = (Counter(example.texts).most_common(1)[0][0],)
        found.extend(replace(example, texts=(text,)) for text in kept)
    return found


def read_image(path: str) -> Image.Image:
    """An image in RGB.

    Raises:
        NotFound: no such file.
        BadValue: a file that is no image, or half of one.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise NotFound(f"the image {path} does not exist; complete the images") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadValue(f"the image {path} cannot be read ({error}); fetch it again") from error
