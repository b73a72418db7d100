"""Optimizers, as Optax chains."""

from collections.abc import Callable

import optax


def learning_rate_schedule(learning_rate: float, warmup_steps: int) -> optax.Schedule:
    """Linear from 0 to learning_rate over the warm-up (step k, counted from 0, uses (k + 1) / warmup_steps), then constant."""
    if warmup_steps == 0:
        return optax.constant_schedule(learning_rate)
    ramp = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    return lambda step: ramp(step + 1)


def adam(*, learning_rate: float, warmup_steps: int, b1: float, b2: float, eps: float, clip_norm: float):
    """Adam on gradients clipped to the global norm `clip_norm` (0: not clipped)."""
    schedule = learning_rate_schedule(learning_rate, warmup_steps)
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    return optax.chain(clip, optax.adam(schedule, b1=b1, b2=b2, eps=eps))


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {"adam": adam}
