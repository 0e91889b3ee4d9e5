"""What a seed gives, whatever settings of jax the environment has.

JAX_DEFAULT_PRNG_IMPL, JAX_THREEFRY_PARTITIONABLE, JAX_RANDOM_SEED_OFFSET and JAX_ENABLE_X64 change
what a seed draws, and in which dtype. Here keys are made in one place, and every program of the
package is traced and run as `pinned`.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PRNGKeyArray, UInt32

GENERATOR = 'threefry2x32'
LAST_SEED = 2**32 - 1  # what fits into the word of a key that a seed, or a number folded in, has


def key(seed: int) -> PRNGKeyArray:
    """The key of a seed, 0 to `LAST_SEED`: that of `jax.random.key` without any settings."""
    return of_data(jax.numpy.asarray(words(seed)))


def words(seed: int) -> UInt32[np.ndarray, '2']:
    """The data of its key as such, which no setting changes; a program may take them."""
    return np.array([0, seed], np.uint32)


def of_data(data: UInt32[Array, '*K'], impl: Any = GENERATOR) -> PRNGKeyArray:
    """The key, or keys, whose data these are."""
    return jax.random.wrap_key_data(data, impl=impl)


@contextlib.contextmanager
def pinned() -> Iterator[None]:
    """A context, or a decorator, in which the settings of jax that decide numbers are its defaults.

    What people set to find mistakes (debug_nans, strict promotion of dtypes) or to trade accuracy
    for speed (default_matmul_precision) remains theirs.
    """
    with (
        jax.enable_x64(False),
        jax.default_prng_impl(GENERATOR),
        jax.threefry_partitionable(True),
        jax.numpy_rank_promotion('allow'),
    ):
        yield
