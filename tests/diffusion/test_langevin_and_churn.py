"""Churn, correctors, annealed Langevin dynamics and the reverse-diffusion step against their papers' algorithms by hand."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import oracle
from ddpm_jax.diffusion.grids import GRIDS
from ddpm_jax.diffusion.predictions import Prediction
from ddpm_jax.diffusion.processes import PROCESSES, from_betas
from ddpm_jax.diffusion.sample import sample, sample_keys
from ddpm_jax.diffusion.samplers import (
    At,
    annealed_langevin,
    churned,
    corrected,
    ddim,
    euler,
    heun,
    predictor_corrector,
    reverse_diffusion,
)

MEAN, VARIANCE = 0.4, 0.09


def data():
    return oracle.gaussian([MEAN], [[VARIANCE]])


def score(x, variance):
    """Of N(MEAN, VARIANCE + variance), by hand."""
    return -(x - MEAN) / (VARIANCE + variance)


def stepped(sampler, process, times, x, noises, denoise=None):
    """The states after each step of a sampler without memory, whose j-th noise of step i is noises[i][j]."""
    denoise, states = denoise or oracle.denoiser(data(), process), []
    for i, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True)):
        at = At(t, s, i, len(times) - 1, noises[i].__getitem__, lambda f: f(denoise)[0])
        step = sampler.start if i < sampler.starts else sampler.step
        x, _, _ = step(denoise, process, x, (), at)
        states.append(x)
    return jnp.stack(states)


@pytest.fixture
def noises(x64):  # noqa: ARG001
    """[steps, draws, samples, 1]"""
    return jnp.asarray(np.random.default_rng(0).normal(size=(12, 8, 5, 1)))


@pytest.mark.parametrize("sigma, raised", [(10.0, True), (0.051, True), (29.9, True), (0.049, False), (30.1, False)])
@pytest.mark.parametrize("published", [False, True])
def test_what_churn_adds(published, sigma, raised, x64):  # noqa: ARG001
    """On EDM the step begins at sigma (1 + gamma), with noise of s_noise times the root of the difference of the squares.

    gamma is s_churn by the number of steps, which in the published code counts one more, within [s_min, s_max], and at most
    sqrt(2) - 1.
    """
    seen, x, normal = [], jnp.array([[1.5]]), jnp.array([[0.7]])

    def inner(denoise, process, x, memory, at):  # noqa: ARG001
        seen.append((float(at.t), float(x[0, 0])))
        return x, x, memory

    for s_churn, most in ((4.0, np.inf), (40.0, np.sqrt(2) - 1)):
        knobs = dict(s_min=0.05, s_max=30.0, s_noise=1.007, published=published)
        sampler = churned(dataclasses.replace(ddim(), step=jax.tree_util.Partial(inner)), s_churn, **knobs)
        at = At(jnp.asarray(sigma), jnp.asarray(0.9 * sigma), 3, 11, lambda _: normal, None)
        sampler.step(None, PROCESSES["edm"](), x, (), at)
        gamma = min(s_churn / (11 + published), most) * raised
        hat = sigma * (1 + gamma)
        np.testing.assert_allclose(seen[-1], (hat, 1.5 + 1.007 * np.sqrt(hat**2 - sigma**2) * 0.7), rtol=1e-9)


@pytest.mark.thorough
@pytest.mark.parametrize("second_order, published", [(False, False), (True, False), (True, True)])
def test_churn_is_algorithm_2_of_karras(second_order, published, noises):
    """Euler's method and Heun's on EDM, line by line, with limits within which only some steps are churned.

    published: `edm_sampler` of their generate.py, whose num_steps counts the last step, to 0, and whose first one may start
    above sigma_max.
    """
    s_max = 90.0 if published else 30.0
    process, knobs = PROCESSES["edm"](), dict(s_churn=4.0, s_min=0.05, s_max=s_max, s_noise=1.007, published=published)
    sigmas = GRIDS["karras"](process, steps=12)
    x, n = 80 * np.asarray(noises[0, 0]), 11
    states, raised = [], 0
    for i in range(n):
        sigma, below = float(sigmas[i]), float(sigmas[i + 1])
        gamma = min(4.0 / (12 if published else n), np.sqrt(2) - 1) if 0.05 <= sigma <= s_max else 0.0
        raised += gamma > 0
        hat = sigma + gamma * sigma
        assert (hat > 80) == (published and i == 0)
        x = x + np.sqrt(hat**2 - sigma**2) * 1.007 * np.asarray(noises[i, 0])
        slope = -hat * score(x, hat**2)
        moved = x + (below - hat) * slope
        if second_order:
            moved = x + (below - hat) * 0.5 * (slope - below * score(moved, below**2))
        x = moved
        states.append(x)
    assert 0 < raised < n
    made = (heun if second_order else euler)(**knobs)
    run = jax.jit(lambda sigmas: stepped(made, process, sigmas, 80 * noises[0, 0], noises))  # traced, times may exceed t_max
    chex.assert_trees_all_close(run(sigmas), jnp.asarray(np.stack(states)), rtol=1e-7)


@pytest.mark.thorough
def test_churn_stays_within_the_process_and_on_its_table(x64):  # noqa: ARG001
    """At t_max nothing is raised; on a table the network is shown whole steps; without churn nothing changes."""
    seen = []

    def denoise(x, t):
        seen.append(float(t))
        return Prediction(x, x)

    noise = jnp.ones((1, 1, 1, 1))
    vp = PROCESSES["vp"]()
    stepped(churned(ddim(), 1e6), vp, jnp.array([1.0, 0.9]), jnp.ones((1, 1)), noise, denoise)
    assert seen == [1.0]
    table = PROCESSES["linear"]()
    states = stepped(churned(ddim(), 0.3), table, jnp.array([0.5, 0.4]), jnp.ones((1, 1)), noise, denoise)
    assert seen[1] > 0.5 and round(1000 * seen[1], 9) == round(1000 * seen[1]) and jnp.isfinite(states).all()
    times, x = GRIDS["uniform"](table, steps=5), jnp.ones((1, 1))
    none = jnp.ones((4, 1, 1, 1))
    chex.assert_trees_all_equal(stepped(churned(heun(), 0.0), table, times, x, none), stepped(heun(), table, times, x, none))
    gradient = jax.grad(lambda churn: stepped(churned(heun(), churn), vp, jnp.array([0.5, 0.4]), x, noise).sum())
    assert jnp.isfinite(gradient(0.0)) and jnp.isfinite(gradient(0.1))


@pytest.mark.thorough
def test_reverse_diffusion_is_the_discretised_reverse_of_the_chain(noises):
    """On a table (2 - sqrt(1 - beta)) x + beta score + sqrt(beta) z; on VE x + d score + sqrt(d) z, d that of the variances."""
    betas, x = np.linspace(0.01, 0.2, 12), noises[0, 0]
    process = from_betas(betas)
    abar, y, states = np.cumprod(1 - betas), np.asarray(x), []
    for i, n in enumerate(range(11, 0, -1)):
        slope = -(y - np.sqrt(abar[n]) * MEAN) / (abar[n] * VARIANCE + 1 - abar[n])
        y = (2 - np.sqrt(1 - betas[n])) * y + betas[n] * slope + np.sqrt(betas[n]) * np.asarray(noises[i, 0])
        states.append(y)
    times = GRIDS["uniform"](process, steps=12)
    chex.assert_trees_all_close(
        stepped(reverse_diffusion(), process, times, x, noises), jnp.asarray(np.stack(states)), rtol=1e-6
    )
    process = PROCESSES["ve"]()
    times, y, states = GRIDS["uniform"](process, steps=5), 50 * np.asarray(x), []
    sigmas = np.asarray(process.sigma(times))
    for i in range(4):
        d = sigmas[i] ** 2 - sigmas[i + 1] ** 2
        y = y + d * score(y, sigmas[i] ** 2) + np.sqrt(d) * np.asarray(noises[i, 0])
        states.append(y)
    reached = stepped(reverse_diffusion(), process, times, 50 * x, noises)
    chex.assert_trees_all_close(reached, jnp.asarray(np.stack(states)), rtol=1e-7)


@pytest.mark.parametrize("norms", ["sample", "batch"])
def test_the_corrector_is_algorithm_4(norms, x64):  # noqa: ARG001
    """Two corrections of a VE state of 3 numbers, then the predictor; norms of each sample, or their mean."""
    process, random = PROCESSES["ve"](), np.random.default_rng(1)
    t, s = jnp.asarray(0.5), jnp.asarray(0.45)
    sigma = float(process.sigma(t))
    x, noise = sigma * random.normal(size=(4, 3)), random.normal(size=(3, 4, 3))
    y = x
    for z in noise[:2]:
        slope = score(y, sigma**2)
        norm = np.linalg.norm(z, axis=1, keepdims=True), np.linalg.norm(slope, axis=1, keepdims=True)
        if norms == "batch":
            norm = norm[0].mean(), norm[1].mean()
        size = 2 * (0.16 * norm[0] / norm[1]) ** 2
        y = y + size * slope + np.sqrt(2 * size) * z
    d = sigma**2 - float(process.sigma(s)) ** 2
    y = y + d * score(y, sigma**2) + np.sqrt(d) * noise[2]
    denoise = oracle.denoiser(oracle.gaussian([MEAN] * 3, VARIANCE * np.eye(3)), process)
    sampler = predictor_corrector(snr=0.16, corrector_steps=2, norms=norms)
    at = At(t, s, 0, 1, jnp.asarray(noise).__getitem__, None)
    reached, *_ = sampler.step(denoise, process, jnp.asarray(x), (), at)
    chex.assert_trees_all_close(reached, jnp.asarray(y), rtol=1e-9)


def stay(denoise, process, x, memory, at):  # noqa: ARG001
    return x, x, memory


def test_the_bias_of_a_long_correction():
    """In 4000 dimensions the variance V of a state that stays at one time tends to 1 + snr^2 of the true one, v.

    |z|^2 is D and |score|^2 is D V / v^2, so e = 2 snr^2 v^2 / V, and V = V (1 - e / v)^2 + 2 e has that solution. The
    predictor between the corrections does nothing; 60 of them at snr 0.7, from the true marginal, in float32.
    """
    process, size, snr = PROCESSES["vp"](), 4000, 0.7
    t, count = jnp.asarray(0.3), 60
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    truth = alpha**2 * VARIANCE + sigma**2

    def denoise(x, t):  # noqa: ARG001
        eps = sigma * (x - alpha * MEAN) / truth
        return Prediction((x - sigma * eps) / alpha, eps)

    sampler = corrected(dataclasses.replace(ddim(), step=jax.tree_util.Partial(stay)), snr=snr)

    def correct(x, key):
        at = At(t, t, 0, 1, lambda j: jax.random.normal(jax.random.fold_in(key, j), x.shape), None)
        return sampler.step(denoise, process, x, (), at)[0], None

    start = alpha * MEAN + jnp.sqrt(truth) * jax.random.normal(jax.random.key(0), (8, size))
    x, _ = jax.jit(lambda x: jax.lax.scan(correct, x, jax.random.split(jax.random.key(1), count)))(start)
    found = float(jnp.mean((x - alpha * MEAN) ** 2)) / truth
    error = (1 + snr**2) * np.sqrt(2 / (8 * size))
    assert abs(found - (1 + snr**2)) < 4 * error  # of 0.012


def test_annealed_langevin_is_ncsn(x64):  # noqa: ARG001
    """Mean and variance on ten levels of 100 steps, with e = 2e-5, by the recursion of NCSN's algorithm 1 on a Gaussian."""
    process = PROCESSES["ncsn"](steps=10, sigma_min=0.01, sigma_max=1.0)
    mean, variance = 0.0, 1.0
    for sigma in np.geomspace(1.0, 0.01, 10):
        size = 2e-5 * sigma**2 / 0.01**2
        for _ in range(100):
            kept = 1 - 0.5 * size / (VARIANCE + sigma**2)
            mean, variance = kept * mean + (1 - kept) * MEAN, kept**2 * variance + size
    sampler = annealed_langevin(langevin_steps=100, rate=2e-5 / (2 * 0.01**2))
    denoise, times = oracle.denoiser(data(), process), GRIDS["uniform"](process, steps=10)

    @jax.jit
    def propagate(times):
        return oracle.propagate(sampler, denoise, process, times, jnp.zeros(1), jnp.eye(1), normals=200)

    reached = propagate(times)
    chex.assert_trees_all_close((reached[0][0], reached[1][0, 0]), (mean, variance), rtol=1e-9)
    short = jax.jit(lambda times: oracle.propagate(sampler, denoise, process, times, jnp.zeros(1), jnp.eye(1), normals=199))
    assert jnp.isnan(short(times)[1]).all()  # a loop that draws more than was allowed for does not pass unseen


def test_the_bias_of_a_level(x64):  # noqa: ARG001
    """Where data are narrow against the noise, many steps on a level end at 1 / (1 - rate / 2) of its variance."""
    process, rate = PROCESSES["ve"](), 0.2
    narrow = oracle.gaussian([0.0], [[0.0]])
    times = jnp.array([0.8, 0.79])
    sampler = annealed_langevin(langevin_steps=60, rate=rate)
    _, covariance = oracle.propagate(
        sampler, oracle.denoiser(narrow, process), process, times, jnp.zeros(1), jnp.eye(1), normals=120
    )
    chex.assert_trees_all_close(covariance[0, 0], process.sigma(0.79) ** 2 / (1 - rate / 2), rtol=1e-9)


@pytest.mark.thorough
def test_langevin_on_other_processes_is_that_on_x_over_alpha(noises):
    """One problem seen as VP and as VE, at equal log-SNR and with the same noise."""
    views, levels = [], jnp.linspace(-4.0, 4.0, 6)
    for name in ("vp", "edm", "rectified_flow"):
        process = PROCESSES[name]()
        times = process.inverse_log_snr(levels)
        start = process.alpha(times[0]) * 7 * noises[0, 0]
        views.append(
            stepped(annealed_langevin(langevin_steps=3, rate=0.1), process, times, start, noises)[-1] / process.alpha(times[-1])
        )
    chex.assert_trees_all_close(*views, rtol=1e-8)


@pytest.mark.thorough
def test_samples_of_langevin_dynamics_have_the_propagated_moments():
    """4,000 samples through `sample`, its loops and its randomness; five standard errors."""
    process, keys = PROCESSES["ve"](), sample_keys(0, jnp.arange(4000))
    sampler, denoise = annealed_langevin(langevin_steps=5, rate=0.1), oracle.denoiser(data(), process)
    times, start = GRIDS["log_snr"](process, steps=30), (jnp.zeros(1), process.prior_std**2 * jnp.eye(1))
    x = jax.jit(lambda times: sample(sampler, denoise, process, times, keys, (1,), last="stop").x)(times)
    mean, variance = jax.jit(lambda times: oracle.propagate(sampler, denoise, process, times, *start, normals=10))(times)
    assert abs(x.mean() - mean[0]) < 5 * jnp.sqrt(variance[0, 0] / len(x))
    assert abs(x.var() / variance[0, 0] - 1) < 5 * np.sqrt(2 / len(x))


@pytest.mark.thorough
def test_a_corrected_chain_samples_the_data():
    """400 samples in 64 dimensions, 100 steps: the mean to 0.02, the deviation to 5 %, of which the bias above is 0.5 %."""
    process, world = PROCESSES["vp"](), oracle.gaussian([MEAN] * 64, VARIANCE * np.eye(64))
    sampler, times = predictor_corrector(snr=0.1), GRIDS["log_snr"](process, steps=100)
    keys = sample_keys(0, jnp.arange(400))
    x = jax.jit(lambda times: sample(sampler, oracle.denoiser(world, process), process, times, keys, (64,)).x)(times)
    assert abs(float(x.mean()) - MEAN) < 0.02 and abs(float(x.std()) / np.sqrt(VARIANCE) - 1) < 0.05


def test_refusals():
    with pytest.raises(ValueError, match="norms must be one of sample, batch, found 'mean'"):
        corrected(ddim(), snr=0.1, norms="mean")
    with pytest.raises(ValueError, match="predictor must be one of .*, found 'heun'"):
        predictor_corrector(predictor="heun")
    with pytest.raises(ValueError, match="langevin_steps must be at least 1, found 0"):
        annealed_langevin(langevin_steps=0)
    zero = PROCESSES["cosine"](zero_terminal_snr=True)
    times = GRIDS["uniform"](zero, steps=4)
    for sampler in (heun(s_churn=1.0), annealed_langevin()):
        with pytest.raises(ValueError, match=r"alpha\(1\) = 0: take a grid without it, or another sampler"):
            sample(sampler, oracle.denoiser(data(), zero), zero, times, sample_keys(0, jnp.arange(2)), (1,))
