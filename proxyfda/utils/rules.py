"""Rules that the values of options keep to: what is allowed, said in words that a user can follow.

A table of them, by the options' dotted names, stands beside the defaults that it is about; what
reads a config applies it once (:func:`check_values`).
"""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from typing import Any, Callable, Iterable, Mapping, Optional, Sequence, Tuple, Union

from proxyfda.utils.errors import BadValue
from proxyfda.utils.suggest import did_you_mean

__all__ = [
    "LARGEST_FLOAT", "Checked", "Flag", "Names", "OneOf", "Real", "Rule", "Several", "Text",
    "Whole", "check_values", "chooses", "shown",
]  # fmt: skip

_LARGEST = 2**31 - 1
LARGEST_FLOAT = 3.4e38
"""What a float of 32 bits holds: torch raises an error of its own for more."""

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 120
_short.maxtuple = _short.maxlist = 8


def shown(value: Any) -> str:
    """A value as messages show it: as in Python, cut where it is long."""
    return _short.repr(value)


class Rule:
    """What an option may be."""

    @property
    def wanted(self) -> str:
        """In words that follow "give"."""
        raise NotImplementedError

    def accepts(self, value: Any) -> bool:
        """Whether the value is allowed."""
        raise NotImplementedError

    def hint(self, value: Any) -> str:
        """What may have been meant, in brackets."""
        return ""

    def check(self, option: str, value: Any) -> None:
        """Refuse a value that is not allowed.

        Raises:
            BadValue: naming the option, the value and what to give.
        """
        if not self.accepts(value):
            raise BadValue(f"{option} is {shown(value)}{self.hint(value)}; give {self.wanted}")


@dataclass(frozen=True)
class Whole(Rule):
    """A whole number.

    Args:
        least, most: the smallest and the largest one; by default any of 32 bits.
        also: further numbers with a meaning of their own -> this meaning.
        odd: whether only odd ones serve.

    >>> Whole(1).check("BATCH_SIZE", 0)
    Traceback (most recent call last):
        ...
    proxyfda.utils.errors.BadValue: BATCH_SIZE is 0; give a whole number of at least 1
    """

    least: Optional[int] = None
    most: int = _LARGEST
    also: Tuple[Tuple[int, str], ...] = ()
    odd: bool = False

    @property
    def wanted(self) -> str:
        kind = f"{'an odd' if self.odd else 'a'} whole number"
        bounds = [] if self.least is None else [f"at least {self.least}"]
        if self.most != _LARGEST or self.least is None:
            bounds.append(f"at most {self.most}")
        special = "".join(f", or {number} ({meaning})" for number, meaning in self.also)
        return f"{kind} of {' and '.join(bounds)}{special}"

    def accepts(self, value: Any) -> bool:
        if not isinstance(value, int) or isinstance(value, bool):
            return False
        if value in dict(self.also):
            return True
        least = -self.most if self.least is None else self.least
        return least <= value <= self.most and not (self.odd and value % 2 == 0)

    def hint(self, value: Any) -> str:
        large = isinstance(value, int) and value > self.most == _LARGEST
        return f" (at most {self.most} is possible)" if large and self.least is not None else ""


@dataclass(frozen=True)
class Real(Rule):
    """A finite number.

    Args:
        least, most: the smallest and the largest one, if there is one.
        above, below: a number that it has to be above, or below.

    >>> Real(above=0).check("OPTIM.LR", -1)
    Traceback (most recent call last):
        ...
    proxyfda.utils.errors.BadValue: OPTIM.LR is -1; give a number above 0
    """

    least: Optional[float] = None
    most: Optional[float] = None
    above: Optional[float] = None
    below: Optional[float] = None

    @property
    def wanted(self) -> str:
        bounds = [
            f"{word} {bound}"
            for word, bound in (
                ("of at least", self.least),
                ("above", self.above),
                ("of at most" if self.least is None else "at most", self.most),
                ("below", self.below),
            )
            if bound is not None
        ]
        return f"a number {' and '.join(bounds)}" if bounds else "a finite number"

    def accepts(self, value: Any) -> bool:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            return False
        try:
            if not abs(float(value)) <= LARGEST_FLOAT:
                return False
        except OverflowError:  # an int beyond all floats
            return False
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def hint(self, value: Any) -> str:
        large = isinstance(value, (int, float)) and abs(value) > LARGEST_FLOAT
        return f" (at most {LARGEST_FLOAT:g} is possible)" if large else ""


@dataclass(frozen=True)
class Flag(Rule):
    """True or False."""

    @property
    def wanted(self) -> str:
        return "True or False"

    def accepts(self, value: Any) -> bool:
        return isinstance(value, bool)


@dataclass(frozen=True)
class Text(Rule):
    """Any text.

    Args:
        empty: whether it may be empty.
        what: the kind of text.
        barred: characters that it may not have.

    >>> Text(what="words", barred="{}").check("TRAINER.COOP.CTX_INIT", "a photo of a {}")
    Traceback (most recent call last):
        ...
    proxyfda.utils.errors.BadValue: TRAINER.COOP.CTX_INIT is 'a photo of a {}'; give words without \
{ and }
    """

    empty: bool = True
    what: str = "text"
    barred: str = ""

    @property
    def wanted(self) -> str:
        without = f" without {' and '.join(self.barred)}" if self.barred else ""
        return (self.what if self.empty else f"{self.what} (not empty)") + without

    def accepts(self, value: Any) -> bool:
        if not isinstance(value, str) or not (self.empty or value):
            return False
        return not any(character in value for character in "\0" + self.barred)


Names = Union[Sequence[str], Callable[[], Sequence[str]]]
"""Words to choose from, or what gives them when they are asked for."""


@dataclass(frozen=True)
class OneOf(Rule):
    """One of several words.

    Args:
        names: the words; an empty one stands for none.

    >>> OneOf(("sgd", "adam")).check("OPTIM.NAME", "sdg")
    Traceback (most recent call last):
        ...
    proxyfda.utils.errors.BadValue: OPTIM.NAME is 'sdg' (did you mean 'sgd'?); give sgd or adam
    """

    names: Names

    @property
    def _known(self) -> Sequence[str]:
        return self.names() if callable(self.names) else self.names

    @property
    def wanted(self) -> str:
        words = [name for name in self._known if name]
        listed = " or ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
        return f"{listed}, or leave it empty" if "" in self._known else listed

    def accepts(self, value: Any) -> bool:
        return isinstance(value, str) and value in self._known

    def hint(self, value: Any) -> str:
        return did_you_mean(value, filter(None, self._known)) if isinstance(value, str) else ""


@dataclass(frozen=True)
class Several(Rule):
    """A list or tuple.

    Args:
        rule: of each entry.
        count: how many there are; None: any number.
        least: how many there are at least.
        rising: whether none may be below the one before it.

    >>> Several(Whole(1), count=2).check("INPUT.SIZE", (32,))
    Traceback (most recent call last):
        ...
    proxyfda.utils.errors.BadValue: INPUT.SIZE is (32,); give 2 values, each a whole number of at \
least 1
    """

    rule: Rule
    count: Optional[int] = None
    least: int = 0
    rising: bool = False

    @property
    def wanted(self) -> str:
        number = f"{self.count} values" if self.count else "a list"
        if self.least and not self.count:
            number = f"a list of at least {self.least}"
        order = ", the smaller one first" if self.rising else ""
        one = self.rule.wanted
        return f"{number}, each {'one of ' if isinstance(self.rule, OneOf) else ''}{one}{order}"

    def accepts(self, value: Any) -> bool:
        if not isinstance(value, (list, tuple)) or len(value) < self.least:
            return False
        if self.count is not None and len(value) != self.count:
            return False
        if not all(self.rule.accepts(one) for one in value):
            return False
        return not self.rising or list(value) == sorted(value)

    def hint(self, value: Any) -> str:
        if isinstance(value, (list, tuple)):
            for one in value:
                if not self.rule.accepts(one):
                    return self.rule.hint(one)
        return ""


@dataclass(frozen=True)
class Checked(Rule):
    """What a function lets pass.

    Args:
        test: raises BadValue, with a whole sentence, for what it refuses.
        takes: what it lets pass, in words.
    """

    test: Callable[[Any], Any]
    takes: str

    @property
    def wanted(self) -> str:
        return self.takes

    def accepts(self, value: Any) -> bool:
        try:
            self.test(value)
        except BadValue:
            return False
        return True

    def check(self, option: str, value: Any) -> None:
        self.test(value)


def chooses(rule: Rule) -> bool:
    """Whether a rule is about words to choose from."""
    return isinstance(rule.rule if isinstance(rule, Several) else rule, OneOf)


def check_values(values: Iterable[Tuple[str, Any]], rules: Mapping[str, Rule]) -> None:
    """Refuse the first value that breaks its option's rule.

    Args:
        values: pairs of option and value; an option without a rule may be anything.

    Raises:
        BadValue: see :meth:`Rule.check`.
    """
    for option, value in values:
        if option in rules:
            rules[option].check(option, value)
