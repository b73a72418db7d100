"""The closed-form world: data distributions for which a diffusion knows everything exactly.

Is my new sampler right? On a Gaussian every fixed-step sampler is affine, so its mean and covariance follow without sampling:

    data = gaussian(mean=jnp.array([0.5, -0.3]), covariance=jnp.array([[0.3, 0.1], [0.1, 0.2]]))
    process, sampler = vp(), my_sampler()
    times = GRIDS["log_snr"](process, steps=100)
    start = moments(data, process, times[0])                                     # the true marginal at t_max
    mean, covariance = propagate(sampler, denoiser(data, process), process, times, *start)
    exact_mean, exact_covariance = moments(data, process, times[-1])             # what it should have reached

Halve the steps: the difference of a deterministic sampler of order p grows 2^p-fold. On one path, `flow` has the exact answer;
with `mixture` in place of `gaussian` the same can be asked of samples, labels and guidance.

Notation: component k of the data is N(m_k, U_k diag(l_k) U_k^T) with weight w_k and label y_k. At time t it is
N(alpha m_k, U_k diag(alpha^2 l_k + sigma^2) U_k^T). Arrays x are [B, ...] with D elements per example.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from ddpm_jax.diffusion.predictions import Denoiser, Prediction
from ddpm_jax.diffusion.process import Process, check_times, concrete
from ddpm_jax.diffusion.samplers import At, Sampler


class Mixture(NamedTuple):
    """A mixture of K Gaussians in D dimensions, by the eigenvectors (columns) and eigenvalues of their covariances."""

    log_weights: jax.Array  # [K]
    means: jax.Array  # [K, D]
    vectors: jax.Array  # [K, D, D]
    values: jax.Array  # [K, D]
    labels: jax.Array  # [K], integers from 0


def mixture(means, covariances, weights=None, labels=None) -> Mixture:
    """means: [K, D]; covariances: [K, D, D]; weights: [K], positive (default: equal); labels: [K] (default: 0..K-1).

    ValueError for shapes that do not match, a covariance that is not symmetric and positive semi-definite, or a bad weight.
    """
    means, covariances = np.asarray(means, np.float64), np.asarray(covariances, np.float64)
    count, dimension = means.shape if means.ndim == 2 else (0, 0)
    weights = np.ones(count) if weights is None else np.asarray(weights, np.float64)
    labels = np.arange(count) if labels is None else np.asarray(labels)
    shapes = (covariances.shape, weights.shape, labels.shape)
    if not count or shapes != ((count, dimension, dimension), (count,), (count,)):
        raise ValueError(f"means must be [K, D], covariances [K, D, D], weights and labels [K], found {means.shape}, {shapes}")
    if not np.allclose(covariances, covariances.swapaxes(1, 2)):
        raise ValueError("covariances must be symmetric")
    values, vectors = np.linalg.eigh(covariances)
    if values.min() < -1e-9 * np.abs(values).max():
        raise ValueError(f"covariances must be positive semi-definite, found the eigenvalue {values.min():g}")
    if not (weights > 0).all():
        raise ValueError(f"weights must be positive, found {weights}")
    floats = (np.log(weights / weights.sum()), means, vectors, np.maximum(values, 0.0))
    return Mixture(*(jnp.asarray(value, float) for value in floats), jnp.asarray(labels, int))


def gaussian(mean, covariance) -> Mixture:
    """The mixture of one. mean: [D]; covariance: [D, D]."""
    return mixture(np.asarray(mean)[None], np.asarray(covariance)[None])


def _components(data, process, x, t):
    """Per example and component: coordinates U^T (x - alpha m) [B, K, D], their variances [B, K, D], alpha, sigma [B, 1, 1]."""
    check_times(process, t=t)
    t = jnp.broadcast_to(t, x.shape[:1])
    alpha, sigma = process.alpha(t)[:, None, None], process.sigma(t)[:, None, None]
    offsets = x.reshape(len(x), 1, -1) - alpha * data.means
    return jnp.einsum("kde,bkd->bke", data.vectors, offsets), alpha**2 * data.values + sigma**2, alpha, sigma


def _log_joint(data, process, x, t, label=None):
    """log w_k + log N_k(x) [B, K]; -inf for components of other labels, where a label [] or [B] is given."""
    coordinates, variances, _, _ = _components(data, process, x, t)
    log_density = -0.5 * (coordinates**2 / variances + jnp.log(2 * jnp.pi * variances)).sum(-1)
    log_weights = jnp.broadcast_to(data.log_weights, log_density.shape)
    if label is not None:
        own = data.labels == jnp.broadcast_to(label, x.shape[:1])[:, None]
        log_weights = jnp.where(own, log_weights, -jnp.inf)
        log_weights = jax.nn.log_softmax(log_weights, -1)
    return log_weights + log_density


def log_density(data: Mixture, process: Process, x: jax.Array, t: jax.Array, label=None) -> jax.Array:
    """log p_t(x), or log p_t(x | label), in nats. x: [B, ...]; t, label: [] or [B]. Returns [B]."""
    return jax.nn.logsumexp(_log_joint(data, process, x, t, label), -1)


def denoiser(data: Mixture, process: Process, label=None) -> Denoiser:
    """The exact E[x_0 | x_t] and E[eps | x_t], or those given the label [] or [B] too.

    With z = U^T (x - alpha m) and V = alpha^2 l + sigma^2, of one component: x0 = m + U (alpha l / V) z, eps = U (sigma / V) z.
    """

    def denoise(x, t):
        coordinates, variances, alpha, sigma = _components(data, process, x, t)
        share = jax.nn.softmax(_log_joint(data, process, x, t, label), -1)
        turned = share[..., None, None] * data.vectors
        x0 = jnp.einsum("bkde,bke->bd", turned, alpha * data.values / variances * coordinates) + share @ data.means
        eps = jnp.einsum("bkde,bke->bd", turned, sigma / variances * coordinates)
        return Prediction(x0.reshape(x.shape), eps.reshape(x.shape))

    return denoise


def score(data: Mixture, process: Process, x: jax.Array, t: jax.Array, label=None) -> jax.Array:
    """grad_x log p_t(x) = -E[eps | x_t] / sigma, or that of log p_t(x | label); also at sigma = 0. Shaped like x."""
    coordinates, variances, _, _ = _components(data, process, x, t)
    share = jax.nn.softmax(_log_joint(data, process, x, t, label), -1)
    return -jnp.einsum("bk,kde,bke->bd", share, data.vectors, coordinates / variances).reshape(x.shape)


def class_log_posterior(data: Mixture, process: Process, x: jax.Array, t: jax.Array, classes: int) -> jax.Array:
    """log p(y | x_t) for y = 0..classes-1. Returns [B, classes]; -inf for a class that no component has."""
    log_share = jax.nn.log_softmax(_log_joint(data, process, x, t), -1)[:, None, :]
    own = data.labels == jnp.arange(classes)[:, None]
    return jax.nn.logsumexp(jnp.where(own, log_share, -jnp.inf), -1)


def draw(data: Mixture, process: Process, t: jax.Array, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Samples of p_t [B, D] and their labels [B]. keys: [B]; t: [] or [B], 0 for data where sigma(0) = 0."""
    check_times(process, t=t)
    t = jnp.broadcast_to(t, keys.shape)

    def one(key, t):
        which, normal = jax.random.split(key)
        k = jax.random.categorical(which, data.log_weights)
        deviation = jnp.sqrt(process.alpha(t) ** 2 * data.values[k] + process.sigma(t) ** 2)
        coordinates = deviation * jax.random.normal(normal, deviation.shape)
        return process.alpha(t) * data.means[k] + data.vectors[k] @ coordinates, data.labels[k]

    return jax.vmap(one)(keys, t)


def moments(data: Mixture, process: Process, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean [D] and covariance [D, D] of p_t."""
    check_times(process, t=t)
    weights = jnp.exp(data.log_weights)
    mean = weights @ data.means
    offsets = data.means - mean
    inner = jnp.einsum("k,kde,ke,kfe->df", weights, data.vectors, data.values, data.vectors)
    outer = jnp.einsum("k,kd,ke->de", weights, offsets, offsets)
    alpha, sigma = process.alpha(t), process.sigma(t)
    return alpha * mean, alpha**2 * (inner + outer) + sigma**2 * jnp.eye(len(mean), dtype=mean.dtype)


def flow(data: Mixture, process: Process, x: jax.Array, t: jax.Array, s: jax.Array) -> jax.Array:
    """Where the probability-flow ODE takes x from t to s, up or down, for a Gaussian. x: [B, ...]; t, s: [] or [B].

    In the eigenbasis (x - alpha m) grows as the marginal deviation. ValueError for a mixture of more: it has no closed form.
    """
    if len(data.means) != 1:
        raise ValueError(f"the flow map is known for one Gaussian, found a mixture of {len(data.means)}")
    coordinates, variances, _, _ = _components(data, process, x, t)
    _, variances_s, alpha_s, _ = _components(data, process, x, s)
    moved = jnp.einsum("kde,bke->bd", data.vectors, coordinates * jnp.sqrt(variances_s / variances))
    return (alpha_s[:, 0] * data.means + moved).reshape(x.shape)


def propagate(
    sampler: Sampler,
    denoise: Denoiser,
    process: Process,
    times: jax.Array,
    mean: jax.Array,
    covariance: jax.Array,
    normals: int = 2,
) -> tuple[jax.Array, jax.Array]:
    """Exact mean [D] and covariance [D, D] of a sampler's state at times[-1], without sampling.

    mean, covariance: of the state at times[0]. Holds where every step is affine in the state, the sampler's memory and its
    normals, as it is with the denoiser of a Gaussian: then moments propagate as m' = f(m), C' = A C A^T + B B^T. The sampler
    may draw up to `normals` normals per step; more is an IndexError, or nan where a loop of its own draws them.
    """

    def begin(x):
        return ravel_pytree((x[None], sampler.init(x[None])))

    dimension, unravel = len(mean), begin(mean)[1]

    def body(step):
        def moved(moments, inputs):
            i, t, s = inputs

            def affine(state, noises):
                x, memory = unravel(state)
                noise = partial(jnp.take, noises, axis=0, mode="fill")  # nan where a loop draws too many
                in_loop = lambda f: f(denoise)[0]  # noqa: E731
                x, _, memory = step(denoise, process, x, memory, At(t, s, i, len(times) - 1, checked(noise), in_loop))
                return ravel_pytree((x, memory))[0]

            m, c = moments
            zeros = jnp.zeros((normals, 1, dimension))
            by_state, by_noise = jax.jacfwd(affine, argnums=(0, 1))(m, zeros)
            by_noise = by_noise.reshape(len(m), -1)
            return (affine(m, zeros), by_state @ c @ by_state.T + by_noise @ by_noise.T), None

        return moved

    def checked(noise):
        def draw(j):
            if concrete(j) and j >= normals:
                raise IndexError(f"the sampler draws more normals than normals = {normals}")
            return noise(j)

        return draw

    flat, by_x = begin(mean)[0], jax.jacfwd(lambda x: begin(x)[0])(mean)
    moments = flat, by_x @ covariance @ by_x.T
    for step, transitions in sampler.phases(times):
        moments, _ = jax.lax.scan(body(step), moments, transitions)
    m, c = moments
    return m[:dimension], c[:dimension, :dimension]
