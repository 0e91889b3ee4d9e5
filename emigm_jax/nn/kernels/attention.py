"""Attention of whole rows as one kernel for TPUs: no logits in memory, dropout inside.

A grid step is an image: its queries, keys and values, all heads beside one another, lie in VMEM,
and the logits of one head at a time. The backward kernel is the derivative of the same formula,
which works the logits out again.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int32, UInt32

from emigm_jax.nn.dropout import dropped
from emigm_jax.nn.kernels.products import product


def head(
    rate: float,
    lengths: Int32[Array, '1 1'],
    words: UInt32[Array, '2 1'] | None,
    q: Float[Array, 'Q d'],
    k: Float[Array, 'L d'],
    v: Float[Array, 'L d'],
) -> Float[Array, 'Q d']:
    """softmax(q k^T d^-0.5) v of one head of one image; float32 within."""
    shape = len(q), len(k)
    logits = product(q, k, True) * (q.shape[1] ** -0.5)
    seen = jax.lax.broadcasted_iota(jnp.int32, shape, 1) < lengths
    logits = jnp.where(seen, logits, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, axis=1, keepdims=True)))
    weights = weights / jnp.sum(weights, axis=1, keepdims=True)
    return product(dropped(rate, words, weights).astype(v.dtype), v).astype(q.dtype)


class Plan(NamedTuple):
    """How the kernels run."""

    size: int  # of a head
    rate: float = 0.0  # of dropout
    room: int | None = None  # bytes of VMEM
    interpret: bool = False


def forward(
    plan: Plan,
    q: Float[Array, 'B Q D'],
    k: Float[Array, 'B L D'],
    v: Float[Array, 'B L D'],
    lengths: Int32[Array, 'B 1 1'],
    words: UInt32[Array, 'B H 2 1'] | None,
) -> Float[Array, 'B Q D']:
    """`head` of all heads and images.

    Args:
      plan: how.
      q, k, v: the heads beside one another along D.
      lengths: keys at or beyond them are hidden.
      words: of the dropout of each image and head; None: there is none.
    """

    def kernel(*refs):
        *refs, out = refs
        q, k, v, lengths, *words = (ref[0] for ref in refs)
        for h, one in enumerate(_slices(q.shape[1], plan.size)):
            of_head = functools.partial(head, plan.rate, lengths, words[0][h] if words else None)
            out[0, :, one] = of_head(q[:, one], k[:, one], v[:, one])

    return _call(kernel, [q, k, v], [q], [lengths, words], plan, 1)[0]


def backward(
    plan: Plan,
    q: Float[Array, 'B Q D'],
    k: Float[Array, 'B L D'],
    v: Float[Array, 'B L D'],
    lengths: Int32[Array, 'B 1 1'],
    words: UInt32[Array, 'B H 2 1'] | None,
    gradient: Float[Array, 'B Q D'],
) -> tuple[Float[Array, 'B _ D'], ...]:
    """Gradients of q, k and v."""

    def kernel(*refs):
        *refs, of_q, of_k, of_v = refs
        q, k, v, gradient, lengths, *words = (ref[0] for ref in refs)
        for h, one in enumerate(_slices(q.shape[1], plan.size)):
            of_head = functools.partial(head, plan.rate, lengths, words[0][h] if words else None)
            _, back = jax.vjp(of_head, q[:, one], k[:, one], v[:, one])
            of_q[0, :, one], of_k[0, :, one], of_v[0, :, one] = back(gradient[:, one])

    # The logits again, and two products for each of theirs.
    return tuple(_call(kernel, [q, k, v, gradient], [q, k, v], [lengths, words], plan, 2.5))


def _slices(width, size):
    return [slice(start, start + size) for start in range(0, width, size)]


def _call(kernel, given, like, more, plan, passes):
    """Runs it image by image on arrays (B, ., D), and gives arrays like some of them.

    Args:
      kernel: of references to one image of each of `given`, `more` and `like`.
      given, more: what goes in; None is left out.
      like: what comes out.
      plan: how.
      passes: its products over those of the forward pass.
    """
    whole = lambda a: pl.BlockSpec((1, *a.shape[1:]), lambda b: (b, *[0] * (a.ndim - 1)))
    more = [a for a in more if a is not None]
    q, k = given[:2]
    logits = q.shape[0] * q.shape[1] * k.shape[1] * (q.shape[2] // plan.size)
    moved = sum(a.size * a.dtype.itemsize for a in (*given, *like, *more))
    return pl.pallas_call(
        kernel,
        [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in like],
        grid=(len(q),),
        in_specs=[*map(whole, given), *map(whole, more)],
        out_specs=[whole(a) for a in like],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=('parallel',), vmem_limit_bytes=plan.room
        ),
        cost_estimate=pl.CostEstimate(
            flops=int(4 * passes * logits * plan.size),
            bytes_accessed=moved,
            transcendentals=logits,
        ),
        interpret=plan.interpret,
        name='attention' if passes == 1 else 'attention_backward',
    )(*given, *more)
