"""Inverted dropout whose masks are never stored: the backward pass hashes again.

A mask of every activation and attention weight of a transformer is more memory traffic than most of
its products. So what is dropped is a function of (key, position), cheap enough to be worked out
wherever it is needed: two multiplications per entry in place of the hundred operations of
`jax.random.bits`. It fuses with the arithmetic around it, and is the same on every platform and
however the array is sharded.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, UInt32


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
    return _dropped(rate, shape, x, jax.random.bits(key, (2, shape[0]), jnp.uint32))


def kept(rate: float, words: UInt32[Array, '2 B'], shape: tuple[int, ...]) -> Bool[Array, '*B D']:
    """Which entries of a (B, ...) array stay, given two random words for each of its B rows."""
    first, second = (word.reshape(-1, *(1,) * (len(shape) - 1)) for word in words)
    stride, position = 1, jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape) - 1, 0, -1):
        along = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        position, stride = position + along * np.uint32(stride), stride * shape[axis]
    return stays(rate, first, second, position)


def stays(
    rate: float,
    first: UInt32[Array, '*#B'],
    second: UInt32[Array, '*#B'],
    position: UInt32[Array, '*B'],
) -> Bool[Array, '*B']:
    """Which entries stay, given the two words of their rows and their positions within a row.

    A word moves the positions, a finaliser of MurmurHash3 (32 bits) spreads them, the other word
    enters between its two multiplications, so that two rows drop alike only if they share both.
    """
    bits = position + first
    bits = (bits ^ (bits >> 16)) * np.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13) ^ second) * np.uint32(0xC2B2AE35)
    return (bits ^ (bits >> 16)) >= np.uint32(round(rate * 2**32))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _dropped(rate, shape, x, words):
    keep = kept(rate, words, shape).reshape(x.shape)
    return jnp.where(keep, x * jnp.asarray(1.0 / (1.0 - rate), x.dtype), jnp.zeros_like(x))


def _forward(rate, shape, x, words):
    return _dropped(rate, shape, x, words), words


def _backward(rate, shape, words, gradient):
    return _dropped(rate, shape, gradient, words), None


_dropped.defvjp(_forward, _backward)
