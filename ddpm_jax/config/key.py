"""What a key of the config is, and the kinds of values that keys accept."""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from ddpm_jax.construct import AUTO


class Key(NamedTuple):
    """A key's default (int, float, bool, str or tuple; its type is the key's type), meaning, and accepted values.

    accepts: names to choose from, or (predicate, its words); for a tuple it speaks of each element. None: any of the type.
    A key whose constructors have defaults of their own has the default AUTO, which leaves them to these. `explicit` is then the
    type of the other values. words: a tuple's elements may be words too. length: of a tuple, how many elements it has, at least
    and at most, and what one and several are called; of: their type, where the default is empty.
    """

    default: Any
    help: str
    accepts: Iterable[str] | tuple[Callable, str] | None = None
    explicit: type = str
    words: bool = False
    length: tuple[int, float, str, str] = (0, math.inf, "", "")
    of: type = int

    @property
    def type(self) -> type:
        return self.explicit if self.default == AUTO else type(self.default)

    @property
    def element(self) -> type:
        """The type of a tuple's elements, or that of the key."""
        if self.type is not tuple:
            return self.type
        return type(self.default[0]) if self.default else self.of

    def accepted(self, value: Any) -> bool:
        """Whether a value of the type, of a tuple an element, is one of those."""
        if self.accepts is None:
            return True
        return self.accepts[0](value) if self.is_rule else value in self.accepts

    @property
    def is_rule(self) -> bool:
        """Whether what it accepts is a predicate, not a list of names."""
        return isinstance(self.accepts, tuple) and callable(self.accepts[0])

    def kind(self) -> str:
        """The type and the accepted values, in words."""
        auto = [AUTO] if self.default == AUTO else []
        if self.type is tuple:
            numbers = {int: "1,2", float: "0.2,0.1"}[self.element]
            example = f" or words, as {numbers} or cat,dog" if self.words else f", as {numbers} or ({numbers})"
            words = f"a tuple of {self.element.__name__}s{example}"
            return words + (f", each {self.accepts[1]}" if self.accepts else "")
        if self.accepts is not None and not self.is_rule:
            return "one of " + ", ".join([*auto, *self.accepts])
        words = {int: "an int", float: "a float", bool: "true or false", str: "a string"}[self.type]
        return " or ".join([*auto, f"{words} {self.accepts[1]}" if self.accepts else words])

POSITIVE = (lambda value: 0 < value < 2**31, "greater than 0 and below 2^31")

FINITE = (lambda value: -(2**31) < value < 2**31, "of either sign, below 2^31")

NOT_NEGATIVE = (lambda value: 0 <= value < 2**31, "at least 0 and below 2^31")

FRACTION = (lambda value: 0 <= value <= 1, "from 0 to 1")

PERCENT = (lambda value: 0 <= value <= 100, "from 0 to 100")

BELOW_ONE = (lambda value: 0 <= value < 1, "at least 0 and less than 1")

UNIT = (lambda value: 0 < value <= 1, "greater than 0 and at most 1")

SEED = (lambda value: 0 <= value < 2**32, "from 0 to 4294967295")

EMBEDDABLE = (lambda value: 4 <= value <= 8192 and value % 2 == 0, "that is even and at least 4, at most 8192")

LABEL = (lambda value: value != "" if isinstance(value, str) else 0 <= value < 2**31, "a label's number or its class's name")

SHORT = (lambda value: len(value) <= 1000, "of at most 1000 characters")

FOLDER = (lambda value: value != AUTO, "that is not auto (./auto is a folder)")


def to(limit: int, least: int = 1) -> tuple[Callable, str]:
    """What is accepted of a key by which memory, time or a program grows: far more than anyone trains with, and no mistype."""
    words = {0: "at least 0 and", 1: "greater than 0 and"}.get(least, f"at least {least} and")
    return (lambda value: least <= value <= limit), f"{words} at most {limit}"

STEPS = 100_000  # of a table, a chain or a grid, at most
