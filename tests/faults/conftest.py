"""A tiny setting for runs that faults happen to; everything that they import, imported once."""

import sys
from pathlib import Path

import pytest
import torch.utils.tensorboard  # noqa: F401  (children are forked with it)
from experiments.conftest import argv, config, images, run  # noqa: F401

sys.path[:0] = [str(Path(__file__).parent)]
import machine  # noqa: E402
from scenes import Scenes, left_in  # noqa: E402


@pytest.fixture(scope="session")
def undisturbed():
    return {}


@pytest.fixture
def scene(argv, images, config, tmp_path_factory, undisturbed):  # noqa: F811
    """The scenes, and by name what an undisturbed one leaves and its number of operations."""
    made = Scenes(argv, images, config, images.parent / "projects")

    def whole(name):
        if name not in undisturbed:
            folder = tmp_path_factory.mktemp("whole")
            child = machine.run(made.of(name, folder / "out"), folder, folder / "out")
            assert child.code == 0, child.printed
            undisturbed[name] = left_in(folder / "out"), child.operations
        return undisturbed[name]

    made.whole = whole
    return made
