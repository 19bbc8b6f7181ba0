"""What faults happen to: small trainings, a grid and a sweep, and what they leave behind."""

import hashlib
import json
import re
from pathlib import Path

import torch

import train
from proxyfda.experiments import protocols, sweep
from proxyfda.experiments.project import Project

ROOT = Path(train.__file__).parent
WEIGHTS = ("state_dict", "state")  # of a trainer's checkpoint, and of a regulariser's
TIMES = re.compile(r"-\d{4}(-\d\d){5}$")
EPOCHS = ("OPTIM.MAX_EPOCH", 2, "DATASET.NUM_SHOTS", 2)


class Scenes:
    """Calls of each scene, given the folder that it writes to; ``argv`` is the fixture."""

    names = ("CoOp", "best model", "two models", "grid", "sweep")

    def __init__(self, argv, images, config, projects):
        self._argv, self._images, self._config, self._projects = argv, images, config, projects

    def of(self, name, folder):
        """The call of a scene."""
        if name == "sweep":
            return lambda: self.sweep(folder)
        if name == "grid":
            return lambda: (
                train.main_grid(
                    [self.parsed(folder / str(lr), "CoOp", "OPTIM.LR", lr) for lr in (0.01, 0.02)]
                )
                and 0
            )
        trainer, words = {
            "CoOp": ("CoOp", ()),
            "best model": ("ProxyFDACoOp", ("TEST.FINAL_MODEL", "best_val")),
            "two models": ("FLYP", ("OPTIM.WARMUP_EPOCH", 0, "INPUT.TRANSFORMS", ("normalize",))),
        }[name]
        return lambda: self.train(folder, trainer, *words)

    def parsed(self, folder, trainer, *words):
        return train.parser().parse_args(self._argv(folder, trainer, *EPOCHS, *words))

    def train(self, folder, trainer="CoOp", *words):
        train.main(self.parsed(folder, trainer, *words))

    def sweep(self, folder):
        place = self._projects / "configs" / "trainers" / "CoOp"
        if not place.is_dir():
            place.mkdir(parents=True)
            (place / "tiny.yaml").write_text(Path(self._config).read_text())
        where = {
            "data": str(self._images), "output": str(folder), "cfg": "tiny",
            "project": Project(str(self._projects), entry="train"),
        }  # fmt: skip
        dataset = str(ROOT / "configs/datasets/folder.yaml")
        jobs = []
        for trainer in ("ZeroshotCLIP", "CoOp"):
            jobs += protocols.base2new_jobs(
                trainer, dataset, 1, shots=2, opts=["OPTIM.MAX_EPOCH", "2"], **where
            )
        return sweep.run(jobs)


def as_sums(content, keys=()):
    """Tensors in nested dicts as checksums; of the outermost dict ``keys`` alone, where given."""
    if isinstance(content, dict):
        return {k: as_sums(v) for k, v in content.items() if not keys or k in keys}
    if isinstance(content, torch.Tensor):
        return hashlib.sha256(content.contiguous().numpy().tobytes()).hexdigest()
    return content


def left_in(folder):
    """What a finished scene has left: names of files, results without times, final weights.

    Logs and curves count by their names alone, since a rerun has more of them.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = TIMES.sub("", str(path.relative_to(folder)))
        if path.is_dir():
            continue
        if "tensorboard" in name:
            name, found[name.split("tensorboard")[0] + "tensorboard"] = "", True
        elif path.name == "result.json":
            content = json.loads(path.read_text())
            for key in ("time", "cfg"):
                content.pop(key)
            found[name] = content
        elif ".pth.tar" in name and not name.endswith(".tmp"):
            found[name] = as_sums(torch.load(path, weights_only=True), WEIGHTS)
        else:
            found[name] = True
    found.pop("", None)
    return json.loads(json.dumps(found).replace(str(folder), "OUT"))
