"""The values of a config: as sections, flat, and those that act."""

import math
from typing import Any

import yaml
from ml_collections import ConfigDict, FieldReference

from ddpm_jax.config.keys import KEYS
from ddpm_jax.construct import AUTO, own_default, takes
from ddpm_jax.tasks.choices import best_grid


def base() -> ConfigDict:
    """Every key with its default: the CIFAR-10 settings of Ho et al. 2020 but for the data."""
    return unflatten({key: entry.default for key, entry in KEYS.items()})


def cast(key: str, value: Any) -> Any:
    """The value as the key's type, where it means one: an int as a float, a whole float as an int, a list or one number as a
    tuple. Any other value comes back as it is."""
    entry = KEYS[key]
    if entry.type is not tuple:
        return _number(entry.type, value)
    if type(value) in (int, float) or (entry.words and type(value) is str):
        value = (value,)
    return tuple(_number(entry.element, element) for element in value) if isinstance(value, list | tuple) else value


def _number(wanted, value):
    if wanted is float and type(value) is int and abs(value) <= 2**53:
        return float(value)
    return int(value) if wanted is int and type(value) is float and value.is_integer() else value


class _Leaf(FieldReference):
    """The value of a key in a config, to which a file may assign what `cast` makes the key's type, and nothing else.

    ml_collections' own values take the type of the default alone, and "auto" would take strings alone.
    """

    _key = ""

    def __init__(self, key: str, value: Any):
        super().__init__(cast(key, value), object)
        self._key = key

    def set(self, value: Any, type_safe: bool = True) -> None:
        """TypeError for another type; what is wrong besides, `validate` finds."""
        if self._key and not isinstance(value, FieldReference):
            value, entry = cast(self._key, value), KEYS[self._key]
            if type(value) is not entry.type and not (value == AUTO == entry.default) and type_safe:
                raise TypeError(f"config.{self._key} takes {entry.kind()}, found {value!r}")
        super().set(value, type_safe)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

# ml_collections would print an object for each of them
yaml.add_representer(FieldReference, lambda dumper, reference: dumper.represent_data(reference.get()))


def unflatten(flat: dict[str, Any]) -> ConfigDict:
    """{"a.b": value} as a ConfigDict of sections. Lists (of JSON) become tuples."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, leaf = key.split(".")
        section = nested
        for name in sections:
            section = section.setdefault(name, {})
        value = tuple(value) if isinstance(value, list) else value
        section[leaf] = _Leaf(key, value) if key in KEYS else value
    return ConfigDict(nested)


def flatten(config: ConfigDict) -> dict[str, Any]:
    """{"a.b": value} for every key of the config."""
    flat = {}
    for name, value in config.items():
        inner = {f"{name}.{key}": v for key, v in flatten(value).items()} if isinstance(value, ConfigDict) else {name: value}
        flat.update(inner)
    return flat


def average_of(config: ConfigDict) -> dict[str, float]:
    """Which average of the parameters config.sampler names, as records tell it: its decay, or its relative width."""
    decays, number = config.ema.decays, config.sampler.ema
    if config.sampler.ema_width:
        return {"ema_width": config.sampler.ema_width}
    return {"ema_decay": decays[number]} if number < len(decays) else {"ema_width": config.ema.widths[number - len(decays)]}


def chooser(key: str) -> str:
    """The key whose choices decide whether this one applies (sampler.grid for sampler.rho), or ""."""
    section, _, leaf = key.partition(".")
    for other, entry in KEYS.items():
        table = entry.accepts if other.startswith(section + ".") and isinstance(entry.accepts, dict) else {}
        if any(takes(made, leaf) for made in table.values()):
            return other
    return ""


def value_of(key: str, config: ConfigDict) -> Any:
    """The value that the config gives the key."""
    section, _, leaf = key.rpartition(".")
    return config[section][leaf] if section else config[leaf]


def acting(key: str, config: ConfigDict) -> Any:
    """The value that acts: for AUTO the default of the constructor that is chosen. AUTO where that is no value of a config."""
    value = value_of(key, config)
    return _own(key, config) if value == AUTO else value


def is_default(key: str, config: ConfigDict) -> bool:
    """Whether the value that acts is the one that acts by default."""
    default = KEYS[key].default
    return acting(key, config) == (_own(key, config) if default == AUTO else default)


def _own(key, config):
    if key == "sampler.grid":
        return _own_grid(config)
    by = chooser(key)
    own = own_default(chosen(by, config), key.rpartition(".")[2], AUTO) if by else AUTO
    return AUTO if own is None or own == math.inf else own


def _own_grid(config):
    """AUTO where there is no such process or sampler, which `validate` says."""
    try:
        return best_grid(config)
    except (ValueError, KeyError):
        return AUTO


def chosen(by, config):
    """The constructor that the key `by` chooses; None for a name of another version."""
    table, name = KEYS[by].accepts, acting(by, config)
    return table[name] if KEYS[by].accepted(name) else None


def takers(key: str) -> dict[str, Any]:
    """{name: its own default, or None} of the choices that take the key."""
    by, leaf = chooser(key), key.rpartition(".")[2]
    return {name: own_default(made, leaf) for name, made in KEYS[by].accepts.items() if takes(made, leaf)} if by else {}
