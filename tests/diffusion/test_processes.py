import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import betas as beta_tables
from ddpm_jax.diffusion.processes import add_noise, derivative, from_betas, linear

BETAS = beta_tables.linear(1000, 1e-4, 0.02)
PROCESS = linear()
KNOTS = np.arange(1, 1001)


def test_marginal_is_the_product_of_single_steps():
    """x_n = sqrt(1 - beta_n) x_{n-1} + sqrt(beta_n) eps, step by step in float64: signal and variance at every n."""
    signal, variance = 1.0, 0.0
    signals, variances = [], []
    for beta in BETAS:
        signal, variance = np.sqrt(1 - beta) * signal, (1 - beta) * variance + beta
        signals.append(signal)
        variances.append(variance)
    t = jnp.asarray(KNOTS / 1000, jnp.float32)
    chex.assert_trees_all_close(PROCESS.alpha(t), np.array(signals, np.float32), rtol=2e-6)
    chex.assert_trees_all_close(PROCESS.sigma(t) ** 2, np.array(variances, np.float32), rtol=2e-6)


def test_table_is_exact_at_knots_and_linear_between():
    table = np.concatenate([[0], 0.5 * np.cumsum(np.log1p(-BETAS))]).astype(np.float32)
    t = jnp.arange(1001, dtype=jnp.float32) / 1000
    chex.assert_trees_all_equal(np.asarray(PROCESS.log_alpha(t)), table)
    middle = (jnp.arange(1000) + 0.5) / 1000
    chex.assert_trees_all_close(PROCESS.log_alpha(middle), (table[1:] + table[:-1]) / 2, rtol=1e-5)


def test_derivatives_are_from_the_left():
    """On (n-1, n]/T the slope of log alpha is T log(1 - beta_n) / 2, knot included; g^2 = -2 f where alpha^2 + sigma^2 = 1."""
    slopes = (500 * np.log1p(-BETAS)).astype(np.float32)
    t = jnp.asarray(KNOTS / 1000, jnp.float32)
    chex.assert_trees_all_close(PROCESS.drift(t), slopes, rtol=3e-3)
    chex.assert_trees_all_close(PROCESS.drift(t - 0.5e-3), slopes, rtol=3e-3)
    chex.assert_trees_all_close(PROCESS.diffusion2(t), -2 * PROCESS.drift(t), rtol=1e-5)


def test_ends_are_finite():
    assert PROCESS.alpha(0.0) == 1 and PROCESS.sigma(0.0) == 0 and PROCESS.log_snr(0.0) == jnp.inf
    assert jnp.isfinite(jax.grad(PROCESS.sigma)(0.0))
    zero_terminal = from_betas(np.append(BETAS[:-1], 1.0))
    assert zero_terminal.alpha(1.0) == 0 and zero_terminal.sigma(1.0) == 1
    assert jnp.isfinite(zero_terminal.log_alpha(0.999))


def test_the_network_is_shown_integers():
    """In float32, 1000 (n / 1000) is often off by some 1e-5: it must be shown as n - 1, and between knots as it is."""
    shown = PROCESS.time_input(jnp.asarray(KNOTS / 1000, jnp.float32))
    chex.assert_trees_all_equal(np.asarray(shown), (KNOTS - 1).astype(np.float32))
    chex.assert_trees_all_close(PROCESS.time_input(0.0105), 9.5, rtol=1e-5)


def test_no_silent_clamp_outside_the_table():
    assert jnp.isnan(PROCESS.log_alpha(1.01)) and jnp.isnan(PROCESS.sigma(-0.01)) and jnp.isnan(PROCESS.time_input(1.01))


@pytest.mark.parametrize("bad, index", [([0.1, 0.0, 0.2], 1), ([0.1, 1.0, 0.2], 1), ([-0.1], 0), ([0.1, 1.5], 1)])
def test_illegal_betas_are_named(bad, index):
    with pytest.raises(ValueError, match=rf"betas\[{index}\]"):
        from_betas(bad)


class Variants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_add_noise(self):
        """Any trailing shape; t of shape [] and [B]."""
        x0, eps = jnp.full((3, 2, 2, 1), 2.0), jnp.full((3, 2, 2, 1), -1.0)
        t = jnp.array([0.1, 0.5, 1.0])
        noised = self.variant(add_noise)(PROCESS, x0, eps, t)
        expected = (2 * PROCESS.alpha(t) - PROCESS.sigma(t))[:, None, None, None] * jnp.ones_like(x0)
        chex.assert_trees_all_close(noised, expected, rtol=1e-6)
        chex.assert_trees_all_close(self.variant(add_noise)(PROCESS, x0[1], eps[1], t[1]), noised[1], rtol=1e-6)


def test_a_process_is_an_argument():
    """Other parameters of the same process do not recompile, and a sweep over them is a vmap."""

    @jax.jit
    @chex.assert_max_traces(n=1)
    def snr(process, t):
        return process.log_snr(t)

    first, second = linear(beta_end=0.02), linear(beta_end=0.03)
    alone = [snr(process, 0.5) for process in (first, second)]
    assert alone[0] > alone[1]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), first, second)
    chex.assert_trees_all_close(jax.vmap(lambda p: p.log_snr(0.5))(stacked), jnp.stack(alone), rtol=1e-5)


def test_derivative_takes_any_shape():
    t = jnp.linspace(0.1, 0.9, 6).reshape(2, 3)
    chex.assert_trees_all_close(derivative(jnp.sin, t), jnp.cos(t), rtol=1e-6)
