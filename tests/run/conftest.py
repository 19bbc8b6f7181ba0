"""Fixtures for the scripts, run in the process of the tests."""

import signal

import pytest
import run


@pytest.fixture(scope="session")
def options(tiny_file):
    """KEY VALUE words: one epoch of the tiny CLIP."""
    words = {
        "OPTIM.MAX_EPOCH": 1,
        "MODEL.BACKBONE.WEIGHTS": tiny_file,
        "INPUT.SIZE": "(32, 32)",
        "DATALOADER.NUM_WORKERS": 0,
    }
    return [str(word) for pair in words.items() for word in pair]


@pytest.fixture(autouse=True)
def same_surroundings(monkeypatch):
    """No variables of the caller; signals as they were."""
    for name in (*run.HELP, *run.HELP_SELECT, *run.HELP_FINETUNE):
        monkeypatch.delenv(name, raising=False)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)
