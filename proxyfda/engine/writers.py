"""Where the curves of a run go: TensorBoard's event files, a CSV file, Weights & Biases."""

from __future__ import annotations

import csv
import importlib.util
import os

from proxyfda.utils.errors import BadValue, NotInstalled
from proxyfda.utils.files import write_text
from proxyfda.utils.nested import plain
from proxyfda.utils.rules import Checked, Text
from proxyfda.utils.suggest import did_you_mean
from proxyfda.utils.words import listed

LOG = {
    "WRITERS": "tensorboard",  # of tensorboard, csv and wandb, joined by commas; empty: none
    "WANDB_PROJECT": "proxyfda",
}
"""The options under `LOG` with their defaults."""
CURVES = "curves.csv"
WANDB_ID = "wandb-id"
LEFT = (CURVES, WANDB_ID, "wandb")
"""What writers leave in a run's folder beside `tensorboard`; the last one is wandb's own."""


class TensorBoard:
    """Event files in `<folder>/tensorboard`."""

    def __init__(self, folder, cfg):
        from torch.utils.tensorboard import SummaryWriter  # slow to import; training only

        log_dir = os.path.join(folder, "tensorboard")
        os.makedirs(log_dir, exist_ok=True)
        print(f"Initialize tensorboard (log_dir={log_dir})")
        self._writer = SummaryWriter(log_dir=log_dir)

    def add_scalar(self, tag, value, step):
        self._writer.add_scalar(tag, value, step)

    def close(self):
        self._writer.close()


class Csv:
    """`<folder>/curves.csv`: a row `tag,step,value` for each point.

    A run that goes on appends to it. A step that was done twice has two rows, of which the later
    one counts.
    """

    def __init__(self, folder, cfg):
        path = os.path.join(folder, CURVES)
        os.makedirs(folder, exist_ok=True)
        print(f"Curves: {path}")
        _end_line(path)
        self._file = open(path, "a", newline="", encoding="utf-8", buffering=1)  # noqa: SIM115
        self._rows = csv.writer(self._file)
        if not os.path.getsize(path):
            self._rows.writerow(["tag", "step", "value"])

    def add_scalar(self, tag, value, step):
        self._rows.writerow([tag, step, float(value)])

    def close(self):
        self._file.close()


def _end_line(path):
    """Cut off the beginning of a row that a run which was killed left at the end of the file."""
    if os.path.exists(path):
        with open(path, "rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)


class Wandb:
    """A run of Weights & Biases, one for each output folder, also when it is gone on with.

    Points of training stand over `train/step`, those of an evaluation over `<split>/epoch`. Whether
    and where it is sent is the library's own affair: `WANDB_MODE=offline` keeps it here.
    """

    def __init__(self, folder, cfg):
        import wandb  # optional, and slow

        os.makedirs(folder, exist_ok=True)
        path, known = os.path.join(folder, WANDB_ID), None
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                known = file.read().strip() or None
        self._run = wandb.init(
            project=cfg.LOG.WANDB_PROJECT,
            dir=folder,
            name=os.sep.join(os.path.abspath(folder).split(os.sep)[-4:]),
            config=plain(cfg),
            id=known,
            resume="allow",
        )
        write_text(path, f"{self._run.id}\n")
        self._run.define_metric("train/*", step_metric="train/step")
        for split in ("val", "test"):
            self._run.define_metric(f"{split}/*", step_metric=f"{split}/epoch")
        self._point, self._values = None, {}

    def add_scalar(self, tag, value, step):
        group = tag.partition("/")[0]
        over = "train/step" if group == "train" else f"{group}/epoch"
        if self._point != (over, step):
            self._send()
            self._point = over, step
        self._values[tag] = float(value)

    def _send(self):
        if self._values:
            over, step = self._point
            self._run.log({over: step, **self._values})
        self._values = {}

    def close(self):
        self._send()
        self._run.finish()


WRITERS = {"tensorboard": TensorBoard, "csv": Csv, "wandb": Wandb}


def named_writers(words):
    """Names of writers in what `LOG.WRITERS` says.

    Raises:
        BadValue: one that there is not.
        NotInstalled: wandb, which cannot be imported.
    """
    names = list(dict.fromkeys(listed(str(words))))
    for name in names:
        if name not in WRITERS:
            raise BadValue(
                f"LOG.WRITERS is {words!r}, and there is no {name!r}{did_you_mean(name, WRITERS)}; "
                f"use any of {', '.join(WRITERS)}, joined by commas"
            )
    if "wandb" in names and importlib.util.find_spec("wandb") is None:
        raise NotInstalled(
            "LOG.WRITERS has wandb, which is not installed: pip install wandb, or leave it out"
        )
    return names


LOG_RULES = {
    "LOG.WRITERS": Checked(named_writers, f"any of {', '.join(WRITERS)}, joined by commas"),
    "LOG.WANDB_PROJECT": Text(empty=False, what="the name of a project"),
}
"""What these may be, by their dotted names."""


class Writers:
    """All writers of a run as one.

    Args:
        folder: output folder of the run.
        cfg: its config; without a node LOG, as where Dassl's defaults are used alone, there is
            TensorBoard.
    """

    def __init__(self, folder, cfg):
        words = cfg.LOG.WRITERS if cfg is not None and "LOG" in cfg else LOG["WRITERS"]
        self._writers = [WRITERS[name](folder, cfg) for name in named_writers(words)]

    def add_scalar(self, tag, value, step=None):
        """Add a point to a curve; `value` is a number or a tensor of one element."""
        for writer in self._writers:
            writer.add_scalar(tag, value, step)

    def close(self):
        """Write what is not written yet."""
        for writer in self._writers:
            writer.close()
