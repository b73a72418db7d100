"""From a section of the config to the object it names."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

AUTO = "auto"  # the value of a key that leaves a parameter the default that the constructor chosen gives it


def construct(table: Mapping[str, Callable], section: Mapping[str, Any], *given: Any, choice: str = "name") -> Any:
    """table[section[choice]], called with `given` and those of the section's values that are its keyword parameters."""
    constructor = table[section[choice]]
    return constructor(*given, **arguments(constructor, section))


def arguments(constructor: Callable, section: Mapping[str, Any]) -> dict[str, Any]:
    """The section's values that are keyword parameters of the constructor; for AUTO its own default, where it has one."""
    taken = {key: value for key, value in section.items() if takes(constructor, key)}
    return {key: own_default(constructor, key, AUTO) if value == AUTO else value for key, value in taken.items()}


def own_default(constructor: Any, key: str, otherwise: Any = None) -> Any:
    """The default of the constructor's parameter of this name, or `otherwise`."""
    default = _parameters(constructor)[key].default if takes(constructor, key) else inspect.Parameter.empty
    return otherwise if default is inspect.Parameter.empty else default


def takes(constructor: Any, key: str) -> bool:
    """Whether the key is a parameter of the constructor; `name` chooses the constructor and is none."""
    return key != "name" and callable(constructor) and key in _parameters(constructor)


@functools.lru_cache(1024)
def _parameters(constructor):
    return inspect.signature(constructor).parameters
