"""The trainers; importing this package registers them all, with their FDA and Proxy-FDA forms.

A trainer is one module of this folder: every module here is imported, and every trainer that it
registers and that learns something is given to the plugin, as in any other codebase, unless it
regularises by itself.
"""

import importlib
import pkgutil

from proxyfda import register
from proxyfda.dassl import TRAINER_REGISTRY

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

_registered = map(TRAINER_REGISTRY.get, TRAINER_REGISTRY.registered_names())
_ours = [trainer for trainer in _registered if trainer.__module__.startswith(f"{__name__}.")]
register(*(trainer for trainer in _ours if getattr(trainer, "learns", True)))
