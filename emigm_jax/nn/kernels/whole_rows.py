"""The kernel of attention as models use it: its derivative, its shards, its check."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from emigm_jax.core import randomness
from emigm_jax.nn.kernels import choice
from emigm_jax.nn.kernels.attention import Plan, backward, forward, head
from emigm_jax.parallel import sharding, shards


def plan(
    kernels: str, q: Float[Array, 'B Q D'], k: Float[Array, 'B L D'], heads: int, rate: float
) -> Plan | None:
    """How the kernel runs for what is traced now; None: it does not, see `choice.takes`."""
    (_, queries, width), length = q.shape, k.shape[1]
    room, size = choice.vmem(), width // heads
    # Seven arrays of an image, the next one's on their way, and some of the logits of a head.
    held = 14 * max(queries, length) * width * q.dtype.itemsize + 40 * queries * length
    fits = held < room and size % 8 == 0
    if not choice.takes(kernels, 'attention', fits, error, q.dtype, size):
        return None
    return Plan(size, rate, room or None, choice.interpreted())


def attend(
    plan: Plan,
    q: Float[Array, 'B Q D'],
    k: Float[Array, 'B L D'],
    v: Float[Array, 'B L D'],
    lengths: Int[Array, ' B'] | None = None,
    keys: Key[Array, ' heads'] | None = None,
) -> Float[Array, 'B Q D']:
    """Softmax attention; of each head the dropout has a key."""
    batch = len(q)
    lengths = jnp.full(batch, k.shape[1]) if lengths is None else lengths
    words = None
    if keys is not None:
        words = jax.vmap(lambda key: jax.random.bits(key, (2, batch), jnp.uint32))(keys)
        words = jnp.moveaxis(words, 2, 0)[..., None]  # (B, heads, 2, 1)
    return _attend(plan, q, k, v, lengths.astype(jnp.int32)[:, None, None], words)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan, q, k, v, lengths, words):
    rows, others = _specs(plan, q)
    run = functools.partial(forward, plan)
    return shards.mapped(run, (rows, rows, rows, *others), rows)(q, k, v, lengths, words)


def _attend_forward(plan, *args):
    return _attend(plan, *args), args


def _attend_backward(plan, args, gradient):
    rows, others = _specs(plan, args[0])
    run = functools.partial(backward, plan)
    given = rows, rows, rows, *others, rows
    return *shards.mapped(run, given, (rows,) * 3)(*args, gradient), None, None


_attend.defvjp(_attend_forward, _attend_backward)


def _specs(plan, q):
    """How (B, ., D) is sharded, and (how lengths and words are)."""
    batch, heads = sharding.spec((len(q), q.shape[2] // plan.size), 'batch', 'tensor')
    return P(batch, None, heads), (P(batch), P(batch, heads))


def error(dtype: DTypeLike, size: int) -> float:
    """How far the kernels are from `head` on the default device, relative to the largest value."""
    batch, queries, length, heads = 2, 24, 40, 2
    keys = jax.random.split(randomness.key(0), 5)
    normal = lambda key, rows: jax.random.normal(key, (batch, rows, heads * size)).astype(dtype)
    q, k, v = map(normal, keys, (queries, length, length))
    lengths, rate = jnp.array([length, 13], jnp.int32)[:, None, None], 0.3
    words = jax.random.bits(keys[3], (batch, heads, 2, 1), jnp.uint32)
    run = Plan(size, rate, choice.vmem() or None, choice.interpreted())

    def definition(*qkv):
        of_head = lambda b, h: head(
            rate, lengths[b], words[b, h], *(a[b, :, h * size : (h + 1) * size] for a in qkv)
        )
        image = lambda b: jnp.concatenate([of_head(b, h) for h in range(heads)], axis=1)
        return jnp.stack([image(b) for b in range(batch)])

    kernel = lambda *qkv: _attend(run, *qkv, lengths, words)

    def gradients(function):
        loss = lambda *args: jnp.sum(jnp.sin(function(*args).astype(jnp.float32)))
        return jax.jit(jax.grad(loss, (0, 1, 2)))(q, k, v)

    return max(map(choice.distance, gradients(kernel), gradients(definition)))
