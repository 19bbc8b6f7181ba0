"""Which classes a row does badly on, and what it takes them for, from ``result.json``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from proxyfda.names import REFERENCE
from proxyfda.results import markup
from proxyfda.results.cells import names_of
from proxyfda.results.names import PROTOCOL_TITLES, trainer_order
from proxyfda.results.runs import Record

__all__ = ["CAPTION", "ClassCounts", "counts_of", "parts"]

CAPTION = (
    "Of each row over all its seeds: the classes with the lowest and the highest accuracy in %, "
    "those that lost most against zero-shot CLIP, in points, and what is most often taken for "
    "what, in % of the first one's images. The result.json of a run has all of them."
)
_HEADS = ("trainer", "lowest", "highest", "lost most", "most often confused")
_SHOWN = 3


@dataclass
class ClassCounts:
    """Images, and those told right, by class, and mistakes by (class, what it was taken for)."""

    images: Counter = field(default_factory=Counter)
    correct: Counter = field(default_factory=Counter)
    mistakes: Counter = field(default_factory=Counter)

    def add(self, classes: Sequence[dict]) -> None:
        """Add ``per_class`` of a ``result.json``."""
        for one in classes:
            name, images, taken = one["name"], one["images"], one["taken_for"]
            self.images[name] += images
            self.correct[name] += images - sum(taken.values())
            for other, count in taken.items():
                self.mistakes[name, other] += count

    def accuracy(self, name: str) -> float:
        """In percent."""
        return 100.0 * self.correct[name] / self.images[name]


def counts_of(records: Sequence[Record]) -> dict[tuple, dict[str, ClassCounts]]:
    """Counts by (protocol, dataset, title, part), and in these by the name of the row."""
    found: dict[tuple, dict[str, ClassCounts]] = {}
    for name, r in sorted(names_of(records), key=lambda pair: trainer_order(pair[1].trainer)):
        classes = r.details.get("per_class")
        if classes:
            place = (r.protocol, r.dataset, r.title, r.part)
            found.setdefault(place, {}).setdefault(name, ClassCounts()).add(classes)
    return found


def parts(records: Sequence[Record]) -> list[str]:
    """A folded table for each dataset and set of classes, in HTML."""
    found = counts_of(records)
    zero = {
        (dataset, part): own
        for (_, dataset, _, part), rows in found.items()
        for name, own in rows.items()
        if name.partition(" ")[0] == REFERENCE  # what follows tells it from others of its name
    }
    made = []
    for (protocol, dataset, title, part), rows in sorted(found.items(), key=lambda item: item[0]):
        lines = [_line(name, own, zero.get((dataset, part))) for name, own in rows.items()]
        where = f"{title}, {PROTOCOL_TITLES.get(protocol, protocol)}, {part} classes"
        made.append(markup.folded(where, markup.words_table(where, _HEADS, lines)))
    return made


def _line(name, counts, zero):
    order = sorted(counts.images, key=lambda one: (counts.accuracy(one), one))
    count = max(1, min(_SHOWN, len(order) // 2))
    lost = []
    if zero is not None and zero is not counts:
        changes = {c: counts.accuracy(c) - zero.accuracy(c) for c in order if zero.images[c]}
        worst = sorted((change, c) for c, change in changes.items() if change < 0)[:count]
        lost = [f"{c}: \N{MINUS SIGN}{-change:.1f}" for change, c in worst]
    pairs = sorted(counts.mistakes.items(), key=lambda item: (-item[1], item[0]))[:count]
    return (
        name,
        "\n".join(f"{c}: {counts.accuracy(c):.1f}" for c in order[:count]),
        "\n".join(f"{c}: {counts.accuracy(c):.1f}" for c in order[: -count - 1 : -1]),
        "\n".join(lost),
        "\n".join(f"{a} → {b}: {100 * n / counts.images[a]:.1f}" for (a, b), n in pairs),
    )
