"""Reference numbers, and trainers on a few random images with the random CLIPs."""

from pathlib import Path

import numpy as np
import pytest
import random_clip
import torch
from PIL import Image

import trainers.base  # noqa: F401  (the package registers the trainers)
from proxyfda.backbones.clip import architectures, load_clip, loading
from proxyfda.dassl import DATASET_REGISTRY, DatasetBase, Datum, build_trainer
from proxyfda.experiments.config import default_config

FILES = sorted((Path(__file__).parent / "data").glob("*.npz"))
REFERENCE = {name: array for file in FILES for name, array in np.load(file).items()}
CLASSNAMES = [str(name) for name in REFERENCE["classnames"]]


@DATASET_REGISTRY.register()
class RandomImages(DatasetBase):
    """Two random images for each of the reference numbers' eight classes."""

    template = "a photo of a {}."

    def __init__(self, cfg):
        root = Path(cfg.DATASET.ROOT)
        rng, items = np.random.default_rng(0), []
        for label, name in enumerate(CLASSNAMES):
            for shot in range(2):
                path = root / f"{label}_{shot}.png"
                Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(path)
                items.append(Datum(impath=str(path), label=label, classname=name))
        super().__init__(train_x=items, val=items[:8], test=items)


class Reference:
    """The reference numbers: ``reference["name"]`` as a tensor, and comparison with them."""

    names = CLASSNAMES
    labels = torch.from_numpy(REFERENCE["labels"])
    images = random_clip.tensor((8, 3, 64, 64), 1000)

    def __getitem__(self, name):
        return torch.from_numpy(REFERENCE[name])

    def __contains__(self, name):
        return name in REFERENCE

    def check(self, name, value, tolerance=1e-5):
        """Agreement to ``tolerance``, absolute or relative to the largest value."""
        value = value.detach()
        if name in REFERENCE:
            pairs = [(value, self[name])]
        else:
            flat = value.double()
            stats = torch.stack([flat.norm(), flat.sum(), flat.abs().sum()])
            assert value.shape == tuple(self[f"{name}__shape"])
            corner = value.reshape(-1, value.shape[-1])[:8, :16]
            pairs = [(stats, self[f"{name}__stats"]), (corner, self[f"{name}__corner"])]
        for ours, theirs in pairs:
            assert ours.shape == theirs.shape
            limit = tolerance * max(1.0, theirs.abs().max().item())
            assert (ours - theirs).abs().max().item() <= limit, name


@pytest.fixture(scope="session")
def reference():
    return Reference()


@pytest.fixture
def make_trainer(tmp_path, tiny_file, reference_file):
    """``make_trainer("CoOp", *opts, clip="tiny" | "reference", output="run")``."""

    def make(name, *opts, clip="tiny", output="run"):
        cfg = default_config()
        size = {"tiny": 32, "reference": 64}[clip]
        (tmp_path / "data").mkdir(exist_ok=True)
        cfg.merge_from_list(
            ["TRAINER.NAME", name, "DATASET.NAME", "RandomImages", "USE_CUDA", False,
             "DATASET.ROOT", str(tmp_path / "data"), "OUTPUT_DIR", str(tmp_path / output),
             "INPUT.SIZE", (size, size), "MODEL.BACKBONE.NAME", "ViT-B/16",
             "MODEL.BACKBONE.WEIGHTS", str({"tiny": tiny_file, "reference": reference_file}[clip]),
             "DATALOADER.NUM_WORKERS", 0, "DATALOADER.TRAIN_X.BATCH_SIZE", 8,
             "OPTIM.NAME", "sgd", "OPTIM.LR", 0.002, "OPTIM.MAX_EPOCH", 2, "TRAINER.COOP.PREC",
             "fp32", *opts]
        )  # fmt: skip
        torch.manual_seed(0)
        return build_trainer(cfg)

    return make


@pytest.fixture
def every_precision(monkeypatch):
    """Let the CPU do what is meant for GPUs, so that these paths run here."""
    monkeypatch.setattr(trainers.base, "resolve_precision", lambda prec, device: prec)
    monkeypatch.setattr(
        trainers.base,
        "load_clip",
        lambda name, weights, precision, device: half_or_full(name, weights, precision),
    )


def half_or_full(name, weights, precision):
    clip = load_clip(name, weights)
    if precision == "fp16":
        state = clip.state_dict()
        half = loading.build(architectures.openai_config(state, Path(weights)), "fp16")
        half.load_state_dict(state)
        half.tokenizer = clip.tokenizer
        clip = half.requires_grad_(False).eval()
    return clip
