"""The bundled datasets: rendered pictures, no downloads.

``python -m datasets.bundled --root DATA`` renders them once into the data root. What they show is
in :mod:`.world`, how it is drawn in :mod:`.render`, which classes and which wear in :mod:`.specs`.
"""

from __future__ import annotations

from pathlib import Path

from datasets.entry import PARTS, Counts
from datasets.split import SplitDataset
from proxyfda.dassl import DATASET_REGISTRY
from proxyfda.vocabulary import register_vocabulary

from .build import SPLIT_FILE
from .atlas.datasets import PLATES
from .specs import ALL, Rendered


# The package's nouns mean nothing to a CLIP that knows a rendered world.
register_vocabulary("atlas", str(Path(__file__).parent / "atlas" / "words.txt"))


def _declare(spec: Rendered) -> type[SplitDataset]:
    name = "".join(word.capitalize() for word in spec.folder.split("_"))
    n = len(spec.classes)
    attributes = {
        "__module__": __name__,
        "__doc__": f"{len(spec.classes)} rendered classes, prompt ``{spec.template}``",
        "dataset_dir": spec.folder,
        "image_dir": "images",
        "split_file": SPLIT_FILE,
        "template": spec.template,
        "vocabulary": spec.vocabulary,
        "expected": Counts(n, *(n * spec.counts[part] for part in PARTS)),
        "hint": f"render it with: python -m datasets.bundled --root DATA {spec.folder}",
    }
    declared = type(name, (SplitDataset,), attributes)
    DATASET_REGISTRY.register()(declared)
    return declared


BUNDLED = {spec.folder: _declare(spec) for spec in (*ALL, *PLATES)}
"""Folder name -> dataset class; the registered names are ``BundledCreatures`` and so on."""
