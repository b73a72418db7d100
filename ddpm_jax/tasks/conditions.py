"""Conditions: what a model is told besides the noisy example. A pytree of arrays, one row per example; None is none at all."""

import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax.data import identity
from ddpm_jax.errors import UserError
from ddpm_jax.spelling import nearest

Condition = Any  # a pytree of arrays [B, ...]


class Conditioning(NamedTuple):
    """How a task is conditioned; as it stands, not at all.

    name: what a condition is called where results tell of it, as "label"; "" where there is none. shown: to the network, whose
    constructor is told `network` of it; else it is a classifier's alone.
    of(batch) -> the condition of a batch's examples, its rows [B, ...]. null: the row that stands for "none".
    rows: the conditions [N, ...] that samples get in turn, sample i row i mod N; by_default: they are not the user's choice.
    told: the key of the config that names them. names: what they are called under a picture; or ().
    read(words) -> rows: what a user gives, [] or [N] each. Raises UserError for what is no condition of this run.
    written(rows) -> {name: array}: how they stand beside samples in a .npz.
    """

    name: str = ""
    shown: bool = False
    network: Mapping[str, Any] = types.MappingProxyType({})
    of: Callable[[Mapping[str, jax.Array]], Condition] = lambda batch: None  # noqa: ARG005
    null: Condition = None
    rows: Condition = None
    by_default: bool = False
    told: str = ""
    names: tuple[str, ...] = ()
    read: Callable[[Any], Condition] | None = None
    written: Callable[[Condition], dict[str, np.ndarray]] = lambda rows: {}  # noqa: ARG005

    @property
    def count(self) -> int:
        """How many conditions samples get in turn; 0: none."""
        return count(self.rows)


UNCONDITIONAL = Conditioning()


def count(rows: Condition) -> int:
    """N of rows [N, ...]; 0 of none."""
    return next((len(leaf) for leaf in jax.tree.leaves(rows)), 0)


def in_turn(rows: Condition, indices: jax.Array) -> Condition:
    """Row i mod N for each index i."""
    return jax.tree.map(lambda leaf: leaf[indices % len(leaf)], rows)


def repeated(row: Condition, total: int) -> Condition:
    """Rows [total, ...], all of them this row."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (total, *jnp.shape(leaf))), row)


def each(told: Conditioning, given: Condition, total: int) -> Condition:
    """Rows [total, ...] of what was read of a user's words, one row or `total`. Raises UserError for another number."""

    def spread(row, leaf):
        if leaf.ndim > np.ndim(row) and len(leaf) != total:
            raise UserError(f"{total} images want as many {told.name}s or one, found {len(leaf)}.")
        return jnp.broadcast_to(leaf, (total, *np.shape(row)))

    return jax.tree.map(spread, told.null, given)


def at_least_one(null: Condition, given: Condition) -> Condition:
    """Rows [N, ...] of what was read of a user's words, also where it is one row without an axis."""
    return jax.tree.map(lambda row, leaf: jnp.reshape(leaf, (-1, *np.shape(row))), null, given)


def dropped(rows: Condition, null: Condition, drop: jax.Array) -> Condition:
    """The null row in place of those where drop [B] is true."""
    return jax.tree.map(
        lambda leaf, row: jnp.where(drop.reshape(-1, *[1] * (leaf.ndim - 1)), jnp.asarray(row, leaf.dtype), leaf), rows, null
    )


def labels(config: ConfigDict, num_classes: int, class_names: tuple[str, ...], *, shown: bool = True) -> Conditioning:
    """The labels of the data, 0 .. num_classes - 1; num_classes is the null label.

    shown: to the network; else they are those that a classifier guides to. Raises UserError for sampler.labels that the run has
    not.
    """

    def read(given):
        known = np.asarray(given)
        if known.dtype.kind == "U" and class_names:
            known = np.reshape(numbers(np.ravel(known).tolist(), num_classes, class_names), known.shape)
        if known.dtype.kind not in "iu" or known.ndim > 1 or not np.all((known >= 0) & (known < num_classes)):
            raise UserError(f"labels must be whole numbers from 0 to {num_classes - 1}, one or a vector, found {given!r}.")
        return known.astype(np.int32)

    check_labels(config, num_classes)
    told = config.sampler.labels
    rows = numbers(told, num_classes, class_names) or tuple(range(num_classes))
    return Conditioning(
        name="label",
        shown=shown,
        network={"num_classes": num_classes if shown else 0},
        of=(lambda batch: batch["label"]) if shown else (lambda batch: None),  # noqa: ARG005
        null=num_classes if shown else None,
        rows=jnp.asarray(rows, jnp.int32),
        by_default=not told,
        told="sampler.labels",
        names=tuple(class_names[label] for label in rows) if class_names else (),
        read=read,
        written=lambda rows: {"arr_1": np.asarray(rows, np.int32)},  # as guided-diffusion's evaluator reads it
    )


# By the key of the config's section cond that asks for them.
CONDITIONS: dict[str, Callable[..., Conditioning]] = {"labels": labels}


def conditioning(
    config: ConfigDict, num_classes: int, class_names: tuple[str, ...], guides: Mapping[str, Any] = types.MappingProxyType({})
) -> Conditioning:
    """The conditions of the config's task; where it has none, the labels to which a classifier among the guides leads."""
    for key, make in CONDITIONS.items():
        if config.cond[key]:
            return make(config, num_classes, class_names)
    if config.guidance.classifier:
        classifier = guides["guidance.classifier"]
        return labels(config, classifier.num_classes, class_names or classifier.class_names, shown=False)
    return UNCONDITIONAL


def check_labels(config: ConfigDict, num_classes: int) -> None:
    """UserError where the data have no labels to speak of, and the network is to be shown or to find them."""
    if num_classes < 2:
        raise UserError(
            f"The network is to {'tell' if config.task == 'classifier' else 'be shown'} labels (config.task, "
            f"config.cond.labels), but the data set {config.data.name} has {'one class' if num_classes else 'none'}: take data "
            "with labels, or leave out the variant cond."
        )


def numbers(labels: Sequence[int | str], num_classes: int, class_names: Sequence[str]) -> tuple[int, ...]:
    """Labels that are told as numbers or by the names of their classes. Raises UserError for those that the run has not."""
    called = {name: label for label, name in enumerate(class_names)}
    found = [called.get(label, label) for label in labels]
    for label in found:
        if isinstance(label, str) or not 0 <= label < num_classes:
            near = nearest(label, called) if isinstance(label, str) else []
            meant = f" Did you mean {near[0]}?" if near else ""
            if str(label) in called:
                meant = f" A number is a label: that of the class {label} is {called[str(label)]}."
            known = f"0 to {num_classes - 1}" + (f" ({identity.numbered(class_names)})" if called else ", and have no names")
            raise UserError(f"config.sampler.labels has {label!r}, but the labels of this run are {known}.{meant}")
    return tuple(found)
