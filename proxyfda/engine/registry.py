"""Name -> class registries and the functions that build what the config names."""

from __future__ import annotations

from proxyfda.utils.errors import BadValue
from proxyfda.utils.suggest import did_you_mean


def check_availability(requested, available, what="name"):
    """Raise ValueError, listing what there is and guessing what was meant, for an unknown name."""
    if requested in available:
        return
    names = ", ".join(sorted(available)) or "nothing (no module that registers one was imported)"
    raise BadValue(
        f"Unknown {what} {requested!r}{did_you_mean(requested, available)}: available are {names}"
    )


class Registry:
    """A mapping from names to classes or functions, filled by the decorator `register()`."""

    def __init__(self, name):
        self._name = name
        self._objects = {}

    def register(self, obj=None, force=False):
        """Register `obj` under its `__name__`; without `obj`, return a decorator doing so.

        Raises KeyError if the name is taken and `force` is false.
        """
        if obj is None:
            return lambda decorated: self.register(decorated, force)
        name = obj.__name__
        if name in self._objects and not force:
            raise KeyError(f'"{name}" is in the {self._name} registry already: rename it')
        self._objects[name] = obj
        return obj

    def get(self, name):
        """The object registered as `name`; ValueError with the available names otherwise."""
        check_availability(name, self._objects, self._name.lower())
        return self._objects[name]

    def registered_names(self):
        return list(self._objects)


TRAINER_REGISTRY = Registry("TRAINER")
DATASET_REGISTRY = Registry("DATASET")
EVALUATOR_REGISTRY = Registry("EVALUATOR")


def _build(registry, kind, name, cfg, **kwargs):
    cls = registry.get(name)
    if cfg.VERBOSE:
        print(f"Loading {kind}: {name}")
    return cls(cfg, **kwargs)


def build_trainer(cfg):
    return _build(TRAINER_REGISTRY, "trainer", cfg.TRAINER.NAME, cfg)


def build_dataset(cfg):
    return _build(DATASET_REGISTRY, "dataset", cfg.DATASET.NAME, cfg)


def build_evaluator(cfg, **kwargs):
    return _build(EVALUATOR_REGISTRY, "evaluator", cfg.TEST.EVALUATOR, cfg, **kwargs)
