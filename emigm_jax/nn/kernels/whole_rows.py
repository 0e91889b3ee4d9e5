"""The kernels of attention as models use them: derivatives, shards, the check."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from emigm_jax.core import randomness
from emigm_jax.nn import loops
from emigm_jax.nn.kernels import choice, tiles
from emigm_jax.nn.kernels.attention import Plan, backward, forward, head
from emigm_jax.parallel import sharding, shards


class _Kernel(NamedTuple):
    """Of one kind of device."""

    forward: Callable  # (plan, *args) -> (result, what the backward pass needs beside args)
    backward: Callable  # (plan, args, that, gradient) -> gradients of q, k, v
    kept: Callable  # (how (B, ., D) is sharded, how (B, H, .) is) -> how that is


# By the type of their plans.
_KERNELS = {
    Plan: _Kernel(
        lambda plan, *args: (forward(plan, *args), ()),
        lambda plan, args, _, gradient: backward(plan, *args, gradient=gradient),
        lambda *_: (),
    ),
    tiles.Plan: _Kernel(tiles.forward, tiles.backward, lambda rows, heads: (rows, heads)),
}


def plan(
    kernels: str, q: Float[Array, 'B Q D'], k: Float[Array, 'B L D'], heads: int, rate: float
) -> Plan | tiles.Plan | None:
    """How the kernel runs for what is traced now; None: it does not, see `choice.takes`.

    Args:
      kernels: see `choice.takes`.
      q, k: queries and keys.
      heads: divide D.
      rate: of the dropout that there is.
    """
    (_, queries, width), length = q.shape, k.shape[1]
    size = width // heads
    if sharding.platform() == 'gpu':  # without dropout it is cuDNN's
        fits = rate > 0.0 and q.dtype in (jnp.bfloat16, jnp.float16) and size <= 128
    else:
        # Seven arrays of an image, the next one's on their way, and some of the logits of a head.
        held = 14 * max(queries, length) * width * q.dtype.itemsize + 40 * queries * length
        fits = held < choice.vmem() and size % 8 == 0
    if not choice.takes(kernels, 'attention', fits, error, q.dtype, size):
        return None
    return _plan(size, rate)


def _plan(size, rate):
    if sharding.platform() == 'gpu':
        return tiles.Plan(size, rate, jax.default_backend() != 'gpu')
    return Plan(size, rate, choice.vmem() or None, choice.interpreted())


def attend(
    plan: Plan | tiles.Plan,
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
def _attend(plan, *args):
    return _attend_forward(plan, *args)[0]


def _attend_forward(plan, *args):
    kernel, (rows, *others) = _KERNELS[type(plan)], _specs(plan, args[0])
    made = rows, kernel.kept(rows, others[1])
    run = functools.partial(kernel.forward, plan)
    out, kept = shards.mapped(run, (rows, rows, rows, *others), made)(*args)
    # By name, so that a layer that works out the rest again takes them as they are.
    out, *more = (checkpoint_name(a, loops.COSTLY) for a in (out, *kept[1:]))
    return out, (args, (out, *more) if kept else ())


def _attend_backward(plan, residuals, gradient):
    (args, kept), kernel = residuals, _KERNELS[type(plan)]
    rows, *others = _specs(plan, args[0])
    given = (rows, rows, rows, *others), kernel.kept(rows, others[1]), rows
    run = functools.partial(kernel.backward, plan)
    return *shards.mapped(run, given, (rows,) * 3)(args, kept, gradient), None, None


_attend.defvjp(_attend_forward, _attend_backward)


def _specs(plan, q):
    """How (B, ., D), (B, 1, 1) and (B, H, .) are sharded."""
    batch, heads = sharding.spec((len(q), q.shape[2] // plan.size), 'batch', 'tensor')
    return P(batch, None, heads), P(batch), P(batch, heads)


def error(dtype: DTypeLike, size: int) -> float:
    """How far the kernels are from `head` on the default device, relative to the largest value."""
    batch, queries, length, heads = 2, 24, 40, 2
    keys = jax.random.split(randomness.key(0), 5)
    normal = lambda key, rows: jax.random.normal(key, (batch, rows, heads * size)).astype(dtype)
    q, k, v = map(normal, keys, (queries, length, length))
    lengths, rate = jnp.array([length, 13], jnp.int32)[:, None, None], 0.3
    words = jax.random.bits(keys[3], (batch, heads, 2, 1), jnp.uint32)
    run = _plan(size, rate)

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
