"""The whole path of tuning end to end on real images: 3 classes x (4 + 4) of CIFAR-10, as JPEG.

Mechanics, not accuracy. The images are the first of their class and part in CIFAR-10 (Krizhevsky,
"Learning Multiple Layers of Features from Tiny Images", 2009).
"""

import json
from pathlib import Path

import pytest
import yaml
from sklearn.datasets import load_digits
from torchvision.transforms.functional import to_pil_image

import train

SAMPLE = Path(__file__).parents[1] / "datasets" / "cifar10_sample"
CONFIG = Path(__file__).parents[2] / "configs" / "trainers" / "FineTune" / "bundled.yaml"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Config files of two datasets in class folders: the photographs, and digits as PNG."""
    folder = tmp_path_factory.mktemp("real")
    data = load_digits()
    for number, label in enumerate(data.target[:60]):
        if label < 3:
            place = folder / "digits" / ("train" if number < 40 else "test") / f"digit {label}"
            place.mkdir(parents=True, exist_ok=True)
            pixels = (data.images[number] * 255 / 16).astype("uint8")
            to_pil_image(pixels).save(place / f"{number}.png")
    found = {"photos": SAMPLE, "digits": folder / "digits"}
    for name, root in found.items():
        options = {"DATASET": {"NAME": "ImageFolder", "ROOT": str(root)}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(options))
    return {name: str(folder / f"{name}.yaml") for name in found}


def run(output, *words):
    """result.json of a run of train.py."""
    words = [*words, "--output-dir", str(output), "--seed", "1"]
    train.main(train.parser().parse_args(list(map(str, words))))
    return json.loads((output / "result.json").read_text())


def test_tune_on_photographs_and_probe_before_and_after(files, tmp_path):
    both = ",".join(files.values())
    before = run(tmp_path / "before", "--probe", both, "--config-file", CONFIG)
    tuned = tmp_path / "tuned"
    after_training = run(
        tuned, "--trainer", "FDAFineTune", "--dataset-config-file", files["photos"],
        "--config-file", CONFIG, "OPTIM.MAX_EPOCH", "2", "TRAINER.PROXYFDA.K", "3",
        "DATALOADER.TRAIN_X.BATCH_SIZE", "9",
    )  # fmt: skip
    after = run(tmp_path / "after", "--probe", both, "--model-dir", tuned,
                "--dataset-config-file", files["photos"])  # fmt: skip
    assert after_training["name"] == after["name"] == "FDAFineTune"
    assert set(before["probes"]) == set(after["probes"]) == set(files)
    for probes in (before["probes"], after["probes"]):
        assert {name: probe["classes"] for name, probe in probes.items()} == {
            "photos": 3,
            "digits": 3,
        }
        assert probes["photos"]["images"] == 12
        for probe in probes.values():
            assert 0 <= probe["linear_probe"] <= 100 and 0 <= probe["zero_shot"] <= 100
    assert after["accuracy"] == after["probes"]["photos"]["linear_probe"]
