"""The bundled datasets: rendered pictures, no downloads.

``python -m datasets.bundled --root DATA`` renders them once into the data root. They come from two
worlds, each with a CLIP that knows it and nothing else (:mod:`.pretrain`):

- :mod:`.atlas`: 460 nouns and the nine datasets on which methods of prompt tuning are compared;
  ``DATASETS=bundled`` means these.
- :mod:`.specs`: 72 nouns (:mod:`.world`) and ten small datasets, for tuning end to end, examples
  and tests; :mod:`.families` has pictures with captions and questions of the same world.

Both have the outlines, colours, textures and backgrounds of :mod:`.world` and are drawn by
:mod:`.render`; :mod:`.build` writes them to the disk.
"""

from __future__ import annotations

from pathlib import Path

from datasets.entry import PARTS, Counts
from datasets.split import SplitDataset
from proxyfda.dassl import DATASET_REGISTRY
from proxyfda.vocabulary import register_vocabulary

from .build import RENDERED, SPLIT_FILE
from .specs import Rendered

# The package's nouns mean nothing to a CLIP that knows a rendered world.
register_vocabulary("atlas", str(Path(__file__).parent / "atlas" / "words.txt"))


def _declare(spec: Rendered) -> type[SplitDataset]:
    name = "".join(word.capitalize() for word in spec.folder.split("_"))
    n = len(spec.classes)
    attributes = {
        "__module__": __name__,
        "__doc__": f"{n} rendered classes, prompt ``{spec.template}``",
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


BUNDLED = {folder: _declare(spec) for folder, spec in RENDERED.items()}
"""Folder name -> dataset class; the registered names are ``AtlasCreatures`` and so on."""
