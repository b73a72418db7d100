"""From a section of the config to the object it names."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any


def construct(table: Mapping[str, Callable], section: Mapping[str, Any]) -> Any:
    """table[section["name"]], called with those of the section's other values that are its parameters."""
    constructor = table[section["name"]]
    return constructor(**{key: value for key, value in section.items() if takes(constructor, key)})


def takes(constructor: Any, key: str) -> bool:
    """Whether the key is a parameter of the constructor; `name` chooses the constructor and is none."""
    if key == "name" or not callable(constructor):
        return False
    return key in inspect.signature(constructor).parameters
