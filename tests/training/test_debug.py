import jax
import jax.numpy as jnp
import pytest

from ddpm_jax.training.debug import first_nonfinite


def summed(x, reverse=False):
    """A scan with a constant, a carry and rows: 1 / (x_i - 2) summed up."""
    shift = jnp.asarray(2.0) * x[0] / x[0]
    return jax.lax.scan(lambda c, row: (c + 1 / (row - shift), row), 0.0, x, reverse=reverse)[0]


def test_scans_are_followed_in_their_order():
    """Forwards the sums before each row are 0, 1, 3, and 3 is divided by 3 - 3; backwards they are 0, 5, 7."""

    def f(x, reverse):
        return jax.lax.scan(lambda c, row: (c + row, c / (c - 3)), 0.0, x, reverse=reverse)

    x = jnp.array([1.0, 2.0, 5.0])
    assert first_nonfinite(lambda x: f(x, False), x).startswith("div, in ")
    assert first_nonfinite(lambda x: f(x, True), x) is None


@pytest.mark.parametrize("reverse", [False, True])
def test_what_is_in_a_scan_is_found(reverse):
    """Without a zero it finds nothing; the zero, in one row alone, is found, and so is an overflow that comes before it."""
    assert first_nonfinite(lambda x: summed(x, reverse), jnp.array([1.0, 3.0, 4.0])) is None
    assert first_nonfinite(lambda x: summed(x, reverse), jnp.array([1.0, 2.0, 4.0])).startswith("div, in ")
    found = first_nonfinite(lambda x: summed(jnp.exp(x), reverse), jnp.array([1.0, 100.0]))
    assert found.startswith("exp, in ") and "test_debug.py" in found and "jnp.exp(x)" in found


def test_the_gradient_is_followed():
    found = first_nonfinite(jax.grad(lambda x: jnp.sqrt(x * 0.0)), jnp.asarray(1.0))
    assert found.startswith("div, in ") and "jnp.sqrt" in found
    assert first_nonfinite(jax.grad(jnp.sqrt), jnp.asarray(1.0)) is None


def test_an_infinity_that_was_meant_is_not_the_culprit():
    """A mask of -inf is a constant; what is made of it is not counted, as no finite number went in alone."""
    masked = lambda x: jax.nn.softmax(jnp.where(jnp.arange(3) < 2, x, -jnp.inf))  # noqa: E731
    assert first_nonfinite(masked, jnp.ones(3)) is None
