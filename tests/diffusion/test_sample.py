import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from ddpm_jax.diffusion.grids import uniform
from ddpm_jax.diffusion.oracle import denoiser, gaussian
from ddpm_jax.diffusion.predictions import PREDICTIONS, Prediction, network_denoiser
from ddpm_jax.diffusion.processes import PROCESSES
from ddpm_jax.diffusion.sample import sample, sample_keys, sampling
from ddpm_jax.diffusion.samplers import SAMPLERS, At, Sampler, ancestral, ddim

PROCESS = PROCESSES["linear"]()
DENOISE = denoiser(gaussian([0.2] * 3, 0.25 * np.eye(3)), PROCESS)
KEYS = sample_keys(0, jnp.arange(6))


class Variants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_shapes_and_types(self):
        times = uniform(PROCESS, steps=5)
        denoise = denoiser(gaussian(np.zeros(48), np.eye(48)), PROCESS)
        x, evaluations, _ = self.variant(lambda keys: sample(ancestral(), denoise, PROCESS, times, keys, (4, 4, 3)))(KEYS)
        chex.assert_shape(x, (6, 4, 4, 3))
        chex.assert_type(x, jnp.float32)
        assert evaluations == 5


@pytest.mark.thorough
def test_a_sample_depends_on_its_key_alone():
    times = uniform(PROCESS, steps=10)
    together, _, _ = sample(ancestral(), DENOISE, PROCESS, times, KEYS, (3,))
    alone, _, _ = sample(ancestral(), DENOISE, PROCESS, times, KEYS[4:5], (3,))
    chex.assert_trees_all_close(alone[0], together[4], atol=1e-6)
    assert not np.allclose(together[0], together[1])


def test_every_normal_of_a_chain_is_another():
    """The start's and those of every step (i, j): drawn apart from each other, they have no correlation, in 4,000 numbers."""
    seen, size = [], 4000

    def step(denoise, process, x, memory, at):  # noqa: ARG001
        seen.append(x)
        seen.extend(at.noise(j) for j in range(3))
        return x, x, memory

    with jax.disable_jit():
        sampler = Sampler(Partial(lambda x: ()), Partial(step))  # noqa: ARG005
        sample(sampler, DENOISE, PROCESS, uniform(PROCESS, steps=4), KEYS[:1], (size,), last="stop")
    rows = np.stack([seen[0], *(normal for i in range(3) for normal in seen[4 * i + 1 : 4 * i + 4])])[:, 0]
    assert rows.shape == (10, size)
    np.testing.assert_allclose(rows @ rows.T / size, np.eye(10), atol=5 * np.sqrt(2 / size))


@pytest.mark.parametrize("sigma", [80.0, 40.0, 5.0])
def test_a_chain_starts_with_the_noise_of_its_first_time(sigma):
    """On edm from any sigma, data of deviation 0.5 end with that: with the prior of sigma_max they ended at 8.01 from 5."""
    process = PROCESSES["edm"]()
    denoise = denoiser(gaussian([0.0], [[0.25]]), process)
    times, keys = jnp.geomspace(sigma, 0.002, 40).at[0].set(sigma), sample_keys(0, jnp.arange(2000))
    x = jax.jit(lambda times: sample(ddim(), denoise, process, times, keys, (1,)).x)(times)
    assert abs(x.std() / 0.5 - 1) < 0.12  # five standard errors, and the bias of the steps
    first = sample(ddim(), denoise, process, times[:1], keys, (1,), last="stop").x
    assert abs(first.std() / sigma - 1) < 0.08


def test_chains_from_one_time_start_alike():
    """One grid point and last="stop" returns the start itself; other grids begin there too."""
    start, evaluations, _ = sample(ddim(), DENOISE, PROCESS, uniform(PROCESS, steps=1), KEYS, (3,), last="stop")
    assert evaluations == 0
    seen = []

    def spy(x, t):
        jax.debug.callback(lambda x, t: seen.append((float(t), np.asarray(x))), x, t, ordered=True)
        return DENOISE(x, t)

    sample(ddim(), spy, PROCESS, uniform(PROCESS, steps=4), KEYS, (3,))
    jax.effects_barrier()
    assert len(seen) == 4
    chex.assert_trees_all_equal(seen[0][1], np.asarray(start))


@pytest.mark.parametrize("steps", [1000, 7])
def test_the_network_sees_each_index_once(steps):
    """A full chain shows 999, 998, .., 0 and costs 1000 evaluations; a respaced one shows the original indices."""
    seen = []

    def apply(x, time):
        jax.debug.callback(lambda time: seen.append(float(time[0])), time, ordered=True)
        return x

    denoise = network_denoiser(apply, PROCESS, PREDICTIONS["eps"]())
    _, evaluations, _ = sample(ddim(), denoise, PROCESS, uniform(PROCESS, steps=steps), KEYS[:1], (1,))
    jax.effects_barrier()
    assert seen == np.rint(np.linspace(999, 0, steps)).tolist()
    assert evaluations == len(seen) == steps


def test_what_comes_last_and_what_is_filmed():
    """Of a sampler that adds 1, and whose mean is 100 more than where it stood; the denoiser says 1000 times its x."""
    times = uniform(PROCESS, steps=6)
    sampler = Sampler(Partial(lambda x: ()), Partial(lambda denoise, process, x, memory, at: (x + 1, x + 100, memory)))  # noqa: ARG005
    denoise, start = lambda x, t: Prediction(1000 * x, x), jnp.zeros((6, 3))  # noqa: ARG005
    for last, end, evaluations in (("stop", 5, 0), ("mean", 104, 0), ("denoise", 5000, 1)):
        found = sample(sampler, denoise, PROCESS, times, KEYS, (3,), last=last, x=start, frames=4)
        assert (found.x == end).all() and found.evaluations == evaluations
        np.testing.assert_array_equal(found.frames[:, 0, 0], [0, 2, 3, end])  # before the transitions 0, 2 and 3 of 5


@pytest.mark.thorough
def test_lasts():
    times = uniform(PROCESS, steps=6)
    stop, at_stop, _ = sample(ancestral(), DENOISE, PROCESS, times, KEYS, (3,), last="stop")
    mean, at_mean, _ = sample(ancestral(), DENOISE, PROCESS, times, KEYS, (3,), last="mean")
    x0, at_x0, _ = sample(ancestral(), DENOISE, PROCESS, times, KEYS, (3,), last="denoise")
    assert (at_stop, at_mean, at_x0) == (5, 5, 6)
    chex.assert_trees_all_close(x0, DENOISE(stop, times[-1]).x0, atol=1e-6)
    before, _, _ = sample(ancestral(), DENOISE, PROCESS, times[:-1], KEYS, (3,), last="stop")
    at = At(times[-2], times[-1], 4, 5, lambda j: jnp.zeros((6, 3)), None)  # noqa: ARG005
    noise_free, *_ = ancestral().step(DENOISE, PROCESS, before, (), at)
    chex.assert_trees_all_close(mean, noise_free, atol=1e-5)
    assert not np.allclose(mean, stop)


def test_the_grid_may_end_at_zero():
    times = jnp.append(uniform(PROCESS, steps=6), 0.0)
    x, _, _ = sample(ddim(), DENOISE, PROCESS, times, KEYS, (3,), last="stop")
    y, _, _ = sample(ddim(), DENOISE, PROCESS, times[:-1], KEYS, (3,), last="denoise")
    chex.assert_trees_all_close(x, y, atol=1e-6)


def test_evaluations_are_counted_not_assumed():
    def twice(x, t):
        return DENOISE(x, t)._replace(evaluations=2)

    _, evaluations, _ = sample(ddim(), twice, PROCESS, uniform(PROCESS, steps=6), KEYS, (3,))
    assert evaluations == 12


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["ancestral", "pndm", "dpmpp_3m"])
def test_parts_do_not_change_a_bit(name):
    """Of one compiled program, however they are cut: into the dearer steps of the start too, and with memory and frames."""
    times = uniform(PROCESS, steps=13)
    course = sampling(SAMPLERS[name](), DENOISE, PROCESS, times, KEYS, (3,), frames=4)
    advance = jax.jit(course.advance)

    def parted(*ends):
        carry = jax.jit(course.begin)()
        for first, last in itertools.pairwise(ends):
            carry = advance(carry, np.int32(first), np.int32(last))
        return jax.jit(course.finish)(carry)

    at_once = parted(0, 12)
    for ends in ((0, 2, 7, 12), range(13)):
        chex.assert_trees_all_equal(parted(*ends), at_once)
    assert advance._cache_size() == 1 and course.transitions == 12
    chex.assert_trees_all_close(at_once, sample(SAMPLERS[name](), DENOISE, PROCESS, times, KEYS, (3,), frames=4), atol=1e-5)


@pytest.mark.thorough
def test_frames_are_states_of_the_chain():
    """11 grid points and 5 frames: the states before transitions 0, 2, 5, 8 (of 10) and the result; samples unchanged."""
    times = uniform(PROCESS, steps=11)
    result = jax.jit(lambda keys: sample(ancestral(), DENOISE, PROCESS, times, keys, (3,), frames=5))(KEYS)
    chex.assert_shape(result.frames, (5, 6, 3))
    for frame, transitions in zip(result.frames, (0, 2, 5, 8), strict=False):
        stopped = sample(ancestral(), DENOISE, PROCESS, times[: transitions + 1], KEYS, (3,), last="stop")
        chex.assert_trees_all_close(frame, stopped.x, atol=1e-5)
    plain = sample(ancestral(), DENOISE, PROCESS, times, KEYS, (3,))
    chex.assert_trees_all_close(result.frames[-1], plain.x, atol=1e-5)
    chex.assert_trees_all_close(result.x, plain.x, atol=1e-5)
    assert plain.frames is None and result.evaluations == plain.evaluations
    with pytest.raises(ValueError, match="frames must be 0 or from 2 to"):
        sample(ddim(), DENOISE, PROCESS, times, KEYS, (3,), frames=12)


@pytest.mark.parametrize(
    "times, last, words",
    [
        (jnp.array([0.1, 0.5]), "stop", "decreasing"),
        (jnp.array([0.5, 0.5]), "stop", "decreasing"),
        (jnp.array([1.5, 0.5]), "stop", "t_max"),
        (jnp.array([0.5, -0.5]), "stop", "t_max"),
        (jnp.array([0.5, 0.0]), "denoise", "nothing is left"),
        (jnp.array([0.5]), "mean", "at least two"),
        (jnp.array([0.5, 0.1]), "end", "denoise, mean, stop"),
    ],
)
def test_bad_grids_and_names_are_refused(times, last, words):
    with pytest.raises(ValueError, match=words):
        sample(ddim(), DENOISE, PROCESS, times, KEYS, (3,), last=last)
