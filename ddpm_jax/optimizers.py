"""Optimizers, as Optax chains, and the schedules of their learning rates."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from ddpm_jax.construct import construct
from ddpm_jax.errors import UserError

# ---------------------------------------------------------------------------------------------------------------- schedules
#
# Of step k, counted from 0. All rise linearly over the warm-up of w steps: step k < w has (k + 1) / w of learning_rate. Then
# they fall, no lower than final_learning_rate. p = (k + 1 - w) / (schedule_steps - w), up to 1, is the share of the way down.


def _warmed_up(warmup_steps: int, learning_rate: float, after: Callable) -> optax.Schedule:
    if warmup_steps == 0:
        return after
    ramp = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    return lambda step: jnp.where(step < warmup_steps, ramp(step + 1), after(step))


def _share(step, warmup_steps, schedule_steps):
    return jnp.clip((step + 1 - warmup_steps) / max(schedule_steps - warmup_steps, 1), 0.0, 1.0)


def constant(*, learning_rate: float, warmup_steps: int) -> optax.Schedule:
    """learning_rate, to the end."""
    return _warmed_up(warmup_steps, learning_rate, optax.constant_schedule(learning_rate))


def linear(
    *, learning_rate: float, warmup_steps: int, final_learning_rate: float = 0.0, schedule_steps: int
) -> optax.Schedule:
    """learning_rate + p (final - learning_rate): the step schedule_steps - 1 has the final one, as all after it."""

    def falling(step):
        return learning_rate + _share(step, warmup_steps, schedule_steps) * (final_learning_rate - learning_rate)

    return _warmed_up(warmup_steps, learning_rate, falling)


def cosine(
    *, learning_rate: float, warmup_steps: int, final_learning_rate: float = 0.0, schedule_steps: int
) -> optax.Schedule:
    """final + (1 + cos(pi p)) / 2 (learning_rate - final) (Loshchilov & Hutter 2017, without restarts)."""

    def falling(step):
        height = (1 + jnp.cos(jnp.pi * _share(step, warmup_steps, schedule_steps))) / 2
        return final_learning_rate + height * (learning_rate - final_learning_rate)

    return _warmed_up(warmup_steps, learning_rate, falling)


def inverse_sqrt(*, learning_rate: float, warmup_steps: int, final_learning_rate: float = 0.0) -> optax.Schedule:
    """learning_rate sqrt(w / (k + 1)) after the warm-up of w steps (1 where there is none) (Vaswani et al. 2017)."""
    reference = max(warmup_steps, 1)

    def falling(step):
        return jnp.maximum(final_learning_rate, learning_rate * jnp.sqrt(reference / jnp.maximum(step + 1, reference)))

    return _warmed_up(warmup_steps, learning_rate, falling)


SCHEDULES: dict[str, Callable[..., optax.Schedule]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "inverse_sqrt": inverse_sqrt,
}


def schedule_of(config: ConfigDict) -> optax.Schedule:
    """That of config.optim: step k, counted from 0 -> learning rate."""
    section = dict(config.optim) | {"schedule_steps": config.optim.schedule_steps or config.train.steps}
    return construct(SCHEDULES, section, choice="schedule")


# --------------------------------------------------------------------------------------------------------------- optimizers
#
# (rate, a schedule; settings) -> the transformation of gradients that are clipped already.


def is_kernel(path: tuple, leaf: Any) -> bool:
    """Whether a parameter is a matrix or a convolution: one called kernel. Biases, norms and embeddings are none."""
    return getattr(path[-1], "key", None) == "kernel" and leaf.ndim >= 2 if path else False


def _kernels(params):
    return jax.tree_util.tree_map_with_path(is_kernel, params)


def adam(rate: optax.Schedule, *, b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam (Kingma & Ba 2015)."""
    return optax.adam(rate, b1=b1, b2=b2, eps=eps)


def adamw(
    rate: optax.Schedule, *, b1: float, b2: float, eps: float, weight_decay: float = 0.01
) -> optax.GradientTransformation:
    """Adam; kernels, and nothing else, also lose the share learning rate x weight_decay of themselves at each step, which does
    not enter the moments (Loshchilov & Hutter 2019, in the form of PyTorch)."""
    return optax.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=_kernels)


def _as_matrix(path, leaf):
    """How a kernel is a matrix, inputs x outputs. Of three axes it is that of attention: to heads, or from them, called out."""
    axes = tuple(range(leaf.ndim))
    if not is_kernel(path, leaf):
        return None
    inputs = 1 if leaf.ndim == 3 and getattr(path[-2], "key", "") != "out" else leaf.ndim - 1
    return optax.contrib.MuonDimensionNumbers(reduction_axis=axes[:inputs], output_axis=axes[inputs:])


def muon(
    rate: optax.Schedule, *, b1: float, b2: float, eps: float, momentum: float = 0.95, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Of kernels, as matrices of inputs x outputs (a convolution's inputs are the pixels of its window): the momentum with its
    singular values set near 1 by five steps of Newton and Schulz (Jordan et al. 2024), in the size 0.2 sqrt(max(inputs,
    outputs)) that has the root mean square of Adam's updates (Liu et al. 2025), and the weight decay of `adamw`. Of all else:
    Adam. So both take one learning rate.
    """
    of_matrices = optax.contrib.muon(
        rate,
        beta=momentum,
        weight_decay=weight_decay,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=lambda params: jax.tree_util.tree_map_with_path(_as_matrix, params),
    )
    labels = lambda params: jax.tree.map(lambda kernel: "muon" if kernel else "adam", _kernels(params))  # noqa: E731
    return optax.partition({"muon": of_matrices, "adam": adam(rate, b1=b1, b2=b2, eps=eps)}, labels)


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {"adam": adam, "adamw": adamw, "muon": muon}


def optimizer_of(config: ConfigDict) -> optax.GradientTransformation:
    """That of config.optim: gradients are clipped to the global norm optim.clip_norm (0: not), then its OPTIMIZERS, then each
    part's factor of optim.parts. Its `init` raises UserError for a part that the parameters do not have."""
    c = config.optim
    clip = optax.clip_by_global_norm(c.clip_norm) if c.clip_norm else optax.identity()
    parts = [by_parts(parts_of(c.parts))] if c.parts else []
    return optax.chain(clip, construct(OPTIMIZERS, c, schedule_of(config)), *parts)


# -------------------------------------------------------------------------------------------------------------------- parts


def parts_of(text: str) -> dict[str, float]:
    """ "encoder=0.1,decoder=2" -> {"encoder": 0.1, "decoder": 2.0}. Raises ValueError for another text, or a factor below 0."""
    parts = dict(pair.strip().split("=") for pair in text.split(",")) if text else {}
    parts = {name.strip(): float(factor) for name, factor in parts.items()}
    if not all(name and 0 <= factor < math.inf for name, factor in parts.items()):
        raise ValueError(text)
    return parts


def are_parts(text: str) -> bool:
    """Whether `parts_of` reads the text."""
    try:
        parts_of(text)
    except ValueError:
        return False
    return True


def by_parts(factors: dict[str, float]) -> optax.GradientTransformation:
    """Updates times the factor of the part that a parameter is in, by the first name in its path below `params`: so each part
    has a learning rate of its own, and 0 leaves it as it is. Those of no part: times 1."""

    def part_of(path):
        names = [str(getattr(entry, "key", entry)) for entry in path]
        return (names[1:] if names[0] == "params" else names)[0]

    def init(params):
        there = sorted({part_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)})
        for name in factors:
            if name not in there:
                raise UserError(f"config.optim.parts names {name!r}, but the parts of the parameters are {', '.join(there)}.")
        return optax.EmptyState()

    def update(updates, state, params=None):  # noqa: ARG001 - Optax's signature
        scale = lambda path, leaf: leaf * factors.get(part_of(path), 1.0)  # noqa: E731
        return jax.tree_util.tree_map_with_path(scale, updates), state

    return optax.GradientTransformation(init, update)
