"""The config: every key with its default, its meaning and what it accepts; the values of a config; the validator."""

from ddpm_jax.config.agreement import CHANGEABLE, GUIDES, OF_THE_COMMAND, changes, differences, fixed
from ddpm_jax.config.checks import check, check_complete, check_new, check_value, validate
from ddpm_jax.config.hints import like, unknown_key
from ddpm_jax.config.idle import applies, check_applies
from ddpm_jax.config.keys import KEYS, SECTIONS
from ddpm_jax.config.values import (
    acting,
    average_of,
    base,
    cast,
    chooser,
    flatten,
    is_default,
    takers,
    unflatten,
    value_of,
)

__all__ = [
    "CHANGEABLE", "GUIDES", "OF_THE_COMMAND", "changes", "differences", "fixed", "check", "check_complete", "check_new",
    "check_value", "validate", "like", "unknown_key", "applies", "check_applies", "KEYS", "SECTIONS", "acting",
    "average_of", "base", "cast", "chooser", "flatten", "is_default", "takers", "unflatten", "value_of",
]  # fmt: skip
