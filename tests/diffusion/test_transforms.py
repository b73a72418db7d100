import chex
import jax.numpy as jnp
import pytest

from ddpm_jax.diffusion.predictions import Prediction
from ddpm_jax.diffusion.processes import PROCESSES
from ddpm_jax.diffusion.transforms import CLIPS


@pytest.mark.parametrize("name, x0, rederived", [("rederive", 1.0, True), ("keep_eps", 1.0, False), ("none", 9.0, False)])
def test_clipping(name, x0, rederived):
    """eps either stays or follows from the clipped x0; what else the prediction says is kept."""
    process, x, t, raw = PROCESSES["sub_vp"](), jnp.ones((2, 3)), jnp.array([0.5, 0.9]), jnp.full((2, 3), 0.3)

    def far(x, t):  # noqa: ARG001
        return Prediction(9.0 * x, -3.0 * x, evaluations=7, variance_output=raw)

    prediction = CLIPS[name](far, process)(x, t)
    assert prediction.evaluations == 7 and prediction.variance_output is raw
    chex.assert_trees_all_equal(prediction.x0, x0 * x)
    eps = (x - process.alpha(t)[:, None]) / process.sigma(t)[:, None] if rederived else -3.0 * x
    chex.assert_trees_all_close(prediction.eps, eps, rtol=1e-6)


def test_clipping_limits():
    def denoise(x, t):  # noqa: ARG001
        return Prediction(x, x)

    x = jnp.array([[-3.0, 0.2, 3.0]])
    for name in ("rederive", "keep_eps"):
        found = CLIPS[name](denoise, PROCESSES["vp"](), low=-0.5, high=2.0)(x, 0.5).x0
        chex.assert_trees_all_close(found, jnp.array([[-0.5, 0.2, 2.0]]))
