"""The bundled datasets: rendered pictures, no downloads.

``python -m datasets.bundled --root DATA`` renders them once into the data root. What they show is
in :mod:`.world`, how it is drawn in :mod:`.render`, which classes and which wear in :mod:`.specs`.
"""

from __future__ import annotations

from datasets.entry import PARTS, Counts
from datasets.split import SplitDataset
from proxyfda.dassl import DATASET_REGISTRY

from .build import SPLIT_FILE
from .specs import ALL, Rendered


def _declare(spec: Rendered) -> type[SplitDataset]:
    name = "Bundled" + spec.name.capitalize()
    n = len(spec.classes)
    attributes = {
        "__module__": __name__,
        "__doc__": f"{len(spec.classes)} rendered classes, prompt ``{spec.template}``",
        "dataset_dir": spec.folder,
        "image_dir": "images",
        "split_file": SPLIT_FILE,
        "template": spec.template,
        "expected": Counts(n, *(n * spec.counts[part] for part in PARTS)),
        "hint": f"render it with: python -m datasets.bundled --root DATA {spec.folder}",
    }
    declared = type(name, (SplitDataset,), attributes)
    DATASET_REGISTRY.register()(declared)
    return declared


BUNDLED = {spec.folder: _declare(spec) for spec in ALL}
"""Folder name -> dataset class; the registered names are ``BundledCreatures`` and so on."""
