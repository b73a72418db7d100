"""Samplers against closed forms: orders of convergence, exact moments, identities, gradients, counts; most in float64."""

from functools import partial
from itertools import product

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from ddpm_jax.diffusion import oracle, samplers
from ddpm_jax.diffusion.betas import BETAS
from ddpm_jax.diffusion.grids import GRIDS
from ddpm_jax.diffusion.predictions import Prediction, eps_to_x0
from ddpm_jax.diffusion.processes import PROCESSES, from_betas
from ddpm_jax.diffusion.sample import sample, sample_keys
from ddpm_jax.diffusion.samplers import SAMPLERS, At, ancestral, ddim, dpmpp_2m, euler, euler_maruyama, heun
from ddpm_jax.diffusion.samplers.flow import _churned_step as churned_step

MEAN, COVARIANCE = [0.5, -0.3], [[0.3, 0.1], [0.1, 0.2]]
CONTINUOUS = ("vp", "sub_vp", "continuous_cosine", "ve", "edm", "rectified_flow")
# The sampler and its order.
DETERMINISTIC = {
    "ddim": (ddim, 1),
    "euler": (euler, 1),
    "heun": (heun, 2),
    "dpmpp_2m": (dpmpp_2m, 2),
    "dpm_solver_2": (samplers.dpm_solver_2, 2),
    "dpm_solver_3": (samplers.dpm_solver_3, 3),
    "dpmpp_2s": (samplers.dpmpp_2s, 2),
    "dpmpp_3m": (samplers.dpmpp_3m, 3),
    "dpmpp_3m published": (partial(samplers.dpmpp_3m, published=True), 2),
    "unip 1": (partial(samplers.unipc, order=1, corrector=False), 1),
    "unip 2": (partial(samplers.unipc, order=2, corrector=False), 2),
    "unipc 1": (partial(samplers.unipc, order=1), 2),
    "unipc 2": (partial(samplers.unipc, order=2), 3),
    "unipc 3": (partial(samplers.unipc, order=3), 3),
    "plms": (samplers.plms, 2),
    "pndm": (samplers.pndm, 2),
    "deis 1": (partial(samplers.deis, order=1), 1),
    "deis 2": (partial(samplers.deis, order=2), 2),
    "deis 3": (partial(samplers.deis, order=3), 3),
    "deis 3 published": (partial(samplers.deis, order=3, published=True), 2),
}
STOCHASTIC = {
    "ancestral small": partial(ancestral, variance="small"),
    "ancestral large": partial(ancestral, variance="large"),
    "ddim 1": partial(ddim, eta=1.0),
    "ddim 0.5": partial(ddim, eta=0.5),
    "euler_maruyama": euler_maruyama,
    "reverse_diffusion": samplers.reverse_diffusion,
    "sde_dpmpp_2m": samplers.sde_dpmpp_2m,
    "heun with churn": partial(heun, s_churn=8.0),
    "euler with churn": partial(euler, s_churn=8.0, s_noise=1.003),
}
WEAK_ORDER = {"sde_dpmpp_2m": 2, "heun with churn": 2}  # of the others 1
ALL = {name: make for name, (make, _) in DETERMINISTIC.items()} | STOCHASTIC


def gaussian():
    return oracle.gaussian(MEAN, COVARIANCE)


def mixture():
    return oracle.mixture([[-1.0, 0.5], [0.8, -0.6], [0.3, 1.0]], [0.02 * np.eye(2)] * 3, [0.3, 0.5, 0.2])


draw, flow, moments = (jax.jit(f) for f in (oracle.draw, oracle.flow, oracle.moments))


@jax.jit
def one_step(step, data, process, x, memory, t, s, i):
    """A deterministic step with the exact denoiser. Compiled once for all tables and all numbers of steps."""
    x, _, memory = step(oracle.denoiser(data, process), process, x, memory, At(t, s, i, 0, lambda _: jnp.zeros_like(x), None))
    return x, memory


def run(sampler, data, process, times, x):
    memory = sampler.init(x)
    for step, transitions in sampler.phases(times):
        for i, t, s in zip(*transitions, strict=True):
            x, memory = one_step(step, data, process, x, memory, t, s, i)
    return x


@jax.jit
def propagated_at_once(sampler, data, process, times, mean, covariance):
    return oracle.propagate(sampler, oracle.denoiser(data, process), process, times, mean, covariance, normals=1)


def propagated(sampler, data, process, times):
    """Exact moments at times[-1] of a sampler that starts from p_{times[0]}; by single steps where they are alike."""
    reached = moments(data, process, times[0])
    alike = not jax.tree.leaves(sampler.init(jnp.zeros((1, 2)))) and sampler.step.func is not churned_step
    for pair in zip(times[:-1], times[1:], strict=True) if alike else (times,):
        reached = propagated_at_once(sampler, data, process, jnp.stack(pair) if alike else pair, *reached)
    return reached


# ------------------------------------------------------- orders of convergence


FIRST = ("ddim", "euler", "heun", "dpmpp_2m")
OTHERS = [name for name in DETERMINISTIC if name not in FIRST]
POINTS = 32  # of every deterministic run, so that a step is compiled once


@pytest.mark.parametrize("name, process", [*product(FIRST, CONTINUOUS), *product(OTHERS, ["vp"])])
def test_order_of_deterministic_samplers(name, process, x64):  # noqa: ARG001
    """RMS error against the exact flow from log-SNR -2 to 5, uniform in it, N = 64..256: the slope is the order, to 1/4.

    It begins where data and noise are mixed: at log-SNR -10 the errors of a low-order start would not show. UniPC-3 is better
    than of order 3 until the steps are small.
    """
    make, order = DETERMINISTIC[name]
    process, data, counts = PROCESSES[process](), gaussian(), (64, 128, 256)
    first, last = process.inverse_log_snr(jnp.array([-2.0, 5.0]))
    start, _ = draw(data, process, first, sample_keys(0, jnp.arange(POINTS)))
    exact, errors = flow(data, process, start, first, last), []
    for steps in counts:
        times = process.inverse_log_snr(jnp.linspace(-2.0, 5.0, steps + 1))
        errors.append(float(jnp.sqrt(jnp.mean((run(make(), data, process, times, start) - exact) ** 2))))
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert order - 0.25 <= slope <= order + (0.75 if name == "unipc 3" else 0.25), (errors, slope)
    assert errors[-1] < 3e-2


@pytest.mark.parametrize("name, process", [*product(STOCHASTIC, ["vp"]), *product(("ddim 1", "euler_maruyama"), ("ve", "edm"))])
def test_weak_order_of_stochastic_samplers(name, process, x64):  # noqa: ARG001
    """Exact moments on a Gaussian: halving the steps halves the error of the covariance, at 32..128 steps, or better."""
    process, data = PROCESSES[process](), gaussian()
    errors = []
    for steps in (32, 64, 128):
        times = GRIDS["log_snr"](process, steps=steps + 1)
        reached, exact = propagated(STOCHASTIC[name](), data, process, times), moments(data, process, times[-1])
        errors.append(max(float(jnp.abs(a - b).max()) for a, b in zip(reached, exact, strict=True)))
    slope = -np.polyfit(np.log([32, 64, 128]), np.log(errors), 1)[0]
    assert slope >= WEAK_ORDER.get(name, 1) - 0.25 and errors[-1] < 8e-2, (errors, slope)


# ------------------------------------------------------- every sampler on every process

# Largest error of mean and covariance (entries up to 0.5) after 200 steps, uniform in log-SNR, from the exact p_{t_max}.
TOLERANCE = {
    "ddim": 0.015, "euler": 0.07, "heun": 5e-4, "ancestral small": 0.03, "ancestral large": 0.04, "ddim 1": 0.03,
    "ddim 0.5": 0.02, "euler_maruyama": 0.02,
}  # fmt: skip
MORE = {"reverse_diffusion": 0.03, "dpm_solver_2": 5e-4, "dpm_solver_3": 1e-5, "dpmpp_2s": 5e-4}
ON_ALL = ("ancestral small",)
SOME = ("linear", "ncsn", "sub_vp", "ve", "edm", "rectified_flow", "trig_flow")


@pytest.mark.parametrize(
    "name, process_name",
    [*product(ON_ALL, PROCESSES), *product([name for name in TOLERANCE | MORE if name not in ON_ALL], SOME)],
)
def test_moments_of_every_pair(name, process_name, x64):  # noqa: ARG001
    process, data = PROCESSES[process_name](), gaussian()
    if process_name == "jsd":  # its last beta is 1: log-SNR has no end to start a grid from, and the SDE's drift is infinite
        times = GRIDS["uniform"](process, steps=1000)[int(name == "euler_maruyama") :]
    else:
        times = GRIDS["log_snr"](process, steps=201)
    reached, exact = propagated(ALL[name](), data, process, times), moments(data, process, times[-1])
    error = max(float(jnp.abs(a - b).max()) for a, b in zip(reached, exact, strict=True))
    assert error < (TOLERANCE | MORE)[name]


WITH_MEMORY = {
    "dpmpp_2m": 2e-3, "dpmpp_3m": 1e-4, "unipc 2": 2e-4, "unipc 3": 1e-4, "plms": 2e-3, "pndm": 1e-2, "deis 3": 1e-4,
}  # fmt: skip


@pytest.mark.parametrize(
    "name, process", [*product(["dpmpp_2m"], PROCESSES), *product(WITH_MEMORY, ("linear", "ncsn", "ve", "rectified_flow"))]
)
def test_moments_of_those_with_memory(name, process, x64):  # noqa: ARG001
    """The affine map of 200 steps, from its values at three points, moves p_{t_max} to p_{t_min}."""
    process, data = PROCESSES[process](), gaussian()
    to_zero = process.alpha(1.0) == 0
    times = GRIDS["uniform"](process, steps=1000) if to_zero else GRIDS["log_snr"](process, steps=201)
    images = run(ALL[name](), data, process, times, jnp.eye(POINTS, 2, -1))
    linear = (images[1:3] - images[0]).T
    mean, covariance = moments(data, process, times[0])
    reached = linear @ mean + images[0], linear @ covariance @ linear.T
    for a, b in zip(reached, moments(data, process, times[-1]), strict=True):
        chex.assert_trees_all_close(a, b, atol=WITH_MEMORY[name])


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


IN_RATIO = (
    "ddim", "dpmpp_2m", "ancestral small", "ddim 0.5", "dpm_solver_3", "dpmpp_2s", "dpmpp_3m", "unipc 2", "plms", "deis 3",
    "sde_dpmpp_2m",
)  # fmt: skip


@pytest.mark.parametrize("name", IN_RATIO)
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


AT_THE_ENDS = ("ddim", "heun", "ancestral small", "euler_maruyama", "dpmpp_2m", "dpmpp_2s", "dpmpp_3m", "unipc 2", "deis 3")


@pytest.mark.parametrize("name", AT_THE_ENDS)
def test_steps_to_time_zero_and_from_alpha_zero(name, x64):  # noqa: ARG001
    """From alpha = 0 down to sigma = 0 of a zero-terminal table; a deterministic step to there gives the denoiser's x0.

    But for Euler's method, and PLMS's mean of the last four eps.
    """
    process, data = PROCESSES["cosine"](zero_terminal_snr=True), gaussian()
    denoise = oracle.denoiser(data, process)
    times = jnp.append(GRIDS["uniform"](process, steps=50), 0.0)
    if needs := ALL[name]().needs_alpha:
        with pytest.raises(ValueError, match=f"{needs}, and alpha"):
            sample(ALL[name](), denoise, process, times, sample_keys(0, jnp.arange(2)), (2,), last="stop")
        times = times[1:]
    x = states(ALL[name](), process, times)
    assert jnp.isfinite(x).all()
    if name in DETERMINISTIC and name not in ("euler", "plms", "pndm"):
        before = states(ALL[name](), process, times[:-1])
        chex.assert_trees_all_close(x, denoise(before, times[-2]).x0, rtol=1e-9)


# ------------------------------------------------------- gradients, traces, precision


def test_gradients_through_the_scan(x64):  # noqa: ARG001
    """With respect to eta (also at 0 and 1), a time, a process parameter and a guidance scale: as finite differences."""
    keys, data = sample_keys(0, jnp.arange(4)), mixture()

    @jax.jit
    def total(knobs):
        eta, shift, beta_max, scale = knobs
        process = PROCESSES["vp"](beta_max=beta_max)
        conditional, plain = oracle.denoiser(data, process, 1), oracle.denoiser(data, process)

        def guided(x, t):
            c, u = conditional(x, t), plain(x, t)
            eps = u.eps + scale * (c.eps - u.eps)
            return Prediction(eps_to_x0(process, x, t, eps), eps, 2)

        times = jnp.linspace(1.0, 0.02, 12).at[5].add(shift)
        x = sample(ddim(eta=eta), guided, process, times, keys, (2,), last="stop").x
        return (
            (x * jnp.arange(8.0).reshape(4, 2)).sum()
            + sample(heun(), guided, process, times, keys, (2,), last="stop").x.sum()
            + sample(dpmpp_2m(), guided, process, times, keys, (2,), last="stop").x.sum()
        )

    gradient, knobs, step = jax.jit(jax.grad(total)), jnp.array([0.3, 0.0, 20.0, 1.5]), 1e-5 * jnp.eye(4)
    differences = jnp.stack([total(knobs + shift) - total(knobs - shift) for shift in step]) / 2e-5
    chex.assert_trees_all_close(gradient(knobs), differences, rtol=1e-4)
    none, all_fresh = knobs.at[0].set(0.0), knobs.at[0].set(1.0)
    chex.assert_trees_all_close(gradient(none)[0], (total(none + 2 * step[0]) - total(none)) / 2e-5, rtol=1e-3)
    assert jnp.isfinite(gradient(all_fresh)).all()


IN_THE_GATE = ("unipc", "deis")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in IN_THE_GATE else pytest.mark.full)
        for name in SAMPLERS
        if name != "adaptive_ode"  # which has none
    ],
)
def test_every_sampler_has_a_finite_gradient(name):
    """By the state that it starts in and by the times."""
    process, data, keys = PROCESSES["vp"](), mixture(), sample_keys(0, jnp.arange(2))

    def total(x, times):
        return sample(SAMPLERS[name](), oracle.denoiser(data, process), process, times, keys, (2,), x=x).x.sum()

    by_x, by_times = jax.jit(jax.grad(total, (0, 1)))(jnp.ones((2, 2)), jnp.array([0.9, 0.6, 0.4, 0.2, 0.1]))
    assert jnp.isfinite(by_x).all() and jnp.isfinite(by_times).all() and (by_x != 0).all()


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


@pytest.mark.parametrize("process", ["linear", "ve"])
@pytest.mark.parametrize("name", ["ancestral large", "euler_maruyama", "heun"])
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


@pytest.mark.parametrize("name", ["dpmpp_3m", "unipc 3", "pndm"])
def test_float32_of_those_with_memory_is_within_1e3_of_float64(name):
    ends = []
    for wide in (False, True):
        with jax.enable_x64(wide):
            process = PROCESSES["vp"]()
            times = GRIDS["log_snr"](process, steps=1000)
            ends.append(np.asarray(run(ALL[name](), gaussian(), process, times, jnp.array([[1.0, -0.5]]))))
    np.testing.assert_allclose(*ends, atol=1e-3)


# ------------------------------------------------------- counts and refusals


COUNTED = ALL | {
    "predictor_corrector": partial(samplers.predictor_corrector, corrector_steps=2),
    "annealed_langevin": partial(samplers.annealed_langevin, langevin_steps=3),
    "adaptive_ode": samplers.adaptive_ode,
}
TRANSITIONS = {  # evaluations of five, where they are not five
    "heun": 10, "heun with churn": 10, "dpm_solver_2": 10, "dpm_solver_3": 15, "dpmpp_2s": 10, "dpmpp_3m": 6, "deis 3": 6,
    "plms": 6, "pndm": 14, "predictor_corrector": 15, "annealed_langevin": 18,
}  # fmt: skip


OTHER_COSTS = [*TRANSITIONS, "ddim", "dpmpp_2m", "unipc 2", "ancestral small", "adaptive_ode"]


@pytest.mark.parametrize("name, last", [("ddim", "stop"), *((name, "denoise") for name in OTHER_COSTS)])
def test_evaluations_reported_are_those_made(name, last):
    """Counted by a callback in a guided denoiser of two evaluations: those of five transitions, and one at the end."""
    process, calls = from_betas(BETAS["linear"](steps=10, rescale=True, beta_end=0.005)), []

    def network(x, scale):
        jax.debug.callback(lambda: calls.append(1))
        return scale * x

    def guided(x, t):
        eps = network(x, 0.9) + network(x, 1.1) - x
        return Prediction(eps_to_x0(process, x, t, eps), eps, 2)

    times = GRIDS["uniform"](process, steps=6)
    _, evaluations, _ = sample(COUNTED[name](), guided, process, times, sample_keys(0, jnp.arange(1)), (2,), last=last)
    jax.effects_barrier()
    if name == "adaptive_ode":
        assert evaluations == len(calls) and (evaluations - 2 * (last == "denoise")) % (2 * 5) == 0
    else:
        assert evaluations == len(calls) == 2 * (TRANSITIONS.get(name, 5) + (last == "denoise"))


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

    at = At(t, s, 0, 1, lambda j: jnp.ones_like(x), None)  # noqa: ARG005
    made = [ancestral(variance=name) for name in ("learned_range", "small", "large")]
    by_range, small, large = (sampler.step(denoise, process, x, (), at)[0] for sampler in made)
    chex.assert_trees_all_close(by_range, jnp.array([[small[0, 0], large[0, 1]]]), rtol=1e-5)


def test_samplers_are_pytrees():
    """eta is a leaf, with whether it draws no noise, and what a sampler needs is static."""
    assert jax.tree.leaves(ddim(eta=0.5)) == [0.5, False]
    assert jax.tree.structure(ddim(eta=0.5)) == jax.tree.structure(ddim(eta=0.1)) != jax.tree.structure(euler())
    assert isinstance(euler_maruyama().step, Partial)
