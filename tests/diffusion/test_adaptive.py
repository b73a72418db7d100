import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import adaptive, oracle, probability_flow
from ddpm_jax.diffusion.processes import PROCESSES


def growth(rates):
    """Grows by exp(rate sin(5 t) / 5)."""
    return lambda t, x: jnp.reshape(rates * jnp.cos(5 * t), (-1, *[1] * (x.ndim - 1))) * x


@pytest.mark.thorough
def test_accuracy_and_direction(x64):  # noqa: ARG001
    """A tighter tolerance, which is traced as the ends are, is a smaller error; up and down again is where it began."""
    solve = jax.jit(lambda x, t0, t1, tolerance: adaptive.solve(growth(rates), x, t0, t1, rtol=tolerance, atol=tolerance))
    x, rates = jnp.ones((3, 2)), jnp.array([0.5, 1.0, 4.0])
    exact = jnp.exp(rates * jnp.sin(10.0) / 5)[:, None] * x
    errors = []
    for tolerance in (1e-3, 1e-6, 1e-9):
        up = solve(x, 0.0, 2.0, tolerance)
        assert up.reached.all()
        errors.append(abs(up.x - exact).max())
    assert errors[0] > 20 * errors[1] > 400 * errors[2] and errors[2] < 1e-7
    np.testing.assert_allclose(solve(up.x, 2.0, 0.0, 1e-9).x, x, atol=1e-7)


@pytest.mark.thorough
def test_every_evaluation_is_counted():
    calls = []

    for rate in (0.5, 4.0):

        def counted(t, x, rate=rate):
            jax.debug.callback(lambda _: calls.append(1), t)
            return growth(rate)(t, x)

        calls.clear()
        solved = adaptive.solve(counted, jnp.ones((1, 2)), 0.0, 2.0)
        jax.effects_barrier()
        assert solved.evaluations[0] == len(calls) > 20


@pytest.mark.thorough
def test_an_example_is_alone():
    """Its state and its count are those that it has by itself; the stiffer one needs more evaluations."""
    x, rates = {"a": jnp.ones((2, 2)), "b": jnp.ones((2,))}, jnp.array([0.5, 20.0])

    @jax.jit
    def solve(x, rates):
        return adaptive.solve(lambda t, x: jax.tree.map(lambda part: growth(rates)(t, part), x), x, 0.0, 2.0)

    both = solve(x, rates)
    for i in range(2):
        alone = solve({name: part[i : i + 1] for name, part in x.items()}, rates[i : i + 1])
        np.testing.assert_allclose(both.x["a"][i], alone.x["a"][0], rtol=1e-5)
        assert both.evaluations[i] == alone.evaluations[0]
    assert both.evaluations[1] > 2 * both.evaluations[0]


def test_the_limit():
    """It is told per example, and inside jit."""
    solve = jax.jit(lambda rates: adaptive.solve(growth(rates), jnp.ones((2, 1)), 0.0, 2.0, max_evaluations=120))
    solved = solve(jnp.array([0.5, 50.0]))
    assert solved.reached.tolist() == [True, False] and solved.evaluations.max() <= 120
    assert (solved.evaluations % 6 == 1).all()  # six a step, and one before the first
    with pytest.raises(ValueError, match="at least 7, those of one step, found 6"):
        adaptive.solve(growth(1.0), jnp.ones((1, 1)), 0.0, 1.0, max_evaluations=6)


@pytest.mark.thorough
def test_times_of_positions(process, times):
    u = probability_flow.position(process, times)
    assert (jnp.diff(u) > 0).all() and u[-1] <= 0
    np.testing.assert_allclose(probability_flow.time(process, u), times, rtol=1e-6, atol=1e-12)


def test_the_name_of_the_process_does_not_matter(x64):  # noqa: ARG001
    """The slope at one position and one w is the same for a VP, a VE and a flow view of one problem."""
    data = oracle.mixture([[0.5, -0.3], [-0.5, 0.2]], [0.01 * np.eye(2), 0.04 * np.eye(2)])
    w, slopes = jnp.array([[0.3, 0.2], [-0.1, 0.5]]), []
    for name in ("vp", "ve", "rectified_flow", "edm", "sub_vp", "trig_flow"):
        process = PROCESSES[name]()
        t = probability_flow.time(process, jnp.array(-0.7))
        np.testing.assert_allclose(probability_flow.position(process, t), -0.7, rtol=1e-9)
        slopes.append(probability_flow.slope(oracle.denoiser(data, process), process, w, t))
    np.testing.assert_allclose(slopes, [slopes[0]] * 6, rtol=1e-7)
