"""Processes against formulas worked out by hand from the papers, in NumPy's float64, and against each other's identities."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest, norm

from ddpm_jax.diffusion.betas import BETAS, rescale_zero_terminal_snr
from ddpm_jax.diffusion.process import (
    add_noise,
    derivative,
    expand,
    one_minus_snr_ratio,
    prior_kl,
    prior_log_density,
    prior_sample,
    transition,
)
from ddpm_jax.diffusion.processes import PROCESSES


def table_by_hand(betas, t):
    """Linear in log alpha between the knots n/T with slope T log(1 - beta_n) / 2; in alpha where that is infinite."""
    steps = len(betas)
    n = np.clip(np.ceil(steps * t - 1e-3).astype(int), 1, steps)  # (n - 1, n] holds T t
    before = np.array([np.log1p(-betas[: k - 1]).sum() for k in n]) / 2
    left, last = n - steps * t, betas[n - 1] == 1
    f = np.where(last, -steps / left, steps * np.log1p(-betas[n - 1]) / 2)
    alpha = np.exp(before) * np.where(last, left, np.exp((1 - left) * np.where(last, 0.0, f) / steps))
    return alpha, np.sqrt(np.where(last, 1 - alpha**2, -np.expm1(2 * np.log(alpha)))), f, -2 * f


def vp_by_hand(t):
    """beta = 0.1 + 19.9 t."""
    integral, beta = 0.1 * t + 9.95 * t**2, 0.1 + 19.9 * t
    return np.exp(-integral / 2), np.sqrt(-np.expm1(-integral)), -beta / 2, beta


def sub_vp_by_hand(t):
    alpha, sigma, f, beta = vp_by_hand(t)
    return alpha, sigma**2, f, beta * (1 - alpha**4)


def cosine_by_hand(t):
    """tan of the angle runs from e^-10 to e^10."""
    low = np.arctan(np.exp(-10))
    slope = np.pi / 2 - 2 * low
    angle = low + slope * t
    return np.cos(angle), np.sin(angle), -slope * np.tan(angle), 2 * slope * np.tan(angle)


def geometric_by_hand(offset, slope, t):
    """sigma = 0.01 (50 / 0.01)^(offset + slope t)."""
    sigma = 0.01 * 5000 ** (offset + slope * t)
    return np.ones_like(t), sigma, 0 * t, 2 * sigma**2 * np.log(5000) * slope


def flow_by_hand(t):
    return 1 - t, t, -1 / (1 - t), 2 * t / (1 - t)


def table_row(name, zero_terminal_snr=False):
    betas = BETAS[name]()
    formula = partial(table_by_hand, rescale_zero_terminal_snr(betas) if zero_terminal_snr else betas)
    return partial(PROCESSES[name], zero_terminal_snr=zero_terminal_snr), formula, 1.0, lambda t: 1000 * t - 1


# Of the processes that papers have; every row of PROCESSES besides is held to the identities below and by all samplers.
# name: constructor, t -> (alpha, sigma, f, g^2), prior deviation, t -> what the network is shown
BY_HAND = {name: table_row(name) for name in BETAS} | {
    "linear to zero": table_row("linear", zero_terminal_snr=True),
    "cosine to zero": table_row("cosine", zero_terminal_snr=True),
    "vp": (PROCESSES["vp"], vp_by_hand, 1.0, lambda t: 999 * t),
    "sub_vp": (PROCESSES["sub_vp"], sub_vp_by_hand, 1 - np.exp(-10.05), lambda t: 999 * t),
    "continuous_cosine": (PROCESSES["continuous_cosine"], cosine_by_hand, 1.0, lambda t: 999 * t),
    "ve": (PROCESSES["ve"], partial(geometric_by_hand, 0.0, 1.0), 50.0, lambda t: np.log(0.01) + t * np.log(5000)),
    "ncsn": (PROCESSES["ncsn"], partial(geometric_by_hand, -1 / 231, 232 / 231), 50.0, lambda t: 232 * t - 1),
    "edm": (PROCESSES["edm"], lambda t: (np.ones_like(t), t, 0 * t, 2 * t), 80.0, lambda t: np.log(t) / 4),
    "rectified_flow": (PROCESSES["rectified_flow"], flow_by_hand, 1.0, lambda t: 999 * t),
    "trig_flow": (
        PROCESSES["trig_flow"],
        lambda t: (np.cos(t), np.sin(t), -np.tan(t), 2 * np.tan(t)),
        1.0,
        lambda t: 999 * t / np.arctan(160.0),
    ),
    "rectified_flow to 1": (partial(PROCESSES["rectified_flow"], t_max=1.0), flow_by_hand, 1.0, lambda t: 999 * t),
}


@jax.jit
def everything(process, t):
    """One compilation for all tables; all tests that use it give it fifteen times."""
    functions = (process.alpha, process.sigma, process.log_snr, process.drift, process.diffusion2, process.time_input)
    return *(f(t) for f in functions), process.inverse_log_snr(process.log_snr(t))


SPAN = np.array([0, 6e-4, 0.003, 0.01, 0.1, 0.25, 0.4, 0.5, 0.6, 0.66, 0.77, 0.9, 0.999, 0.9994, 1])


@pytest.mark.parametrize("dtype, rtol", [(np.float64, 1e-10), (np.float32, 1e-4)])
@pytest.mark.parametrize("name", BY_HAND)
def test_functions_of_time(name, dtype, rtol):
    """Over the whole span, a table's knots (every other time) and alpha = 0 included. Small against 1: within 1e-3 rtol."""
    constructor, formula, prior_std, shown = BY_HAND[name]
    with jax.enable_x64(dtype == np.float64):
        process = constructor()
        low, high = np.float64(process.t_min.training), np.float64(process.t_max)
        t = low + (high - low) * SPAN
        if steps := process.num_steps:
            t[::2] = np.rint(t[::2] * steps) / steps
        t = dtype(t)
        found = everything(process, t)
        assert {f.dtype for f in found} == {process.prior_std.dtype} == {t.dtype}
        np.testing.assert_allclose(process.prior_std, prior_std, rtol)
    with np.errstate(divide="ignore"):
        alpha, sigma, f, g2 = formula(np.float64(t))
        exact = alpha, sigma, 2 * (np.log(alpha) - np.log(sigma)), f, g2, shown(t), t
    for quantity, value in zip(found, exact, strict=True):
        np.testing.assert_allclose(quantity, value, rtol=rtol, atol=rtol * 1e-3)


@pytest.mark.thorough
def test_log_snr_of_its_inverse(process):
    """From near t_max, where it may be -inf, to the lowest time. On a table times within 1e-3 of a knot are at the knot."""
    levels = jnp.linspace(process.log_snr(0.99999 * process.t_max), process.log_snr(process.t_min.training), len(SPAN))
    _, sigma, log_snr, _, g2, *_ = everything(process, process.inverse_log_snr(levels))
    snapped = 1e-3 / process.num_steps * g2 / sigma**2 if process.num_steps else 0.0
    assert (jnp.abs(log_snr - levels) <= 1e-9 * (1 + jnp.abs(levels)) + snapped).all()


def test_every_process_is_one_diffusion(process, times):
    """alpha is that of log_alpha, and 1 or nearly where time begins; log-SNR falls; the network sees a time of each time alone,
    in order; and where the process starts from, its prior, is what its marginal there has for noise, to 1 %."""
    alpha, sigma, log_snr, _, _, shown, _ = (found[: len(times)] for found in everything(process, jnp.resize(times, len(SPAN))))
    chex.assert_trees_all_close(alpha, jnp.exp(process.log_alpha(times)), rtol=1e-9, atol=1e-12)
    assert abs(alpha[0] - 1) < 0.02 and (jnp.diff(log_snr) < 0).all() and (jnp.diff(shown) > 0).all()
    assert (jnp.stack(process.t_min) >= 0).all() and (jnp.stack(process.t_min) < process.t_max).all()
    assert abs(process.prior_std / sigma[-1] - 1) < 0.01


def test_the_sde_has_the_marginals(process, times):
    """d alpha/dt = f alpha and d sigma^2/dt = 2 f sigma^2 + g^2, by central differences between knots."""
    h = 1e-6
    t = times[1:-1:2] + jnp.array([[-h], [0], [h]])
    alpha, sigma, _, f, g2, *_ = (found.reshape(3, 5) for found in everything(process, t.ravel()))
    chex.assert_trees_all_close((alpha[2] - alpha[0]) / (2 * h), f[1] * alpha[1], rtol=1e-6, atol=1e-9)
    slope = (sigma[2] ** 2 - sigma[0] ** 2) / (2 * h)
    chex.assert_trees_all_close(slope, 2 * f[1] * sigma[1] ** 2 + g2[1], rtol=1e-6, atol=1e-9)


def test_derivative_takes_any_shape():
    t = jnp.linspace(0.1, 0.9, 6).reshape(2, 3)
    chex.assert_trees_all_close(derivative(jnp.sin, t), jnp.cos(t), rtol=1e-6)


@jax.jit
def steps_between(process, t, u, s):
    pairs = ((t, u), (u, s), (t, s))
    return *(transition(process, *pair) for pair in pairs), one_minus_snr_ratio(process, t, s)


@pytest.mark.thorough
def test_transitions_compose(process, times):
    """s -> u -> t is s -> t; the marginal at s goes over into the marginal at t; also from s = 0, also to alpha = 0."""
    t, u, s = times[2:], times[1:-1], times[:-2]
    s = s.at[0].set(0.0) if process.sigma(0.0) == 0 else s
    (a_tu, v_tu), (a_us, v_us), (a_ts, v_ts), ratio = steps_between(process, t, u, s)
    chex.assert_trees_all_close((a_tu * a_us, a_tu**2 * v_us + v_tu), (a_ts, v_ts), rtol=1e-9)
    arrived = a_ts * process.alpha(s), a_ts**2 * process.sigma(s) ** 2 + v_ts
    chex.assert_trees_all_close(arrived, (process.alpha(t), process.sigma(t) ** 2), rtol=1e-9)
    assert (ratio > 0).all() and (ratio <= 1).all()


def test_prior(process):
    """The log-density is scipy's; the KL is the mean of log q - log prior over q, by Gauss-Hermite quadrature, exact here."""
    x0 = jnp.array([[0.3, -1.0, 0.7], [-0.2, 0.0, 1.0]])
    nodes, weights = np.polynomial.hermite_e.hermegauss(4)
    mean, std = process.alpha(process.t_max) * x0, process.sigma(process.t_max)
    x = mean + std * nodes[:, None, None]
    log_prior = norm(scale=process.prior_std).logpdf(x).sum(-1)
    chex.assert_trees_all_close(jax.vmap(prior_log_density, (None, 0))(process, x), log_prior, rtol=1e-12)
    differences = norm(mean, std).logpdf(x) - norm(scale=process.prior_std).logpdf(x)
    kl = np.einsum("n,nbd->b", weights / weights.sum(), differences)
    chex.assert_trees_all_close(prior_kl(process, x0), kl, rtol=1e-9, atol=1e-14)


SPANS = {  # t_min for training, sampling and likelihood; t_max
    "linear": (1e-3, 1e-3, 1e-3, 1.0),
    "ncsn": (1 / 232, 1 / 232, 1 / 232, 1.0),
    "vp": (1e-5, 1e-3, 1e-5, 1.0),
    "sub_vp": (1e-5, 1e-3, 1e-5, 1.0),
    "ve": (1e-5, 1e-5, 1e-5, 1.0),
    "edm": (0.002, 0.002, 0.002, 80.0),
    "rectified_flow": (1e-5, 1e-3, 1e-5, 1 - 1e-5),
    "continuous_cosine": (0.0, 0.0, 0.0, 1.0),
}


@pytest.mark.parametrize("name", SPANS)
def test_spans(name):
    process = PROCESSES[name]()
    chex.assert_trees_all_close((*process.t_min, process.t_max), tuple(map(np.float32, SPANS[name])), rtol=1e-6)


@pytest.mark.parametrize("name", ["linear", "sub_vp", "edm"])
def test_prior_samples(name):
    process = PROCESSES[name]()
    x = prior_sample(process, jax.random.key(0), (50, 20, 20))
    assert kstest(np.ravel(x), norm(scale=process.prior_std).cdf).pvalue > 1e-3


@jax.jit
def slopes_at_zero(process):
    return jnp.stack([jax.grad(f)(0.0) for f in (process.alpha, process.sigma, process.log_snr)])


@pytest.mark.thorough
@pytest.mark.parametrize("name", [*BETAS, "vp", "sub_vp", "rectified_flow"])
def test_time_zero(name):
    """All signal, and derivatives stay finite."""
    process = PROCESSES[name]()
    assert process.alpha(0.0) == 1 and process.sigma(0.0) == 0 and process.log_snr(0.0) == jnp.inf
    assert process.inverse_log_snr(jnp.inf) == 0
    assert jnp.isfinite(slopes_at_zero(process)).all()


@pytest.mark.parametrize("steps", [1000, 4000, 37])
@pytest.mark.parametrize("name", ["linear", "ncsn"])
def test_networks_of_tables_are_shown_integers(name, steps):
    """In float32, T (n / T) is often off by some 1e-5: shown is n - 1 exactly, and between knots what it is."""
    process, n = PROCESSES[name](steps=steps), np.arange(1, steps + 1)
    chex.assert_trees_all_equal(np.asarray(process.time_input(n / np.float32(steps))), np.float32(n - 1))
    chex.assert_trees_all_close(process.time_input((n - 0.5) / np.float32(steps)), np.float32(n - 1.5), rtol=1e-3)


@pytest.mark.parametrize("name", ["linear", "jsd", "ncsn"])
def test_no_silent_clamp_outside_a_table(name):
    """A time that is traced gives nan; one that is known an error, but for the fields, which check nothing."""
    process = PROCESSES[name]()
    for t in (1.01, -0.01):
        assert all(jnp.isnan(f(t)) for f in (process.sigma, jax.jit(process.log_snr), process.time_input))
        with pytest.raises(ValueError, match=f"t must lie .* found {t}"):
            process.log_snr(t)
        assert name == "ncsn" or jnp.isnan(process.alpha(t))
    if name != "jsd":  # whose log-SNR ends at -inf
        beyond = process.inverse_log_snr(process.log_snr(1.0) - 0.5)
        assert beyond > 1.001 and jnp.isnan(process.sigma(beyond))


class Variants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_add_noise(self):
        """Any trailing shape; t of shape [] and [B]."""
        process, noise = PROCESSES["linear"](), self.variant(add_noise)
        x0, eps, t = jnp.full((3, 2, 2, 1), 2.0), jnp.full((3, 2, 2, 1), -1.0), jnp.array([0.1, 0.5, 1.0])
        noised = noise(process, x0, eps, t)
        exact = (2 * process.alpha(t) - process.sigma(t))[:, None, None, None] * jnp.ones_like(x0)
        chex.assert_trees_all_close(noised, exact, rtol=1e-6)
        chex.assert_trees_all_close(noise(process, x0[1], eps[1], t[1]), noised[1], rtol=1e-6)


@pytest.mark.parametrize(
    "shapes, t, words",
    [
        (((4, 2), (4, 2)), np.ones(3), r"found shape \[3\] for x of \[4, 2\]"),
        (((4, 2), (4, 2)), np.ones((4, 1)), r"found shape \[4, 1\]"),
        (((4, 2), (4, 1)), 0.5, r"\[4, 2\] and \[4, 1\]"),
        (((4, 2), (4, 2)), 1.5, r"t must lie in \[0, t_max = 1\], found 1.5"),
        (((4, 2), (4, 2)), np.array([0.1, 0.2, -0.3, 1.0]), "found -0.3 to 1"),
        (((4, 2), (4, 2)), np.nan, "found nan"),
    ],
)
def test_bad_noising_is_refused(shapes, t, words):
    x0, eps = map(jnp.ones, shapes)
    with pytest.raises(ValueError, match=words):
        add_noise(PROCESSES["vp"](), x0, eps, t)


def test_bad_times_are_refused():
    with pytest.raises(ValueError, match=r"t must lie in \[0, t_max = 80\], found 81"):
        transition(PROCESSES["edm"](), 81.0, 0.1)
    with pytest.raises(ValueError, match="s must lie .*, found -1"):
        transition(PROCESSES["edm"](), 80.0, -1.0)
    with pytest.raises(ValueError, match="s must not be later than t, found s = 0.5 and t = 0.1"):
        transition(PROCESSES["edm"](), 0.1, 0.5)
    with pytest.raises(ValueError, match="at least 2 levels, found steps = 1"):
        PROCESSES["ncsn"](steps=1)
    assert expand(jnp.ones(4), jnp.ones((4, 2, 3))).shape == (4, 1, 1) and expand(2.0, jnp.ones((4, 2))).shape == ()


KNOBS = [
    ("vp", "beta_min", 0.1),
    ("vp", "beta_max", 20.0),
    ("sub_vp", "beta_min", 0.1),
    ("sub_vp", "beta_max", 20.0),
    ("continuous_cosine", "log_snr_limit", 20.0),
    ("ve", "sigma_min", 0.01),
    ("ve", "sigma_max", 50.0),
    ("ncsn", "sigma_min", 0.01),
    ("ncsn", "sigma_max", 50.0),
    ("edm", "sigma_max", 80.0),
    ("rectified_flow", "t_max", 0.99),
    ("trig_flow", "ratio_max", 160.0),
]


@pytest.mark.thorough
@pytest.mark.parametrize("name, knob, value", KNOBS)
def test_parameters_are_traced(name, knob, value, x64):  # noqa: ARG001
    """A sweep is a vmap; derivatives with respect to the parameter are those of central differences."""

    def of(value):
        process = PROCESSES[name](**{knob: value})
        f = process.log_snr(0.3), process.diffusion2(0.3), process.inverse_log_snr(1.5), process.prior_std, process.t_max
        return jnp.stack(f)

    h = 1e-5 * value
    (below, above), slopes = jax.jit(lambda value: (jax.vmap(of)(value + jnp.array([-h, h])), jax.jacrev(of)(value)))(value)
    assert jnp.abs(slopes).max() > 0
    chex.assert_trees_all_close(slopes, (above - below) / (2 * h), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name, knob, values", [("linear", "beta_end", (0.02, 0.03)), ("ve", "sigma_max", (50.0, 20.0))])
def test_a_process_is_an_argument(name, knob, values):
    """Another of the same kind does not recompile, and a stack of them is one under vmap."""

    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def sigma(process):
        return process.sigma(0.5)

    first, second = (PROCESSES[name](**{knob: value}) for value in values)
    alone = jnp.stack([sigma(first), sigma(second)])
    assert alone[0] != alone[1]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), first, second)
    chex.assert_trees_all_close(jax.vmap(lambda process: process.sigma(0.5))(stacked), alone, rtol=1e-6)
