"""Fixtures for all tests: the random CLIPs, made once per session."""

import pytest
import random_clip
import torch

torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="every fault, as scripts/faults.sh does")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--long"):
        return
    long = [item for item in items if item.get_closest_marker("long")]
    if long:  # thousands: left out, not listed as skipped
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if not item.get_closest_marker("long")]


@pytest.fixture(scope="session")
def tiny_state():
    """State dict of a tiny random CLIP in OpenAI's layout; copy before changing."""
    return random_clip.state_dict(1, random_clip.TINY)


@pytest.fixture(scope="session")
def tiny_file(tiny_state, tmp_path_factory):
    """A file with that state dict."""
    path = tmp_path_factory.mktemp("clip") / "tiny.pt"
    torch.save(tiny_state, path)
    return path


@pytest.fixture(scope="session")
def reference_file(tmp_path_factory):
    """File of the CLIP that the reference numbers were computed with."""
    path = tmp_path_factory.mktemp("clip") / "reference.pt"
    torch.save(random_clip.state_dict(0), path)
    return path


@pytest.fixture(scope="session")
def reference_clip(reference_file):
    """That CLIP, loaded."""
    from proxyfda.backbones.clip import load_clip

    return load_clip("ViT-B/16", str(reference_file))


@pytest.fixture(scope="session")
def bundled_data(tmp_path_factory):
    """Data root with the rendered fruits, few images of each."""
    from datasets.bundled.build import render_dataset
    from datasets.bundled.specs import SPECS

    root = tmp_path_factory.mktemp("bundled")
    spec = next(spec for spec in SPECS if spec.folder == "bundled_fruits")
    render_dataset(spec, root, {"train": 4, "val": 2, "test": 2})
    return root
