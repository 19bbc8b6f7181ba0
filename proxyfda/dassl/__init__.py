"""The one seam to Dassl: an installed Dassl's names, or else those of the embedded engine.

Trainers, datasets and `train.py` import Dassl's names from here. The environment variable
PROXYFDA_ENGINE=dassl|embedded forces one of the two; `ENGINE` tells which it is and
`announce_engine()` prints it.

Where Dassl is used, what stops or spoils it on a current torch is mended from outside, its files
untouched: the import of `wilds`, warm-up schedulers, reading its own checkpoints, the learning rate
after resuming, interrupted writes.
"""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import importlib.util
import inspect
import os
import sys

from proxyfda import engine as _embedded
from proxyfda.utils.errors import BadValue, NotFound, NotInstalled

_NAMES = {
    "engine": ["TRAINER_REGISTRY", "SimpleTrainer", "TrainerBase", "TrainerX", "build_trainer"],
    "data": ["DataManager", "DatasetWrapper"],
    "data.data_manager": ["build_data_loader"],
    "data.datasets": ["DATASET_REGISTRY", "DatasetBase", "Datum", "build_dataset"],
    "data.transforms": ["build_transform"],
    "optim": ["build_lr_scheduler", "build_optimizer"],
    "evaluation": ["EVALUATOR_REGISTRY", "build_evaluator"],
    "metrics": ["compute_accuracy"],
    "config": ["get_cfg_default"],
    "utils": [
        "AverageMeter",
        "MetricMeter",
        "Registry",
        "collect_env_info",
        "count_num_param",
        "listdir_nohidden",
        "load_checkpoint",
        "load_pretrained_weights",
        "mkdir_if_missing",
        "read_image",
        "read_json",
        "resume_from_checkpoint",
        "save_checkpoint",
        "set_random_seed",
        "setup_logger",
        "write_json",
    ],
}
# ours in both cases; Dassl has nothing of the kind
find_checkpoint = _embedded.find_checkpoint
ImageError = _embedded.ImageError

__all__ = ["ENGINE", "ImageError", "announce_engine", "find_checkpoint"]
__all__ += [name for names in _NAMES.values() for name in names]


def _stand_in_for_wilds():
    """Let Dassl's import of its WILDS readers find an empty package where `wilds` is missing."""
    name = "dassl.data.datasets.dg.wilds"
    if name in sys.modules or all(importlib.util.find_spec(m) for m in ("wilds", "pandas")):
        return
    spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
    sys.modules[name] = importlib.util.module_from_spec(spec)


def _replace_everywhere(old, new):
    """Rebind every module attribute that is `old`: Dassl and trainers import functions by name."""
    for module in list(sys.modules.values()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is old:
                setattr(module, name, new)


def _mend_dassl():
    """Mend the imported Dassl; returns what was mended, in words."""
    from dassl.data.datasets import base_dataset
    from dassl.engine.trainer import TrainerBase
    from dassl.optim import lr_scheduler
    from dassl.utils import tools, torchtools

    done = []
    base = lr_scheduler._LRScheduler
    if "verbose" not in inspect.signature(base.__init__).parameters:

        class WithVerbose(base):
            """A scheduler that takes, and ignores, an argument that torch has dropped."""

            def __init__(self, optimizer, last_epoch=-1, verbose=False):
                super().__init__(optimizer, last_epoch)

        lr_scheduler._BaseWarmupScheduler.__bases__ = (WithVerbose,)
        done.append("warm-up schedulers")

    for name in ("load_checkpoint", "save_checkpoint", "resume_from_checkpoint"):
        _replace_everywhere(getattr(torchtools, name), getattr(_embedded, name))
    for name in (
        "save_model",
        "resume_model_if_exist",
        "load_model",
        "detect_anomaly",
        "extra_state",
        "load_extra_state",
    ):
        setattr(TrainerBase, name, vars(_embedded.TrainerBase)[name])
    done.append("checkpoints and resuming")

    def check_isfile(fpath):
        if not os.path.isfile(fpath):
            raise NotFound(
                f'No image file at "{fpath}": check DATASET.ROOT and that the data are complete'
            )
        return True

    base_dataset.check_isfile = check_isfile
    _replace_everywhere(tools.read_image, _embedded.read_image)
    return done


def _load_dassl():
    """Import and mend Dassl; returns its names and a description."""
    _stand_in_for_wilds()
    package = importlib.import_module("dassl")
    modules = {part: importlib.import_module(f"dassl.{part}") for part in _NAMES}
    mended = _mend_dassl()
    found = {name: getattr(modules[part], name) for part in _NAMES for name in _NAMES[part]}
    folder = os.path.dirname(package.__file__)
    return found, f"dassl {package.__version__} ({folder}; mended: {', '.join(mended)})"


def _choose():
    """`(engine, its names, description)` by PROXYFDA_ENGINE and by what can be imported."""
    wish = os.environ.get("PROXYFDA_ENGINE", "")
    if wish not in ("", "dassl", "embedded"):
        raise BadValue(f'PROXYFDA_ENGINE is "{wish}": set it to dassl or embedded, or unset it')
    note = ""
    if wish != "embedded" and (wish or importlib.util.find_spec("dassl")):
        try:
            return ("dassl", *_load_dassl())
        except ImportError as error:
            remedy = "install Dassl.pytorch or put its folder on PYTHONPATH"
            if importlib.util.find_spec("dassl"):
                remedy = f"install {error.name}" if error.name else "repair the Dassl installation"
            if wish:
                raise NotInstalled(
                    f"PROXYFDA_ENGINE is dassl, but Dassl cannot be imported ({error}): {remedy}, "
                    "or unset PROXYFDA_ENGINE"
                ) from error
            note = f"; Dassl is there but cannot be imported ({error}): {remedy} to use it"
    names = {name: getattr(_embedded, name) for part in _NAMES.values() for name in part}
    return "embedded", names, f"embedded{note}"


ENGINE, _names, _description = _choose()
globals().update(_names)


@functools.lru_cache(maxsize=None)  # noqa: UP033  (Python 3.8); once per process
def announce_engine():
    """Print, at the first call only, which engine is in use."""
    print(f"Engine: {_description}")
