"""What all regularisers are: modules with validated options, found by name."""

from __future__ import annotations

import numbers
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Dict, List, Optional, Sequence, Type, TypeVar, Union

from torch import Tensor, nn

from proxyfda.utils.errors import BadType, BadValue
from proxyfda.utils.rules import LARGEST_FLOAT
from proxyfda.utils.suggest import did_you_mean

__all__ = ["REGULARISERS", "Features", "Options", "Regulariser", "create", "find", "names"]

Features = Union[Tensor, Sequence[Tensor]]


_KINDS: Dict[Any, Any] = {int: numbers.Integral, float: numbers.Real}
"""What also serves as a number, such as NumPy's."""


@dataclass(frozen=True)
class Options:
    """Options of a regulariser, checked when they are made.

    A subclass is a frozen dataclass whose fields are the options. Of two regularisers' options
    with the same name, meaning and default are the same, since the config of the trainers has one
    key for each.

    Attributes:
        keeps_state: whether a regulariser with these options learns something that a resumed run
            needs.
    """

    @property
    def keeps_state(self) -> bool:
        """See the class."""
        return False

    def __post_init__(self) -> None:
        for field in fields(self):
            value: Any = getattr(self, field.name)
            default: Any = field.default
            kind: Any = type(default)
            wanted: Any = _KINDS.get(kind, kind)
            if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool):
                article = "an" if kind is int else "a"
                raise BadType(
                    f"{field.name} is {value!r}; give {article} {kind.__name__} like {default!r}."
                )
            object.__setattr__(self, field.name, kind(value))
        self.check()

    def check(self) -> None:
        """Refuse values that cannot work.

        Raises:
            BadValue: naming the option, its value and what to give.
        """

    def _require(self, sound: bool, name: str, remedy: str) -> None:
        if not sound:
            raise BadValue(f"{name} is {getattr(self, name)!r}; {remedy}.")

    def _require_positive(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            self._require(0 < value <= LARGEST_FLOAT, name, "use a finite number above 0")

    def _require_not_negative(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            sound = 0 <= value <= LARGEST_FLOAT
            self._require(sound, name, "use a finite number of at least 0")


class Regulariser(nn.Module):
    """A term against forgetting, added to the task's loss with a weight λ.

    Called as ``regulariser(features, anchors)`` it gives one scalar to minimise::

        loss = task_loss + weight * regulariser(features, anchors)

    Subclasses implement :meth:`terms` and are registered by :func:`register` under their ``name``.

    Args:
        options: an instance of ``options_class``; or give its fields by name.
        settings: fields of ``options_class``.

    Attributes:
        name: what it is found by; says what is trained.
        options_class: the dataclass of its options.
        kind: what it acts on: ``"relations"`` (similarities among features), ``"features"`` (each
            feature by itself) or ``"weights"``.
        needs_dim: whether the constructor's first argument is the features' dimension.
        takes_layers: whether it is meant for the outputs of several layers, which it gets from a
            trainer that has them.
        default_weight: λ where nothing is said; in a loop of your own the factor is yours.
        options: as given.

    Raises:
        BadValue: an option that does not exist, or a value that cannot work.
    """

    name: ClassVar[str] = ""
    options_class: ClassVar[Type[Options]] = Options
    kind: ClassVar[str] = "features"
    needs_dim: ClassVar[bool] = False
    takes_layers: ClassVar[bool] = False
    default_weight: ClassVar[float] = 1.0

    def __init__(self, options: Optional[Options] = None, **settings: Any) -> None:
        super().__init__()
        if options is not None and (settings or not isinstance(options, self.options_class)):
            raise BadType(
                f"{type(self).__name__} takes either one {self.options_class.__name__} or its "
                f"fields by name, not {options!r}"
                + (f" and {', '.join(settings)}." if settings else ".")
            )
        self.options: Any = options or self.make_options(**settings)

    @classmethod
    def make_options(cls, **settings: Any) -> Options:
        """The options from their names.

        Raises:
            BadValue: an option that does not exist.
        """
        known = [field.name for field in fields(cls.options_class)]
        for name in settings:
            if name not in known:
                raise BadValue(
                    f"{cls.__name__} has no option {name!r}{did_you_mean(name, known)}; it has "
                    f"{', '.join(known) or 'none'}."
                )
        return cls.options_class(**settings)

    @property
    def log_name(self) -> str:
        """The name of the first of :meth:`terms`, such as ``loss_fda``."""
        return "loss_" + (self.name[len("proxy_") :] if self.needs_dim else self.name)

    def terms(self, features: Any, anchors: Any = None, **more: Any) -> Dict[str, Tensor]:
        """The scalars whose sum is minimised, by the name they are logged under.

        The first one has its gradient in the features alone, any other in the regulariser's own
        parameters alone, so that a trainer may weigh and optimise them separately.
        """
        raise NotImplementedError

    def forward(self, features: Any, anchors: Any = None, **more: Any) -> Tensor:
        """The sum of :meth:`terms`."""
        first, *others = self.terms(features, anchors, **more).values()
        for term in others:
            first = first + term
        return first

    def extra_repr(self) -> str:
        """What the representation shows beside the layers."""
        return ", ".join(f"{f.name}={getattr(self.options, f.name)}" for f in fields(self.options))


REGULARISERS: Dict[str, Type[Regulariser]] = {}
"""All regularisers by name; :func:`register` adds one."""

_Class = TypeVar("_Class", bound=Type[Regulariser])


def register(regulariser: _Class) -> _Class:
    """Class decorator that makes a regulariser findable by its ``name``.

    Raises:
        ValueError: no name, one that is taken, or an option whose default differs from that of the
            same option of another regulariser.
    """
    taken = REGULARISERS.get(regulariser.name)
    place = (regulariser.__module__, regulariser.__qualname__)
    reloaded = taken is not None and (taken.__module__, taken.__qualname__) == place
    if not regulariser.name or (taken is not None and not reloaded):
        raise ValueError(f"{regulariser.__name__} has the name {regulariser.name!r}: give another")
    for field in fields(regulariser.options_class):
        for other in REGULARISERS.values():
            for same in fields(other.options_class):
                if same.name == field.name and same.default != field.default:
                    raise ValueError(
                        f"{field.name} is {field.default!r} by default in {regulariser.__name__} "
                        f"and {same.default!r} in {other.__name__}: give one of them another name"
                    )
    REGULARISERS[regulariser.name] = regulariser
    return regulariser


def names() -> List[str]:
    """The names of all regularisers, the paper's first."""
    return sorted(REGULARISERS, key=lambda name: (name not in ("fda", "proxy_fda"), name))


def find(name: str) -> Type[Regulariser]:
    """The class of a regulariser.

    Raises:
        BadValue: there is none of that name.
    """
    if name not in REGULARISERS:
        raise BadValue(
            f"there is no regulariser {name!r}{did_you_mean(name, names())}; use one of "
            f"{', '.join(names())}."
        )
    return REGULARISERS[name]


def create(name: str, dim: int = 0, **settings: Any) -> Regulariser:
    """A regulariser by its name.

    Args:
        name: one of :func:`names`.
        dim: dimension of the features; only those that own a generator of proxies need it.
        settings: its options.

    Raises:
        BadValue: no such regulariser or option, or a value that cannot work.

    >>> create("rkd")
    RKD(similarity=1.0, distance=0.0, angle=0.0)
    """
    regulariser: Any = find(name)
    return regulariser(dim, **settings) if regulariser.needs_dim else regulariser(**settings)
