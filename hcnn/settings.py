"""What the frozen dataclasses that describe a run have in common: one spelling and one validator of values."""

from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields, replace
from sys import float_info
from typing import Any, ClassVar


def is_integer(value, least):
    """Whether a value is an int, and no bool, of at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value):
    """Whether a value is a finite int or float, and no bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= float_info.max


@dataclass(frozen=True)
class Rule:
    """What a value must be: a condition, and the same in words, which follow "<name> must be" in an error."""

    holds: Callable[[Any], bool]
    allowed: str

    def check(self, name, value):
        """Raises ValueError naming the parameter, its value and the allowed values."""
        if not self.holds(value):
            raise ValueError(f"{name} must be {self.allowed}, got {value!r}")


def integer(least):
    return Rule(lambda value: is_integer(value, least), f"an integer of at least {least}")


def one_of(words):
    return Rule(lambda value: isinstance(value, str) and value in tuple(words), "one of " + ", ".join(words))


def number(holds, allowed):
    return Rule(lambda value: is_number(value) and holds(value), allowed)


def optional(rule):
    return Rule(lambda value: value is None or rule.holds(value), f"none or {rule.allowed}")


def tuple_of(holds, allowed, length=None):
    return Rule(lambda value: isinstance(value, tuple) and length in (None, len(value)) and all(map(holds, value)),
                allowed)


BOOLEAN = Rule(lambda value: isinstance(value, bool), "true or false")


class Settings:
    """Base of a frozen dataclass whose fields are plain values and tuples of them, each with a Rule in RULES.

    Every value has one spelling, so that equal settings are equal and have equal hashes: lists become tuples, integers
    become floats where the field is one.

    Raises ValueError naming the field, its value and the allowed values.
    """

    RULES: ClassVar[dict[str, Rule]] = {}

    def __post_init__(self):
        for field in fields(self):
            object.__setattr__(self, field.name, _spelled(getattr(self, field.name), str(field.type)))
        for name, rule in self.RULES.items():
            rule.check(name, getattr(self, name))
        self._check()

    def _check(self):
        """What concerns several fields together."""

    def _require(self, name, holds, allowed):
        if not holds:
            raise ValueError(f"{name} must be {allowed}, got {getattr(self, name)!r}")

    @classmethod
    def known(cls, given):
        """The names of the fields; raises ValueError for a name in `given` that is none of them."""
        names = [field.name for field in fields(cls)]
        unknown = sorted(set(given) - set(names))
        if unknown:
            raise ValueError(f"unknown parameter {unknown[0]!r}; allowed are {', '.join(names)}")
        return names

    def replace(self, **changes):
        """The same with some fields changed."""
        return replace(self, **changes)

    def as_dict(self):
        """Plain values, fit for JSON; the class called with them, lists for tuples, gives the same back."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def changed(self):
        """The part of `as_dict` that differs from the defaults, or has none."""
        defaults = {field.name: field.default for field in fields(self)}
        return {name: value for name, value in self.as_dict().items()
                if defaults[name] is MISSING or getattr(self, name) != defaults[name]}


def _spelled(value, kind):
    if isinstance(value, (list, tuple)):
        return tuple(_spelled(item, kind) for item in value)
    return float(value) if "float" in kind and is_number(value) else value
