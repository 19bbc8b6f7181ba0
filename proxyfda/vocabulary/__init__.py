"""Names beyond a dataset's classes: lists to read, to clean of the classes, and to draw from."""

from proxyfda.vocabulary.names import (
    VOCABULARIES,
    draw_names,
    names_without,
    read_vocabulary,
    register_vocabulary,
)

__all__ = [
    "VOCABULARIES",
    "draw_names",
    "names_without",
    "read_vocabulary",
    "register_vocabulary",
]
