"""Output folders as the scripts leave them, without running anything."""

import json
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
