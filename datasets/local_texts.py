"""Images with texts on this machine, named in one word: ``coco:/data/coco:val2017``."""

from __future__ import annotations

from datasets import coco_captions, vqav2
from proxyfda.utils.errors import BadValue
from proxyfda.utils.suggest import did_you_mean

__all__ = ["LAYOUTS", "examples_of"]

LAYOUTS = {"coco": coco_captions.read, "vqav2": vqav2.read}
"""Names of layouts of files, and what reads them: folder and split -> examples."""


def examples_of(spec, family=""):
    """The examples that a word names.

    Args:
        spec: ``LAYOUT:FOLDER:SPLIT``, such as ``coco:/data/coco:train2017``,
            ``coco:/data/coco:karpathy_test`` or ``vqav2:/data/vqa:val2014``.
        family: what families are made of, where the layout leaves a choice (``question_type`` of
            VQAv2); empty for its usual one.

    Returns:
        list of :class:`~datasets.image_text.Example`.

    Raises:
        BadValue: another word, or files that are not as they should be.
        NotFound: files that are not there.
    """
    layout, _, place = spec.partition(":")
    folder, _, split = place.rpartition(":")
    if layout not in LAYOUTS:
        raise BadValue(
            f"{spec!r} names no known layout of files{did_you_mean(layout, LAYOUTS)}; write "
            f"LAYOUT:FOLDER:SPLIT with one of {', '.join(LAYOUTS)}"
        )
    if not folder or not split:
        raise BadValue(
            f"{spec!r} names no folder and split; write LAYOUT:FOLDER:SPLIT, such as "
            f"{layout}:/data/{layout}:{'val2017' if layout == 'coco' else 'val2014'}"
        )
    if family and layout != "vqav2":
        raise BadValue(f"families of {layout} are not chosen ({family!r} is given); leave it out")
    return LAYOUTS[layout](folder, split, **({"family": family} if family else {}))
