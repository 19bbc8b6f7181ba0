"""Classifying by the texts of the classes, without training."""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor

from proxyfda.backbones.clip.prompts import plain_name
from proxyfda.backbones.image import ImageBackbone
from proxyfda.neighbours.cosines import unit_rows
from proxyfda.utils.templates import DEFAULT_TEMPLATE, check_template

__all__ = ["class_texts", "templates_of", "zero_shot_weights"]


def templates_of(dataset: object) -> list[str]:
    """The hand-written prompts of a dataset: its ``template``, one or several, or CLIP's.

    Raises:
        BadValue: one that has no single place for the class name.
    """
    given = getattr(dataset, "template", None) or DEFAULT_TEMPLATE
    where = f"{type(dataset).__name__}: template"
    return [check_template(one, where) for one in ([given] if isinstance(given, str) else given)]


def class_texts(template: str, classnames: Sequence[str]) -> list[str]:
    """The texts of class names in a template.

    >>> class_texts("a photo of a {}.", ["sea_lion"])
    ['a photo of a sea lion.']
    """
    return [template.format(plain_name(name)) for name in classnames]


def zero_shot_weights(
    backbone: ImageBackbone, classnames: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """Weights [C, d] that classify images by their cosines with the texts of the classes.

    Of each class the mean over the templates of its text features of length 1, brought to length 1
    again (Radford et al., ICML 2021). With a logit scale they have to be multiplied by its
    exponential for logits; the order of the classes is the same without.

    Raises:
        BadModel: the backbone has no texts.
    """
    found = [unit_rows(backbone.encode_texts(class_texts(text, classnames))) for text in templates]
    return unit_rows(torch.stack(found).mean(dim=0))
