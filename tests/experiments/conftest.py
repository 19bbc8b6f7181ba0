"""A folder of noise images, a config for the tiny random CLIP, and a call of train.py on both."""

import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import train

ROOT = Path(train.__file__).parent


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A root of six class folders with eight noise images each, tinted by class."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for label, name in enumerate(["ant", "bee", "cat", "dog", "elk", "fox"]):
        for part, count in (("train", 8), ("test", 4)):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 120, (32, 32, 3)) + 20 * np.array([label, 6 - label, 3])
                Image.fromarray(pixels.astype("uint8")).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def config(tmp_path_factory, tiny_file):
    """A trainer config for the tiny CLIP."""
    path = tmp_path_factory.mktemp("configs") / "tiny.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "DATALOADER": {
                    "TRAIN_X": {"BATCH_SIZE": 6},
                    "TEST": {"BATCH_SIZE": 16},
                    "NUM_WORKERS": 0,
                },
                "INPUT": {
                    "SIZE": [32, 32],
                    "INTERPOLATION": "bicubic",
                    "TRANSFORMS": ["random_resized_crop", "random_flip", "normalize"],
                },
                "OPTIM": {
                    "NAME": "sgd",
                    "LR": 0.05,
                    "MAX_EPOCH": 4,
                    "LR_SCHEDULER": "cosine",
                    "WARMUP_EPOCH": 1,
                    "WARMUP_TYPE": "constant",
                },
                "TRAIN": {"PRINT_FREQ": 1, "CHECKPOINT_FREQ": 1},
                "MODEL": {"BACKBONE": {"NAME": "ViT-B/16", "WEIGHTS": str(tiny_file)}},
                "TRAINER": {"COOP": {"PREC": "fp32", "CTX_INIT": "a photo of a"}},
            }
        )
    )
    return path


@pytest.fixture
def argv(images, config):
    """The words of a command line of train.py."""

    def words(output, trainer, *words, seed=1):
        argv = ["--root", str(images), "--seed", str(seed), "--trainer", trainer]
        argv += ["--dataset-config-file", str(ROOT / "configs/datasets/folder.yaml")]
        return [*argv, "--config-file", str(config), "--output-dir", str(output), *map(str, words)]

    return words


@pytest.fixture
def run(argv, monkeypatch):
    """Call train.main as the command line does; gives its result."""

    def call(output, trainer, *words, seed=1):
        monkeypatch.setattr(sys, "stdout", sys.stdout)  # the run's logger replaces it
        return train.main(train.parser().parse_args(argv(output, trainer, *words, seed=seed)))

    return call
