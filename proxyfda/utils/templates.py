"""Prompt templates: a text with one place for the class name."""

from __future__ import annotations

from string import Formatter

from proxyfda.utils.errors import BadValue

__all__ = ["check_template"]


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
