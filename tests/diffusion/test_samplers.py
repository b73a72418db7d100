"""Samplers against closed forms: orders of convergence, exact moments, identities, gradients, counts; most in float64."""

import functools
from itertools import product

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from ddpm_jax.diffusion import oracle
from ddpm_jax.diffusion.betas import BETAS
from ddpm_jax.diffusion.grids import GRIDS
from ddpm_jax.diffusion.predictions import Prediction, eps_to_x0
from ddpm_jax.diffusion.processes import PROCESSES, from_betas
from ddpm_jax.diffusion.sample import sample, sample_keys
from ddpm_jax.diffusion.samplers import At, ancestral, ddim, dpmpp_2m, euler, euler_maruyama, heun

MEAN, COVARIANCE = [0.5, -0.3], [[0.3, 0.1], [0.1, 0.2]]
CONTINUOUS = ("vp", "sub_vp", "continuous_cosine", "ve", "edm", "rectified_flow")
DETERMINISTIC = {"ddim": (ddim, 1), "euler": (euler, 1), "heun": (heun, 2), "dpmpp_2m": (dpmpp_2m, 2)}
STOCHASTIC = {
    "ancestral small": functools.partial(ancestral, variance="small"),
    "ancestral large": functools.partial(ancestral, variance="large"),
    "ddim 1": functools.partial(ddim, eta=1.0),
    "ddim 0.5": functools.partial(ddim, eta=0.5),
    "euler_maruyama": euler_maruyama,
}
ALL = {name: make for name, (make, _) in DETERMINISTIC.items()} | STOCHASTIC


def gaussian():
    return oracle.gaussian(MEAN, COVARIANCE)


def mixture():
    return oracle.mixture([[-1.0, 0.5], [0.8, -0.6], [0.3, 1.0]], [0.02 * np.eye(2)] * 3, [0.3, 0.5, 0.2])


draw, flow, moments = (jax.jit(f) for f in (oracle.draw, oracle.flow, oracle.moments))


@jax.jit
def one_step(sampler, data, process, x, memory, t, s, i):
    """A deterministic step with the exact denoiser. Compiled once for all tables and all numbers of steps."""
    x, _, memory = sampler.step(oracle.denoiser(data, process), process, x, memory, At(t, s, i, 0, lambda _: jnp.zeros_like(x)))
    return x, memory


def run(sampler, data, process, times, x):
    memory = sampler.init(x)
    for i in range(len(times) - 1):
        x, memory = one_step(sampler, data, process, x, memory, times[i], times[i + 1], jnp.asarray(i))
    return x


@jax.jit
def one_propagation(sampler, data, process, pair, mean, covariance):
    return oracle.propagate(sampler, oracle.denoiser(data, process), process, pair, mean, covariance, normals=1)


def propagated(sampler, data, process, times):
    """Exact moments at times[-1] of a sampler without memory that starts from p_{times[0]}, step by step."""
    mean, covariance = moments(data, process, times[0])
    for i in range(len(times) - 1):
        mean, covariance = one_propagation(sampler, data, process, times[i : i + 2], mean, covariance)
    return mean, covariance


# ------------------------------------------------------- orders of convergence


@pytest.mark.parametrize("name, process", list(product(DETERMINISTIC, CONTINUOUS)))
def test_order_of_deterministic_samplers(name, process, x64):  # noqa: ARG001
    """RMS error against the exact flow from t_max to t_min, uniform in log-SNR, N = 64..512: slope >= the order - 0.25."""
    make, order = DETERMINISTIC[name]
    process, data = PROCESSES[process](), gaussian()
    start, _ = draw(data, process, process.t_max, sample_keys(0, jnp.arange(32)))
    errors = []
    for steps in (64, 128, 256, 512):
        times = GRIDS["log_snr"](process, steps=steps + 1)
        exact = flow(data, process, start, times[0], times[-1])
        errors.append(float(jnp.sqrt(jnp.mean((run(make(), data, process, times, start) - exact) ** 2))))
    slope = -np.polyfit(np.log([64, 128, 256, 512]), np.log(errors), 1)[0]
    assert slope >= order - 0.25, (errors, slope)
    assert errors[-1] < 3e-2


@pytest.mark.parametrize("name, process", list(product(STOCHASTIC, ("vp", "ve", "rectified_flow"))))
def test_weak_order_of_stochastic_samplers(name, process, x64):  # noqa: ARG001
    """Exact moments on a Gaussian: halving the steps halves the error of the covariance, at 64..256 steps."""
    process, data = PROCESSES[process](), gaussian()
    errors = []
    for steps in (64, 128, 256):
        times = GRIDS["log_snr"](process, steps=steps + 1)
        reached, exact = propagated(STOCHASTIC[name](), data, process, times), moments(data, process, times[-1])
        errors.append(max(float(jnp.abs(a - b).max()) for a, b in zip(reached, exact, strict=True)))
    slope = -np.polyfit(np.log([64, 128, 256]), np.log(errors), 1)[0]
    assert slope >= 0.75 and errors[-1] < 4e-2, (errors, slope)


# ------------------------------------------------------- every sampler on every process

# Largest error of mean and covariance (entries up to 0.5) after 200 steps, uniform in log-SNR, from the exact p_{t_max}.
TOLERANCE = {
    "ddim": 0.015, "euler": 0.07, "heun": 5e-4, "ancestral small": 0.03, "ancestral large": 0.04, "ddim 1": 0.03,
    "ddim 0.5": 0.02, "euler_maruyama": 0.02,
}  # fmt: skip


@pytest.mark.parametrize("name, process_name", list(product(TOLERANCE, PROCESSES)))
def test_moments_of_every_pair(name, process_name, x64):  # noqa: ARG001
    process, data = PROCESSES[process_name](), gaussian()
    if process_name == "jsd":  # its last beta is 1: log-SNR has no end to start a grid from, and the SDE's drift is infinite
        times = GRIDS["uniform"](process, steps=1000)[int(name == "euler_maruyama") :]
    else:
        times = GRIDS["log_snr"](process, steps=201)
    reached, exact = propagated(ALL[name](), data, process, times), moments(data, process, times[-1])
    error = max(float(jnp.abs(a - b).max()) for a, b in zip(reached, exact, strict=True))
    assert error < TOLERANCE[name]


@pytest.mark.parametrize("process", PROCESSES)
def test_moments_of_the_one_with_memory(process, x64):  # noqa: ARG001
    """DPM-Solver++(2M): the affine map of 200 steps, from its values at three points, moves p_{t_max} to p_{t_min}."""
    process, data = PROCESSES[process](), gaussian()
    to_zero = process.alpha(1.0) == 0
    times = GRIDS["uniform"](process, steps=1000) if to_zero else GRIDS["log_snr"](process, steps=201)
    images = run(dpmpp_2m(), data, process, times, jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    linear = (images[1:] - images[0]).T
    mean, covariance = moments(data, process, times[0])
    reached = linear @ mean + images[0], linear @ covariance @ linear.T
    for a, b in zip(reached, moments(data, process, times[-1]), strict=True):
        chex.assert_trees_all_close(a, b, atol=2e-3)


def check_samples(name, process):
    """20,000 samples of a mixture, 200 steps: mean, covariance and weights within five standard errors and a bias."""
    process, data, count = PROCESSES[process](), mixture(), 20_000
    keys = sample_keys(1, jnp.arange(count))

    @jax.jit
    def drawn(process):
        times = GRIDS["log_snr"](process, steps=201)
        start, _ = oracle.draw(data, process, times[0], keys)
        denoise = oracle.denoiser(data, process)
        return sample(ALL[name](), denoise, process, times, keys, (2,), x=start, last="stop").x, times[-1]

    x, end = drawn(process)
    mean, covariance = moments(data, process, end)
    assert jnp.abs(x.mean(0) - mean).max() < 5 * jnp.sqrt(jnp.diag(covariance) / count).max() + 0.01
    assert jnp.abs(jnp.cov(x.T) - covariance).max() < 5 * covariance.max() * jnp.sqrt(2 / count) + 0.03
    nearest = jnp.argmin(((x[:, None] - process.alpha(end) * data.means) ** 2).sum(-1), 1)
    share = jnp.bincount(nearest, length=3) / count
    chex.assert_trees_all_close(share, jnp.exp(data.log_weights), atol=5 * 0.5 / np.sqrt(count) + 0.01)


@pytest.mark.parametrize("name, process", [*product(("heun", "euler_maruyama"), ("vp", "ve")), ("ancestral small", "sub_vp")])
def test_samples_of_a_mixture(name, process):
    check_samples(name, process)


@pytest.mark.full
@pytest.mark.parametrize("name, process", list(product(ALL, ("linear", *CONTINUOUS))))
def test_samples_of_a_mixture_for_every_pair(name, process):
    check_samples(name, process)


# ------------------------------------------------------- the chain of Ho et al. 2020 by hand

LOG_ALPHA = np.concatenate([[0], 0.5 * np.cumsum(np.log1p(-BETAS["linear"]()))])
M, D = 0.6, 0.3


def moments_by_hand(indices, eta=None, variance=None):
    """Mean and variance along the chain on data N(M, D^2), by a scalar recursion from the papers; no code of the package.

    eta: DDIM (Song et al. 2021, eq. 12); variance: DDPM (Ho et al. 2020, eq. 7) with "small" or "large".
    """
    m, v = 0.0, 1.0
    for t, s in zip(indices[:-1], indices[1:], strict=True):
        abar_t, abar_s = np.exp(2 * LOG_ALPHA[t]), np.exp(2 * LOG_ALPHA[s])
        gain = np.sqrt(abar_t) * D**2 / (abar_t * D**2 + 1 - abar_t)
        beta = 1 - abar_t / abar_s
        offset = M - gain * np.sqrt(abar_t) * M  # x0_hat = offset + gain x
        tilde = (1 - abar_s) / (1 - abar_t) * beta
        if eta is None:
            of_x0, of_x = np.sqrt(abar_s) * beta / (1 - abar_t), np.sqrt(1 - beta) * (1 - abar_s) / (1 - abar_t)
            noise = tilde if variance == "small" else beta
        else:
            noise = eta**2 * tilde
            of_x = np.sqrt((1 - abar_s - noise) / (1 - abar_t))
            of_x0 = np.sqrt(abar_s) - of_x * np.sqrt(abar_t)
        slope = of_x + of_x0 * gain
        m, v = slope * m + of_x0 * offset, slope**2 * v + noise
    return m, v


CASES = {
    "ancestral small": dict(variance="small"), "ancestral large": dict(variance="large"),
    "ddim": dict(eta=0.0), "ddim 0.5": dict(eta=0.5), "ddim 1": dict(eta=1.0),
}  # fmt: skip


@pytest.mark.parametrize("name, steps", list(product(CASES, (1000, 50))))
def test_moments_of_the_published_chain(name, steps):
    """In float32, over all 1000 steps or 50, from N(0, 1)."""
    process, data = PROCESSES["linear"](), oracle.gaussian([M], [[D**2]])
    times = GRIDS["uniform"](process, steps=steps)
    reached = jax.jit(
        lambda process, times: oracle.propagate(
            ALL[name](), oracle.denoiser(data, process), process, times, jnp.zeros(1), jnp.eye(1), normals=1
        )
    )(process, times)
    expected = moments_by_hand(np.rint(np.asarray(times) * 1000).astype(int), **CASES[name])
    chex.assert_trees_all_close((reached[0][0], reached[1][0, 0]), tuple(map(np.float32, expected)), rtol=1e-3)


# ------------------------------------------------------- identities


def states(sampler, process, times, data=None, keys=None, **options):
    keys = sample_keys(3, jnp.arange(8)) if keys is None else keys
    denoise = oracle.denoiser(gaussian() if data is None else data, process)
    run = jax.jit(lambda times: sample(sampler, denoise, process, times, keys, (2,), last="stop", **options).x)
    return run(times)


def test_ddim_at_eta_one_is_the_ancestral_step(x64):  # noqa: ARG001
    for process in (PROCESSES["linear"](), PROCESSES["ve"](), PROCESSES["sub_vp"]()):
        times = GRIDS["uniform"](process, steps=40)
        a, b = states(ddim(eta=1.0), process, times), states(ancestral(variance="small"), process, times)
        chex.assert_trees_all_close(a, b, rtol=1e-9, atol=1e-9)


def test_ddim_at_eta_zero_is_euler_in_sigma_over_alpha(x64):  # noqa: ARG001
    """y = x / alpha, z = sigma / alpha: y_s = y_t + (z_s - z_t) eps."""
    process, data = PROCESSES["sub_vp"](), gaussian()
    times = GRIDS["uniform"](process, steps=40)
    x, _ = draw(data, process, times[0], sample_keys(0, jnp.arange(4)))
    y = x / process.alpha(times[0])
    for t, s in zip(times[:-1], times[1:], strict=True):
        z_t, z_s = process.sigma(t) / process.alpha(t), process.sigma(s) / process.alpha(s)
        y += (z_s - z_t) * oracle.denoiser(data, process)(process.alpha(t) * y, t).eps
    chex.assert_trees_all_close(run(ddim(), data, process, times, x), process.alpha(times[-1]) * y, rtol=1e-9)


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "ancestral small", "ddim 0.5"])
def test_vp_and_ve_views_of_one_problem_agree(name, x64):  # noqa: ARG001
    """Samplers that act on x / alpha and log-SNR give the same x / alpha for two processes at equal log-SNR."""
    views, levels = [], jnp.linspace(-8.0, 8.0, 30)
    for process in (PROCESSES["vp"](), PROCESSES["edm"](), PROCESSES["rectified_flow"]()):
        times = process.inverse_log_snr(levels)
        start = process.alpha(times[0]) * jnp.array([[30.0, -12.0]] * 8)
        views.append(states(ALL[name](), process, times, x=start) / process.alpha(times[-1]))
    chex.assert_trees_all_close(views[0], views[1], views[2], rtol=1e-8)


def test_heun_and_euler_agree_with_ddim_where_they_should(x64):  # noqa: ARG001
    """On straight alpha and sigma Euler's method is DDIM; where the denoiser gives the truth, Heun is too."""
    for name in ("edm", "rectified_flow"):
        process = PROCESSES[name]()
        times = GRIDS["log_snr"](process, steps=20)
        chex.assert_trees_all_close(states(euler(), process, times), states(ddim(), process, times), rtol=1e-7, atol=1e-9)
    process, point = PROCESSES["linear"](), oracle.gaussian(MEAN, np.zeros((2, 2)))
    times = GRIDS["uniform"](process, steps=20)
    chex.assert_trees_all_close(states(heun(), process, times, point), states(ddim(), process, times, point), atol=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_steps_to_time_zero_and_from_alpha_zero(name, x64):  # noqa: ARG001
    """From alpha = 0 down to sigma = 0 of a zero-terminal table; the last step of three of them gives the denoiser's x0."""
    process, data = PROCESSES["cosine"](zero_terminal_snr=True), gaussian()
    denoise = oracle.denoiser(data, process)
    times = jnp.append(GRIDS["uniform"](process, steps=50), 0.0)
    if name == "euler_maruyama":
        with pytest.raises(ValueError, match="drift of its SDE is infinite where alpha = 0"):
            sample(euler_maruyama(), denoise, process, times, sample_keys(0, jnp.arange(2)), (2,), last="stop")
        times = times[1:]
    x = states(ALL[name](), process, times)
    assert jnp.isfinite(x).all()
    if name in ("ddim", "heun", "dpmpp_2m"):
        before = states(ALL[name](), process, times[:-1])
        chex.assert_trees_all_close(x, denoise(before, times[-2]).x0, rtol=1e-9)


# ------------------------------------------------------- gradients, traces, precision


def finite_difference(f, at, step=1e-5):
    return (f(at + step) - f(at - step)) / (2 * step)


def test_gradients_through_the_scan(x64):  # noqa: ARG001
    """With respect to eta (also at 0 and 1), a time, a process parameter and a guidance scale: as finite differences."""
    keys, data = sample_keys(0, jnp.arange(4)), mixture()

    def total(eta=0.3, shift=0.0, beta_max=20.0, scale=1.5):
        process = PROCESSES["vp"](beta_max=beta_max)
        conditional, plain = oracle.denoiser(data, process, 1), oracle.denoiser(data, process)

        def guided(x, t):
            c, u = conditional(x, t), plain(x, t)
            eps = u.eps + scale * (c.eps - u.eps)
            return Prediction(eps_to_x0(process, x, t, eps), eps, 2)

        times = jnp.linspace(1.0, 0.02, 12).at[5].add(shift)
        x = sample(ddim(eta=eta), guided, process, times, keys, (2,), last="stop").x
        return (x * jnp.arange(8.0).reshape(4, 2)).sum() + sample(
            heun(), guided, process, times, keys, (2,), last="stop"
        ).x.sum() + sample(dpmpp_2m(), guided, process, times, keys, (2,), last="stop").x.sum()

    for name, value in {"eta": 0.3, "shift": 0.0, "beta_max": 20.0, "scale": 1.5}.items():
        f = jax.jit(lambda value, name=name: total(**{name: value}))
        chex.assert_trees_all_close(jax.jit(jax.grad(f))(value), finite_difference(f, value), rtol=1e-4)
    f = jax.jit(lambda eta: total(eta=eta))
    gradient = jax.jit(jax.grad(f))
    chex.assert_trees_all_close(gradient(0.0), (f(2e-5) - f(0.0)) / 2e-5, rtol=1e-3)
    assert jnp.isfinite(gradient(1.0))


def test_a_sweep_recompiles_nothing():
    """Other etas, other times, other process parameters, and a vmap over eta: one trace each."""
    keys, data = sample_keys(0, jnp.arange(4)), gaussian()

    @chex.assert_max_traces(n=1)
    def draw(eta, process, times):
        return sample(ddim(eta=eta), oracle.denoiser(data, process), process, times, keys, (2,), last="stop").x

    alone = []
    compiled = jax.jit(draw)
    for eta, beta_max in ((0.0, 20.0), (0.7, 20.0), (0.0, 10.0)):
        process = PROCESSES["vp"](beta_max=beta_max)
        alone.append(compiled(eta, process, GRIDS["uniform"](process, steps=10)))
    assert not np.allclose(alone[0], alone[1]) and not np.allclose(alone[0], alone[2])

    @jax.jit
    @chex.assert_max_traces(n=1)
    def sweep(etas):
        process = PROCESSES["vp"]()
        times = GRIDS["uniform"](process, steps=10)
        denoise = oracle.denoiser(data, process)
        return jax.vmap(lambda eta: sample(ddim(eta=eta), denoise, process, times, keys, (2,), last="stop").x)(etas)

    sweep(jnp.array([0.2, 0.9]))
    chex.assert_trees_all_close(sweep(jnp.array([0.0, 0.7])), jnp.stack(alone[:2]), atol=1e-5)


@pytest.mark.parametrize("process", ["linear", "ve", "rectified_flow"])
@pytest.mark.parametrize("name", ["ancestral large", "ddim 0.5", "euler_maruyama", "heun"])
def test_float32_is_within_1e3_of_float64(name, process):
    """Mean and covariance after 1000 steps, relative to the largest entry."""
    ends = []
    for wide in (False, True):
        with jax.enable_x64(wide):
            made = PROCESSES[process]()
            times = GRIDS["uniform" if made.num_steps else "log_snr"](made, steps=1000)
            ends.append([np.asarray(value, np.float64) for value in propagated(ALL[name](), gaussian(), made, times)])
    for single, double in zip(*ends, strict=True):
        np.testing.assert_allclose(single, double, atol=1e-3 * np.abs(double).max())


def test_float32_of_the_one_with_memory_is_within_1e3_of_float64():
    ends = []
    for wide in (False, True):
        with jax.enable_x64(wide):
            process = PROCESSES["vp"]()
            times = GRIDS["log_snr"](process, steps=1000)
            ends.append(np.asarray(run(dpmpp_2m(), gaussian(), process, times, jnp.array([[1.0, -0.5]]))))
    np.testing.assert_allclose(*ends, atol=1e-3)


# ------------------------------------------------------- counts and refusals


@pytest.mark.parametrize("last", ["denoise", "stop"])
@pytest.mark.parametrize("name", ALL)
def test_evaluations_reported_are_those_made(name, last):
    """Counted by a callback in a guided denoiser of two evaluations; Heun takes two per transition and one at the end."""
    process, calls = from_betas(BETAS["linear"](steps=10, rescale=True, beta_end=0.005)), []

    def network(x, scale):
        jax.debug.callback(lambda: calls.append(1))
        return scale * x

    def guided(x, t):
        eps = network(x, 0.9) + network(x, 1.1) - x
        return Prediction(eps_to_x0(process, x, t, eps), eps, 2)

    times = GRIDS["uniform"](process, steps=6)
    _, evaluations, _ = sample(ALL[name](), guided, process, times, sample_keys(0, jnp.arange(1)), (2,), last=last)
    jax.effects_barrier()
    assert evaluations == len(calls) == 2 * (5 * (2 if name == "heun" else 1) + (last == "denoise"))


def test_refusals():
    with pytest.raises(ValueError, match="eta must be from 0 to 1, found 1.5"):
        ddim(eta=1.5)
    with pytest.raises(ValueError, match="variance must be one of small, large, learned, learned_range, found 'tiny'"):
        ancestral(variance="tiny")
    process, data, keys = PROCESSES["linear"](), gaussian(), sample_keys(0, jnp.arange(2))
    with pytest.raises(ValueError, match="second output"):
        times = GRIDS["uniform"](process, steps=3)
        sample(ancestral(variance="learned_range"), oracle.denoiser(data, process), process, times, keys, (2,))
    with pytest.raises(ValueError, match=r"x must be of shape \[2, 2\], one state per key, found \[3, 2\]"):
        sample(ddim(), oracle.denoiser(data, process), process, times, keys, (2,), x=jnp.zeros((3, 2)))


def test_a_learned_variance_reaches_the_step():
    """raw = -1 and +1 of the learned range are the small and the large variance, element by element."""
    process, data = PROCESSES["linear"](), gaussian()
    t, s, x = jnp.asarray(0.5), jnp.asarray(0.4), jnp.array([[0.3, -0.2]])

    def denoise(x, t):
        return oracle.denoiser(data, process)(x, t)._replace(raw=jnp.array([[-1.0, 1.0]]))

    at = At(t, s, 0, 1, lambda j: jnp.ones_like(x))  # noqa: ARG005
    made = [ancestral(variance=name) for name in ("learned_range", "small", "large")]
    by_range, small, large = (sampler.step(denoise, process, x, (), at)[0] for sampler in made)
    chex.assert_trees_all_close(by_range, jnp.array([[small[0, 0], large[0, 1]]]), rtol=1e-5)


def test_samplers_are_pytrees():
    """eta is a leaf, and what a sampler needs is static."""
    assert jax.tree.leaves(ddim(eta=0.5)) == [0.5]
    assert jax.tree.structure(ddim(eta=0.5)) == jax.tree.structure(ddim(eta=0.1)) != jax.tree.structure(euler())
    assert isinstance(euler_maruyama().step, Partial)
