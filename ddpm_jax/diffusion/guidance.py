"""Guidance: transforms from denoiser to denoiser that make more of a condition than its model does.

The guided score is that of a tilted density. With p(y | x) the posterior of a class y,

    classifier-free    w score(x | y) + (1 - w) score(x)           = grad log [p(x) p(y | x)^w]
    classifier         score(x) + w grad log p(y | x)              = the same, by a classifier

for w = 1 the conditional score. For other w the tilted densities of different t are no diffusion of one another, so that a
sampler does not end in p(x) p(y | x)^w. Scales w are [] or one per example [B], and may be traced.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.predictions import Denoiser, Prediction, PredictionType, add_score, x0_to_eps
from ddpm_jax.diffusion.process import Process, expand, root
from ddpm_jax.diffusion.transforms import without_shift

Pair = Callable[[jax.Array, jax.Array], tuple[Prediction, Prediction]]


def batched_pair(bind: Callable[[Any], Denoiser], condition: Any, other: Any) -> Pair:
    """pair(x, t) for two conditions, pytrees of arrays [B, ...] (of labels and null labels, say), by one call for a batch of
    2 B: evaluations 1 of each.

    bind(condition [2 B, ...]) is the denoiser of this condition.
    """
    both = jax.tree.map(lambda *rows: jnp.concatenate(rows), condition, other)

    def pair(x, t):
        t = jnp.broadcast_to(t, x.shape[:1])
        prediction = bind(both)(jnp.concatenate([x, x]), jnp.concatenate([t, t]))

        def half(part):
            of = lambda value: None if value is None else jnp.split(value, 2)[part]  # noqa: E731
            fields = ("x0", "eps", "variance_output")
            return prediction._replace(**{name: of(getattr(prediction, name)) for name in fields})

        return half(0), half(1)

    return pair


def where_it_acts(process: Process, t: jax.Array, low: jax.Array, high: jax.Array, scale: jax.Array, other: float) -> jax.Array:
    """The scale where sigma / alpha at t is in [low, high], else the other one."""
    level = jnp.exp(-process.log_snr(t) / 2)  # infinite where alpha = 0
    return jnp.where((level >= low) & (level <= high), scale, other)


def classifier_free(
    pair: Pair,
    process: Process,
    *,
    scale: jax.Array,
    low: jax.Array = 0.0,
    high: jax.Array = jnp.inf,
    rescale: jax.Array = 0.0,
    prediction: PredictionType | None = None,
) -> Denoiser:
    """eps = eps_u + w (eps_c - eps_u) and the same of x0, w = scale (Ho & Salimans 2022, who call w - 1 their w).

    pair(x, t) -> (conditional, unconditional); see `batched_pair`. w = 1 is exactly the conditional prediction, w = 0 the
    unconditional one. With lambda x, t: (strong(x, t), weak(x, t)), two models of one condition, it is autoguidance (Karras et
    al. 2024). `variance_output` is the conditional's.

    low, high: where sigma / alpha is not in [low, high], the conditional prediction (Kynkaanniemi et al. 2024). Both are
    evaluated there too, and counted.

    rescale: phi of Lin et al. 2024, eq. 15 and 16, in [0, 1]. The network's output of the type `prediction`, whichever it is,
    is multiplied by 1 - phi + phi std(conditional) / std(guided), std over all elements of an example; by 1 where that of the
    guided is 0. x0 and eps follow from it.

    Evaluations: of both. ValueError for a rescale without a prediction type.
    """
    rescaled = prediction is not None
    if not rescaled and not (isinstance(rescale, int | float) and rescale == 0):
        raise ValueError("rescale acts on the network's output: give its prediction type, prediction=PREDICTIONS[...]()")

    def denoise(x, t):
        conditional, unconditional = map(without_shift, pair(x, t))
        w = expand(where_it_acts(process, t, low, high, scale, 1.0), x)
        x0, eps = (w * c + (1 - w) * u for c, u in zip(conditional[:2], unconditional[:2], strict=True))  # exact at 0 and 1
        if rescaled:
            output = prediction.target(process, x0, eps, t)
            ratio = _ratio_of_deviations(prediction.target(process, conditional.x0, conditional.eps, t), output)
            change = expand(jnp.asarray(rescale), x) * (ratio - 1) * output
            by_x0, by_eps = prediction.to_x0_eps(process, jnp.zeros_like(x), t, change)  # linear in x and output
            x0, eps = x0 + by_x0, eps + by_eps
        evaluations = conditional.evaluations + unconditional.evaluations
        return conditional._replace(x0=x0, eps=eps, evaluations=evaluations)

    return denoise


def _ratio_of_deviations(a, b):
    """Per example std(a) / std(b), with axes to broadcast; 1 where std(b) = 0. Its gradient is finite."""
    axes = tuple(range(1, a.ndim))
    a, b = (jnp.var(value, axes, keepdims=True) for value in (a, b))
    return root(jnp.where(b == 0, 1.0, a / jnp.where(b == 0, 1.0, b)))


def dynamic_thresholding(denoise: Denoiser, process: Process, *, percentile: jax.Array) -> Denoiser:
    """Clips x0 to [-s, s] and divides it by s; s: the percentile of |x0| within an example, at least 1.

    Saharia et al. 2022 (Imagen), section 2.3, with 99.5. eps follows from x0. percentile: in [0, 100], ValueError for another
    where it is concrete.
    """
    if not isinstance(percentile, jax.core.Tracer) and not 0 <= percentile <= 100:
        raise ValueError(f"percentile must be from 0 to 100, found {percentile}")

    def threshold(x, t):
        prediction = without_shift(denoise(x, t))
        s = jnp.percentile(jnp.abs(prediction.x0).reshape(len(x), -1), percentile, axis=1)
        s = expand(jnp.maximum(s, 1.0), x)
        x0 = jnp.clip(prediction.x0, -s, s) / s
        return prediction._replace(x0=x0, eps=x0_to_eps(process, x, t, x0))

    return threshold


def _scaled_gradient(log_prob, scale, x, t):
    gradient = jax.grad(lambda x: log_prob(x, t).sum())(x)
    return expand(jnp.asarray(scale, gradient.dtype), x) * gradient


def classifier_guidance(
    denoise: Denoiser, process: Process, log_prob: Callable[[jax.Array, jax.Array], jax.Array], *, scale: jax.Array
) -> Denoiser:
    """eps - w sigma g and x0 + w sigma^2 / alpha g, g = grad_x log p(y | x_t) (Dhariwal & Nichol 2021, algorithm 2).

    log_prob(x, t) -> [B], y bound: of each example on its own. For every sampler. It acts on the denoiser as it is, so what was
    clipped before may leave its limits, as in their code. Where alpha = 0, x_t knows nothing of y: no shift there. Evaluations:
    the denoiser's; those of the classifier are not counted.
    """

    def guided(x, t):
        return add_score(process, t, denoise(x, t), _scaled_gradient(log_prob, scale, x, t))

    return guided


def mean_shift(
    denoise: Denoiser, process: Process, log_prob: Callable[[jax.Array, jax.Array], jax.Array], *, scale: jax.Array
) -> Denoiser:
    """`classifier_guidance`, but that ancestral steps move their mean by variance w g (Dhariwal & Nichol 2021, algorithm 1).

    The score form moves that mean by sigma_t^2 (1 - SNR_t / SNR_s) alpha_s / alpha_t w g, so that both have one limit as the
    steps grow. All other samplers, correctors and `last="denoise"` see the score form. A step to t = 0 with the large variance
    moves the mean by beta_1 w g, where guided-diffusion has the clipped variance of that step for beta_1. To be applied last:
    clipping and the other transforms that set x0 anew refuse what is wrapped in it.
    """

    def guided(x, t):
        shift = _scaled_gradient(log_prob, scale, x, t)
        return add_score(process, t, without_shift(denoise(x, t)), shift)._replace(shift=shift)

    return guided
