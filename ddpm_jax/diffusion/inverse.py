"""Inpainting and other linear inverse problems: samples of p(x0 | y) from a model of p(x0).

    y = A x0 + s n,   n ~ N(0, I),   A linear                                                                 (1)

A is a function of images [B, ...], each on its own, as a mask, down-sampling, blur, grey-scale. Two kinds of transform:

* sampler -> sampler, for what acts on the state between steps: `replacement` and `repaint` put the known pixels in place, at
  the noise of each time; `dps` moves the state towards the measurement.
* denoiser -> denoiser, for what is a shift of the score: `moment_matched` turns E[x0 | x_t] into E[x0 | x_t, y], for every
  sampler; `known_x0` puts known pixels in place at the end, exactly.

Only `moment_matched` with the covariance "jacobian" is exact, and that on Gaussians; the others are biased there too, by how
much is written at each and computed in tests/diffusion/test_inverse.py. Evaluations: a product with the network's Jacobian
counts as one.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from ddpm_jax.diffusion.predictions import Denoiser, x0_to_eps
from ddpm_jax.diffusion.process import Process, concrete, expand, transition
from ddpm_jax.diffusion.samplers import Sampler, repeat
from ddpm_jax.diffusion.samplers.core import Static, with_steps

# ------------------------------------------------------------------------------------------------ linear operators


def _mask(known, x0):
    return jnp.where(known, x0, 0.0)


def mask(known: jax.Array) -> Partial:
    """The known pixels, 0 elsewhere, as y must be. known: True or 1 where known; it broadcasts against the images."""
    return Partial(_mask, jnp.asarray(known, bool))


def _downsample(factor, x0):
    batch, height, width, channels = x0.shape
    if height % factor.value or width % factor.value:
        raise ValueError(
            f"images of {height} x {width} have no averages over squares of {factor.value}: take a divisor of both"
        )
    blocks = x0.reshape(batch, height // factor.value, factor.value, width // factor.value, factor.value, channels)
    return blocks.mean((2, 4))


def downsample(factor: int) -> Partial:
    """Averages over squares of factor x factor pixels: [B, H, W, C] -> [B, H / factor, W / factor, C]."""
    return Partial(_downsample, Static(factor))


def _blur_matrix(size, std):
    offsets = jnp.arange(size)[:, None] - jnp.arange(size)
    return jax.nn.softmax(-0.5 * (offsets / std) ** 2, axis=1)


def _blur(std, x0):
    of_rows, of_columns = (_blur_matrix(size, std) for size in x0.shape[1:3])
    return jnp.einsum("ih,jw,bhwc->bijc", of_rows.astype(x0.dtype), of_columns.astype(x0.dtype), x0)


def blur(std: float) -> Partial:
    """Gaussian blur of [B, H, W, C], std in pixels; at the border the weights of the pixels that exist sum to 1."""
    return Partial(_blur, jnp.asarray(std, float))


GREY_WEIGHTS = (0.299, 0.587, 0.114)  # of R, G, B in luma, ITU-R BT.601


def grey(x0: jax.Array) -> jax.Array:
    """0.299 R + 0.587 G + 0.114 B: [B, H, W, 3] -> [B, H, W, 1]."""
    return (x0 * jnp.asarray(GREY_WEIGHTS, x0.dtype)).sum(-1, keepdims=True)


def _check_broadcasts(name, array, shape, of):
    """ValueError for an array that does not broadcast to a shape."""
    try:
        fits = jnp.broadcast_shapes(jnp.shape(array), shape) == tuple(shape)
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"{name} must be of the shape of {of}, {list(shape)}, or broadcast to it: found {list(jnp.shape(array))}"
        )


# ------------------------------------------------------------------------------------------------ known pixels, put in place


def _replaced_step(inner, image, known, denoise, process, x, memory, at):
    _check_broadcasts("the known image", image, x.shape, "x")
    _check_broadcasts("the mask", known, x.shape, "x")
    x, mean, memory = inner(denoise, process, x, memory, at._replace(noise=lambda j: at.noise(j + 1)))
    kept = process.alpha(at.s) * image
    return jnp.where(known, kept + process.sigma(at.s) * at.noise(0), x), jnp.where(known, kept, mean), memory


def replacement(sampler: Sampler, image: jax.Array, known: jax.Array) -> Sampler:
    """After each step of the sampler, x_s = alpha_s image + sigma_s z at the known pixels, z drawn anew.

    Song et al. 2021 (score SDE), appendix I.2. image: in the model's scale; known: True or 1 at known pixels; both broadcast to
    x, else ValueError. Exact known pixels: see `known_x0`.

    Bias: a step sees the known pixels through the noise of t alone, so that the others follow them too little. Of two pixels of
    variance 1 and correlation 0.9, one of them known to be 1, the other ends at 0.54 -+ 0.65 where 0.90 -+ 0.44 is true
    (ancestral, 20 points). Evaluations: the sampler's.
    """
    known = jnp.asarray(known, bool)
    return with_steps(sampler, lambda step: Partial(_replaced_step, step, jnp.asarray(image), known))


def _repaint_step(step, resamplings, denoise, process, x, memory, at):
    count = resamplings.value
    a, variance = transition(process, at.t, at.s)

    def numbered(j):  # the k-th normal of resampling j, k * count + j of the step
        return lambda k: at.noise(k * count + j)

    def resample(denoise, in_loop, x, j):
        normal = numbered(j)
        reached, _, _ = step(denoise, process, x, memory, at._replace(noise=lambda k: normal(k + 1), in_loop=in_loop))
        return a * reached + jnp.sqrt(variance) * normal(0)

    x = repeat(at, count - 1, resample, x)
    return step(denoise, process, x, memory, at._replace(noise=lambda k: numbered(count - 1)(k + 1)))


def repaint(sampler: Sampler, image: jax.Array, known: jax.Array, *, resamplings: int = 10) -> Sampler:
    """Each step of `replacement` from t to s made `resamplings` times, the state noised from s to t again in between.

    Lugmayr et al. 2022 (RePaint), algorithm 1: the unknown pixels come to fit the known ones. Their jump length is one step of
    the grid here: a sampler sees no more of it. A sampler with memory begins each resampling with that of the step before.
    As resamplings grow, the result comes near p(x0 | y), up to an error by the noise of the last steps: 32 of them end at
    0.890 -+ 0.443 where `replacement` ends at 0.54 -+ 0.65, above. 1: `replacement`. ValueError for less. Evaluations: the
    sampler's times resamplings.
    """
    if resamplings < 1:
        raise ValueError(f"resamplings must be at least 1, found {resamplings}")
    replaced = replacement(sampler, image, known)
    return with_steps(replaced, lambda step: Partial(_repaint_step, step, Static(resamplings)))


def known_x0(denoise: Denoiser, process: Process, image: jax.Array, known: jax.Array, end: jax.Array) -> Denoiser:
    """From time `end` down, x0 at the known pixels is that of the image, bit for bit, and eps follows.

    With end = times[-1] the last denoising of `sample(..., last="denoise")` returns the known pixels. No step before it
    changes, but for known pixels where a sampler evaluates at `end` too.
    """

    def exact(x, t):
        _check_broadcasts("the known image", image, x.shape, "x")
        _check_broadcasts("the mask", known, x.shape, "x")
        prediction = denoise(x, t)
        here = jnp.asarray(known, bool) & (expand(t, x) <= end)
        eps = x0_to_eps(process, x, t, image)
        return prediction._replace(x0=jnp.where(here, image, prediction.x0), eps=jnp.where(here, eps, prediction.eps))

    return exact


# ------------------------------------------------------------------------------------------------ guidance by a measurement


def _dot(u, v):
    """Per example, with axes to broadcast against u."""
    return jnp.sum(u * v, range(1, u.ndim), keepdims=True)


def _x0_and_back(denoise, x, t):
    """(x0_hat, v -> J^T v, the prediction), J = d x0_hat / dx."""

    def x0_of(x):
        prediction = denoise(x, t)
        return prediction.x0, prediction

    x0, back, prediction = jax.vjp(x0_of, x, has_aux=True)
    return x0, lambda v: back(v)[0], prediction


def _observe(operator, measurement, x0):
    """(y - A x0, A^T). ValueError for a y of another shape than A x0."""
    observed = operator(x0)
    _check_broadcasts("the measurement", measurement, observed.shape, "what the operator makes of x0")
    transposed = jax.linear_transpose(operator, jax.ShapeDtypeStruct(x0.shape, x0.dtype))
    return measurement - observed, lambda u: transposed(u)[0]


def _dps_step(inner, operator, measurement, zeta, denoise, process, x, memory, at):
    seen = []

    def watched(x, t):
        seen.append(_x0_and_back(denoise, x, t))
        return seen[-1][-1]

    x, mean, memory = inner(watched, process, x, memory, at)
    if not seen:
        raise ValueError(
            "dps needs the gradient of a step's first evaluation, and this sampler evaluates in a loop: take another"
        )
    x0, back, prediction = seen[0]
    residual, transpose = _observe(operator, measurement, x0)
    norm2 = _dot(residual, residual)
    norm = jnp.sqrt(jnp.where(norm2 == 0, 1.0, norm2))
    shift = at.in_loop(lambda _: (zeta * back(transpose(residual / norm)), prediction.evaluations))
    return x + shift, mean + shift, memory


def dps(sampler: Sampler, operator: Callable, measurement: jax.Array, *, zeta: float = 1.0) -> Sampler:
    """After each step, x_s - zeta grad |y - A x0_hat(x_t)|, x_t and x0_hat those of its first evaluation.

    Diffusion posterior sampling: Chung et al. 2023, algorithm 1, with the sampler `ancestral`. As in their code the gradient is
    that of the norm, of each example; the paper's, of |.|^2 with the step size zeta' / |.|, is zeta = 2 zeta'. As a shift of
    the score: `moment_matched` with the covariance "none".

    Bias: what it converges to depends on zeta and on the number of steps. On the pixels of `replacement`, with 100 points and
    zeta = 0.3, the known one ends at 1.00 -+ 0.18 and the other at 0.99 -+ 0.41 where 0.90 -+ 0.44 is true. ValueError for a
    measurement of another shape than A x0, and for a sampler that evaluates in a loop. Evaluations per step: one more.
    """
    knobs = operator if isinstance(operator, Partial) else Partial(operator), jnp.asarray(measurement), jnp.asarray(zeta, float)
    return with_steps(sampler, lambda step: Partial(_dps_step, step, *knobs))


def conjugate_gradients(matrix: Callable, b: jax.Array, iterations: int) -> jax.Array:
    """u of matrix(u) = b [B, ...], for a linear function that is symmetric and positive on each example, each on its own.

    An example is done where its residual is lost in rounding, and where matrix is not positive, as that of a network may be.
    """
    limit = jnp.finfo(b.dtype).eps ** 2 * _dot(b, b)

    def body(carry, _):
        u, residual, direction, size = carry
        image = matrix(direction)
        curvature = _dot(direction, image)
        on = (curvature > 0) & (size > limit)
        step = jnp.where(on, size / jnp.where(on, curvature, 1.0), 0.0)
        u, residual = u + step * direction, residual - step * image
        new = _dot(residual, residual)
        direction = jnp.where(on, residual + new / jnp.where(on, size, 1.0) * direction, 0.0)
        return (u, residual, direction, new), None

    return jax.lax.scan(body, (jnp.zeros_like(b), b, b, _dot(b, b)), length=iterations)[0][0]


def _solved(covariance, products):
    """By conjugate gradients, for C v = covariance(v, ratio, alpha, sigma, back), so many products with J in each."""

    def solve(residual, operator, transpose, back, ratio, alpha, sigma, noise, iterations):
        def matrix(u):
            return operator(covariance(transpose(u), ratio, alpha, sigma, back)) + noise**2 * u

        solution = jax.lax.custom_linear_solve(
            matrix, residual, lambda matrix, b: conjugate_gradients(matrix, b, iterations), symmetric=True
        )
        return solution, products * iterations

    return solve


def _divided(residual, operator, transpose, back, ratio, alpha, sigma, noise, iterations):  # noqa: ARG001
    """By the row sums of A C A^T + s^2 I in place of the matrix; 0 where one is not positive, as that of a network may be."""
    sums = ratio * operator(back(transpose(jnp.ones_like(residual)))) + noise**2
    return jnp.where(sums > 0, residual / jnp.where(sums > 0, sums, 1.0), 0.0), 1


# Of `moment_matched`: (A C A^T + s^2 I)^-1 of the residual, and the products with the network's Jacobian J that it took, of the
# residual, A, A^T, v -> J^T v, sigma^2 / alpha, alpha, sigma, s and the iterations.
COVARIANCES: dict[str, Callable] = {
    "jacobian": _solved(lambda v, ratio, alpha, sigma, back: ratio * back(v), 1),  # noqa: ARG005
    "row_sums": _divided,
    "isotropic": _solved(lambda v, ratio, alpha, sigma, back: sigma**2 / (alpha**2 + sigma**2) * v, 0),  # noqa: ARG005
    "none": _solved(lambda v, ratio, alpha, sigma, back: 0.0 * v, 0),  # noqa: ARG005
}


def moment_matched(
    denoise: Denoiser,
    process: Process,
    operator: Callable,
    measurement: jax.Array,
    *,
    noise: float = 0.0,
    covariance: str = "jacobian",
    iterations: int = 5,
) -> Denoiser:
    """The score shifted by J^T A^T (A C A^T + s^2 I)^-1 (y - A x0_hat), J = d x0_hat / dx, s = noise: the gradient of
    log N(y; A x0_hat, A C A^T + s^2 I) for constant C.

    covariance: what stands for that of p(x0 | x_t).
    "jacobian": C = sigma^2 / alpha J, which is right for the true denoiser, by conjugate gradients (MMPS, Rozet et al. 2024).
    Where p(x0) is Gaussian, x0 and eps become E[x0 | x_t, y] and E[eps | x_t, y], exactly.
    "row_sums": the same C, and A C A^T by its row sums on the diagonal (TMPD, Boys et al. 2023, section 3 and code). Exact
    where what is measured is independent, one from another.
    "isotropic": C = sigma^2 / (alpha^2 + sigma^2) I, that of x0 ~ N(0, I) (PiGDM, Song et al. 2023, whose DDIM step weighs
    the same shift in another way).
    "none": C = 0, the score form of DPS (Chung et al. 2023, eq. 16); it needs s > 0, and is too sure of y: with s = 1 the other
    pixel of `replacement` ends at 0.60 -+ 0.72 where 0.45 -+ 0.77 is true.

    iterations: of conjugate gradients in each call; as many as y has numbers are exact but for rounding. J^T stands for J,
    which is symmetric for the true denoiser. Where alpha = 0, J says nothing of C, and nothing is shifted. ValueError for
    another covariance, for "none" without noise and for a measurement of another shape than A x0. Evaluations: 2 of the
    denoiser's, "jacobian" as many more as there are iterations, "row_sums" 1 more.
    """
    if covariance not in COVARIANCES:
        raise ValueError(f"covariance must be one of {', '.join(COVARIANCES)}, found {covariance!r}")
    if covariance == "none" and concrete(noise) and not noise > 0:
        raise ValueError(f"covariance 'none' divides by the measurement's noise, which must be greater than 0, found {noise}")

    def guided(x, t):
        x0, back, prediction = _x0_and_back(denoise, x, t)
        residual, transpose = _observe(operator, measurement, x0)
        alpha, sigma = expand(process.alpha(t), x), expand(process.sigma(t), x)
        silent = alpha == 0
        ratio = jnp.where(silent, 0.0, sigma**2 / jnp.where(silent, 1.0, alpha))
        solve = COVARIANCES[covariance]
        solution, products = solve(residual, operator, transpose, back, ratio, alpha, sigma, noise, iterations)
        shift = jnp.where(silent, 0.0, back(transpose(solution)))
        return prediction._replace(
            x0=x0 + ratio * shift,
            eps=prediction.eps - sigma * shift,
            evaluations=prediction.evaluations * (2 + products),
        )

    return guided


# ------------------------------------------------------------------------------------------------ inpainting, by name
#
# (sampler, denoise, process, image, known, decode) -> (sampler, denoise). decode(x0) -> images, a linear function, where x0 are
# no pixels; else None, and around the result goes `known_x0`.


def _measured(image, known, decode):
    """The operator and what it saw: the known pixels, 0 in place of the others."""
    operator = mask(known) if decode is None else lambda x0: jnp.where(known, decode(x0), 0.0)
    return operator, jnp.where(known, image, 0.0)


def _in_place(decode):
    if decode is not None:
        raise ValueError("known pixels cannot be put in place where states are no pixels: take dps, pigdm, tmpd or mmps")


def _by_replacement(sampler, denoise, process, image, known, decode=None):  # noqa: ARG001
    _in_place(decode)
    return replacement(sampler, image, known), denoise


def _by_repaint(sampler, denoise, process, image, known, decode=None, *, resamplings):  # noqa: ARG001
    _in_place(decode)
    return repaint(sampler, image, known, resamplings=resamplings), denoise


def _by_dps(sampler, denoise, process, image, known, decode=None, *, zeta):  # noqa: ARG001
    return dps(sampler, *_measured(image, known, decode), zeta=zeta), denoise


def _by_pigdm(sampler, denoise, process, image, known, decode=None):
    measured = _measured(image, known, decode)
    return sampler, moment_matched(denoise, process, *measured, covariance="isotropic", iterations=1)


def _by_tmpd(sampler, denoise, process, image, known, decode=None):
    return sampler, moment_matched(denoise, process, *_measured(image, known, decode), covariance="row_sums")


def _by_mmps(sampler, denoise, process, image, known, decode=None, *, iterations):
    return sampler, moment_matched(denoise, process, *_measured(image, known, decode), iterations=iterations)


INPAINTING: dict[str, Callable] = {
    "replacement": _by_replacement,
    "repaint": _by_repaint,
    "dps": _by_dps,
    "pigdm": _by_pigdm,
    "tmpd": _by_tmpd,
    "mmps": _by_mmps,
}
