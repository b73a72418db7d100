"""From a section of the config to the object it names."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any


def construct(table: Mapping[str, Callable], section: Mapping[str, Any], *given: Any, choice: str = "name") -> Any:
    """table[section[choice]], called with `given` and those of the section's values that are its keyword parameters."""
    constructor = table[section[choice]]
    return constructor(*given, **arguments(constructor, section))


def arguments(constructor: Callable, section: Mapping[str, Any]) -> dict[str, Any]:
    """The section's values that are keyword parameters of the constructor."""
    return {key: value for key, value in section.items() if takes(constructor, key)}


def takes(constructor: Any, key: str) -> bool:
    """Whether the key is a parameter of the constructor; `name` chooses the constructor and is none."""
    if key == "name" or not callable(constructor):
        return False
    return key in inspect.signature(constructor).parameters
