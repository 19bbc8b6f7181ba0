import json
import random
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]  # readers are not installed; helpers of the tests

from dataset_trees import make_split, write_images  # noqa: E402


@pytest.fixture
def toy_root(tmp_path):
    """A data root with one dataset in split format, which the Toy reader reads."""
    split = make_split()
    write_images(tmp_path / "toy" / "images", split)
    (tmp_path / "toy" / "split.json").write_text(json.dumps(split))
    return tmp_path


@pytest.fixture
def Toy():
    from datasets.split import SplitDataset

    class Toy(SplitDataset):
        dataset_dir = "toy"
        image_dir = "images"
        split_file = "split.json"
        template = "a toy {}."
        hint = "run the toy factory"

    return Toy


@pytest.fixture(autouse=True)
def global_stream():
    """Python's global random stream in a known state that no test's seed has."""
    state = random.getstate()
    random.seed(987)
    yield
    random.setstate(state)
