"""Samplers against closed forms: every row of the table on every process, identities, gradients, counts; most in float64.

A new sampler or process is proven by the first tests of this file the moment its row exists: a sampler is held to the order
that it states, one that states none to the data's moments. It takes more than 60 processor seconds, for each sampler is a
program of its own to compile, which then serves all processes, grids and counts of steps.
"""

from functools import cache, partial
from itertools import product

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from ddpm_jax.diffusion import adaptive, inverse, oracle, samplers
from ddpm_jax.diffusion.betas import BETAS
from ddpm_jax.diffusion.grids import GRIDS
from ddpm_jax.diffusion.predictions import Prediction, eps_to_x0
from ddpm_jax.diffusion.process import Process, concrete, expand
from ddpm_jax.diffusion.processes import PROCESSES, from_betas
from ddpm_jax.diffusion.sample import check, sample, sample_keys, start_std
from ddpm_jax.diffusion.samplers import SAMPLERS, At, ancestral, ddim, dpmpp_2m, euler, euler_maruyama, heun
from ddpm_jax.diffusion.samplers.flow import _churned_step as churned_step

MEAN, COVARIANCE = [0.5, -0.3], [[0.3, 0.1], [0.1, 0.2]]
CONTINUOUS = ("vp", "sub_vp", "continuous_cosine", "ve", "edm", "rectified_flow")
# Samplers of other arguments than their defaults.
KNOBS = {
    "ancestral small": partial(samplers.ancestral, variance="fixed_small"),
    "ddim 0.5": partial(samplers.ddim, eta=0.5),
    "ddim 1": partial(samplers.ddim, eta=1.0),
    "euler with churn": partial(samplers.euler, s_churn=8.0),
    "heun with churn": partial(samplers.heun, s_churn=8.0),
    "dpmpp_3m published": partial(samplers.dpmpp_3m, published=True),
    "dpm_fast 1": partial(samplers.dpm_fast, remainder=1),
    "dpm_fast 2": partial(samplers.dpm_fast, remainder=2),
    "dpmpp_2m lower": partial(samplers.dpmpp_2m, lower_order_final=True),
    "sde_dpmpp_2m heun 0.5": partial(samplers.sde_dpmpp_2m, eta=0.5, slope="heun"),
    "sde_dpmpp_3m published": partial(samplers.sde_dpmpp_3m, published=True),
    "sa_solver 3": partial(samplers.sa_solver, order=3, corrector_order=3),
    "sa_solver 1": partial(samplers.sa_solver, order=1, corrector_order=1),
    "lms 1": partial(samplers.lms, order=1),
    "lms 2": partial(samplers.lms, order=2),
    "unipc bh1": partial(samplers.unipc, variant="bh1"),
    "unip 1": partial(samplers.unipc, order=1, corrector=False),
    "unip 2": partial(samplers.unipc, order=2, corrector=False),
    "unip 3": partial(samplers.unipc, order=3, corrector=False),
    "unipc 1": partial(samplers.unipc, order=1),
    "unipc 3": partial(samplers.unipc, order=3),
    "deis 1": partial(samplers.deis, order=1),
    "deis 3": partial(samplers.deis, order=3),
    "deis 3 published": partial(samplers.deis, order=3, published=True),
}
ROWS = SAMPLERS | KNOBS


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


# ------------------------------------------------------- every sampler on every process


def gated(gate, others):
    """Cases of the gate, and what `-m full` runs besides."""
    gate = list(gate)
    rest = (case if isinstance(case, tuple) else (case,) for case in others if case not in gate)
    return [*gate, *(pytest.param(*case, marks=pytest.mark.full) for case in rest)]


WITH_ORDER = [name for name, make in ROWS.items() if make().order]
THOROUGH = pytest.mark.thorough
QUICK = SAMPLERS.keys() - {"euler_ancestral", "generalized_ddim", "dpm_fast"}  # which are made of others: see SAME, and below
COUNTS = (64, 128, 256)
FUNCTIONS = ("log_alpha", "alpha", "sigma", "inverse_log_snr", "time_input")


@partial(jax.jit, static_argnums=0)
def _of_kind(name, kinds, kind, t):
    return jax.lax.switch(kind, [getattr(process, name) for process in kinds], jnp.asarray(t, float))


def any_of(kinds: list[Process], kind) -> Process:
    """The process kinds[kind], for a traced kind. It counts as continuous in time."""
    functions = {name: Partial(partial(_of_kind, name), kinds, kind) for name in FUNCTIONS}
    t_min, t_max, prior_std = (
        jax.tree.map(lambda *leaves: jnp.stack(leaves)[kind], *(getattr(process, name) for process in kinds))
        for name in ("t_min", "t_max", "prior_std")
    )
    return Process(**functions, t_min=t_min, t_max=t_max, prior_std=prior_std)


@cache
def all_processes():
    """{name: (kind, process)}: processes of one structure, as beta tables, are of one kind."""
    made = {name: make() for name, make in PROCESSES.items()}
    structures = list(dict.fromkeys(structure(process) for process in made.values()))
    return {name: (structures.index(structure(process)), process) for name, process in made.items()}


def chosen(name):
    """The arguments of `any_of` for this process."""
    processes = all_processes()
    kinds = dict(processes.values())
    kind, kinds[kind] = processes[name]
    return kind, [kinds[k] for k in range(len(kinds))]


def structure(process):
    return jax.tree.structure(process), tuple(np.shape(leaf) for leaf in jax.tree.leaves(process))


def drawn_per_step(sampler):
    """How many normals its steps draw, at most."""
    process, x, drawn = PROCESSES["vp"](), jnp.zeros((1, 2)), [0]

    def noise(j):
        drawn.append(int(j) + 1)
        return x

    at = At(jnp.asarray(0.5), jnp.asarray(0.4), jnp.asarray(0), 1, noise, lambda f: f(oracle.denoiser(gaussian(), process))[0])
    for step in filter(None, (sampler.start, sampler.step, *sampler.end)):
        step(oracle.denoiser(gaussian(), process), process, x, sampler.init(x), at)
    return max(drawn)


def travel(sampler, most):
    """A function (process, times, data) of the affine map that a sampler's way down the times is, compiled once for all.

    times: most + 1 at most. It gives where the mean of p_{times[0]} ends, the slope by the state at the start, and the
    covariance that the sampler's own noise has added at the end: by rows of a batch that differ in one number of the start or
    in one normal.
    """
    size, normals = 2, 0 if bool(sampler.noise_free) else drawn_per_step(sampler)
    drawn = most * normals * size  # the normals of all steps, each alone in a row

    @jax.jit
    def ends(kind, kinds, times, n, data):
        process = any_of(kinds, kind)
        denoise = oracle.denoiser(data, process)
        shifts = jnp.concatenate([jnp.zeros((1, size)), jnp.eye(size), jnp.zeros((drawn, size))])

        def noise(i, j):
            alone = jnp.arange(drawn).reshape(-1, size) == (i * normals + j) * size + jnp.arange(size)
            rows = (alone[:, None] * jnp.eye(size, dtype=bool)).reshape(drawn, size).astype(float)
            return jnp.concatenate([jnp.zeros((1 + size, size)), rows])

        def move(step, i, carry):
            at = At(times[i], times[i + 1], i, n, partial(noise, i), lambda f: f(denoise)[0])
            x, _, memory = step(denoise, process, carry[0], carry[1], at)
            return x, memory

        x = oracle.moments(data, process, times[0])[0] + shifts
        carry = x, sampler.init(x)
        for i in range(sampler.starts):
            carry = move(sampler.start, i, carry)
        first_end = n - len(sampler.end)
        carry = jax.lax.fori_loop(sampler.starts, first_end, partial(move, sampler.step), carry)
        for k, step in enumerate(sampler.end):
            carry = move(step, first_end + k, carry)
        x, _ = carry
        by_noise = x[1 + size :] - x[0]
        return x[0], (x[1 : 1 + size] - x[0]).T, by_noise.T @ by_noise

    def walk(name, times, data):
        kind, kinds = chosen(name)
        padded = jnp.zeros(most + 1).at[: len(times)].set(times)
        return tuple(map(np.asarray, ends(kind, kinds, padded, len(times) - 1, data)))

    return walk


@jax.jit
def exact_flow(process, t, s, data):
    """Where the flow takes the mean at t, and its slope."""
    move = partial(oracle.flow, data, process, t=t, s=s)
    mean = oracle.moments(data, process, t)[0]
    return move(mean[None])[0], jax.jacfwd(lambda x: move(x[None])[0])(mean)


@jax.jit
def even_times(process, steps):
    """Some 257 times, of which steps + 1 are evenly spaced in log-SNR from -2 to 5, where data and noise are mixed."""
    return process.inverse_log_snr(-2.0 + 7.0 * jnp.arange(COUNTS[-1] + 1) / steps)


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=THOROUGH) for name in WITH_ORDER])
def test_every_sampler_has_the_order_that_it_states_on_every_process(name, x64):  # noqa: ARG001
    """64, 128 and 256 steps, where data and noise are mixed: at log-SNR -10 the errors of a low-order start would not show.

    Without noise the error is that of the path, against the exact flow; else that of the moments, which may fall faster. And
    what mean, slope and covariance tend to, by Richardson's extrapolation with the stated order, is exact: to 5e-4, since
    tables have kinks and Euler's method on them no clean power; a coefficient that is off by a thousandth shows. UniPC of order
    3 is better than that until the steps are small.
    """
    sampler, data = ROWS[name](), gaussian()
    walk, noise_free = travel(sampler, COUNTS[-1]), bool(sampler.noise_free)
    for of_process, (_, process) in all_processes().items():
        found = []
        for steps in COUNTS:
            times = even_times(process, steps)[: steps + 1]
            mean, slope, covariance = walk(of_process, times, data)
            if noise_free:
                reached, exact = (mean, slope), exact_flow(process, times[0], times[-1], data)
            else:
                start, exact = moments(data, process, times[0])[1], moments(data, process, times[-1])
                reached = mean, slope @ start @ slope.T + covariance
            found.append(np.concatenate([np.ravel(a - np.asarray(b)) for a, b in zip(reached, exact, strict=True)]))
        limit = np.stack(found)
        errors = np.abs(limit).max(1)
        for power in (sampler.order, sampler.order + 1):
            limit = limit[1:] + (limit[1:] - limit[:-1]) / (2**power - 1)
        order = -np.polyfit(np.log(COUNTS), np.log(errors), 1)[0]
        told = f"{name} on {of_process}: order {order:.2f}, stated {sampler.order}; errors {errors}, limit {limit}"
        if not process.num_steps or errors[-1] > 2e-8:  # a table's times snap to its steps, by 1e-6: such errors have no order
            assert order >= sampler.order - 0.25, told
            assert not noise_free or order <= sampler.order + (0.75 if name == "unipc 3" else 0.25), told
        assert errors[-1] < 0.02 and np.abs(limit).max() < 5e-4, told


@jax.jit
def signal_and_noise(process, times):
    return process.alpha(times), process.sigma(times), start_std(process, times[0])


@cache
def all_grids(points):
    """[(name of the process, of the grid, times, their alpha and sigma, deviation of the start)], where the grid is made."""
    found = []
    for (of_process, (_, process)), grid in product(all_processes().items(), GRIDS):
        knobs = {"sections": {"sections": f"{points // 2},{points // 2}"}}.get(grid, {"steps": points})
        try:
            times = GRIDS[grid](process, **knobs)
        except (TypeError, ValueError):  # an explicit grid has no steps; others are refused, which test_grids.py looks at
            continue
        found.append((of_process, grid, times, *map(np.asarray, signal_and_noise(process, times))))
    return found


NOT_AFFINE = {"adjusted_ddim"}  # its steps depend on the norm of eps, so that a slope says nothing of a spread
OF_THE_TABLE = [name for name in SAMPLERS if name in WITH_ORDER and name not in NOT_AFFINE]  # the others' samples come below
# Points: the deviation at the end of samplers of order 2 or more on their own grids, of the exact one.
OWN_GRID = {10: (0.55, 2.7), 20: (0.8, 1.45), 50: (0.87, 1.06)}
LEAST = {10: 0.03, 20: 0.03, 50: 0.18}  # on any grid
GREATEST = {10: 6.0, 20: 4.5, 50: 2.0}  # points: the deviation at the end, of the exact one
WIDER = {"dpm_solver_2_ancestral": 2.0}  # times that, of the first step of few
UNSTABLE = {"euler": 10, "euler_maruyama": 10}  # explicit in t: so few points are too few on ve, and near alpha = 0
REFUSED = {"plms", "pndm"}  # on some grids, for their first steps


SHOWN = ("ddim", "dpmpp_2m", "dpmpp_3m", "plms", "pndm")


@pytest.mark.parametrize(
    "points, name",
    [
        *((10, name) if name in SHOWN else pytest.param(10, name, marks=THOROUGH) for name in OF_THE_TABLE),
        *(pytest.param(*case, marks=pytest.mark.full) for case in product((20, 50), OF_THE_TABLE)),
    ],
)
def test_every_sampler_on_every_process_and_grid_ends_at_the_data_or_is_refused(points, name, x64):  # noqa: ARG001
    """Data of deviation 0.316, from the noise that `sample` starts with, and from the mean 0.

    None ends far above that deviation; those below it took steps too long for what is narrow, the last of them above all. On
    edm an even grid makes one step from 80 / N to the data, and the error is some part of that. On its own grid, a sampler of
    order 2 or more ends near it, from above and below.
    """
    sampler, data = SAMPLERS[name](), oracle.gaussian([0.5, -0.3], 0.1 * np.eye(2))
    walk, centre = travel(sampler, COUNTS[-1]), np.array([0.5, -0.3])
    for of_process, grid, times, alpha, sigma, deviation in all_grids(points):
        if alpha[0] == 0 and sampler.needs_alpha:
            continue
        if alpha[0] and sampler.refuses(sigma[:4] / alpha[:4]):
            assert name in REFUSED, (of_process, grid)
            continue
        mean, slope, covariance = walk(of_process, times, data)
        gain = 0.1 * alpha[-1] / (0.1 * alpha[-1] ** 2 + sigma[-1] ** 2)  # of the last denoising
        off = gain * (mean - slope @ (alpha[0] * centre) - alpha[-1] * centre)
        spread = gain * np.sqrt((deviation**2 * slope @ slope.T + covariance)[0, 0] / 0.1)
        greatest = 300 / points if of_process == "edm" and grid in ("uniform", "leading", "beta") else GREATEST[points]
        if UNSTABLE.get(name, 0) < points:
            if samplers.BEST_GRIDS[name] == grid == "log_snr":
                least, most = OWN_GRID[points]
                assert least < spread < most * WIDER.get(name, 1), (of_process, spread)
            told = of_process, grid, spread, off
            assert LEAST[points] < spread < greatest * WIDER.get(name, 1) and np.abs(off).max() < 0.5, told


@pytest.mark.thorough
@pytest.mark.parametrize("name", [name for name in ROWS if name not in WITH_ORDER])
def test_samplers_without_an_order_end_at_the_data_on_every_process(name, x64):  # noqa: ARG001
    """64 samples of N(0.4, 0.3^2) in 64 dimensions, 200 points (adaptive: 3) from log-SNR -5 to 7: mean and deviation.

    To a tenth, of which annealed Langevin dynamics has most as its bias.
    """
    points, keys = 3 if name == "adaptive_ode" else 200, sample_keys(0, jnp.arange(64))

    @jax.jit
    def drawn(kind, kinds):
        process = any_of(kinds, kind)

        def denoise(x, t):
            alpha, sigma = process.alpha(t), process.sigma(t)
            off = (x - 0.4 * expand(alpha, x)) / expand(0.09 * alpha**2 + sigma**2, x)
            return Prediction(0.4 + expand(0.09 * alpha, x) * off, expand(sigma, x) * off)

        times = process.inverse_log_snr(jnp.linspace(-5.0, 7.0, points))
        deviation = jnp.sqrt(0.09 * process.alpha(times[0]) ** 2 + process.sigma(times[0]) ** 2)
        start = 0.4 * process.alpha(times[0]) + deviation * jax.random.normal(jax.random.key(0), (64, 64))
        return sample(ROWS[name](), denoise, process, times, keys, (64,), x=start).x

    for of_process in PROCESSES:
        x = drawn(*chosen(of_process))
        assert abs(x.mean() - 0.4) < 0.02 and abs(x.std() / 0.3 - 1) < 0.1, (of_process, x.mean(), x.std())


def check_samples(name, process):
    """20,000 samples of a mixture, 200 steps: mean, covariance and weights within five standard errors and a bias."""
    process, data, count = PROCESSES[process](), mixture(), 20_000
    keys = sample_keys(1, jnp.arange(count))

    @jax.jit
    def drawn(process):
        times = GRIDS["log_snr"](process, steps=201)
        start, _ = oracle.draw(data, process, times[0], keys)
        denoise = oracle.denoiser(data, process)
        return sample(ROWS[name](), denoise, process, times, keys, (2,), x=start, last="stop").x, times[-1]

    x, end = drawn(process)
    mean, covariance = moments(data, process, end)
    assert jnp.abs(x.mean(0) - mean).max() < 5 * jnp.sqrt(jnp.diag(covariance) / count).max() + 0.01
    assert jnp.abs(jnp.cov(x.T) - covariance).max() < 5 * covariance.max() * jnp.sqrt(2 / count) + 0.03
    nearest = jnp.argmin(((x[:, None] - process.alpha(end) * data.means) ** 2).sum(-1), 1)
    share = jnp.bincount(nearest, length=3) / count
    chex.assert_trees_all_close(share, jnp.exp(data.log_weights), atol=5 * 0.5 / np.sqrt(count) + 0.01)


@pytest.mark.thorough
@pytest.mark.parametrize("name, process", [*product(("heun", "euler_maruyama"), ("vp", "ve")), ("ancestral small", "sub_vp")])
def test_samples_of_a_mixture(name, process):
    check_samples(name, process)


@pytest.mark.full
@pytest.mark.parametrize("name, process", list(product(WITH_ORDER, ("linear", *CONTINUOUS))))
def test_samples_of_a_mixture_for_every_pair(name, process):
    check_samples(name, process)


# ------------------------------------------------------- the chain of Ho et al. 2020 by hand

LOG_ALPHA = np.concatenate([[0], 0.5 * np.cumsum(np.log1p(-BETAS["linear"]()))])
M, D = 0.6, 0.3


def moments_by_hand(indices, eta=None, variance=None):
    """Mean and variance along the chain on data N(M, D^2), by a scalar recursion from the papers; no code of the package.

    eta: DDIM (Song et al. 2021, eq. 12); variance: DDPM (Ho et al. 2020, eq. 7) with "fixed_small" or "fixed_large".
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
            noise = tilde if variance == "fixed_small" else beta
        else:
            noise = eta**2 * tilde
            of_x = np.sqrt((1 - abar_s - noise) / (1 - abar_t))
            of_x0 = np.sqrt(abar_s) - of_x * np.sqrt(abar_t)
        slope = of_x + of_x0 * gain
        m, v = slope * m + of_x0 * offset, slope**2 * v + noise
    return m, v


CASES = {
    "ancestral small": dict(variance="fixed_small"), "ancestral": dict(variance="fixed_large"),
    "ddim": dict(eta=0.0), "ddim 0.5": dict(eta=0.5), "ddim 1": dict(eta=1.0),
}  # fmt: skip


@pytest.mark.thorough
@pytest.mark.parametrize("name, steps", list(product(CASES, (1000, 50))))
def test_moments_of_the_published_chain(name, steps):
    """In float32, over all 1000 steps or 50, from N(0, 1)."""
    process, data = PROCESSES["linear"](), oracle.gaussian([M], [[D**2]])
    times = GRIDS["uniform"](process, steps=steps)
    reached = jax.jit(
        lambda process, times: oracle.propagate(
            ROWS[name](), oracle.denoiser(data, process), process, times, jnp.zeros(1), jnp.eye(1), normals=1
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


@pytest.mark.thorough
def test_ddim_at_eta_one_is_the_ancestral_step(x64):  # noqa: ARG001
    for process in (PROCESSES["linear"](), PROCESSES["ve"](), PROCESSES["sub_vp"]()):
        times = GRIDS["uniform"](process, steps=40)
        a, b = states(ddim(eta=1.0), process, times), states(ancestral(variance="fixed_small"), process, times)
        chex.assert_trees_all_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.thorough
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
    "ddim", "dpmpp_2m", "ancestral small", "ddim 0.5", "dpm_solver_3", "dpmpp_2s", "dpmpp_3m", "unipc", "plms", "deis 3",
    "sde_dpmpp_2m",
)  # fmt: skip


@pytest.mark.full
@pytest.mark.parametrize("name", IN_RATIO)
def test_vp_and_ve_views_of_one_problem_agree(name, x64):  # noqa: ARG001
    """Samplers that act on x / alpha and log-SNR give the same x / alpha for two processes at equal log-SNR."""
    views, levels = [], jnp.linspace(-8.0, 8.0, 30)
    for process in (PROCESSES["vp"](), PROCESSES["edm"](), PROCESSES["rectified_flow"]()):
        times = process.inverse_log_snr(levels)
        start = process.alpha(times[0]) * jnp.array([[30.0, -12.0]] * 8)
        views.append(states(ROWS[name](), process, times, x=start) / process.alpha(times[-1]))
    chex.assert_trees_all_close(views[0], views[1], views[2], rtol=1e-8)


@pytest.mark.thorough
def test_heun_and_euler_agree_with_ddim_where_they_should(x64):  # noqa: ARG001
    """On straight alpha and sigma Euler's method is DDIM; where the denoiser gives the truth, Heun is too."""
    for name in ("edm", "rectified_flow"):
        process = PROCESSES[name]()
        times = GRIDS["log_snr"](process, steps=20)
        chex.assert_trees_all_close(states(euler(), process, times), states(ddim(), process, times), rtol=1e-7, atol=1e-9)
    process, point = PROCESSES["linear"](), oracle.gaussian(MEAN, np.zeros((2, 2)))
    times = GRIDS["uniform"](process, steps=20)
    chex.assert_trees_all_close(states(heun(), process, times, point), states(ddim(), process, times, point), atol=1e-9)


AT_THE_ENDS = ("ddim", "heun", "ancestral small", "euler_maruyama", "dpmpp_2m", "dpmpp_2s", "dpmpp_3m", "unipc", "deis 3")


@pytest.mark.thorough
@pytest.mark.parametrize("name", gated(AT_THE_ENDS, [name for name in WITH_ORDER if name not in REFUSED]))
def test_steps_to_time_zero_and_from_alpha_zero(name, x64):  # noqa: ARG001
    """From alpha = 0 down to sigma = 0 of a zero-terminal table; a deterministic step to there gives the denoiser's x0.

    But for Euler's method; PLMS and PNDM are refused on that grid.
    """
    process, data = PROCESSES["cosine"](zero_terminal_snr=True), gaussian()
    denoise = oracle.denoiser(data, process)
    times = jnp.append(GRIDS["uniform"](process, steps=50), 0.0)
    if needs := ROWS[name]().needs_alpha:
        with pytest.raises(ValueError, match=f"{needs}, and alpha"):
            sample(ROWS[name](), denoise, process, times, sample_keys(0, jnp.arange(2)), (2,), last="stop")
        times = times[1:]
    x = states(ROWS[name](), process, times)
    assert jnp.isfinite(x).all()
    if bool(ROWS[name]().noise_free) and name != "euler":
        before = states(ROWS[name](), process, times[:-1])
        chex.assert_trees_all_close(x, denoise(before, times[-2]).x0, rtol=1e-9)


# ------------------------------------------------------- gradients, traces, precision


@pytest.mark.thorough
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


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name", gated(["unipc", "deis"], [name for name in SAMPLERS if name != "adaptive_ode"])
)  # which has none
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


@pytest.mark.full
@pytest.mark.parametrize(
    "name, process",
    gated(
        product(("ancestral", "euler_maruyama", "heun"), ("linear", "ve")),
        product(("ancestral", "ddim 0.5", "euler_maruyama", "heun"), ("linear", "ve", "rectified_flow")),
    ),
)
def test_float32_is_within_1e3_of_float64(name, process):
    """Mean and covariance after 1000 steps, relative to the largest entry."""
    ends = []
    for wide in (False, True):
        with jax.enable_x64(wide):
            made = PROCESSES[process]()
            times = GRIDS["uniform" if made.num_steps else "log_snr"](made, steps=1000)
            ends.append([np.asarray(value, np.float64) for value in propagated(ROWS[name](), gaussian(), made, times)])
    for single, double in zip(*ends, strict=True):
        np.testing.assert_allclose(single, double, atol=1e-3 * np.abs(double).max())


@pytest.mark.full
@pytest.mark.parametrize("name", gated(["dpmpp_3m", "unipc 3", "pndm"], ["dpmpp_2m", "deis 3"]))
def test_float32_of_those_with_memory_is_within_1e3_of_float64(name):
    ends = []
    for wide in (False, True):
        with jax.enable_x64(wide):
            process = PROCESSES["vp"]()
            times = GRIDS["log_snr"](process, steps=1000)
            ends.append(np.asarray(run(ROWS[name](), gaussian(), process, times, jnp.array([[1.0, -0.5]]))))
    np.testing.assert_allclose(*ends, atol=1e-3)


# ------------------------------------------------------- counts and refusals


COUNTED = ROWS | {
    "predictor_corrector": partial(samplers.predictor_corrector, corrector_steps=2),
    "annealed_langevin": partial(samplers.annealed_langevin, langevin_steps=3),
}
TRANSITIONS = {  # evaluations of five, where they are not five
    "heun": 10, "heun with churn": 10, "dpm_solver_2": 10, "dpm_solver_3": 15, "dpmpp_2s": 10, "dpmpp_3m": 6, "deis 3": 6,
    "plms": 6, "pndm": 14, "predictor_corrector": 15, "annealed_langevin": 18,
}  # fmt: skip


BY_HAND = {name: TRANSITIONS.get(name, 5) for name in (*TRANSITIONS, *KNOBS, "ddim", "dpmpp_2m", "unipc", "ancestral")}


@pytest.mark.full
@pytest.mark.parametrize(
    "name, last",
    gated(
        [("ddim", "stop"), *((name, "denoise") for name in COUNTED if name not in KNOBS or name in TRANSITIONS)],
        product(COUNTED, ["denoise"]),
    ),
)
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
    assert evaluations == len(calls)
    if name in BY_HAND:
        assert evaluations == 2 * (BY_HAND[name] + (last == "denoise"))


def test_refusals():
    with pytest.raises(ValueError, match="eta must be from 0 to 1, found 1.5"):
        ddim(eta=1.5)
    with pytest.raises(ValueError, match="must be one of fixed_small, fixed_large, learned, learned_range, found 'tiny'"):
        ancestral(variance="tiny")
    process, data, keys = PROCESSES["linear"](), gaussian(), sample_keys(0, jnp.arange(2))
    for name, points in (("plms", 20), ("pndm", 50)):
        for made in (PROCESSES["cosine"](), PROCESSES["rectified_flow"]()):
            with pytest.raises(ValueError, match="its first step, along sigma / alpha from .* is too long"):
                check(SAMPLERS[name](), made, GRIDS["uniform"](made, steps=points), "denoise")
            check(SAMPLERS[name](), made, GRIDS["log_snr"](made, steps=points), "denoise")
    with pytest.raises(ValueError, match="second output"):
        times = GRIDS["uniform"](process, steps=3)
        sample(ancestral(variance="learned_range"), oracle.denoiser(data, process), process, times, keys, (2,))
    with pytest.raises(ValueError, match=r"x must be of shape \[2, 2\], one state per key, found \[3, 2\]"):
        sample(ddim(), oracle.denoiser(data, process), process, times, keys, (2,), x=jnp.zeros((3, 2)))


@pytest.mark.thorough
def test_a_learned_variance_reaches_the_step():
    """raw = -1 and +1 of the learned range are the small and the large variance, element by element."""
    process, data = PROCESSES["linear"](), gaussian()
    t, s, x = jnp.asarray(0.5), jnp.asarray(0.4), jnp.array([[0.3, -0.2]])

    def denoise(x, t):
        return oracle.denoiser(data, process)(x, t)._replace(variance_output=jnp.array([[-1.0, 1.0]]))

    at = At(t, s, 0, 1, lambda j: jnp.ones_like(x), None)  # noqa: ARG005
    made = [ancestral(variance=name) for name in ("learned_range", "fixed_small", "fixed_large")]
    by_range, small, large = (sampler.step(denoise, process, x, (), at)[0] for sampler in made)
    chex.assert_trees_all_close(by_range, jnp.array([[small[0, 0], large[0, 1]]]), rtol=1e-5)


def test_samplers_are_pytrees():
    """eta is a leaf, with whether it draws no noise, and what a sampler needs is static."""
    assert jax.tree.leaves(ddim(eta=0.5)) == [0.5, False]
    assert jax.tree.structure(ddim(eta=0.5)) == jax.tree.structure(ddim(eta=0.1)) != jax.tree.structure(euler())
    assert isinstance(euler_maruyama().step, Partial)


def test_shares_of_fresh_noise_by_their_formulas(x64):  # noqa: ARG001
    """DDIM (eq. 12 and 16) and gDDIM (eq. 13) between their ends, where they are one."""
    process, t, s, x = PROCESSES["vp"](), jnp.asarray(0.6), jnp.asarray(0.35), jnp.array([[0.4, -1.0]])
    prediction, z = oracle.denoiser(mixture(), process)(x, t), jnp.array([[0.7, 0.2]])
    alpha, sigma, ratio = process.alpha(s), process.sigma(s), np.exp(process.log_snr(t) - process.log_snr(s))
    shares = {"ddim": ({"eta": 0.7}, 0.7**2 * (1 - ratio)), "generalized_ddim": ({"noise_scale": 0.6}, 1 - ratio**0.36)}
    for name, (knobs, share) in shares.items():
        at = At(t, s, 0, 1, lambda _: z, None)
        found, mean, _ = SAMPLERS[name](**knobs).step(lambda x, t: prediction, process, x, (), at)  # noqa: ARG005
        expected = alpha * prediction.x0 + sigma * np.sqrt(1 - share) * prediction.eps
        np.testing.assert_allclose((mean, found), (expected, expected + sigma * np.sqrt(share) * z), rtol=1e-9)


def test_the_adaptive_sampler_hands_on_its_tolerances(monkeypatch):
    def solve(field, x, t0, t1, **knobs):  # noqa: ARG001
        seen.append(knobs)
        raise StopIteration

    seen, process = [], PROCESSES["vp"]()
    monkeypatch.setattr(adaptive, "solve", solve)
    at = At(jnp.asarray(0.5), jnp.asarray(0.4), 0, 1, None, lambda f: f(oracle.denoiser(gaussian(), process))[0])
    with pytest.raises(StopIteration):
        sampler = samplers.adaptive_ode(rtol=1e-3, atol=1e-4, max_evaluations=70)
        sampler.step(oracle.denoiser(gaussian(), process), process, jnp.ones((1, 2)), (), at)
    chex.assert_trees_all_close(seen, [{"rtol": np.float32(1e-3), "atol": np.float32(1e-4), "max_evaluations": 70}])


AROUND = {  # what wraps a sampler that draws a normal itself, and the normals of a step
    "churned": (lambda sampler: samplers.churned(sampler, 8.0), 2),
    "corrected": (lambda sampler: samplers.corrected(sampler, snr=0.1, corrector_steps=2), 3),
    "replacement": (lambda sampler: inverse.replacement(sampler, jnp.zeros(2), jnp.array([True, False])), 2),
    "dps": (lambda sampler: inverse.dps(sampler, inverse.mask(jnp.array([True, False])), jnp.zeros(2)), 1),
}


@pytest.mark.parametrize("name", [*SAMPLERS, *AROUND])
def test_no_normal_of_a_step_is_used_twice(name):
    """Nor left out between others. (Loops number theirs by traced numbers: their recursions are tested where they stand.)"""
    around, count = AROUND.get(name, (None, None))
    sampler = around(ancestral()) if around else SAMPLERS[name]()
    process, x, drawn = PROCESSES["vp"](), jnp.ones((1, 2)), []
    denoise = oracle.denoiser(gaussian(), process)

    def noise(j):
        drawn.append(j)
        return x

    for step in filter(None, (sampler.start, sampler.step, *sampler.end)):
        drawn.clear()
        at = At(jnp.asarray(0.5), jnp.asarray(0.4), jnp.asarray(1), 4, noise, lambda f: f(denoise)[0])
        jax.eval_shape(lambda x, step=step, at=at: step(denoise, process, x, sampler.init(x), at)[0], x)
        numbers = [j for j in drawn if concrete(j)]
        assert sorted(numbers) == list(range(len(numbers))) and count in (None, len(numbers)), drawn


# Two samplers that are one method, and how far apart they may be: coefficients of one are computed in another way in the other.
SAME = {
    "ancestral noise 0 is DPM-Solver-2": (partial(samplers.dpm_solver_2_ancestral, eta=0.0), samplers.dpm_solver_2),
    "ancestral noise 0 is 2S": (partial(samplers.dpmpp_2s_ancestral, eta=0.0), samplers.dpmpp_2s),
    "noise 0 is 2S": (partial(samplers.dpmpp_sde, eta=0.0), samplers.dpmpp_2s),
    "noise 0 is 2M": (partial(samplers.sde_dpmpp_2m, eta=0.0), samplers.dpmpp_2m),
    "Euler ancestral is DDIM": (samplers.euler_ancestral, partial(samplers.ddim, eta=1.0)),
    "generalised DDIM at 1": (samplers.generalized_ddim, partial(samplers.ddim, eta=1.0)),
    "generalised DDIM at 0": (partial(samplers.generalized_ddim, noise_scale=0.0), samplers.ddim),
    "DDIM at 1 is ancestral": (partial(samplers.ddim, eta=1.0), partial(samplers.ancestral, variance="fixed_small")),
    "adjusted DDIM at 0": (partial(samplers.adjusted_ddim, variance_scale=0.0), samplers.ddim),
    "an SA predictor is SDE-3M": (
        partial(samplers.sa_solver, order=3, corrector_order=0, tau=0.6),
        partial(samplers.sde_dpmpp_3m, eta=0.36),
    ),
    "LMS of order 1 is DDIM": (partial(samplers.lms, order=1), samplers.ddim),
    "UniP of order 1 has no B": (
        partial(samplers.unipc, order=1, corrector=False, variant="bh1"),
        partial(samplers.unipc, order=1, corrector=False),
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_samplers_that_are_one_method(name, x64):  # noqa: ARG001
    """The same state after five steps from one noise, one of them to sigma = 0; the denoiser is no straight line."""
    process, times = PROCESSES["cosine"](), jnp.array([990, 700, 400, 150, 30, 0]) / 1000
    normals = jax.random.normal(jax.random.key(3), (6, 2, 2, 2))

    def denoise(x, t):
        x0 = jnp.tanh(x * process.alpha(t))
        return Prediction(x0, (x - process.alpha(t) * x0) / process.sigma(t))

    def ends(make):
        sampler, x = make(), normals[-1, 0]
        memory = sampler.init(x)
        for i in range(5):
            at = At(times[i], times[i + 1], jnp.asarray(i), 5, lambda j, i=i: normals[i, j], None)
            x, _, memory = sampler.step(denoise, process, x, memory, at)
        return x

    one, other = map(ends, SAME[name])
    chex.assert_trees_all_close(one, other, rtol=1e-8)


def test_a_budget_of_evaluations_ends_in_steps_of_lower_order(x64):  # noqa: ARG001
    """For 3 k + remainder evaluations all steps but the last are DPM-Solver-3's (section 3.4); the one of order 1 is DDIM's."""
    process, times = PROCESSES["vp"](), jnp.array([0.9, 0.7, 0.5, 0.3, 0.1])
    known = {make().step.func: order for make, order in ((samplers.dpm_solver_2, 2), (samplers.dpm_solver_3, 3))}
    for remainder, orders in ((0, (3, 3, 2, 1)), (1, (3, 3, 3, 1)), (2, (3, 3, 3, 2))):
        phases = samplers.dpm_fast(remainder=remainder).phases(times)
        steps = [step for step, (numbers, _, _) in phases for _ in numbers]
        assert tuple(known.get(step.func, 1) for step in steps) == orders and sum(orders) % 3 == remainder
    step = samplers.dpm_fast(remainder=1).end[0]
    at = At(times[3], times[4], 3, 4, lambda _: 0.0, None)
    x, denoise = jnp.array([[0.4, -1.0]]), oracle.denoiser(mixture(), process)
    found, expected = (of(denoise, process, x, (), at)[0] for of in (step, ddim().step))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def by_hand(name, eta):
    """A step of k-diffusion from z_t to z_s, in NumPy: f(D, y, z_t, z_s, noise, other_noise) of the denoiser D(y, z)."""

    def levels(z_t, z_s):
        up = min(z_s, eta * np.sqrt(z_s**2 * (z_t**2 - z_s**2) / z_t**2))
        return np.sqrt(z_s**2 - up**2), up

    def dpm_solver_2_ancestral(d, y, z_t, z_s, noise, _):
        down, up = levels(z_t, z_s)
        slope, middle = (y - d(y, z_t)) / z_t, np.sqrt(z_t * down)
        y_middle = y + slope * (middle - z_t)
        return y + (y_middle - d(y_middle, middle)) / middle * (down - z_t) + up * noise

    def dpmpp_2s_ancestral(d, y, z_t, z_s, noise, _):
        down, up = levels(z_t, z_s)
        middle = np.sqrt(z_t * down)
        y_middle = middle / z_t * y + (1 - middle / z_t) * d(y, z_t)
        return down / z_t * y + (1 - down / z_t) * d(y_middle, middle) + up * noise

    def dpmpp_sde(d, y, z_t, z_s, noise, other):
        middle = np.sqrt(z_t * z_s)
        down, up = levels(z_t, middle)
        y_middle = down / z_t * y + (1 - down / z_t) * d(y, z_t) + up * noise
        down, up = levels(z_t, z_s)
        path = np.sqrt(z_t - middle) * noise + np.sqrt(middle - z_s) * other  # a Brownian motion in z
        return down / z_t * y + (1 - down / z_t) * d(y_middle, middle) + up * path / np.sqrt(z_t - z_s)

    return locals()[name]


@pytest.mark.parametrize("name", ["dpm_solver_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde"])
def test_a_step_of_k_diffusion(name, x64):  # noqa: ARG001
    """In y = x / alpha and z = sigma / alpha, on a process where alpha is not 1."""
    process, data, eta = PROCESSES["vp"](), mixture(), 0.7
    t, s = jnp.asarray(0.6), jnp.asarray(0.35)
    x, noises = jax.random.normal(jax.random.key(0), (3, 2)), jax.random.normal(jax.random.key(1), (2, 3, 2))
    at = At(t, s, jnp.asarray(0), 1, lambda j: noises[j], None)
    found, _, _ = SAMPLERS[name](eta=eta).step(oracle.denoiser(data, process), process, x, (), at)

    def d(y, z):
        time = process.inverse_log_snr(jnp.asarray(-2 * np.log(z)))
        return np.asarray(oracle.denoiser(data, process)(process.alpha(time) * y, time).x0)

    alphas = [float(process.alpha(time)) for time in (t, s)]
    z_t, z_s = (float(process.sigma(time)) / alpha for time, alpha in zip((t, s), alphas, strict=True))
    expected = alphas[1] * by_hand(name, eta)(d, np.asarray(x) / alphas[0], z_t, z_s, *np.asarray(noises))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_three_terms_of_the_published_sde_solver(x64):  # noqa: ARG001
    """k-diffusion's coefficients of sample_dpmpp_3m_sde, and of sample_dpmpp_2m_sde with both slopes, with remembered x0."""
    process, eta = PROCESSES["ve"](), 0.6
    lambdas = np.array([-0.2, 0.5, 0.9, 1.6])  # of the two steps before, t and s
    times = process.inverse_log_snr(jnp.asarray(2 * lambdas))
    before_last, before, now, x, noise = np.random.default_rng(0).normal(size=(5, 1, 2))
    history = jnp.stack([before, before_last]), jnp.asarray(lambdas[1::-1])
    at = At(times[2], times[3], jnp.asarray(2), 9, lambda _: noise, None)
    h, h_1, h_2 = np.diff(lambdas)[::-1]
    k = h * (1 + eta)
    plain = np.exp(-k) * x - np.expm1(-k) * now + np.exp(-lambdas[3]) * np.sqrt(-np.expm1(-2 * eta * h)) * noise
    r0, r1 = h_1 / h, h_2 / h
    first, second = (now - before) / r0, (before - before_last) / r1
    d1, d2 = first + (first - second) * r0 / (r0 + r1), (first - second) / (r0 + r1)
    phi_2 = np.expm1(-k) / k + 1
    expected = {
        "3m": plain + phi_2 * d1 - (phi_2 / k - 0.5) * d2,
        "midpoint": plain - 0.5 * np.expm1(-k) * first,
        "heun": plain + phi_2 * first,
    }
    made = {
        "3m": (samplers.sde_dpmpp_3m(eta=eta, published=True), history),
        "midpoint": (samplers.sde_dpmpp_2m(eta=eta), (history[0][:1], history[1][:1])),
        "heun": (samplers.sde_dpmpp_2m(eta=eta, slope="heun"), (history[0][:1], history[1][:1])),
    }
    for name, (sampler, memory) in made.items():
        found, *_ = sampler.step(lambda x, t: Prediction(now, None), process, jnp.asarray(x), memory, at)  # noqa: ARG005
        np.testing.assert_allclose(found, expected[name], rtol=1e-9, err_msg=name)


def test_the_last_steps_of_lower_order(x64):  # noqa: ARG001
    """The last step is DDIM's whatever is remembered, and the one before it that of order 2."""
    process, data = PROCESSES["vp"](), mixture()
    denoise, x = oracle.denoiser(data, process), jax.random.normal(jax.random.key(0), (3, 2))
    for make in (samplers.dpmpp_2m, samplers.dpmpp_3m, samplers.unipc, samplers.deis, samplers.lms):
        sampler = make(lower_order_final=True)
        remembered = jax.tree.map(lambda leaf: leaf + 0.3, sampler.init(x))
        if make is samplers.unipc:
            sampler = make(lower_order_final=True, corrector=False)
        at = At(jnp.asarray(0.3), jnp.asarray(0.2), jnp.asarray(7), 8, None, None)
        found = sampler.step(denoise, process, x, remembered, at)[0]
        expected = ddim().step(denoise, process, x, (), at._replace(noise=lambda _: 0.0))[0]
        np.testing.assert_allclose(found, expected, rtol=1e-9, err_msg=make.__name__)
        other = sampler.step(denoise, process, x, remembered, at._replace(n=9))[0]
        assert np.abs(other - expected).max() > 1e-6, make.__name__


def test_adjusted_ddim_adds_the_variance_that_x0_lacks(x64):  # noqa: ARG001
    """|x_s - alpha_s x0_hat|^2 / d is sigma_s^2 |eps|^2 / d and the variance of what alpha_s x0 - (..) x0_hat leaves out."""
    process, data = PROCESSES["vp"](), mixture()
    x, t, s = jax.random.normal(jax.random.key(0), (5, 2)), 0.5, 0.2
    prediction = oracle.denoiser(data, process)(x, jnp.asarray(t))
    found = samplers.adjusted_ddim(variance_scale=0.3).step(
        oracle.denoiser(data, process), process, x, (), At(jnp.asarray(t), jnp.asarray(s), 0, 1, None, None)
    )[0]
    off = np.square(found - process.alpha(s) * prediction.x0).mean(1)
    of_x0 = process.alpha(s) - process.alpha(t) * process.sigma(s) / process.sigma(t)
    wanted = process.sigma(s) ** 2 * np.square(prediction.eps).mean(1) + of_x0**2 * 0.3 / (2 + np.exp(process.log_snr(t)))
    np.testing.assert_allclose(off, wanted, rtol=1e-9)
