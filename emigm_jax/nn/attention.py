"""Softmax attention on projected tokens: one formula, several ways to run it.

TPUs have a kernel of whole rows (`kernels.attention`), NVIDIA GPUs in half precision one of tiles
where there is dropout (`kernels.tiles`) and cuDNN's where there is none. Else accelerators run all
heads at once; CPUs take one head after the other where the logits of all would not stay in the
cache: at 320 tokens that is twice as fast. Whichever runs, nothing of the size of the logits is
kept for the backward pass.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, PRNGKeyArray

from emigm_jax.nn import cudnn, loops
from emigm_jax.nn.dropout import dropout
from emigm_jax.nn.kernels import whole_rows
from emigm_jax.parallel import sharding

CACHE_BYTES = 2**22  # logits beyond this are worked on head by head on a CPU


class Softmax(NamedTuple):
    """What attention is set to."""

    heads: int  # divide D
    rate: float = 0.0  # of the dropout of attention weights
    kernels: str = 'auto'  # see `kernels.choice`


def attend(
    q: Float[Array, 'B Q D'],
    k: Float[Array, 'B L D'],
    v: Float[Array, 'B L D'],
    softmax: Softmax,
    lengths: Int[Array, ' B'] | None = None,
    key: PRNGKeyArray | None = None,
) -> Float[Array, 'B Q D']:
    """Multi-head attention with softmax scale head_dim^-0.5.

    Args:
      q: queries, the heads one after the other along D.
      k, v: keys and values.
      softmax: settings.
      lengths: keys at or beyond the length are hidden; None: all are seen.
      key: dropout key or None.

    Returns:
      In the dtype of q. Softmax is float32.
    """
    heads, rate, kernels = softmax
    # Each head draws from a key of its own, so whatever the order of work the same is dropped.
    keys = None if key is None or rate == 0.0 else jax.random.split(key, heads)
    plan = whole_rows.plan(kernels, q, k, heads, 0.0 if keys is None else rate)
    if plan is not None:
        return whole_rows.attend(plan, q, k, v, lengths, keys)
    by_head = lambda a: a.reshape(*a.shape[:-1], heads, -1)
    q, k, v = by_head(q), by_head(k), by_head(v)
    seen = None
    if lengths is not None:
        seen = jnp.arange(k.shape[1]) < lengths[:, None]
    if keys is None and cudnn.serves(q, _undropped):
        mixed = cudnn.attend(q, k, v, lengths)
    else:
        plain = jax.checkpoint(functools.partial(_plain, rate), prevent_cse=False)
        mixed = plain(q, k, v, seen, keys)
    return checkpoint_name(mixed.reshape(*mixed.shape[:2], -1), loops.COSTLY)


def _plain(rate, q, k, v, seen, keys):
    """(B, Q, H, d), (B, L, H, d), (B, L, H, d) -> (B, Q, H, d)."""
    batch, rows, heads, _ = q.shape
    cached = 4 * batch * heads * rows * k.shape[1] <= CACHE_BYTES
    run = _all_heads if cached or sharding.platform() != 'cpu' else _head_by_head
    return run(rate, q, k, v, seen, keys)


def _undropped(q, k, v, seen):
    """As `_plain`."""
    return _all_heads(0.0, q, k, v, seen, None)


def _all_heads(rate, q, k, v, seen, keys):
    """As `_plain`."""
    axes = (2, 2, 2, None, None if keys is None else 0)
    return jax.vmap(functools.partial(_head, rate), axes, out_axes=2)(q, k, v, seen, keys)


def _head_by_head(rate, q, k, v, seen, keys):
    """As `_plain`."""
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
