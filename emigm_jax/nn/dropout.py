"""Inverted dropout whose masks are never stored: the backward pass hashes again.

A mask of every activation and attention weight of a transformer is more memory traffic than most of
its products. So what is dropped is a function of (key, position), cheap enough to be worked out
wherever it is needed: two multiplications per entry in place of the hundred operations of
`jax.random.bits`. It fuses with the arithmetic around it, and is the same on every platform and
however the array is sharded.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, PRNGKeyArray, UInt32


def dropout(
    x: Float[Array, '*B D'],
    rate: float,
    key: PRNGKeyArray | None,
    shape: tuple[int, ...] | None = None,
) -> Float[Array, '*B D']:
    """Drops entries of `x` with probability `rate` and scales up the others.

    What is dropped depends on the key and the shape alone, not on how the array is sharded.

    Args:
      x: sharded in any way.
      rate: in [0, 1).
      key: of any implementation; None, or a rate of 0, leaves `x` as it is.
      shape: (B, ...) of `x` where some of its dimensions are merged; None: its own.
    """
    if key is None or rate == 0.0:
        return x
    shape = x.shape if shape is None else shape
    return _dropout(rate, shape, x, jax.random.bits(key, (2, shape[0]), jnp.uint32))


def kept(rate: float, words: UInt32[Array, '2 B'], shape: tuple[int, ...]) -> Bool[Array, '*B D']:
    """Which entries of a (B, ...) array stay, given two random words for each of its B rows."""
    first, second = (word.reshape(-1, *(1,) * (len(shape) - 1)) for word in words)
    # Axis by axis and from the word on, so that no array of positions is the same for all layers:
    # XLA would take it out of their loop, keep it, and read it for every mask.
    stride, moved = math.prod(shape[1:]), first
    for axis in range(1, len(shape)):
        stride //= shape[axis]
        along = jnp.arange(shape[axis], dtype=jnp.uint32) * np.uint32(stride)
        moved = moved + along.reshape(-1, *(1,) * (len(shape) - 1 - axis))
    return stays(rate, moved, second)


def stays(
    rate: float, moved: UInt32[Array, '*B'], second: UInt32[Array, '*#B']
) -> Bool[Array, '*B']:
    """Which entries stay, given their positions within a row, moved by a word of the row.

    A finaliser of MurmurHash3 (32 bits) spreads them, the second word of the row enters between
    its two multiplications, so that two rows drop alike only if they share both.
    """
    bits = (moved ^ (moved >> 16)) * np.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13) ^ second) * np.uint32(0xC2B2AE35)
    return (bits ^ (bits >> 16)) >= np.uint32(round(rate * 2**32))


def dropped(
    rate: float,
    words: UInt32[Array, '2 1'] | None,
    x: Float32[Array, 'R U'],
    row: int | Int[Array, ''] = 0,
    unit: int = 0,
    units: int | None = None,
) -> Float32[Array, 'R U']:
    """`dropout` of a part of an image's activations, which begins at `row` and `unit`.

    It is what kernels use, for which positions are whole arrays.

    Args:
      words: of the image; None: nothing is dropped.
      units: of a whole row; None: those of x.
    """
    if words is None:
        return x
    along = lambda axis: jax.lax.broadcasted_iota(jnp.int32, x.shape, axis)
    position = (along(0) + row) * (units or x.shape[1]) + along(1) + unit
    stay: Bool[Array, 'R U'] = stays(rate, position.astype(jnp.uint32) + words[:1], words[1:2])
    return jnp.where(stay, x * (1.0 / (1.0 - rate)), 0.0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _dropout(rate, shape, x, words):
    keep = kept(rate, words, shape).reshape(x.shape)
    return jnp.where(keep, x * jnp.asarray(1.0 / (1.0 - rate), x.dtype), jnp.zeros_like(x))


def _forward(rate, shape, x, words):
    return _dropout(rate, shape, x, words), words


def _backward(rate, shape, words, gradient):
    return _dropout(rate, shape, gradient, words), None


_dropout.defvjp(_forward, _backward)
