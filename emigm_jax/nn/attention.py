"""Softmax attention on projected tokens: one formula, two orders of work.

Accelerators run all heads at once. CPUs take one head after the other where the logits of all would
not stay in the cache: at 320 tokens that is twice as fast.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from emigm_jax.nn.dropout import dropout

CACHE_BYTES = 2**22  # logits beyond this are worked on head by head on a CPU


def attend(
    q: Float[Array, 'B Q D'],
    k: Float[Array, 'B L D'],
    v: Float[Array, 'B L D'],
    heads: int,
    lengths: Int[Array, ' B'] | None = None,
    rate: float = 0.0,
    key: PRNGKeyArray | None = None,
) -> Float[Array, 'B Q D']:
    """Multi-head attention with softmax scale head_dim^-0.5.

    Args:
      q: queries, the heads one after the other along D.
      k, v: keys and values.
      heads: number of heads; divides D.
      lengths: keys at or beyond the length are hidden; None: all are seen.
      rate: dropout of the attention weights.
      key: dropout key or None.

    Returns:
      In the dtype of q. Softmax is float32.
    """
    by_head = lambda a: a.reshape(*a.shape[:-1], heads, -1)
    q, k, v = by_head(q), by_head(k), by_head(v)
    seen = None
    if lengths is not None:
        seen = jnp.arange(k.shape[1]) < lengths[:, None]
    keys = None if key is None or rate == 0.0 else jax.random.split(key, heads)
    run = functools.partial(_all_heads, rate)
    logits_bytes = 4 * q.shape[0] * heads * q.shape[1] * k.shape[1]
    if logits_bytes <= CACHE_BYTES:
        mixed = run(q, k, v, seen, keys)
    else:
        by_turns = functools.partial(_head_by_head, rate)
        mixed = jax.lax.platform_dependent(q, k, v, seen, keys, cpu=by_turns, default=run)
    return mixed.reshape(*mixed.shape[:2], -1)


def _all_heads(rate, q, k, v, seen, keys):
    """(B, Q, H, d), (B, L, H, d), (B, L, H, d) -> (B, Q, H, d)."""
    # Each head draws from a key of its own, so both orders of work drop the same weights.
    axes = (2, 2, 2, None, None if keys is None else 0)
    return jax.vmap(functools.partial(_head, rate), axes, out_axes=2)(q, k, v, seen, keys)


def _head_by_head(rate, q, k, v, seen, keys):
    """As `_all_heads`."""
    one = lambda h: _head(
        rate, q[:, :, h], k[:, :, h], v[:, :, h], seen, None if keys is None else keys[h]
    )
    return jnp.stack([one(h) for h in range(q.shape[2])], axis=2)


def _head(rate, q, k, v, seen, key):
    """One head: (B, Q, d), (B, L, d), (B, L, d) -> (B, Q, d)."""
    logits = jnp.einsum('bqd,bkd->bqk', q, k, preferred_element_type=jnp.float32)
    logits = logits * (q.shape[-1] ** -0.5)
    if seen is not None:
        logits = jnp.where(seen[:, None], logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum('bqk,bkd->bqd', dropout(weights, rate, key), v)
