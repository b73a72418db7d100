"""Where random numbers begin: every key of the package is made here, and every purpose has its addresses here.

The address of a random number begins with a seed and the purpose:

INIT             (seed, purpose): the network's first parameters
BATCHES          (seed, purpose, epoch): the order of the examples, by NumPy
TRAINING         (seed, purpose, step, example, of `tasks.TIME` .. `LABEL`; and the layer, of dropout)
HELD_OUT         (eval.seed, purpose, example, of `tasks.TIME` .. `LABEL`)
SAMPLING         (sampler.seed, purpose, sample, transition, j), see `sample.noise_keys`
EVALUATION       (eval.seed, purpose, example, of `bits_per_dimension.DEQUANTISE` .. `NOISE`; and the probe, or the transition)
FORWARD_PROCESS  (seed, purpose, example): the noise of its film
"""

import enum

import jax

IMPLEMENTATION = "threefry2x32"  # the only one of JAX's under which a vmap draws what its rows would draw alone
# Settings of JAX besides that change what a key gives: the values under which all runs are trained and sampled.
SETTINGS = {"jax_threefry_partitionable": True, "jax_random_seed_offset": 0}


class Purpose(enum.IntEnum):
    """What random numbers are for, with the tag that follows the seed: runs depend on it, so it never changes.

    0 and 1 are no tags: they follow the seed in the points of `data.toy2d`, of which BATCHES must be independent.
    """

    INIT = 2
    BATCHES = 3
    TRAINING = 4
    HELD_OUT = 5
    SAMPLING = 6
    EVALUATION = 7
    FORWARD_PROCESS = 8


# The tags of the purposes, by the name in a run's config. Runs of before format 5 are "shared": most purposes had no tag, so
# that one number could be of two of them. (Of toy2d, drawn by the same seed, the first epoch went from label to label.)
ADDRESSES: dict[str, dict[Purpose, int]] = {
    "by_purpose": {purpose: purpose.value for purpose in Purpose},
    "shared": {Purpose.INIT: 0, Purpose.TRAINING: 1, Purpose.HELD_OUT: 2},
}
BY_PURPOSE, SHARED = ADDRESSES


def key_of(seed: int | jax.Array, purpose: Purpose, addresses: str = BY_PURPOSE) -> jax.Array:
    """The key [] of a seed for a purpose, the same whatever jax_default_prng_impl says: numbers are not the environment's.

    addresses: of `ADDRESSES`. Raises RuntimeError where another setting of JAX would change the numbers.
    """
    for name, value in SETTINGS.items():
        if (found := getattr(jax.config, name, value)) != value:
            raise RuntimeError(
                f"{name} is {found!r}, under which the same seeds give other numbers: leave it {value!r}, and unset the "
                f"variable {name.upper()}."
            )
    key = jax.random.key(seed, impl=IMPLEMENTATION)
    for tag in words_of(seed, purpose, addresses)[1:]:
        key = jax.random.fold_in(key, tag)
    return key


def keys_of(seed: int | jax.Array, purpose: Purpose, indices: jax.Array, addresses: str = BY_PURPOSE) -> jax.Array:
    """Keys [B] of the examples or samples of these indices [B], for a purpose."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key_of(seed, purpose, addresses), indices)


def words_of(seed, purpose: Purpose, addresses: str = BY_PURPOSE) -> tuple:
    """How an address begins: the seed, and the purpose's tag where it has one. NumPy's seed sequences take it as it is."""
    tags = ADDRESSES[addresses]
    return (seed, tags[purpose]) if purpose in tags else (seed,)
