"""Attention, however this platform computes it, against its definition written out.

320 tokens, as at 256 pixels with the buffer, some of them hidden; values, and gradients of queries,
keys and values. On a GPU the path may be a kernel, on a CPU it goes head by head.
"""

import jax
import jax.numpy as jnp
import numpy as np

from emigm_jax.core import randomness
from emigm_jax.models.config import DTYPES
from emigm_jax.nn import attention
from emigm_jax.nn.dropout import dropout
from emigm_jax.verify.part import Finding

IMAGES, TOKENS, HEADS, WIDTH = 8, 320, 2, 128
LENGTHS = np.array([320, 320, 300, 256, 200, 64, 63, 1], np.int32)
RATE = 0.1


def plain(dtype: str) -> Finding:
    """Without dropout, as in sampling."""
    return _compared(dtype, None)


def dropped(dtype: str) -> Finding:
    """With dropout of the weights, which is a function of its key and of nothing else."""
    return _compared(dtype, randomness.key(1))


def _compared(dtype, key):
    rng = np.random.Generator(np.random.Philox(key=0))
    draw = lambda: jnp.asarray(
        rng.standard_normal((IMAGES, TOKENS, WIDTH), np.float32), DTYPES[dtype]
    )
    q, k, v, pull = draw(), draw(), draw(), draw()
    softmax = attention.Softmax(HEADS, RATE)
    ours = lambda q, k, v: attention.attend(q, k, v, softmax, jnp.asarray(LENGTHS), key)
    wide = [a.astype(jnp.float32) for a in (q, k, v, pull)]
    with jax.default_matmul_precision('highest'):
        expected = _with_gradients(lambda q, k, v: _definition(q, k, v, key), *wide)
    found = _with_gradients(ours, q, k, v, pull)
    errors = [_relative(np.asarray(a, np.float32), b) for a, b in zip(found, expected, strict=True)]
    return Finding(max(errors), 'values and gradients, of their norm')


def _relative(actual, expected):
    """Of the norms: gradients of the few keys that all queries see are far larger than others."""
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def _with_gradients(function, q, k, v, pull):
    """(values, gradients of q, k, v) for the cotangent `pull`."""

    @jax.jit
    def run(q, k, v, pull):
        values, back = jax.vjp(function, q, k, v)
        return values, *back(pull)

    return run(q, k, v, pull)


def _definition(q, k, v, key):
    """softmax(q k^T / sqrt(d)) v per head, in float32: (B, L, D) each -> (B, L, D)."""
    split = lambda a: a.reshape(IMAGES, TOKENS, HEADS, WIDTH // HEADS).transpose(2, 0, 1, 3)
    q, k, v = map(split, (q, k, v))
    logits = q @ k.swapaxes(-1, -2) / np.float32(np.sqrt(WIDTH // HEADS))
    seen = np.arange(TOKENS) < LENGTHS[:, None, None]
    logits = jnp.where(seen, logits, -np.inf)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    weights /= weights.sum(-1, keepdims=True)
    if key is not None:
        keys = jax.random.split(key, HEADS)
        weights = jnp.stack([dropout(w, RATE, of) for w, of in zip(weights, keys, strict=True)])
    return (weights @ v).transpose(1, 2, 0, 3).reshape(IMAGES, TOKENS, WIDTH)
