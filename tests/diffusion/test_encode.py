"""The samplers of the probability-flow ODE up the grid, the adaptive one down and up, and their refusals."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import oracle
from ddpm_jax.diffusion.grids import GRIDS
from ddpm_jax.diffusion.processes import PROCESSES
from ddpm_jax.diffusion.sample import encode, sample, sample_keys
from ddpm_jax.diffusion.samplers import (
    SAMPLERS,
    adaptive_ode,
    ancestral,
    corrected,
    ddim,
    dpm_solver_2,
    dpmpp_2m,
    euler,
    heun,
    pndm,
    sde_dpmpp_2m,
    unipc,
)

KEYS = sample_keys(0, jnp.arange(6))


def world():
    return oracle.gaussian([0.5, -0.3], [[0.3, 0.1], [0.1, 0.2]])


def encoded(sampler, process, times, x, **options):
    return jax.jit(lambda times: encode(sampler, oracle.denoiser(world(), process), process, times, x, **options))(times)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "make, order", [(ddim, 1), (euler, 1), (heun, 2), (dpm_solver_2, 2), (dpmpp_2m, 2), (unipc, 3), (pndm, 2)]
)
def test_encoders_follow_the_flow_upwards(make, order, x64):  # noqa: ARG001
    """RMS distance to the exact flow from log-SNR 5 to -2, 32 and 64 steps: as many times less as the order says."""
    process, errors = PROCESSES["vp"](), []
    x, _ = oracle.draw(world(), process, process.inverse_log_snr(5.0), KEYS)
    for steps in (32, 64):
        times = process.inverse_log_snr(jnp.linspace(5.0, -2.0, steps + 1))
        exact = oracle.flow(world(), process, x, times[0], times[-1])
        errors.append(float(jnp.sqrt(jnp.mean((encoded(make(), process, times, x).x - exact) ** 2))))
    assert abs(np.log2(errors[0] / errors[1]) - order) < 0.3, errors


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["linear", "rectified_flow"])
def test_the_adaptive_sampler_is_the_flow_down_and_up(name, x64):  # noqa: ARG001
    """To 1e-7 relative to what the tolerance of 1e-9 allows, with its own count, in two transitions with a frame between."""
    process = PROCESSES[name]()
    times = GRIDS["uniform"](process, steps=3)
    x, _ = oracle.draw(world(), process, times[0], KEYS)
    sampler, denoise = adaptive_ode(rtol=1e-9, atol=1e-9), oracle.denoiser(world(), process)

    def draw(times, sampler):
        return sample(sampler, denoise, process, times, KEYS, (2,), x=x, last="stop", frames=3)

    down = jax.jit(draw)(times, sampler)
    exact = [oracle.flow(world(), process, x, times[0], t) for t in times]
    for frame, truth in zip(down.frames, exact, strict=True):
        chex.assert_trees_all_close(frame, truth, rtol=1e-6, atol=1e-6)
    up = encoded(sampler, process, times[::-1], down.x)
    chex.assert_trees_all_close(up.x, x, rtol=1e-6, atol=1e-5)
    loose = jax.jit(draw)(times, adaptive_ode(rtol=1e-3, atol=1e-3))
    assert loose.evaluations < down.evaluations / 2
    chex.assert_trees_all_close(loose.x, exact[-1], atol=2e-2)


@pytest.mark.thorough
def test_the_adaptive_sampler_says_where_it_gave_up_or_cannot_go():
    process = PROCESSES["vp"]()
    denoise, times = oracle.denoiser(world(), process), jnp.array([1.0, 0.01])
    short = sample(adaptive_ode(max_evaluations=13), denoise, process, times, KEYS, (2,), last="stop")
    assert jnp.isnan(short.x).all()
    table = PROCESSES["linear"]()
    with pytest.raises(ValueError, match=r"log-SNR has no end where sigma = 0, and sigma\(0\) = 0: take a grid without it"):
        sample(adaptive_ode(), oracle.denoiser(world(), table), table, jnp.array([1.0, 0.0]), KEYS, (2,), last="stop")


@pytest.mark.thorough
def test_there_and_back():
    """A mixture's points by DDIM: up 200 steps and down the same grid, within 0.04; frames on the way."""
    process = PROCESSES["linear"]()
    data = oracle.mixture([[-0.8, 0.3], [0.6, -0.5]], [0.03 * np.eye(2)] * 2)
    times = GRIDS["uniform"](process, steps=200)[::-1]
    denoise = oracle.denoiser(data, process)
    x, _ = oracle.draw(data, process, times[0], KEYS)
    up = jax.jit(lambda times: encode(ddim(), denoise, process, times, x, frames=4))(times)
    chex.assert_shape(up.frames, (4, 6, 2))
    chex.assert_trees_all_equal(up.frames[0], x)
    chex.assert_trees_all_equal(up.frames[-1], up.x)
    assert up.evaluations == 199
    back = jax.jit(lambda times: sample(ddim(), denoise, process, times, KEYS, (2,), x=up.x, last="stop"))(times[::-1])
    chex.assert_trees_all_close(back.x, x, atol=0.04)


@pytest.mark.thorough
@pytest.mark.parametrize("name", [name for name, make in SAMPLERS.items() if make().noise_free])
def test_up_to_where_alpha_is_zero(name, x64):  # noqa: ARG001
    """Every encoder comes near the exact flow there, or says why it does not go."""
    process, sampler = PROCESSES["cosine"](zero_terminal_snr=True, steps=200), SAMPLERS[name]()
    times, x = GRIDS["uniform"](process, steps=200)[::-1][2:], jnp.array([[0.4, -0.2], [-0.9, 0.3]])
    denoise = oracle.denoiser(world(), process)
    if sampler.needs_alpha:
        with pytest.raises(ValueError, match=r"alpha\(1\) = 0"):
            encode(sampler, denoise, process, times, x)
        return
    up = jax.jit(lambda times: encode(sampler, denoise, process, times, x).x)(times)
    chex.assert_trees_all_close(up, oracle.flow(world(), process, x, times[0], times[-1]), atol=0.1)


@pytest.mark.parametrize("sampler", [ancestral(), ddim(eta=0.5), heun(s_churn=1.0), sde_dpmpp_2m(), corrected(ddim(), snr=0.1)])
def test_samplers_that_draw_noise_do_not_encode(sampler):
    process = PROCESSES["vp"]()
    with pytest.raises(ValueError, match="this sampler draws noise, and an encoder must not"):
        encode(sampler, oracle.denoiser(world(), process), process, jnp.array([0.1, 0.9]), jnp.zeros((2, 2)))


@pytest.mark.parametrize(
    "times, words",
    [
        ([0.9, 0.1], "strictly increasing"), ([0.1, 0.1], "strictly increasing"),
        ([0.0, 0.5], r"must begin where sigma > 0, found sigma\(0\) = 0"), ([0.5, 1.5], r"must lie in \[0, t_max = 1\]"),
    ],
)  # fmt: skip
def test_bad_grids_are_refused(times, words):
    process = PROCESSES["linear"]()
    with pytest.raises(ValueError, match=words):
        encode(ddim(), oracle.denoiser(world(), process), process, jnp.array(times), jnp.zeros((2, 2)))
