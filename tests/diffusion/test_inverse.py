"""Inpainting and inverse problems against Bayes on a Gaussian, and against the recursions of the biased methods by hand."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import inverse, oracle
from ddpm_jax.diffusion.grids import GRIDS
from ddpm_jax.diffusion.predictions import Prediction
from ddpm_jax.diffusion.processes import PROCESSES
from ddpm_jax.diffusion.sample import sample, sample_keys
from ddpm_jax.diffusion.samplers import At, adaptive_ode, ancestral, annealed_langevin, count_evaluations, ddim, heun, plms

SHAPE = (4, 4, 3)
KNOWN = np.random.default_rng(3).random((4, 4, 1)) < 0.6


def blur_by_hand(size, std):
    matrix = np.array([[np.exp(-((i - j) ** 2) / (2 * std**2)) for j in range(size)] for i in range(size)])
    return matrix / matrix.sum(1, keepdims=True)


def averages_by_hand():
    matrix = np.zeros((2, 2, 3, *SHAPE))
    for i, j, c in np.ndindex(4, 4, 3):
        matrix[i // 2, j // 2, c, i, j, c] = 1 / 4
    return matrix.reshape(12, 48)


# The operator, and the matrix [numbers of y, numbers of x0] that it should be.
OPERATORS = {
    "mask": (lambda: inverse.mask(KNOWN), np.diag(np.broadcast_to(KNOWN, SHAPE).ravel().astype(float))),
    "downsample": (lambda: inverse.downsample(2), averages_by_hand()),
    "blur": (lambda: inverse.blur(0.7), np.kron(np.kron(blur_by_hand(4, 0.7), blur_by_hand(4, 0.7)), np.eye(3))),
    "grey": (lambda: inverse.grey, np.kron(np.eye(16), [[0.299, 0.587, 0.114]])),
}


def world(size, seed=0):
    """Mean [D] and covariance [D, D] of a Gaussian, eigenvalues from 0.05 to 1."""
    random = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(random.normal(size=(size, size)))
    return random.normal(size=size), turn @ np.diag(np.linspace(0.05, 1, size)) @ turn.T


def given(mean, covariance, matrix, y, variance):
    """Mean and covariance of x0 ~ N(mean, covariance) given y = matrix x0 + N(0, variance I)."""
    gain = covariance @ matrix.T @ np.linalg.pinv(matrix @ covariance @ matrix.T + variance * np.eye(len(matrix)), rcond=1e-10)
    return mean + gain @ (y - matrix @ mean), covariance - gain @ matrix @ covariance


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_and_its_transpose(name, x64):  # noqa: ARG001
    """Column by column the matrix by hand; <A x, y> = <x, A^T y>."""
    (make, matrix), random = OPERATORS[name], np.random.default_rng(0)
    operator = make()
    columns = operator(jnp.eye(48).reshape(48, *SHAPE)).reshape(48, -1)
    chex.assert_trees_all_close(columns, jnp.asarray(matrix.T), atol=1e-12)
    x = jnp.asarray(random.normal(size=(2, *SHAPE)))
    y = jnp.asarray(random.normal(size=operator(x).shape))
    residual, transpose = inverse._observe(operator, y, x)
    chex.assert_trees_all_close(residual, y - operator(x))
    chex.assert_trees_all_close((operator(x) * y).sum((1, 2, 3)), (x * transpose(y)).sum((1, 2, 3)), rtol=1e-12)


def test_conjugate_gradients_of_each_example(x64):  # noqa: ARG001
    """Matrices of their own, one of rank 2, one not positive, a right side of 0: those that have a solution get it."""
    random = np.random.default_rng(0)
    roots = random.normal(size=(4, 5, 5))
    roots[1, :, 2:] = 0
    matrices = roots @ roots.swapaxes(1, 2)
    matrices[2] *= -1
    b = np.einsum("bij,bj->bi", matrices, random.normal(size=(4, 5))) * np.array([[1], [1], [1], [0]])
    u = inverse.conjugate_gradients(partial(jnp.einsum, "bij,bj->bi", jnp.asarray(matrices)), jnp.asarray(b), 12)
    solved = np.einsum("bij,bj->bi", matrices, u)
    chex.assert_trees_all_close(solved[[0, 1, 3]], b[[0, 1, 3]], atol=1e-9)
    assert not u[2:].any() and jnp.isfinite(u).all()


@pytest.mark.thorough
@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("process_name", ["vp", "edm", "rectified_flow", "linear"])
def test_moment_matched_guidance_is_exact_on_a_gaussian(process_name, name, x64):  # noqa: ARG001
    """E[x0 | x_t, y] and E[eps | x_t, y] at five times to 1e-6, by Bayes in NumPy; a mask without noise, the others with."""
    process, (make, matrix) = PROCESSES[process_name](), OPERATORS[name]
    noise = 0.0 if name == "mask" else 0.3
    mean, covariance = world(48)
    random = np.random.default_rng(1)
    t = process.inverse_log_snr(jnp.array([-7.0, -3.0, 0.0, 2.0, 5.0]))
    alpha, sigma = np.asarray(process.alpha(t)), np.asarray(process.sigma(t))
    x0 = random.multivariate_normal(mean, covariance, 5)
    x = alpha[:, None] * x0 + sigma[:, None] * random.normal(size=(5, 48))
    y = x0 @ matrix.T + noise * random.normal(size=(5, len(matrix)))
    expected = []
    for i in range(5):
        of_x = given(mean, covariance, alpha[i] * np.eye(48), x[i], sigma[i] ** 2)
        expected.append(given(*of_x, matrix, y[i], noise**2)[0])
    expected, operator = np.stack(expected), make()
    measurement = jnp.asarray(y.reshape(operator(jnp.zeros((5, *SHAPE))).shape))
    denoise = oracle.denoiser(oracle.gaussian(mean, covariance), process)
    guided = inverse.moment_matched(denoise, process, operator, measurement, noise=noise, iterations=100)
    found = jax.jit(guided)(jnp.asarray(x.reshape(5, *SHAPE)), t)
    chex.assert_trees_all_close(found.x0.reshape(5, 48), jnp.asarray(expected), atol=1e-6)
    eps = (x - alpha[:, None] * expected) / sigma[:, None]
    chex.assert_trees_all_close(found.eps.reshape(5, 48), jnp.asarray(eps), atol=1e-6)
    assert found.evaluations == 102


@pytest.mark.thorough
def test_row_sums_are_those_of_the_matrix(x64):  # noqa: ARG001
    """By hand on a Gaussian, where J = alpha S (alpha^2 S + sigma^2 I)^-1; with independent pixels it is the exact answer."""
    process, t, noise = PROCESSES["vp"](), jnp.asarray(0.4), 0.2
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    x, y, kept = np.array([[0.3, -0.5, 0.9]]), np.array([[0.7, 0.0, -0.4]]), np.array([1.0, 0.0, 1.0])
    for covariance in (world(3)[1], np.diag([0.3, 0.2, 0.5])):
        denoise = oracle.denoiser(oracle.gaussian(np.zeros(3), covariance), process)
        jacobian = alpha * covariance @ np.linalg.inv(alpha**2 * covariance + sigma**2 * np.eye(3))
        sums = sigma**2 / alpha * (np.diag(kept) @ jacobian @ np.diag(kept)).sum(1) + noise**2
        shift = jacobian @ (kept * (y - x @ jacobian)[0] / sums)
        guide = partial(inverse.moment_matched, denoise, process, inverse.mask(kept == 1), jnp.asarray(y), noise=noise)
        found = guide(covariance="row_sums")(jnp.asarray(x), t)
        chex.assert_trees_all_close(found.x0, x @ jacobian + sigma**2 / alpha * shift, rtol=1e-9)
        assert found.evaluations == 3
    chex.assert_trees_all_close(found.x0, guide(iterations=9)(jnp.asarray(x), t).x0, rtol=1e-9)


MATRIX = np.array([[0.6, -0.3, 1.0]])


def linear(x0):
    return x0 @ jnp.asarray(MATRIX, x0.dtype).T


@pytest.mark.thorough
def test_guided_samples_have_the_posterior_mean_and_covariance(x64):  # noqa: ARG001
    """Heun's method on 100 points from the true marginal at t_max given y: to 1e-3, where the prior is 0.3 away."""
    process, (mean, covariance) = PROCESSES["vp"](), world(3)
    y, noise = np.array([1.5]), 0.2
    truth = given(mean, covariance, MATRIX, y, noise**2)
    denoise = oracle.denoiser(oracle.gaussian(mean, covariance), process)
    guided = inverse.moment_matched(denoise, process, linear, jnp.asarray(y), noise=noise, iterations=1)

    def marginal(moments, t):
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        return jnp.asarray(alpha * moments[0]), jnp.asarray(alpha**2 * moments[1] + sigma**2 * np.eye(3))

    times = GRIDS["log_snr"](process, steps=100)
    start, end = (marginal(truth, t) for t in (times[0], times[-1]))
    reached = jax.jit(lambda times: oracle.propagate(heun(), guided, process, times, *start))(times)
    chex.assert_trees_all_close(reached, end, atol=1e-3)
    assert all(abs(a - b).max() > 0.3 for a, b in zip(marginal((mean, covariance), times[-1]), end, strict=True))


@jax.jit
def isotropic(process, x, t, y):
    denoise = oracle.denoiser(oracle.gaussian(np.zeros(48), np.eye(48)), process)
    return inverse.moment_matched(denoise, process, inverse.blur(0.7), y, noise=0.1, covariance="isotropic", iterations=60)(
        x, t
    )


def test_isotropic_guidance_is_exact_where_the_data_are_isotropic(x64):  # noqa: ARG001
    process, (_, matrix) = PROCESSES["sub_vp"](), OPERATORS["blur"]
    t, (x, y) = jnp.array([0.2, 0.7]), np.random.default_rng(0).normal(size=(2, 2, 48))
    alpha, sigma = np.asarray(process.alpha(t)), np.asarray(process.sigma(t))
    of_x = [given(np.zeros(48), np.eye(48), alpha[i] * np.eye(48), x[i], sigma[i] ** 2) for i in range(2)]
    expected = np.stack([given(*of_x[i], matrix, y[i], 0.01)[0] for i in range(2)])
    found = isotropic(process, *(jnp.asarray(v) for v in (x.reshape(2, *SHAPE), t, y.reshape(2, *SHAPE))))
    chex.assert_trees_all_close(found.x0.reshape(2, 48), jnp.asarray(expected), atol=1e-6)
    assert found.evaluations == 2


def test_nothing_is_shifted_where_alpha_is_0(x64):  # noqa: ARG001
    process = PROCESSES["cosine"](zero_terminal_snr=True)
    denoise = oracle.denoiser(oracle.gaussian(*world(48)), process)
    guided = inverse.moment_matched(denoise, process, inverse.grey, jnp.ones((4, 4, 1)))
    x = jnp.ones((1, *SHAPE))
    chex.assert_trees_all_equal(*jax.jit(lambda x, t: (guided(x, t)[:2], denoise(x, t)[:2]))(x, 1.0))


# ------------------------------------------------------- the biased methods, on two pixels of which the first is known to be 1

CORRELATION = np.array([[1.0, 0.9], [0.9, 1.0]])
TRUTH = 0.9, np.sqrt(1 - 0.9**2)  # mean and deviation of the second
IMAGE, FIRST = np.array([1.0, 0.0]), np.array([True, False])


def pair(process):
    return oracle.denoiser(oracle.gaussian(np.zeros(2), CORRELATION), process)


def ancestral_by_hand(process, t, s):
    """alpha, sigma at s; G of x0_hat = G x; B of the mean B x; c, the weight of x0_hat in it; b^2, the large variance; a."""
    (alpha_t, alpha), (sigma_t, sigma) = ((float(f(t)), float(f(s))) for f in (process.alpha, process.sigma))
    a = alpha_t / alpha
    b2 = sigma_t**2 - a**2 * sigma**2
    of_x0 = alpha * b2 / sigma_t**2
    x0_of_x = alpha_t * CORRELATION @ np.linalg.inv(alpha_t**2 * CORRELATION + sigma_t**2 * np.eye(2))
    return alpha, sigma, x0_of_x, a * sigma**2 / sigma_t**2 * np.eye(2) + of_x0 * x0_of_x, of_x0, b2, a


def repaint_by_hand(process, times, resamplings):
    """Mean and covariance of RePaint's algorithm 1 with ancestral steps; resamplings = 1: of replacement."""
    mean, covariance = np.zeros(2), np.eye(2)
    unknown = np.diag([0.0, 1.0])
    for t, s in zip(times[:-1], times[1:], strict=True):
        alpha, sigma, _, move, _, b2, a = ancestral_by_hand(process, t, s)
        for j in range(resamplings):
            mean = unknown @ move @ mean + alpha * IMAGE
            covariance = unknown @ (move @ covariance @ move.T + b2 * np.eye(2)) @ unknown + np.diag([sigma**2, 0])
            if j < resamplings - 1:
                mean, covariance = a * mean, a**2 * covariance + b2 * np.eye(2)
    return mean, covariance


def test_replacement_and_repaint_are_their_recursions_and_resampling_removes_the_bias(x64):  # noqa: ARG001
    """Replacement ends at 0.54 -+ 0.65 and 32 resamplings at 0.890 -+ 0.443 where 0.900 -+ 0.436 is true."""
    process = PROCESSES["vp"]()
    times = GRIDS["log_snr"](process, steps=20)
    made = {1: inverse.replacement(ancestral(), IMAGE, FIRST), 3: inverse.repaint(ancestral(), IMAGE, FIRST, resamplings=3)}
    for resamplings, sampler in made.items():
        reached = jax.jit(
            lambda times, sampler: oracle.propagate(sampler, pair(process), process, times, jnp.zeros(2), jnp.eye(2), normals=9)
        )(times, sampler)
        chex.assert_trees_all_close(reached, tuple(map(jnp.asarray, repaint_by_hand(process, times, resamplings))), rtol=1e-8)
    ends = [repaint_by_hand(process, times, resamplings) for resamplings in (1, 2, 4, 8, 16, 32)]
    found = np.array([(mean[1], np.sqrt(covariance[1, 1])) for mean, covariance in ends])
    errors = abs(found - TRUTH)
    assert (errors[1:] < errors[:-1]).all()
    chex.assert_trees_all_close(found[[0, -1]], np.array([[0.544, 0.653], [0.890, 0.443]]), atol=1e-3)


def dps_by_hand(process, times, x, noises, zeta):
    """States [N, 2] after algorithm 1 of DPS with ancestral steps, and the last without its noise."""
    for t, s, noise in zip(times[:-1], times[1:], noises, strict=True):
        _, _, x0_of_x, move, _, b2, _ = ancestral_by_hand(process, t, s)
        residual = FIRST * (IMAGE - x @ x0_of_x.T)
        gradient = -(residual / np.linalg.norm(residual, axis=1, keepdims=True)) @ x0_of_x
        mean = x @ move.T - zeta * gradient
        x = mean + np.sqrt(b2) * noise
    return x, mean


def test_dps_is_algorithm_1_and_its_bias(x64):  # noqa: ARG001
    """On 100 points at zeta 0.3 the known pixel ends at 1.00 -+ 0.18, the other at 0.99 -+ 0.41 where 0.90 -+ 0.44 is true."""
    process = PROCESSES["vp"]()
    noises = np.random.default_rng(0).normal(size=(100, 4000, 2))
    times = GRIDS["uniform"](process, steps=8)
    sampler = inverse.dps(ancestral(), inverse.mask(FIRST), jnp.asarray(IMAGE), zeta=0.3)
    denoise = pair(process)

    @jax.jit
    def step(sampler, x, t, s, noise):
        at = At(t, s, 0, 7, lambda j: noise, lambda f: f(denoise)[0])  # noqa: ARG005
        return sampler.step(denoise, process, x, (), at)[:2]

    x = jnp.asarray(noises[-1])
    for t, s, noise in zip(times[:-1], times[1:], jnp.asarray(noises), strict=False):
        x, mean = step(sampler, x, t, s, noise)
    chex.assert_trees_all_close((x, mean), dps_by_hand(process, times, noises[-1], noises[:7], 0.3), rtol=1e-8)
    x, _ = dps_by_hand(process, GRIDS["uniform"](process, steps=100), noises[-1], noises[:99], 0.3)
    found = np.concatenate([x.mean(0), x.std(0)])
    chex.assert_trees_all_close(found, np.array([1.00, 0.99, 0.18, 0.41]), atol=0.03)  # four standard errors


def test_the_score_form_of_dps_is_its_recursion_and_its_bias(x64):  # noqa: ARG001
    """With noise 1 in the known pixel the other ends at 0.60 -+ 0.72 where 0.45 -+ 0.77 is true: C = 0 is too sure of y."""
    process, noise = PROCESSES["vp"](), 1.0
    times = GRIDS["log_snr"](process, steps=100)
    mean, covariance = np.zeros(2), np.eye(2)
    for t, s in zip(times[:-1], times[1:], strict=True):
        _, _, x0_of_x, move, of_x0, b2, _ = ancestral_by_hand(process, t, s)
        ratio = float(process.sigma(t)) ** 2 / float(process.alpha(t))
        pull = of_x0 * ratio * x0_of_x.T @ np.diag([1.0, 0.0]) / noise**2  # on y - x0_hat
        mean = move @ mean + pull @ (IMAGE - x0_of_x @ mean)
        guided = move - pull @ x0_of_x
        covariance = guided @ covariance @ guided.T + b2 * np.eye(2)
    denoise = inverse.moment_matched(
        pair(process), process, inverse.mask(FIRST), jnp.asarray(IMAGE), noise=noise, covariance="none", iterations=1
    )
    start = jnp.zeros(2), jnp.eye(2)
    reached = jax.jit(lambda times: oracle.propagate(ancestral(), denoise, process, times, *start, normals=1))(times)
    chex.assert_trees_all_close(reached, (jnp.asarray(mean), jnp.asarray(covariance)), rtol=1e-8)
    true = given(np.zeros(2), CORRELATION, np.array([[1.0, 0.0]]), np.ones(1), noise**2)
    for (m, c), expected in (((mean, covariance), (0.595, 0.725)), (true, (0.450, 0.771))):
        chex.assert_trees_all_close((m[1], np.sqrt(c[1, 1])), expected, atol=1e-3)


# ------------------------------------------------------- in the loop

SETTINGS = {"replacement": {}, "repaint": {"resamplings": 3}, "dps": {"zeta": 0.5}, "pigdm": {}, "tmpd": {}}
SETTINGS["mmps"] = {"iterations": 4}
EVALUATIONS = {"replacement": 9 + 1, "repaint": 9 * 3 + 1, "dps": 9 * 2 + 1, "pigdm": 10 * 2, "tmpd": 10 * 3}
EVALUATIONS["mmps"] = 10 * (2 + 4)


def test_known_pixels_are_put_in_place_from_the_end_on():
    """At that time too, each example at its own; bit for bit, and eps is what makes up x. Above it nothing changes."""
    process, x, image = PROCESSES["vp"](), jnp.array([[0.3, -2.0]] * 3), jnp.array([0.123456789, 0.7])
    denoise, end = lambda x, t: Prediction(0.5 * x, 2 * x), jnp.asarray(0.1)  # noqa: ARG005
    t = jnp.array([0.1, 0.05, 0.11])
    found = inverse.known_x0(denoise, process, image, FIRST, end)(x, t)
    inside = np.array([[True, False], [True, False], [False, False]])
    np.testing.assert_array_equal(found.x0, np.where(inside, image, 0.5 * x))
    eps = (x - process.alpha(t)[:, None] * image) / process.sigma(t)[:, None]
    np.testing.assert_allclose(found.eps, np.where(inside, eps, 2 * x), rtol=1e-6)


def test_every_method_is_the_transform_of_its_name():
    """Told by what they cost: a denoiser's call, or that of a step."""
    process, x, image = PROCESSES["vp"](), jnp.ones((1, 2)), jnp.asarray(IMAGE)
    t, s = jnp.asarray(0.5), jnp.asarray(0.4)
    of_a_call = {"pigdm": 2, "tmpd": 3, "mmps": 2 + 4}
    of_a_step = {"replacement": 1, "repaint": 3, "dps": 2}
    assert inverse.INPAINTING.keys() == of_a_call.keys() | of_a_step.keys()
    for name, method in inverse.INPAINTING.items():
        sampler, denoise = method(ddim(), pair(process), process, image, FIRST, **SETTINGS[name])
        counted, in_loop, spent = count_evaluations(denoise)

        def step(x, sampler=sampler, counted=counted, in_loop=in_loop, spent=spent):
            sampler.step(counted, process, x, (), At(t, s, 0, 1, lambda j: x, in_loop))  # noqa: ARG005
            return spent()

        assert jax.jit(step)(x) == (of_a_call | of_a_step)[name], name


@pytest.mark.thorough
@pytest.mark.parametrize("name", inverse.INPAINTING)
def test_known_pixels_come_back_and_evaluations_are_counted(name):
    """Bit for bit, in float32; the others are finite and new; a sample does not depend on its batch."""
    process, shape = PROCESSES["linear"](), (4, 4, 1)
    denoise = oracle.denoiser(oracle.gaussian(*world(16)), process)
    times = GRIDS["uniform"](process, steps=10)
    image = jax.random.uniform(jax.random.key(1), (5, *shape), minval=-1)

    @jax.jit
    def inpaint(image, keys):
        sampler, guided = inverse.INPAINTING[name](ddim(eta=0.5), denoise, process, image, KNOWN, **SETTINGS[name])
        ended = inverse.known_x0(guided, process, image, KNOWN, times[-1])
        return sample(sampler, ended, process, times, keys, shape)

    keys = sample_keys(0, jnp.arange(5))
    x, evaluations, _ = inpaint(image, keys)
    mask = np.broadcast_to(KNOWN, x.shape)
    chex.assert_trees_all_equal(x[mask], image[mask])
    assert jnp.isfinite(x).all() and (x[~mask] != image[~mask]).all() and evaluations == EVALUATIONS[name]
    others = inpaint(image.at[2:].add(0.1), sample_keys(7, jnp.arange(5)).at[:2].set(keys[:2])).x
    chex.assert_trees_all_equal(others[:2], x[:2])
    assert (others[2:][~mask[2:]] != x[2:][~mask[2:]]).all()


def test_replacement_keeps_the_steps_of_the_sampler(x64):  # noqa: ARG001
    """At unknown pixels, with the noises from 1 on; at known ones the image at the noise of s, and without it in the mean."""
    process = PROCESSES["vp"]()
    denoise, x, noises = pair(process), jnp.ones((2, 2)), jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 2)))
    at = At(jnp.asarray(0.5), jnp.asarray(0.4), 0, 1, noises.__getitem__, None)
    plain, mean, _ = ancestral().step(denoise, process, x, (), at._replace(noise=lambda j: noises[j + 1]))
    x, x_mean, _ = inverse.replacement(ancestral(), IMAGE, FIRST).step(denoise, process, x, (), at)
    alpha, sigma = process.alpha(0.4), process.sigma(0.4)
    chex.assert_trees_all_close((x[:, 0], x_mean[:, 0]), (alpha + sigma * noises[0, :, 0], jnp.full(2, alpha)))
    chex.assert_trees_all_equal((x[:, 1], x_mean[:, 1]), (plain[:, 1], mean[:, 1]))
    made = inverse.repaint(inverse.dps(plms(), inverse.mask(FIRST), IMAGE), IMAGE, FIRST)
    assert made.starts == plms().starts and made.start is not None and made.noise_free is False


def test_refusals():
    process, keys = PROCESSES["vp"](), sample_keys(0, jnp.arange(2))
    denoise, times = oracle.denoiser(oracle.gaussian(*world(16)), process), GRIDS["uniform"](process, steps=3)
    image = jnp.zeros((4, 4, 1))
    run = partial(sample, denoise=denoise, process=process, times=times, keys=keys, shape=(4, 4, 1))
    with pytest.raises(
        ValueError, match=r"the mask must be of the shape of x, \[2, 4, 4, 1\], or broadcast to it: found \[5, 5, 1\]"
    ):
        run(inverse.replacement(ddim(), image, np.ones((5, 5, 1))))
    with pytest.raises(ValueError, match=r"the known image must be .* found \[3, 4, 4, 1\]"):
        run(inverse.repaint(ddim(), jnp.zeros((3, 4, 4, 1)), np.ones((4, 4, 1))))
    with pytest.raises(ValueError, match=r"the mask must be .* found \[4, 5, 1\]"):
        inverse.known_x0(denoise, process, image, np.ones((4, 5, 1)), 1.0)(jnp.zeros((2, 4, 4, 1)), 0.5)
    with pytest.raises(ValueError, match="resamplings must be at least 1, found 0"):
        inverse.repaint(ddim(), image, image, resamplings=0)
    with pytest.raises(ValueError, match=r"the measurement must be of .* \[2, 2, 2, 1\].* found \[4, 4, 1\]"):
        run(inverse.dps(ddim(), inverse.downsample(2), image))
    with pytest.raises(ValueError, match="images of 4 x 4 have no averages over squares of 3"):
        inverse.downsample(3)(jnp.zeros((1, 4, 4, 1)))
    for sampler in (annealed_langevin(), adaptive_ode()):
        with pytest.raises(ValueError, match="this sampler evaluates in a loop"):
            run(inverse.dps(sampler, inverse.mask(image), image))
    with pytest.raises(ValueError, match="covariance must be one of jacobian, row_sums, isotropic, none, found 'exact'"):
        inverse.moment_matched(denoise, process, inverse.mask(image), image, covariance="exact")
    with pytest.raises(ValueError, match="measurement's noise, which must be greater than 0, found 0.0"):
        inverse.moment_matched(denoise, process, inverse.mask(image), image, covariance="none")
