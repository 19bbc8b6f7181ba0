"""Figures of captioning and of answering questions: what was learned against what was forgotten."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

from proxyfda.names import PRETRAINED
from proxyfda.results.drawing import drawn
from proxyfda.results.image_to_text import MEASURES, OTHERS
from proxyfda.results.probe_figures import against_forgetting
from proxyfda.utils.errors import BadValue

__all__ = ["image_to_text_figure", "image_to_text_figures"]


def image_to_text_figures(tables):
    """Figures of captioning and question answering, one for each model and tuned family.

    Args:
        tables: :class:`~proxyfda.results.Summary` by protocol.

    Yields:
        (name, figure), or (name, sentence) for one that there are no numbers for.
    """
    for protocol, measure in MEASURES.items():
        rows = tables[protocol].rows if protocol in tables else []
        places: dict = {}
        for row in rows:
            places.setdefault((row.model, row.tuned_on), []).append(row)
        for place, own in places.items():
            tail = "_" + re.sub(r"[^\w.-]+", "_", "_".join(place)).strip("_")
            name = protocol + tail * (len(places) > 1)
            yield name, drawn(image_to_text_figure, own, measure)


def image_to_text_figure(rows, measure):
    """The score on the tuned family against its mean change on the others.

    Args:
        rows: of one model and tuned family, of
            :func:`proxyfda.results.image_to_text.summarise_image_to_text`.
        measure: what the score is called.

    Returns:
        A matplotlib ``Figure``, as :func:`forgetting_figure`.

    Raises:
        ValueError: no row has a change.
    """
    learned = _told_apart([row for row in rows if row.dataset == row.tuned_on])
    others = {(row.trainer, row.config): row for row in rows if row.dataset == OTHERS}
    points = []
    for row in learned:
        other = others.get((row.trainer, row.config))
        change = 0.0 if row.trainer == PRETRAINED else other and other.delta
        points.append((row.name, (row.score, change), (row.score_std, other and other.delta_std)))
    if not any(row.delta is not None for row in others.values()):
        raise BadValue("no method has a change on other families; run the pre-trained model too")
    label = f"{measure} on {learned[0].tuned_on}"
    return against_forgetting(learned, label, {f"change of {measure} on the others": points})


def _told_apart(rows):
    """The rows, with λ in the names of those that share one."""
    counts = Counter(row.name for row in rows)
    return [
        replace(row, name=f"{row.name}, λ {row.weight:g}")
        if counts[row.name] > 1 and row.weight is not None
        else row
        for row in rows
    ]
