"""Fixtures of the bad inputs: a data root, a config and a finished run, all small."""

import os

import pytest
import torch
import yaml
from faults.inputs.calls import CLASSES, Place, call, picture, words_of


@pytest.fixture(scope="session")
def class_folders(tmp_path_factory):
    """A data root with four class folders of six images each."""
    root = tmp_path_factory.mktemp("folders")
    for label, name in enumerate(CLASSES):
        for number in range(6):
            picture(root / name / f"{number}.png", 10 * label + number)
    return root


@pytest.fixture(scope="session")
def small_config(tmp_path_factory, tiny_file):
    """CoOp for the tiny CLIP, one epoch."""
    options = {
        "DATALOADER": {"TRAIN_X": {"BATCH_SIZE": 4}, "NUM_WORKERS": 0},
        "INPUT": {"SIZE": [32, 32], "TRANSFORMS": ["random_flip", "normalize"]},
        "OPTIM": {"NAME": "sgd", "LR": 0.05, "MAX_EPOCH": 1, "LR_SCHEDULER": "cosine"},
        "MODEL": {"BACKBONE": {"NAME": "ViT-B/16", "WEIGHTS": str(tiny_file)}},
        "TRAINER": {"COOP": {"PREC": "fp32", "N_CTX": 2}},
    }
    path = tmp_path_factory.mktemp("small") / "small.yaml"
    path.write_text(yaml.safe_dump(options))
    return path


@pytest.fixture(scope="session")
def finished(tmp_path_factory, class_folders, small_config):
    """The output folder of a training."""
    output = tmp_path_factory.mktemp("finished") / "run"
    error, printed = call(words_of(class_folders, small_config, output))
    assert error is None, printed
    return output


@pytest.fixture
def place(tmp_path, class_folders, small_config, tiny_file, finished):
    output = tmp_path / "output"
    output.mkdir()
    (output / "notes.txt").write_text("of somebody else")
    words = words_of(class_folders, small_config, output)
    os.chdir(tmp_path)
    return Place(tmp_path, class_folders, small_config, tiny_file, finished, words, output)


@pytest.fixture(autouse=True)
def same_surroundings(monkeypatch):
    """Where the tests were started from, and torch's random numbers."""
    monkeypatch.chdir(os.getcwd())
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)
