"""Beta tables against the papers' formulas, in float64 and without the package's code."""

from math import cos, pi, sin, sqrt, tanh

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.betas import BETAS, linear, quadratic, rescale_zero_terminal_snr
from ddpm_jax.diffusion.processes import PROCESSES, from_betas

T = 1000


def between(start, end, n, count=T):
    """The n-th of `count` evenly spaced values, n = 1..count."""
    return start + (n - 1) / (count - 1) * (end - start)


def cosine_beta(n):
    """1 - cos^2(b) / cos^2(a) = sin(b - a) sin(b + a) / cos^2(a)."""
    a, b = (((k / T + 0.008) / 1.008) * pi / 2 for k in (n - 1, n))
    return min(sin(b - a) * sin(b + a) / cos(a) ** 2, 0.999)


def chen_gamma(n):
    """A logistic curve is half a tanh: (tanh(3/2) - tanh(x/2)) / (2 tanh(3/2)), x = 6u - 3."""
    return max((tanh(1.5) - tanh(3 * n / T - 1.5)) / (2 * tanh(1.5)), 1e-9)


BY_HAND = {  # of the tables that papers have; the tests without formulas are of every table
    "linear": lambda n: between(1e-4, 0.02, n),
    "quadratic": lambda n: between(0.01, sqrt(0.02), n) ** 2,
    "scaled_linear": lambda n: between(sqrt(0.00085), sqrt(0.012), n) ** 2,
    "constant": lambda n: 0.02,  # noqa: ARG005
    "warmup10": lambda n: between(1e-4, 0.02, min(n, 100), 100),
    "warmup50": lambda n: between(1e-4, 0.02, min(n, 500), 500),
    "jsd": lambda n: 1 / (T - n + 1),
    "sigmoid": lambda n: 1e-4 + (0.02 - 1e-4) * (1 + tanh(between(-3, 3, n))) / 2,
    "cosine": cosine_beta,
    "sigmoid_alpha_bar": lambda n: 1 - chen_gamma(n) / chen_gamma(n - 1),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_every_entry_is_the_formula(name):
    betas = BETAS[name]()
    assert betas.dtype == np.float64
    np.testing.assert_allclose(betas, [BY_HAND[name](n) for n in range(1, T + 1)], rtol=1e-9)


# sqrt(alpha_bar_T) of the first three: Lin et al. 2024, table 1
KNOWN = {
    "linear": (1e-4, 0.02, 0.006353),
    "cosine": (4.128422e-05, 0.999, 4.928220e-05),
    "scaled_linear": (0.00085, 0.012, 0.068265),
    "quadratic": (1e-4, 0.02, None),
    "jsd": (1e-3, 1.0, 0.0),
    "sigmoid": (1e-4 + 0.0199 / (1 + np.exp(6)), 0.02 - 0.0199 / (1 + np.exp(6)), None),
    "sigmoid_alpha_bar": (None, None, sqrt(1e-9)),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_ends(name):
    betas = BETAS[name]()
    for found, known in zip((betas[0], betas[-1], sqrt(np.prod(1 - betas))), KNOWN[name], strict=True):
        assert known is None or found == pytest.approx(known, rel=1e-4, abs=1e-15)


def test_chens_gamma_is_1_a_half_and_0():
    alpha_bar = np.cumprod(1 - BETAS["sigmoid_alpha_bar"]())
    np.testing.assert_allclose(alpha_bar[[T // 2 - 1, -1]], [0.5, 1e-9], rtol=1e-9)
    steeper = np.cumprod(1 - BETAS["sigmoid_alpha_bar"](low=0.0, high=3.0, tau=0.3))
    x = 1 / (1 + np.exp(-np.array([0.0, 5.0, 10.0])))
    np.testing.assert_allclose(steeper[T // 2 - 1], (x[2] - x[1]) / (x[2] - x[0]), rtol=1e-9)


def test_parameters_arrive():
    np.testing.assert_allclose(linear(steps=250, rescale=True)[[0, -1]], [4e-4, 0.08])
    np.testing.assert_allclose(linear(steps=3, beta_start=0.1, beta_end=0.3), [0.1, 0.2, 0.3])
    np.testing.assert_allclose(quadratic(steps=3, beta_start=0.01, beta_end=0.09), [0.01, 0.04, 0.09])
    np.testing.assert_allclose(BETAS["cosine"](steps=4, offset=0.5, beta_limit=0.6)[[0, -1]], [1 - 0.5 / 0.75, 0.6])
    np.testing.assert_allclose(BETAS["warmup50"](steps=4, beta_start=0.1, beta_end=0.2), [0.1, 0.2, 0.2, 0.2])
    with pytest.raises(ValueError, match=r"betas\[5\] = 1.1"):
        PROCESSES["linear"](steps=10, rescale=True)


@pytest.mark.parametrize("name", BETAS)
def test_zero_terminal_snr(name):
    """sqrt(alpha_bar), moved and stretched so that its last is 0 and its first the old one (Lin et al. 2024, section 3.1)."""
    betas = BETAS[name]()
    old, new = (np.sqrt(np.cumprod(1 - b)) for b in (betas, rescale_zero_terminal_snr(betas)))
    assert new[-1] == 0 and new[0] == pytest.approx(old[0], rel=1e-12)
    np.testing.assert_allclose((old[0] - new) / old[0], (old[0] - old) / (old[0] - old[-1]), rtol=1e-9, atol=1e-12)
    process = PROCESSES[name](zero_terminal_snr=True)
    assert process.alpha(1.0) == 0 and process.sigma(1.0) == 1
    assert jnp.isfinite(process.log_alpha(0.999))


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("name", BETAS)
def test_marginal_is_the_product_of_single_steps(name, zero_terminal_snr, x64):  # noqa: ARG001
    """x_n = sqrt(1 - beta_n) x_{n-1} + sqrt(beta_n) eps: signal and variance, step by step."""
    betas = BETAS[name]()
    betas = rescale_zero_terminal_snr(betas) if zero_terminal_snr else betas
    signal, variance, chain = 1.0, 0.0, []
    for beta in betas:
        signal, variance = np.sqrt(1 - beta) * signal, (1 - beta) * variance + beta
        chain.append((signal, variance))
    process, t = PROCESSES[name](zero_terminal_snr=zero_terminal_snr), jnp.arange(1, T + 1) / T
    np.testing.assert_allclose(np.stack([process.alpha(t), process.sigma(t) ** 2], 1), chain, rtol=1e-9)


@pytest.mark.parametrize(
    "bad, words",
    [
        ([0.1, 0.0, 0.2], r"betas\[1\] = 0"),
        ([0.1, 1.0, 0.2], r"betas\[1\] = 1"),
        ([-0.1], r"betas\[0\] = -0.1"),
        ([0.1, 0.2, 1.5], r"betas\[2\] = 1.5"),
        ([0.1, 0.2, float("nan")], r"betas\[2\] = nan"),
        ([], "at least one"),
        ([[0.1]], "vector"),
    ],
)
def test_illegal_betas_are_named(bad, words):
    with pytest.raises(ValueError, match=words):
        from_betas(bad)
