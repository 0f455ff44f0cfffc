"""What Architecture, Baseline and Recipe, the frozen dataclasses that describe a run, have in common. Nothing here needs torch."""

from dataclasses import asdict, replace


class Settings:
    """Base of a frozen dataclass whose fields are plain values and tuples of them."""

    def replace(self, **changes):
        """The same with some fields changed."""
        return replace(self, **changes)

    def as_dict(self):
        """Plain values, fit for JSON; the class called with them, lists for tuples, gives the same back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def is_integer(value, least):
    """Whether a value is an int, and no bool, of at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
