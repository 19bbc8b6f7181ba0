"""Repairs of an installed Dassl, made in memory: its files stay as they are.

A current torch breaks Dassl in several places, and Dassl does not go on exactly where an
interrupted run stopped:

* ``import dassl.engine`` needs ``wilds`` and ``pandas``, although only its WILDS readers use them;
* its warm-up schedules pass an argument (``verbose``) that torch no longer has;
* it saves schedules as pickled objects, which torch no longer loads by default, and an interrupted
  write leaves half a checkpoint;
* a resumed run has other learning rates and random numbers than one that was not interrupted;
* two of its augmentations use ``numpy.int``, which numpy no longer has;
* a missing or broken image file is reported without a remedy.

``import proxyfda.dassl`` makes the repairs when it chooses Dassl. Only modules of the package
``dassl`` are changed. A module that has imported one of the repaired functions by name before keeps
the broken one, so ``import proxyfda.dassl`` belongs before the imports of ``dassl``.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import inspect
import os
import sys
import types

import numpy

from proxyfda import engine
from proxyfda.utils.errors import NotFound

__all__ = ["let_dassl_import_without_wilds", "repair"]

_WILDS = "dassl.data.datasets.dg.wilds"
_CHECKPOINT_FUNCTIONS = ("load_checkpoint", "save_checkpoint", "resume_from_checkpoint")
_CHECKPOINT_METHODS = (
    "save_model",
    "resume_model_if_exist",
    "load_model",
    "detect_anomaly",
    "extra_state",
    "load_extra_state",
    "check_beside",
)


def let_dassl_import_without_wilds() -> None:
    """Put an empty package in place of Dassl's WILDS readers where `wilds` is not installed.

    To be called before the first import of `dassl.data` or `dassl.engine`.
    """
    if _WILDS in sys.modules or all(importlib.util.find_spec(m) for m in ("wilds", "pandas")):
        return
    spec = importlib.machinery.ModuleSpec(_WILDS, None, is_package=True)
    sys.modules[_WILDS] = importlib.util.module_from_spec(spec)


def repair() -> list[str]:
    """Repair the installed Dassl; returns what was repaired, in words. May be called again."""
    schedules = importlib.import_module("dassl.optim.lr_scheduler")
    base_dataset = importlib.import_module("dassl.data.datasets.base_dataset")
    torchtools = importlib.import_module("dassl.utils.torchtools")
    tools = importlib.import_module("dassl.utils.tools")
    trainer = importlib.import_module("dassl.engine.trainer")

    repaired = ["warm-up schedules"] if _accept_verbose(schedules) else []
    repaired += ["numpy.int"] if _give_numpy_int() else []
    for name in _CHECKPOINT_FUNCTIONS:
        _replace_in_dassl(getattr(torchtools, name), getattr(engine, name))
    for name in _CHECKPOINT_METHODS:
        setattr(trainer.TrainerBase, name, vars(engine.TrainerBase)[name])
    repaired.append("checkpoints and resuming")
    base_dataset.check_isfile = _check_isfile
    _replace_in_dassl(tools.read_image, engine.read_image)
    repaired.append("messages about image files")
    return repaired


def _accept_verbose(schedules) -> bool:
    """Let the warm-up schedules pass `verbose` to torch; False if torch takes it anyway."""
    base = schedules._LRScheduler
    if "verbose" in inspect.signature(base.__init__).parameters:
        return False

    class WithVerbose(base):
        """A schedule that accepts, and ignores, the argument that torch has dropped."""

        def __init__(self, optimizer, last_epoch=-1, verbose=False):
            super().__init__(optimizer, last_epoch)

    schedules._BaseWarmupScheduler.__bases__ = (WithVerbose,)
    return True


def _give_numpy_int() -> bool:
    """Let Dassl's modules have `numpy.int`, which is `int`; False if numpy has it anyway.

    Only what they call numpy changes: numpy itself stays as it is.
    """
    if "int" in vars(numpy):
        return False
    with_int = types.ModuleType("numpy", numpy.__doc__)
    with_int.__getattr__ = lambda name: getattr(numpy, name)  # type: ignore[method-assign]
    with_int.int = int  # type: ignore[attr-defined]
    _replace_in_dassl(numpy, with_int)
    return True


def _replace_in_dassl(old, new) -> None:
    """Bind `new` to every name in Dassl's modules that stands for `old`.

    Dassl's modules import each other's functions by name, so the module that defines a function is
    not the only one that holds it.
    """
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "dassl":
            for attribute, value in list(vars(module).items()):
                if value is old:
                    setattr(module, attribute, new)


def _check_isfile(fpath):
    if not os.path.isfile(fpath):
        raise NotFound(
            f'No image file at "{fpath}": check DATASET.ROOT and that the data are complete'
        )
    return True
