"""Prompt templates: a text with one place for the class name."""

from __future__ import annotations

from string import Formatter

from proxyfda.utils.errors import BadValue

__all__ = ["DEFAULT_TEMPLATE", "TEMPLATES", "check_template"]

DEFAULT_TEMPLATE = "a photo of a {}."

TEMPLATES = {
    "DescribableTextures": "{} texture.",
    "EuroSAT": "a centered satellite photo of {}.",
    "FGVCAircraft": "a photo of a {}, a type of aircraft.",
    "Food101": "a photo of {}, a type of food.",
    "GTSRB": 'a zoomed in photo of a "{}" traffic sign.',
    "MNIST": 'a photo of the number: "{}".',
    "OxfordFlowers": "a photo of a {}, a type of flower.",
    "OxfordPets": "a photo of a {}, a type of pet.",
    "RESISC45": "satellite imagery of {}.",
    "SVHN": 'a photo of the number: "{}".',
    "UCF101": "a photo of a person doing {}.",
}
"""The hand-written prompts that the family uses, by the dataset's name in the config; where a
dataset is not listed (Caltech101, ImageNet and its shifted test sets, StanfordCars, SUN397, CIFAR)
it is :data:`DEFAULT_TEMPLATE`. Those of GTSRB, MNIST, RESISC45, SVHN and CIFAR, which the family
lacks, are the first of CLIP's for these (``data/prompts.md`` of openai/CLIP), as LDIFS has them."""


def check_template(template: object, where: str) -> str:
    """``template`` if ``template.format(class_name)`` puts the class name into it once.

    Args:
        template: text with one ``{}`` and no other replacement field. ``{{`` and ``}}`` stand for
            the characters.
        where: what gives the template, as the error names it: ``"data/dataset.yaml: template"``.

    Raises:
        BadValue: it is no such text.

    >>> check_template("a photo of a {}.", "TEMPLATE")
    'a photo of a {}.'
    """
    if isinstance(template, str):
        try:
            parsed = list(Formatter().parse(template))
        except ValueError:  # a single brace
            parsed = []
        fields = [field[1:] for field in parsed if field[1] is not None]
        if fields == [("", "", None)]:
            return template
    raise BadValue(
        f"{where} is {template!r}, but it needs one {{}} for the class name and no other braces; "
        "write it like 'a photo of a {}.'"
    )
