import ast
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import platform
from ddpm_jax.diffusion import keys, oracle
from ddpm_jax.diffusion.grids import uniform
from ddpm_jax.diffusion.processes import vp
from ddpm_jax.diffusion.sample import sample, sample_keys
from ddpm_jax.diffusion.samplers import ddim

ROOT = Path(__file__).parents[2]
SAMPLING = keys.Purpose.SAMPLING
MAKERS = {"jax.random.key", "jax.random.PRNGKey", "jax.random.wrap_key_data"}


@pytest.fixture
def setting():
    """A function that sets a setting of JAX until the test ends."""
    before = {}

    def change(name, value):
        before.setdefault(name, getattr(jax.config, name))
        jax.config.update(name, value)

    yield change
    for name, value in before.items():
        jax.config.update(name, value)


def test_one_function_makes_keys():
    """So that what holds of it, one implementation under any settings of JAX, holds of every random number."""
    for path in [*(ROOT / "ddpm_jax").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]:
        tree = ast.walk(ast.parse(path.read_text()))
        made = {ast.unparse(node) for node in tree if isinstance(node, ast.Attribute)} & MAKERS
        assert path.name == "keys.py" or not made, f"{path} makes a key by {made}: take diffusion.keys.key_of"


def keys_below(addresses, depth=2, count=9):
    """The words of the keys of all addresses (seed, purpose, up to `depth` numbers below `count`): [N, 2]."""
    fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
    level = jnp.stack([keys.key_of(seed, purpose, addresses) for seed in (0, 1) for purpose in keys.Purpose])
    found = [level]
    for _ in range(depth):
        level = fold(level, jnp.arange(count)).ravel()
        found.append(level)
    return np.asarray(jax.random.key_data(jnp.concatenate(found)))


def test_no_random_number_is_of_two_purposes():
    """At equal seeds and equal numbers after the purpose, however many; where addresses are shared, numbers are."""
    words = keys_below("by_purpose")
    assert len(np.unique(words, axis=0)) == len(words) == 2 * len(keys.Purpose) * (1 + 9 + 81)
    words = keys_below("shared", depth=1)
    assert len(np.unique(words, axis=0)) < 0.6 * len(words)


def test_an_address_by_hand():
    """(seed, tag, index); the tags are written in no run directory, so that another one would change every run."""
    seed, fold = jax.random.key(7, impl=keys.IMPLEMENTATION), jax.random.fold_in
    tags = {"INIT": 2, "BATCHES": 3, "TRAINING": 4, "HELD_OUT": 5, "SAMPLING": 6, "EVALUATION": 7, "FORWARD_PROCESS": 8}
    assert {purpose.name: purpose.value for purpose in keys.Purpose} == tags
    of_before = {"INIT": fold(seed, 0), "TRAINING": fold(seed, 1), "HELD_OUT": fold(seed, 2)}
    for purpose in keys.Purpose:
        assert keys.key_of(7, purpose) == fold(seed, tags[purpose.name])
        assert keys.key_of(7, purpose, "shared") == of_before.get(purpose.name, seed)
        assert keys.words_of(7, purpose) == (7, tags[purpose.name])
    several = jnp.stack([fold(fold(seed, tags["SAMPLING"]), i) for i in (3, 0)])
    assert jnp.all(sample_keys(7, jnp.array([3, 0])) == several)
    assert jnp.all(sample_keys(7, jnp.array([3]), "shared") == fold(seed, 3))


@pytest.mark.parametrize("implementation", ["rbg", "unsafe_rbg"])
def test_numbers_do_not_depend_on_the_implementation_that_jax_is_set_to(implementation, setting):
    """Of a sampler, in a batch of 2 or of 3."""
    process, data = vp(), oracle.gaussian(mean=[0.5, -0.3], covariance=[[0.3, 0.1], [0.1, 0.2]])

    def numbers(count):
        keys = sample_keys(3, jnp.arange(count))
        drawn = sample(ddim(eta=1.0), oracle.denoiser(data, process), process, uniform(process, steps=3), keys, (2,))
        return drawn.x[:2], jax.random.uniform(keys[0], (5,))

    first = numbers(2)
    setting("jax_default_prng_impl", implementation)
    for second in (numbers(2), numbers(3)):
        for a, b in zip(first, second, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
    assert jax.random.key_impl(keys.key_of(0, SAMPLING)) == keys.IMPLEMENTATION != jax.random.key_impl(jax.random.key(0))


@pytest.mark.parametrize("name, value", [("jax_threefry_partitionable", False), ("jax_random_seed_offset", 1)])
def test_settings_that_change_the_numbers_are_refused(name, value, setting):
    before = jax.random.normal(jax.random.key(0, impl=keys.IMPLEMENTATION), (4,))
    setting(name, value)
    assert np.any(before != jax.random.normal(jax.random.key(0, impl=keys.IMPLEMENTATION), (4,)))
    with pytest.raises(RuntimeError, match=f"{name} is {value}.*unset the variable {name.upper()}"):
        keys.key_of(0, SAMPLING)
    assert {name.lower() for name in platform.NUMBERS} == set(keys.SETTINGS)  # which the command line sets

