"""Inverted dropout whose random bits are spent sparingly.

A transformer layer drops four activations, of which two are as large as its hidden units and its
attention weights. `jax.random.bits` hashes once per entry, about 115 integer operations, and a
compiler that finds the hash inside a fusion repeats it for each reader: on TPUs that is more work
than the matrix products. Here one hash serves four entries, and runs once per pass.
"""

import jax
import jax.numpy as jnp
from jax.extend.random import threefry2x32_p
from jaxtyping import Array, Float, PRNGKeyArray

_BITS = 16  # per entry: a rate is off by less than 2^-17


def dropout(
    x: Float[Array, '*B L D'],
    rate: float,
    key: PRNGKeyArray | None,
    shape: tuple[int, ...] | None = None,
) -> Float[Array, '*B L D']:
    """Drops entries of `x` with probability `rate` and scales up the others.

    What is dropped depends on the key and the shape alone, not on how the array is sharded.

    Args:
      x: the first dimension may be sharded, and D, but not L.
      rate: in [0, 1).
      key: of any implementation; None, or a rate of 0, leaves `x` as it is.
      shape: (..., L, D) of `x` where some of its dimensions are merged; None: its own.
    """
    if key is None or rate == 0.0:
        return x
    threshold = round(rate * 2**_BITS)
    keep = _at_least(threshold, key, x.shape if shape is None else shape).reshape(x.shape)
    scale = jnp.asarray(2**_BITS / (2**_BITS - threshold), x.dtype)
    return jnp.where(keep, x * scale, jnp.zeros_like(x))


def _at_least(threshold, key, shape):
    """Whether 16 random bits per entry, read as a number, are no less than `threshold`."""
    *lead, rows, columns = shape
    # Two words of 32 bits make four entries; these lie a quarter of the rows apart, since rows
    # are never sharded and moving them about costs less than moving columns.
    quarter = -(-rows // 4)
    words = _words(key, (*lead, quarter, columns))
    least = jnp.uint32(threshold << _BITS)
    parts = [half >= least for word in words for half in (word, word << _BITS)]
    keep = jnp.concatenate(parts, axis=-2)[..., :rows, :]
    return jax.lax.optimization_barrier(keep)  # one byte per entry is cheaper than hashing again


def _words(key, shape):
    """Two uint32 arrays of random bits: the hash of each entry's own two counters."""
    # The first counts along the first dimension, the second along all others: neither overflows.
    stride, position = 1, jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape) - 1, 0, -1):
        along = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        position, stride = position + along * jnp.uint32(stride), stride * shape[axis]
    first = jax.lax.broadcasted_iota(jnp.uint32, shape, 0)
    return threefry2x32_p.bind(*jax.random.bits(key, (2,), jnp.uint32), first, position)
