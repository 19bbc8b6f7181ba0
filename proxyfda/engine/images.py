"""Any image file as RGB with 8 bits per channel.

What Pillow converts rightly is left to it: grey, palette, CMYK. It clips the wider ones, so that a
16-bit image turns white; these are scaled here. Transparency is dropped and the colours beneath it
show, and photographs are taken as they are stored whatever their EXIF orientation says: both as in
the CoOp family, with whose numbers those of its benchmarks are compared (its reader is
``Image.open(path).convert("RGB")``). A line names the first photograph that this concerns.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from proxyfda.utils.errors import BadValue

__all__ = ["to_rgb"]

ORIENTATION = 0x0112  # EXIF's tag; 1 is upright
_RANGES = (255, 2**16 - 1)  # what is white in wide images of whole numbers


def to_rgb(image: Image.Image, path: str) -> Image.Image:
    """An opened image in mode RGB.

    Args:
        image: as Pillow opens it.
        path: its file, for messages.

    Raises:
        BadValue: values of 32 bits of which nothing says which one is white.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_eight_bits(image)).convert("RGB")
    if image.getexif().get(ORIENTATION, 1) not in (0, 1):
        _warn_of_orientation(path)
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> np.ndarray:
    """The pixels [H, W] of a wide grey image in 8 bits.

    White is 65,535 in a 16-bit image. In one of 32 bits, whole numbers or floats, it is the least
    of 1 (floats alone), 255 and 65,535 that no pixel exceeds.
    """
    pixels = np.asarray(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        white = _RANGES[1]
    else:
        ranges = (1, *_RANGES) if image.mode == "F" else _RANGES
        lowest, highest = float(pixels.min()), float(pixels.max())
        fitting = [white for white in ranges if highest <= white]
        if not fitting or not lowest >= 0:
            raise BadValue(
                f"its pixels of 32 bits are from {lowest:g} to {highest:g}, and nothing says which "
                "is white; save it with 8 or 16 bits"
            )
        white = fitting[0]
    scaled = pixels.astype(np.float64) * (255 / white)
    return np.rint(scaled).astype(np.uint8)


_warned: list[str] = []


def _warn_of_orientation(path: str) -> None:
    """Say once in a process that rotated photographs are taken as they are stored."""
    if not _warned:
        _warned.append(path)
        print(
            f'Warning: "{path}" is stored rotated (EXIF orientation) and taken as it is stored, as '
            "in CoOp; turn such photographs upright, for example with exiftran -a, if that matters"
        )
