"""The closed-form world against scipy, scikit-learn, enumeration, differentiation and a fine Runge-Kutta integration."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture

from ddpm_jax.diffusion import oracle
from ddpm_jax.diffusion.grids import GRIDS
from ddpm_jax.diffusion.processes import PROCESSES
from ddpm_jax.diffusion.sample import sample, sample_keys
from ddpm_jax.diffusion.samplers import Sampler, ancestral

MEANS = np.array([[0.5, -0.3], [-0.4, 0.2], [0.1, 0.9]])
COVARIANCES = np.array([[[0.3, 0.1], [0.1, 0.2]], [[0.05, 0.0], [0.0, 0.4]], [[0.2, -0.15], [-0.15, 0.2]]])
WEIGHTS, LABELS = np.array([0.2, 0.5, 0.3]), np.array([0, 1, 0])
X = np.random.default_rng(0).normal(size=(6, 2))
T = np.array([0.05, 0.2, 0.4, 0.6, 0.8, 1.0])


def data():
    return oracle.mixture(MEANS, COVARIANCES, 3.0 * WEIGHTS, LABELS)


def at(process, t):
    """Means and covariances of the components at one time."""
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    return alpha * MEANS, alpha**2 * COVARIANCES + sigma**2 * np.eye(2)


def densities(process, x, t):
    """w_k N_k(x) [K], by scipy."""
    return WEIGHTS * [multivariate_normal(m, c).pdf(x) for m, c in zip(*at(process, t), strict=True)]


@pytest.mark.parametrize("name", ["vp", "sub_vp", "edm"])
def test_density_and_labels(name, x64):  # noqa: ARG001
    process, labels = PROCESSES[name](), np.array([0, 1] * 3)
    joint = np.stack([densities(process, x, t) for x, t in zip(X, T, strict=True)])
    chex.assert_trees_all_close(oracle.log_density(data(), process, X, T), np.log(joint.sum(1)), rtol=1e-10)
    of_class = np.stack([joint[:, [0, 2]].sum(1), joint[:, 1], 0 * T], 1)
    posterior = np.exp(oracle.class_log_posterior(data(), process, X, T, 3))
    chex.assert_trees_all_close(posterior, of_class / joint.sum(1, keepdims=True), rtol=1e-10)
    given = of_class[np.arange(6), labels] / np.array([0.5, 0.5])[labels]
    chex.assert_trees_all_close(oracle.log_density(data(), process, X, T, labels), np.log(given), rtol=1e-10)
    means, covariances = at(process, 0.7)
    theirs = GaussianMixture(3)
    theirs.weights_, theirs.means_, theirs.covariances_ = WEIGHTS, means, covariances
    theirs.precisions_cholesky_ = np.linalg.cholesky(np.linalg.inv(covariances))
    chex.assert_trees_all_close(oracle.log_density(data(), process, X, 0.7), theirs.score_samples(X), rtol=1e-10)


@pytest.mark.parametrize("label", [None, 0, 1])
@pytest.mark.parametrize("name", ["vp", "sub_vp", "edm", "rectified_flow to 1"])
def test_score_and_denoiser(name, label, x64):  # noqa: ARG001
    """The score is the gradient of log p_t; eps = -sigma score; x0, by Bayes, is the mean of the components' own
    m + alpha S (alpha^2 S + sigma^2)^-1 (x - alpha m); both make up x."""
    process = PROCESSES["rectified_flow"](t_max=1.0) if name == "rectified_flow to 1" else PROCESSES[name]()
    density = lambda x: oracle.log_density(data(), process, x, T, label).sum()  # noqa: E731
    score = oracle.score(data(), process, X, T, label)
    chex.assert_trees_all_close(score, jax.grad(density)(jnp.asarray(X)), rtol=1e-9, atol=1e-12)
    prediction = oracle.denoiser(data(), process, label)(X, T)
    alpha, sigma = np.asarray(process.alpha(T))[:, None], np.asarray(process.sigma(T))[:, None]
    chex.assert_trees_all_close(prediction.eps, -sigma * score, rtol=1e-9, atol=1e-12)
    chex.assert_trees_all_close(alpha * prediction.x0 + sigma * prediction.eps, X, rtol=1e-9, atol=1e-12)
    for i, (x, t) in enumerate(zip(X, T, strict=True)):
        (means, covariances), a = at(process, t), float(process.alpha(t))
        components = zip(MEANS, COVARIANCES, means, covariances, strict=True)
        own = [m + a * S @ np.linalg.solve(c, x - am) for m, S, am, c in components]
        share = densities(process, x, t) * (1 if label is None else LABELS == label)  # noqa: SIM300
        chex.assert_trees_all_close(prediction.x0[i], share @ own / share.sum(), rtol=1e-9, atol=1e-12)


def test_shapes_and_labels_per_example(x64):  # noqa: ARG001
    """Any trailing shape, one t for all, one label per example. Given the class of one component, it is that one's denoiser."""
    process, labels = PROCESSES["vp"](), np.array([0, 1, 1, 0, 0, 1])
    mixed = oracle.denoiser(data(), process, labels)(X.reshape(6, 2, 1), 0.3)
    chex.assert_shape((mixed.x0, mixed.eps, oracle.score(data(), process, X.reshape(6, 2, 1), 0.3)), (6, 2, 1))
    alone = oracle.denoiser(oracle.gaussian(MEANS[1], COVARIANCES[1]), process)(X, 0.3)
    chex.assert_trees_all_close(mixed.x0[labels == 1, :, 0], alone.x0[labels == 1], rtol=1e-10)
    chex.assert_trees_all_close(mixed.eps[labels == 1, :, 0], alone.eps[labels == 1], rtol=1e-10)


def test_the_score_is_finite_at_time_zero(x64):  # noqa: ARG001
    score = oracle.score(one(), PROCESSES["vp"](), X, 0.0)
    chex.assert_trees_all_close(score, -(X - MEANS[0]) @ np.linalg.inv(COVARIANCES[0]), rtol=1e-9)


draw = jax.jit(oracle.draw)


def check_moments(x, mean, covariance):
    """Within five standard errors; those of covariances are at most the ones of independent variables times sqrt(2)."""
    variances = np.diag(covariance)
    assert (np.abs(x.mean(0) - mean) < 5 * np.sqrt(variances / len(x))).all()
    assert (np.abs(np.cov(x.T) - covariance) < 5 * np.sqrt(2 * np.outer(variances, variances) / len(x))).all()


def known_moments(process, t):
    """Mean and covariance of the mixture at a time, by the second moments of its components."""
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    mean = alpha * WEIGHTS @ MEANS
    second = np.einsum("k,kde->de", WEIGHTS, COVARIANCES + MEANS[:, :, None] * MEANS[:, None])
    return mean, alpha**2 * second + sigma**2 * np.eye(2) - np.outer(mean, mean)


@pytest.mark.parametrize("name, t", [("vp", 0.3), ("edm", 0.5)])
def test_moments(name, t, x64):  # noqa: ARG001
    process = PROCESSES[name]()
    chex.assert_trees_all_close(oracle.moments(data(), process, t), known_moments(process, t), rtol=1e-9)


@pytest.mark.thorough
@pytest.mark.parametrize("name, t", [("vp", 0.3), ("edm", 0.5), ("linear", 0.0)])
def test_draws(name, t, x64):  # noqa: ARG001
    """Mean, covariance and frequencies of 40,000 draws within five standard errors of those known; and `moments` is exact."""
    process, count = PROCESSES[name](), 40_000
    mean, covariance = known_moments(process, t)
    chex.assert_trees_all_close(oracle.moments(data(), process, t), (mean, covariance), rtol=1e-9)
    x, labels = map(np.asarray, draw(data(), process, t, sample_keys(0, np.arange(count))))
    chex.assert_shape((x, labels), ((count, 2), (count,)))
    check_moments(x, mean, covariance)
    assert abs((labels == 1).mean() - 0.5) < 5 * np.sqrt(0.25 / count)
    means, covariances = at(process, t)
    check_moments(x[labels == 1], means[1], covariances[1])


def test_a_draw_has_a_noise_apart_from_its_label(x64):  # noqa: ARG001
    """Of two components that differ in their labels alone each has the mean 0 and the variance 1, to five standard errors."""
    data, count = oracle.mixture([[0.0], [0.0]], [[[1.0]], [[1.0]]]), 4000
    x, labels = map(np.asarray, draw(data, PROCESSES["vp"](), 0.0, sample_keys(0, np.arange(count))))
    for label in (0, 1):
        own = x[labels == label]
        assert abs(own.mean()) < 5 / np.sqrt(len(own)) and abs(own.var() - 1) < 5 * np.sqrt(2 / len(own))


def test_a_draw_depends_on_its_key_alone(x64):  # noqa: ARG001
    process, keys = PROCESSES["vp"](), sample_keys(0, np.arange(5))
    x, labels = draw(data(), process, T[:5], keys)
    alone, label = draw(data(), process, T[3], keys[3:4])
    chex.assert_trees_all_close((alone[0], label[0]), (x[3], labels[3]), rtol=1e-6)


def test_flow_is_the_integral_of_the_ode(x64):  # noqa: ARG001
    """dx/dt = alpha' E[x_0|x] + sigma' E[eps|x] on vp, in NumPy, by 2000 steps of the classical Runge-Kutta method."""

    def slope(x, t):
        integral, beta = 0.1 * t + 9.95 * t**2, 0.1 + 19.9 * t
        alpha, sigma = np.exp(-integral / 2), np.sqrt(-np.expm1(-integral))
        y = (x - alpha * MEANS[0]) @ np.linalg.inv(alpha**2 * COVARIANCES[0] + sigma**2 * np.eye(2))
        return -beta / 2 * alpha * (MEANS[0] + alpha * y @ COVARIANCES[0]) + beta * alpha**2 / (2 * sigma) * sigma * y

    x, h = X, -0.95 / 2000
    for t in 1 + h * np.arange(2000):
        a = slope(x, t)
        b = slope(x + h / 2 * a, t + h / 2)
        c = slope(x + h / 2 * b, t + h / 2)
        x = x + h / 6 * (a + 2 * b + 2 * c + slope(x + h * c, t + h))
    chex.assert_trees_all_close(oracle.flow(one(), PROCESSES["vp"](), X, 1.0, 0.05), x, rtol=1e-9)


def one():
    return oracle.gaussian(MEANS[0], COVARIANCES[0])


@pytest.mark.parametrize("name, u", [("sub_vp", 0.0), ("edm", 0.002), ("rectified_flow", 0.99)])
def test_flow_composes_and_inverts(name, u, x64):  # noqa: ARG001
    """t -> u -> s is t -> s, back again is the start, and the mean flows to the mean. Any trailing shape; times per example."""
    ends = {"t_max": 1.0} if name == "rectified_flow" else {}
    process, data, x, s = PROCESSES[name](**ends), one(), X.reshape(6, 1, 2), T[::-1]
    by_way = oracle.flow(data, process, oracle.flow(data, process, x, T, u), u, s)
    there = oracle.flow(data, process, x, T, s)
    chex.assert_trees_all_close((by_way, oracle.flow(data, process, there, s, T)), (there, x), rtol=1e-9, atol=1e-11)
    means = [oracle.moments(data, process, t)[0] for t in (0.3, 0.8)]
    chex.assert_trees_all_close(oracle.flow(data, process, means[0][None], 0.3, 0.8)[0], means[1], rtol=1e-9)


EYES = np.stack([np.eye(2)] * 3)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((MEANS[0], EYES), r"means must be \[K, D\]"),
        ((MEANS, EYES[:2]), r"found \(3, 2\), \(\(2, 2, 2\), \(3,\), \(3,\)\)"),
        ((MEANS, EYES, [0.5, 0.5]), r"\(2,\)"),
        ((MEANS, EYES, None, [0, 1]), r"\(2,\)"),
        ((np.ones((0, 2)), np.ones((0, 2, 2))), "means must be"),
        ((MEANS, EYES + [[0, 1], [0, 0]]), "covariances must be symmetric"),
        ((MEANS, EYES - [[0, 0], [0, 1.5]]), "positive semi-definite, found the eigenvalue -0.5"),
        ((MEANS, EYES, [0.5, 0.5, 0.0]), r"weights must be positive, found \[0.5 0.5 0. \]"),
        ((MEANS, EYES, [0.5, np.nan, 0.1]), "weights must be positive"),
    ],
)
def test_bad_mixtures_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        oracle.mixture(*arguments)


def test_the_flow_of_a_mixture_is_refused():
    with pytest.raises(ValueError, match="known for one Gaussian, found a mixture of 3"):
        oracle.flow(data(), PROCESSES["vp"](), X, 1.0, 0.5)


def two_noises(denoise, process, x, memory, at):  # noqa: ARG001
    mean = 0.9 * x - 0.3 * memory + at.s
    return mean + 0.2 * at.noise(0) + at.t * at.noise(1), mean, x + 0.1 * at.noise(1)


def test_propagation_of_an_affine_sampler_with_memory(x64):  # noqa: ARG001
    """x' = 0.9 x - 0.3 m + s + 0.2 z_0 + t z_1, m' = x + 0.1 z_1, from m = x / 2: mean and covariance of (x, m) by hand."""
    times, (mean, covariance) = jnp.array([0.9, 0.5, 0.4, 0.1]), map(jnp.asarray, (MEANS[0], COVARIANCES[0]))
    sampler = Sampler(Partial(lambda x: 0.5 * x), Partial(two_noises))
    found = oracle.propagate(sampler, None, PROCESSES["vp"](), times, mean, covariance)
    m = np.array([[1.0], [0.5]]) * mean  # [x or memory, D]
    c = np.array([[1.0, 0.5], [0.5, 0.25]])[:, :, None, None] * covariance  # [x or memory, x or memory, D, D]
    for t, s in zip(times[:-1], times[1:], strict=True):
        a, b = np.array([[0.9, -0.3], [1.0, 0.0]]), np.array([[0.2, t], [0.0, 0.1]])
        m = a @ m + np.array([[s], [0.0]])
        c = np.einsum("ij,jkde,lk->ilde", a, c, a) + (b @ b.T)[:, :, None, None] * np.eye(2)
    chex.assert_trees_all_close(found, (m[0], c[0, 0]), rtol=1e-10)


@pytest.mark.thorough
def test_propagation_and_samples_agree(x64):  # noqa: ARG001
    """20,000 ancestral chains of 15 steps on vp: mean and covariance within five standard errors."""
    process, data, count = PROCESSES["vp"](), one(), 20_000
    times, denoise = GRIDS["log_snr"](process, steps=15), oracle.denoiser(data, process)
    mean, covariance = oracle.propagate(ancestral(), denoise, process, times, jnp.zeros(2), jnp.eye(2), normals=1)
    chains = jax.jit(lambda keys: sample(ancestral(), denoise, process, times, keys, (2,), last="stop").x)
    check_moments(np.asarray(chains(sample_keys(0, jnp.arange(count)))), np.asarray(mean), np.asarray(covariance))
    with pytest.raises(IndexError):
        oracle.propagate(ancestral(), denoise, process, times, jnp.zeros(2), jnp.eye(2), normals=0)
