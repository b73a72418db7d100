"""Likelihoods against the exact densities of a mixture of Gaussians, on every kind of process."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.mixture import GaussianMixture

from ddpm_jax.diffusion import oracle
from ddpm_jax.diffusion.bound import BOUND_VARIANCES, bound_term, density
from ddpm_jax.diffusion.likelihood import (
    HEUN,
    PROBES,
    chain_times,
    dequantise,
    dequantised_bits,
    dopri5,
    heun,
    log_likelihood,
    rk4,
    variational_bound,
)
from ddpm_jax.diffusion.likelihood import RK4 as RK4_TABLEAU
from ddpm_jax.diffusion.predictions import Prediction
from ddpm_jax.diffusion.process import Process, add_noise, expand, prior_kl, prior_log_density
from ddpm_jax.diffusion.processes import PROCESSES
from ddpm_jax.diffusion.transforms import clipped

MEANS, COVARIANCES, WEIGHTS = [[0.5, -0.3], [-0.5, 0.2]], [[[0.02, 0.0], [0.0, 0.01]], [[0.04, 0.01], [0.01, 0.09]]], [0.3, 0.7]


def world(process, count=6):
    """A mixture, its denoiser, `count` points at the likelihood's t_min, their exact log densities, and keys."""
    data = oracle.mixture(MEANS, COVARIANCES, WEIGHTS)
    keys = jax.random.split(jax.random.key(1), count)

    @jax.jit
    def points(process, data):
        x, _ = oracle.draw(data, process, process.t_min.likelihood, jax.random.split(jax.random.key(0), count))
        return x, oracle.log_density(data, process, x, process.t_min.likelihood)

    return data, oracle.denoiser(data, process), *points(process, data), keys


@partial(jax.jit, static_argnames=("solver", "probe", "probes", "true_prior"))
def run(process, data, x, keys, solver, probe="exact", probes=1, true_prior=True):
    prior = (lambda x: oracle.log_density(data, process, x, process.t_max)) if true_prior else None
    denoise = oracle.denoiser(data, process)
    return log_likelihood(denoise, process, x, keys, solver=solver, probe=probe, probes=probes, prior=prior)


# ------------------------------------------------------- along the flow

KINDS = {name: PROCESSES[name] for name in ("sub_vp", "ve", "rectified_flow")} | {
    "linear to zero": partial(PROCESSES["linear"], zero_terminal_snr=True)
}
ADAPTIVE, RK4 = dopri5(rtol=1e-6, atol=1e-6), rk4(steps=41)


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_the_exact_density(make, x64):  # noqa: ARG001
    """At t_min, with the oracle's own prior and the trace itself."""
    process = make()
    data, _, x, exact, keys = world(process)
    found = run(process, data, x, keys, ADAPTIVE)
    chex.assert_trees_all_close(found.log_density, exact, atol=2e-5)
    assert (found.standard_error == 0).all() and 50 < found.evaluations.min() < found.evaluations.max() < 400


@pytest.mark.thorough
def test_heun_on_the_steps_of_a_table(x64):  # noqa: ARG001
    """On all of them it is exact to 2e-3; on any, the times that the network sees are among them."""
    process, seen = PROCESSES["linear"](), []
    data, denoise, x, exact, keys = world(process)
    found = run(process, data, x, keys, heun(steps=1000, grid="uniform"))
    chex.assert_trees_all_close(found.log_density, exact, atol=2e-3)

    def watched(x, t):
        jax.debug.callback(lambda t: seen.append(float(t) * 1000), t)
        return denoise(x, t)

    jax.jit(partial(log_likelihood, watched, process, solver=heun(steps=6)))(x, keys)
    jax.effects_barrier()
    assert len(seen) >= 10
    np.testing.assert_allclose(seen, np.rint(seen), atol=1e-6)


@pytest.mark.thorough
def test_orders(x64):  # noqa: ARG001
    """Halved steps: Heun's error falls 4-fold, that of Runge and Kutta 16-fold."""
    process = PROCESSES["ve"]()
    data, _, x, exact, keys = world(process)
    for method, order, steps in ((heun, 2, (101, 201)), (rk4, 4, (41, 81))):
        found = [run(process, data, x, keys, method(steps=n)) for n in steps]
        errors = [abs(f.log_density - exact).max() for f in found]
        assert (found[0].evaluations == order * (steps[0] - 1)).all()
        np.testing.assert_allclose(np.log2(errors[0] / errors[1]), order, atol=0.4)


def test_the_tableaus_meet_the_conditions_of_their_orders():
    """Hairer, Norsett & Wanner, Solving ODEs I, table 2.1: a condition for each tree of up to as many nodes as the order."""
    for tableau, order in ((HEUN, 2), (RK4_TABLEAU, 4)):
        c, b = np.array(tableau.nodes), np.array(tableau.weights)
        a = np.array([[*row, *[0] * (len(c) - len(row))] for row in tableau.rows])
        np.testing.assert_allclose(a.sum(1), c)
        trees = {1: [(b.sum(), 1)], 2: [(b @ c, 1 / 2)], 3: [(b @ c**2, 1 / 3), (b @ a @ c, 1 / 6)]}
        trees[4] = [(b @ c**3, 1 / 4), (b * c @ a @ c, 1 / 8), (b @ a @ c**2, 1 / 12), (b @ a @ a @ c, 1 / 24)]
        for nodes in range(1, order + 1):
            np.testing.assert_allclose(*zip(*trees[nodes], strict=True), rtol=1e-12)


@pytest.mark.thorough
def test_the_standard_prior_is_off_by_what_it_is_at_the_end(x64):  # noqa: ARG001
    """log p found with N(0, I) differs from the exact one by the difference of the two priors at the latent, and visibly."""
    process = PROCESSES["vp"](beta_max=4.0)
    data, _, x, exact, keys = world(process)
    found = run(process, data, x, keys, RK4, true_prior=False)
    off = prior_log_density(process, found.latent) - oracle.log_density(data, process, found.latent, process.t_max)
    assert abs(off).max() > 0.01
    chex.assert_trees_all_close(found.log_density - exact, off, atol=1e-4)


def test_scikit_learn_agrees(x64):  # noqa: ARG001
    """On the density and on the flow's, where the noise at t_min is nothing beside the data's width."""
    process = PROCESSES["edm"](sigma_min=1e-5)
    data, _, x, _, keys = world(process)
    peer = GaussianMixture(2)
    peer.weights_, peer.means_ = np.array(WEIGHTS), np.array(MEANS)
    peer.precisions_cholesky_ = np.array([np.linalg.cholesky(np.linalg.inv(c)) for c in COVARIANCES])
    expected = peer.score_samples(np.asarray(x))
    np.testing.assert_allclose(oracle.log_density(data, process, x, 1e-5), expected, atol=1e-6)
    found = run(process, data, x, keys, rk4(steps=81, grid="karras"))
    np.testing.assert_allclose(found.log_density, expected, atol=2e-3)


def test_rademacher_is_exact_where_the_jacobian_is_diagonal(x64):  # noqa: ARG001
    """Elsewhere, and everywhere with normal probes, there is an error, of the size that is told."""
    process = PROCESSES["rectified_flow"]()
    t_min, keys = process.t_min.likelihood, jax.random.split(jax.random.key(1), 64)
    for covariance, diagonal in (([[0.3, 0.0], [0.0, 0.05]], True), ([[0.3, 0.1], [0.1, 0.05]], False)):
        data = oracle.gaussian([0.5, -0.3], covariance)
        x, _ = oracle.draw(data, process, t_min, jax.random.split(jax.random.key(0), 64))
        exact = run(process, data, x, keys, RK4).log_density
        by_signs = abs(run(process, data, x, keys, RK4, probe="rademacher").log_density - exact)
        assert by_signs.max() < 1e-9 if diagonal else by_signs.min() > 0.1
        by_normals = run(process, data, x, keys, RK4, probe="gaussian", probes=8)
        scores = (by_normals.log_density - exact) / by_normals.standard_error
        assert 0.9 < (scores**2).mean() ** 0.5 < 2  # of squares of normals, whose tails are heavy; the size itself is below
    pair, single = (run(process, data, x, keys, RK4, probe="gaussian", probes=count) for count in (2, 1))
    chex.assert_trees_all_close(pair.standard_error, jnp.abs(pair.log_density - single.log_density), rtol=1e-9)  # |a - b| / 2
    one = run(process, data, x, keys, RK4, probe="rademacher")
    assert jnp.isnan(one.standard_error).all() and jnp.isfinite(one.log_density).all()


def test_probes():
    """The j-th of an example depends on its key and j alone; E[v v^T] = I."""
    keys = jax.random.split(jax.random.key(0), 2000)
    for name in ("rademacher", "gaussian"):
        v = PROBES[name](keys, (3,), 4)
        np.testing.assert_allclose(jnp.einsum("bki,bkj->ij", v, v) / 8000, np.eye(3), atol=0.06)
        chex.assert_trees_all_equal(PROBES[name](keys[7:9], (3,), 2), v[7:9, :2])
    assert set(np.unique(PROBES["rademacher"](keys, (3,), 4))) == {-1, 1}
    basis = PROBES["exact"](keys[:1], (2, 3), 1)
    np.testing.assert_allclose(jnp.einsum("bkij,bklm->ijlm", basis, basis).reshape(6, 6) / 6, np.eye(6), atol=1e-6)


def test_evaluations_are_those_of_the_denoiser():
    """Two in each call, two calls from one of three points to the next."""
    denoise, keys = lambda x, t: Prediction(0 * x, x, evaluations=2), jax.random.split(jax.random.key(0), 1)  # noqa: ARG005
    found = jax.jit(partial(log_likelihood, denoise, PROCESSES["vp"](), solver=heun(steps=3)))(jnp.ones((1, 1)), keys)
    assert found.evaluations == 8


@pytest.mark.thorough
def test_a_denoiser_of_two_evaluations_and_a_solver_that_does_not_arrive():
    process = PROCESSES["edm"]()
    data, denoise, x, _, keys = world(process)

    def twice(x, t):
        return denoise(x, t)._replace(evaluations=2)

    found = jax.jit(partial(log_likelihood, twice, solver=heun(steps=5, grid="karras")))(process, x, keys)
    assert (found.evaluations == 16).all() and jnp.isfinite(found.log_density).all()
    lost = run(process, data, x, keys, dopri5(max_evaluations=30))
    assert jnp.isnan(lost.log_density).all() and jnp.isnan(lost.latent).all() and (lost.evaluations <= 30).all()


@pytest.mark.thorough
def test_mistakes():
    process = PROCESSES["linear"]()
    _, denoise, x, _, keys = world(process)
    flow = partial(log_likelihood, denoise, process, x, keys)
    with pytest.raises(ValueError, match="probe must be one of rademacher, gaussian, exact, found 'sobol'"):
        flow(solver=RK4, probe="sobol")
    with pytest.raises(ValueError, match="at least 1, found 0"):
        flow(solver=RK4, probes=0)
    with pytest.raises(ValueError, match="sigma > 0 for there to be a density, found 0"):
        flow(solver=RK4, t_min=0.0)
    with pytest.raises(ValueError, match="log-SNR is -inf at t_max"):
        log_likelihood(denoise, KINDS["linear to zero"](), x, keys, solver=RK4)
    with pytest.raises(ValueError, match="grid must be one of log_snr, uniform, karras, found 'leading'"):
        heun(grid="leading")
    with pytest.raises(ValueError, match="on a table the grids begin at 1/T, and t_min is 0.3: take the solver dopri5"):
        flow(solver=RK4, t_min=0.3)
    with pytest.raises(ValueError, match="at least 2, the two ends, found 1"):
        rk4(steps=1)
    times = chain_times(process, steps=0)
    bound = partial(variational_bound, denoise, process, x, keys, variance=BOUND_VARIANCES["fixed_small"])
    with pytest.raises(ValueError, match="times must decrease from t_max = 1"):
        bound(times[::-1])
    with pytest.raises(ValueError, match="times must end where sigma > 0, found 0"):
        bound(times.at[-1].set(0))
    with pytest.raises(ValueError, match="up to the 999 transitions of these times, found 1000"):
        bound(times, terms=1000)


# ------------------------------------------------------- images and bits


def test_bits_of_dequantised_images():
    """The uniform density on [-1, 1]^D is 8 bits; one that is twice as high everywhere, 7."""
    shape = (4, 4, 3)
    nats = jnp.array([-48 * jnp.log(2.0), 0.0])
    np.testing.assert_allclose(dequantised_bits(nats, shape), [8, 7], rtol=1e-6)


def test_dequantised_levels():
    """Within the level's own interval, uniform, and by the image's key alone."""
    levels = jnp.arange(256, dtype=jnp.uint8).reshape(4, 8, 8, 1)
    keys = jax.random.split(jax.random.key(0), 4)
    x = dequantise(levels, keys)
    u = np.asarray((x + 1) * 128 - levels)
    assert x.min() >= -1 and x.max() < 1 and 0 <= u.min() < 0.02 and 0.98 < u.max() < 1 and abs(u.mean() - 0.5) < 0.06
    chex.assert_trees_all_equal(dequantise(levels[2:], keys[2:]), x[2:])


# ------------------------------------------------------- the bound


@pytest.mark.thorough
def test_the_bound_of_the_optimal_denoiser_reaches_the_density(x64):  # noqa: ARG001
    """Its mean over points lies above that of -log p by a gap that halves with the steps, and stays within its error."""
    process = PROCESSES["ve"](sigma_min=1e-3)
    data, denoise, x, exact, keys = world(process, 4000)

    @jax.jit
    def gap(times):
        found = variational_bound(denoise, process, x, keys, times, variance=BOUND_VARIANCES["fixed_small"], decoder=density)
        gaps = found.prior + found.terms.sum(0) + found.decoder + exact
        return gaps.mean(), gaps.std() / len(x) ** 0.5

    (coarse, error), (fine, _) = (gap(chain_times(process, steps=n + 1)) for n in (50, 100))
    assert 5 * error < fine
    np.testing.assert_allclose(coarse / fine, 2, atol=0.3)


OTHERS = ("continuous_cosine", "rectified_flow", "ve", "linear")


@pytest.mark.parametrize("name", ["sub_vp", *(pytest.param(name, marks=pytest.mark.thorough) for name in OTHERS)])
def test_the_times_of_a_chain(name):
    """In float32 they decrease strictly between the ends, exactly; the log-SNRs near the data are evenly spaced."""
    process = PROCESSES[name]()
    times = chain_times(process, steps=1000)
    assert len(times) == 1000 and (jnp.diff(times) < 0).all()
    assert times[0] == process.t_max and times[-1] == process.t_min.likelihood
    if not process.num_steps:
        steps = np.diff(process.log_snr(times[-300:-1]))
        assert steps.std() < 0.02 * steps.mean()


@pytest.fixture(scope="module")
def chain():
    """A table of 40 steps, eight points, and a function that gives their bound, x0 clipped."""
    process: Process = PROCESSES["cosine"](steps=40)
    _, denoise, x, _, keys = world(process, 8)
    times = chain_times(process, steps=0)

    @partial(jax.jit, static_argnames="terms")
    def bound(x, keys, terms=0):
        given = {"variance": BOUND_VARIANCES["fixed_large"], "terms": terms, "to_data": True, "decoder": density}
        return variational_bound(clipped(denoise, process), process, x, keys, times, **given)

    return process, denoise, x, keys, times, bound


def test_the_parts_of_the_bound(chain):
    process, denoise, x, keys, times, bound = chain
    found = bound(x, keys)
    chex.assert_shape(found.terms, (39, 8))
    assert found.evaluations == 40
    chex.assert_trees_all_close(found.prior, prior_kl(process, x))
    chex.assert_trees_all_close(found.times, jnp.broadcast_to(times[:-1, None], (39, 8)))
    assert (found.terms > 0).all()
    few = bound(x[2:5], keys[2:5])

    @jax.jit
    def to_data():
        eps = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 39), (2,)))(keys)
        guess = clipped(denoise, process)(add_noise(process, x, eps, times[-1]), times[-1])
        return bound_term(process, x, guess, times[-1], 0.0, BOUND_VARIANCES["fixed_large"], density)

    chex.assert_trees_all_close(found.decoder, to_data(), rtol=1e-5)
    for name in ("prior", "terms", "decoder"):
        chex.assert_trees_all_close(getattr(few, name), getattr(found, name)[..., 2:5], rtol=1e-5)


def test_some_of_the_terms(chain):
    """Each is the term of the whole sum, times 39 / 10, one of each tenth; on the average over examples they are the sum."""
    _, _, x, _, times, bound = chain
    x, keys = jnp.tile(x, (250, 1)), jax.random.split(jax.random.key(5), 2000)
    whole, some = bound(x, keys), bound(x, keys, terms=10)
    assert some.evaluations == 11 and some.terms.shape == (10, 2000)
    places = np.searchsorted(-times, -some.times)
    chex.assert_trees_all_close(np.take_along_axis(np.asarray(whole.terms), places, 0) * 3.9, some.terms, rtol=1e-4)
    uniform = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 40), (10,)), out_axes=1)(keys)
    np.testing.assert_array_equal(places, np.floor((np.arange(10)[:, None] + uniform) * np.float32(3.9)))
    np.testing.assert_allclose(np.bincount(places.ravel(), minlength=39), 2000 * 10 / 39, rtol=0.2)
    difference = np.asarray(some.terms.sum(0) - whole.terms.sum(0))
    assert abs(difference.mean()) < 4 * difference.std() / 2000**0.5


def test_each_transition_of_the_bound_has_a_noise_of_its_own():
    """And so has the decoder: all are found from what the denoiser is asked, and are those of their addresses."""
    process, x0, seen = PROCESSES["linear"](steps=5, rescale=False, beta_start=0.1, beta_end=0.5), jnp.ones((2, 3)), []

    def denoise(x, t):
        eps = (x - expand(process.alpha(t), x) * x0) / expand(process.sigma(t), x)
        jax.debug.callback(lambda eps: seen.append(np.asarray(eps)), eps, ordered=True)
        return Prediction(x0, eps)

    keys, knobs = jax.random.split(jax.random.key(0), 2), {"variance": BOUND_VARIANCES["fixed_large"], "to_data": True}
    bound = partial(variational_bound, denoise, process, x0, **knobs)
    jax.block_until_ready(jax.jit(bound)(keys, chain_times(process, steps=5)))
    jax.effects_barrier()
    drawn = [[jax.random.normal(jax.random.fold_in(key, i), (3,)) for key in keys] for i in range(5)]
    np.testing.assert_allclose(seen, drawn, atol=1e-5)
