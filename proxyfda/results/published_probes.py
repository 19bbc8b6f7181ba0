"""Published figures on forgetting, to stand beside ours.

``published_probes.csv`` has per method A_LP and Δ_LP in percent and points, with the paper they are
from: the average over ten datasets of Proxy-FDA's first table (Huang et al., ICML 2025, arXiv
2505.24088), of end-to-end tuning of CLIP's ViT-B/32. Which ten is our reading: those of LDIFS
(Mukhoti et al., TMLR 2024, arXiv 2308.13320), whose protocol it follows; the file calls them
``FINETUNE``, as :mod:`proxyfda.benchmarks` does. For rows of tasks (``continual``) the two columns
are the average accuracy after the last task and the change on other datasets; of both papers no
such figure could be checked by us, so there is none in the file.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from proxyfda.benchmarks import FINETUNE
from proxyfda.results.names import title_of
from proxyfda.results.tables import Block, cell

__all__ = ["Published", "published_block", "published_for", "published_probes"]


class Published(NamedTuple):
    """What a paper has for a method; ``tasks`` are the tuned datasets, of a row in its order."""

    protocol: str
    tasks: tuple
    method: str
    backbone: tuple
    accuracy: float
    delta: float
    source: str


@lru_cache(maxsize=None)  # noqa: UP033  (Python 3.8)
def published_probes() -> tuple:
    """All published figures."""
    with open(Path(__file__).with_suffix(".csv"), newline="", encoding="utf-8") as file:
        return tuple(
            Published(
                line["protocol"],
                FINETUNE if line["tasks"] == "FINETUNE" else tuple(line["tasks"].split("+")),
                line["method"],
                (line["backbone"], line["weights"]),
                float(line["accuracy"]),
                float(line["delta"]),
                line["source"],
            )
            for line in csv.DictReader(file)
        )


def published_for(protocol: str, name: str, backbone, tasks: Iterable[str]) -> Published | None:
    """The published figure of a run's method with its backbone and on its datasets, if any.

    Args:
        protocol: ``finetune``, where the order of datasets means nothing, or ``continual``.
        name: of the run.
        backbone: its name and weights.
        tasks: the tuned datasets.
    """
    order = tuple if protocol == "continual" else sorted
    for one in published_probes():
        if (one.protocol, one.method, one.backbone) == (protocol, title_of(name), backbone) and (
            order(one.tasks) == order(tasks)
        ):
            return one
    return None


def published_block(protocol: str) -> Block | None:
    """The published figures by themselves, where ours are of another backbone or other data.

    ``None`` where there are none.
    """
    found = [one for one in published_probes() if one.protocol == protocol]
    if not found:
        return None
    backbones = ", ".join(dict.fromkeys(one.backbone[0] for one in found))
    tasks = ", ".join(dict.fromkeys(f"{len(one.tasks)} datasets" for one in found))
    lines, above = [], None
    for one in found:
        new = one.source != above
        lines.append([one.source * new, one.method, cell(one.accuracy), cell(one.delta, sign="+")])
        above = one.source
    return Block(
        "Published, of another backbone and other data",
        ("source", "method", "A_LP", "Δ_LP"),
        lines,
        f"Averages over {tasks} with {backbones}. Nothing above is of that backbone and data, so "
        "no differences are taken: what can be compared is the order of the methods.",
    )
