"""Files, seeds, the log and running means."""

from __future__ import annotations

import json
import os
import platform
import random
import sys
import time
from collections import defaultdict

import numpy as np
import PIL
import torch
import torchvision

from proxyfda.utils.errors import BadType, BadValue
from proxyfda.utils.files import write_text


def mkdir_if_missing(dirname):
    os.makedirs(dirname or ".", exist_ok=True)


def listdir_nohidden(path, sort=False):
    """Names in `path` that do not start with a dot."""
    items = [name for name in os.listdir(path) if not name.startswith(".")]
    return sorted(items) if sort else items


def read_json(fpath):
    with open(fpath, encoding="utf-8") as f:
        return json.load(f)


def write_json(obj, fpath):
    """Write `obj` as JSON indented by four spaces, making the folder if need be."""
    write_text(fpath, json.dumps(obj, indent=4))


def set_random_seed(seed):
    """Seed python, numpy and torch (CPU and GPUs).

    The order of the data follows from torch's seed; its augmentation follows from SEED, epoch and
    image, see :class:`proxyfda.engine.seeds.ImageSeeds`.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)  # covers every GPU too


def get_rng_state():
    """The state of every generator as tensors, numbers and tuples (what weights_only loads)."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state):
    """Restore what `get_rng_state` returned; GPU states only where the number of GPUs agrees."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])


def collect_env_info():
    """A few lines naming the system and the versions a result depends on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return "\n".join(
        [
            f"System: {platform.platform()}",
            f"Python: {platform.python_version()}",
            f"PyTorch: {torch.__version__} (CUDA {torch.version.cuda}, GPU {gpu})",
            f"torchvision: {torchvision.__version__}",
            f"numpy: {np.__version__}",
            f"Pillow: {PIL.__version__}",
            f"CPU threads: {torch.get_num_threads()}",
        ]
    )


def count_num_param(model=None, params=None):
    """Number of elements in a model's parameters, or in an iterable of tensors or groups."""
    if model is not None:
        params = model.parameters()
    if params is None:
        raise BadValue("count_num_param needs a model or its parameters")
    total = 0
    for entry in params:
        tensors = entry["params"] if isinstance(entry, dict) else entry
        tensors = [tensors] if isinstance(tensors, torch.Tensor) else tensors
        total += sum(tensor.numel() for tensor in tensors)
    return total


class Logger:
    """Stands in for `sys.stdout`: writes to it and, line by line, to a file."""

    def __init__(self, console, file):
        self.console, self.file = console, file

    def write(self, text):
        self.console.write(text)
        self.file.write(text)
        return len(text)

    def flush(self):
        self.console.flush()
        self.file.flush()

    def __getattr__(self, name):
        return getattr(self.console, name)


def setup_logger(output=None):
    """Copy what is printed from now on to `output`: a .txt or .log file, or log.txt in a folder.

    An existing file stays; the new one then gets the date and time appended to its name, as Dassl
    does it. Runs have one log instead, see `open_log`.
    """
    if output is None:
        return
    fpath = output if output.endswith((".txt", ".log")) else os.path.join(output, "log.txt")
    mkdir_if_missing(os.path.dirname(fpath))
    if os.path.exists(fpath):
        fpath += time.strftime("-%Y-%m-%d-%H-%M-%S")
    log_to(_open_to_write(fpath))


def log_to(file):
    """Copy what is printed from now on to an open file, which is closed when the next one comes."""
    console = sys.stdout
    if isinstance(console, Logger):  # a second run in this process: the first log ends here
        console.file.close()
        console = console.console
    sys.stdout = Logger(console, file)


def open_log(folder):
    """The one log of a run, `log.txt` in its folder, open for writing.

    Where the run goes on it is appended to, behind a line that says so.
    """
    mkdir_if_missing(folder)
    fpath = os.path.join(folder, "log.txt")
    file = _open_to_write(fpath)
    if os.path.getsize(fpath):
        file.write(time.strftime("\n== The run goes on, %Y-%m-%d %H:%M:%S ==\n"))
    return file


def _open_to_write(fpath):
    return open(fpath, "a", encoding="utf-8", buffering=1)


class AverageMeter:
    """Last value and mean of a series; with `ema`, a mean that forgets (0.9 old + 0.1 new)."""

    def __init__(self, ema=False):
        self.ema = ema
        self.reset()

    def reset(self):
        self.val = self.avg = self.sum = self.count = 0

    def update(self, val, n=1):
        """Add `val`, a number or one-element tensor, counted `n` times."""
        self.val = val.item() if isinstance(val, torch.Tensor) else val
        self.sum += self.val * n
        self.count += n
        self.avg = 0.9 * self.avg + 0.1 * self.val if self.ema else self.sum / self.count


class MetricMeter:
    """AverageMeters by name; as text `name value (mean)`, joined by `delimiter`."""

    def __init__(self, delimiter=" "):
        self.delimiter = delimiter
        self.meters = defaultdict(AverageMeter)

    def update(self, input_dict):
        if input_dict is None:
            return
        if not isinstance(input_dict, dict):
            raise BadType(
                f"MetricMeter takes a dict of metrics or None, not a {type(input_dict).__name__}"
            )
        for name, value in input_dict.items():
            self.meters[name].update(value)

    def __str__(self):
        return self.delimiter.join(
            f"{name} {meter.val:.4f} ({meter.avg:.4f})" for name, meter in self.meters.items()
        )
