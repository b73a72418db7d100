"""A batch is a function of the step: which examples batch k holds, whatever was run before."""

import functools

import numpy as np

from ddpm_jax.errors import UserError


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Whole batches in one pass over the data; the short last one is dropped.

    Raises UserError when the data does not fill one batch.
    """
    if not 1 <= batch_size <= num_examples:
        raise UserError(
            f"config.train.batch_size is {batch_size}, and the data hold {num_examples} examples. Set "
            f"--config.train.batch_size to a number from 1 to {num_examples}, or give more data."
        )
    return num_examples // batch_size


@functools.lru_cache(maxsize=4)
def _permutation(seeds: tuple[int, ...], epoch: int, num_examples: int) -> np.ndarray:
    words = np.random.PCG64(np.random.SeedSequence([*seeds, epoch])).random_raw(num_examples)
    order = np.argsort(words, kind="stable").astype(np.int32)
    order.setflags(write=False)  # it is shared by all callers of this epoch
    return order


def batch_indices(seed: int | tuple[int, ...], step: int, num_examples: int, batch_size: int) -> np.ndarray:
    """The examples of batch `step` (counted from 0 over all epochs): int32 [batch_size].

    Each epoch walks one permutation, drawn from (seed, epoch) by sorting raw 64-bit words of PCG64. It rests on
    NumPy's promise that seed sequences and bit generators keep their streams between versions, and not on the
    methods of `Generator`, for which there is no such promise.

    seed: one number, or those that the address begins with (`diffusion.keys.words_of`): a set drawn by the same seed has the
    same random words, and its order would be that of its numbers.

    Raises UserError for a batch size out of range or a negative seed, ValueError for a negative step.
    """
    per_epoch = steps_per_epoch(num_examples, batch_size)
    seeds = tuple(map(int, np.atleast_1d(seed)))
    if min(seeds) < 0:
        raise UserError(f"The seed of the data order must be 0 or more; found {min(seeds)}.")
    if step < 0:
        raise ValueError(f"step must be 0 or more; found {step}")
    epoch, k = divmod(int(step), per_epoch)
    return _permutation(seeds, epoch, int(num_examples))[k * batch_size : (k + 1) * batch_size].copy()
