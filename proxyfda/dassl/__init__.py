"""The one seam to Dassl: an installed Dassl's names, or else those of the embedded engine.

Trainers, datasets and `train.py` import Dassl's names from here. The environment variable
PROXYFDA_ENGINE=dassl|embedded forces one of the two; `ENGINE` says which it is and
`announce_engine()` prints it.

Where Dassl is used, it is repaired (:mod:`proxyfda.dassl.repairs`) and its `TrainerX` is given the
hooks of the embedded engine's (:mod:`proxyfda.dassl.adapter`).
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os

from proxyfda import engine as _embedded
from proxyfda.dassl import adapter as _adapter
from proxyfda.dassl import repairs as _repairs
from proxyfda.utils.errors import BadValue, NotInstalled

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
find_checkpoint, check_finite = _embedded.find_checkpoint, _embedded.check_finite
weights_in = _embedded.weights_in
ImageError = _embedded.ImageError
Together = _embedded.Together
log_to, open_log = _embedded.log_to, _embedded.open_log
get_rng_state, set_rng_state = _embedded.get_rng_state, _embedded.set_rng_state

__all__ = ["ENGINE", "ImageError", "Together", "announce_engine", "check_finite"]
__all__ += ["find_checkpoint", "get_rng_state", "log_to", "open_log"]
__all__ += ["set_rng_state", "weights_in"]
__all__ += [name for names in _NAMES.values() for name in names]


def _load_dassl():
    """Import Dassl, repair it and adapt its trainer; returns its names and a description."""
    _repairs.let_dassl_import_without_wilds()
    package = importlib.import_module("dassl")
    modules = {part: importlib.import_module(f"dassl.{part}") for part in _NAMES}
    repaired = _repairs.repair()
    names = {name: getattr(modules[part], name) for part in _NAMES for name in _NAMES[part]}
    names["TrainerX"] = _adapter.with_hooks(names["TrainerX"])
    folder = os.path.dirname(package.__file__)
    return names, f"dassl {package.__version__} ({folder}; repaired: {', '.join(repaired)})"


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
