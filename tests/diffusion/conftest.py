"""`x64`: a test that asks for it runs in float64. Processes and arrays are to be made inside the test, not at import."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from ddpm_jax.diffusion.processes import PROCESSES


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


TO_ZERO = ("linear", "cosine", "scaled_linear")
EVERY = (
    PROCESSES
    | {f"{name} to zero": partial(PROCESSES[name], zero_terminal_snr=True) for name in TO_ZERO}
    | {"rectified_flow to 1": partial(PROCESSES["rectified_flow"], t_max=1.0)}
)


@pytest.fixture(params=EVERY.values(), ids=EVERY)
def make_process(request):
    """The constructor of every process, and of some that reach alpha = 0."""
    return request.param


@pytest.fixture
def process(make_process, x64):  # noqa: ARG001
    """Each of them in float64."""
    return make_process()


@pytest.fixture
def times(process):
    """Twelve times from the lowest to t_max; on a table knots n/T and, at odd places, times between."""
    t = jnp.linspace(process.t_min.training, process.t_max, 12)
    if steps := process.num_steps:
        t = jnp.round(t * steps).at[1:-1:2].add(-0.4) / steps
    return t
