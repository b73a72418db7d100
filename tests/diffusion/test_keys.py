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
    assert jax.random.key_impl(keys.key_of(0)) == keys.IMPLEMENTATION != jax.random.key_impl(jax.random.key(0))


@pytest.mark.parametrize("name, value", [("jax_threefry_partitionable", False), ("jax_random_seed_offset", 1)])
def test_settings_that_change_the_numbers_are_refused(name, value, setting):
    before = jax.random.normal(keys.key_of(0), (4,))
    setting(name, value)
    assert np.any(before != jax.random.normal(jax.random.key(0, impl=keys.IMPLEMENTATION), (4,)))
    with pytest.raises(RuntimeError, match=f"{name} is {value}.*unset the variable {name.upper()}"):
        keys.key_of(0)
    assert {name.lower() for name in platform.NUMBERS} == set(keys.SETTINGS)  # which the command line sets

