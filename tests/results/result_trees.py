"""Output folders as the scripts leave them, without running anything."""

import json
import random
from pathlib import Path

PARTS = {"base": "train_base", "new": "test_new"}


def run_folder(root, part, dataset, trainer, seed, config="cfg", shots=16):
    return Path(root).joinpath(
        "base2new", PARTS[part], dataset, f"shots_{shots}", trainer, config, f"seed{seed}"
    )


def write_run(
    root, part, dataset, trainer, seed, accuracy, config="cfg", shots=16, title=None, **more
):
    folder = run_folder(root, part, dataset, trainer, seed, config, shots)
    folder.mkdir(parents=True, exist_ok=True)
    result = {
        "accuracy": accuracy,
        "dataset": title or dataset,
        "trainer": trainer,
        "config": config,
        "shots": shots,
        "seed": seed,
        "subsample": part,
        "split": "test",
        **more,
    }
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def write_runs(root, numbers, **more):
    """``numbers``: {dataset: {trainer: ([base of seed 1, 2, ..], [new of seed 1, 2, ..])}}."""
    for dataset, trainers in numbers.items():
        for trainer, parts in trainers.items():
            for part, accuracies in zip(PARTS, parts):
                for seed, accuracy in enumerate(accuracies, 1):
                    write_run(root, part, dataset, trainer, seed, accuracy, **more)
    return root


def write_plain(root, path, accuracy, **result):
    """The result of a run on all classes in any folder; ``cfg`` and the like in ``result``."""
    folder = Path(root, path)
    folder.mkdir(parents=True, exist_ok=True)
    content = {"accuracy": accuracy, "subsample": "all", "split": "test", **result}
    (folder / "result.json").write_text(json.dumps(content))
    return folder


LOG = """***************
** Arguments **
***************
seed: {seed}
trainer: {trainer}
************
** Config **
************
DATASET:
  NAME: {dataset}
  NUM_SHOTS: {shots}
  ROOT: /somebody's data
  SUBSAMPLE_CLASSES: {subsample}
MODEL:
  BACKBONE:
    NAME: {backbone}
  INIT_WEIGHTS: 
SEED: {seed}
TRAINER:
  NAME: {trainer}
Collecting env info ...
** System info **
PyTorch version: 1.13.1
{loaded}
epoch [1/1] batch [1/1] time 0.203 (0.203) loss 1.1243 (1.1243) acc 0.0000 (0.0000)
Finish training
Evaluate on the *{split}* set
=> result
* total: 1,234
* correct: 1,000
* accuracy: {accuracy}%
* error: 18.9%
* macro_f1: 12.3%
Elapsed: 0:00:01
"""  # as Dassl's train.py and evaluator print them; the arithmetic of the block is not checked


def write_log(root, path, accuracy, name="log.txt", **said):
    """A run of another codebase: nothing but a log that ends with an evaluation."""
    folder = Path(root, path)
    folder.mkdir(parents=True, exist_ok=True)
    seed = int(folder.name[4:]) if folder.name.startswith("seed") else -1
    values = {
        "seed": seed, "trainer": "CoOp", "dataset": "Caltech101", "shots": 16, "loaded": "",
        "subsample": "all", "backbone": "ViT-B/16", "split": "test", **said,
    }  # fmt: skip
    (folder / name).write_text(LOG.format(accuracy=accuracy, **values))
    return folder


BACKBONE = {"name": "ViT-Bundled", "weights": "bundled"}


def write_probes(root, path, probes, backbone=BACKBONE, **more):
    """The probes of an encoder in a folder; ``probes``: {dataset: (linear probe, zero-shot)}."""
    folder = Path(root, path)
    folder.mkdir(parents=True, exist_ok=True)
    name = folder.parents[1].name
    rest = {"strength": 1e-4, "classes": 4, "images": 100}
    content = {
        "accuracy": 50.0, "name": name, "trainer": name, "split": "test", "alpha": 1.0,
        "seed": int(folder.name[4:]), "backbone": backbone,
        "probes": {
            dataset: {**rest, "linear_probe": lp, "zero_shot": zs}
            for dataset, (lp, zs) in probes.items()
        },
        **more,
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(content))
    return folder


def probe_values(key, datasets, shift=0.0, texts=True):
    """Made-up accuracies that are the same for the same key, and unlike for others."""
    made = random.Random(str(key))
    return {
        d: (60 + shift + 9 * made.random(), 40 + shift + 9 * made.random() if texts else None)
        for d in datasets
    }
