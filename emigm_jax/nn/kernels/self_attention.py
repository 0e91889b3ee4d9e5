"""x + attention(norm(x)) of a transformer's block as one kernel for TPUs.

A grid step is an image: its queries, keys, values and logits lie in VMEM, one head's at a time, and
backwards they are worked out again. Per row and unit of the width a block then moves 20 bytes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int, Int32, PRNGKeyArray, UInt32

from emigm_jax.core import randomness
from emigm_jax.nn.dropout import dropout, dropped
from emigm_jax.nn.kernels import branches, choice
from emigm_jax.nn.kernels.attention import head
from emigm_jax.nn.kernels.branches import Branch, Plan, Work, normed
from emigm_jax.nn.kernels.products import product
from emigm_jax.nn.layers import LAYER_NORM_EPSILON
from emigm_jax.parallel import shards


class Weights(NamedTuple):
    """Of width D: vectors (1, D) in float32, matrices in the compute dtype."""

    norm_scale: Float32[Array, '1 D']
    norm_bias: Float32[Array, '1 D']
    query: Float[Array, 'D D']
    query_bias: Float32[Array, '1 D']
    key: Float[Array, 'D D']
    key_bias: Float32[Array, '1 D']
    value: Float[Array, 'D D']
    value_bias: Float32[Array, '1 D']
    out: Float[Array, 'D D']
    out_bias: Float32[Array, '1 D']

    def own(self) -> 'Weights':
        """As `add` takes them, see `shards.own`."""
        return shards.own(self, (None, None, 0, None, 0, None, 0, None, 1, None))


class Rates(NamedTuple):
    """Of dropout."""

    weights: float  # of attention
    out: float


def plan(
    kernels: str, x: Float32[Array, 'B L D'], heads: int, dtype: DTypeLike, epsilon: float
) -> Plan | None:
    """How the kernel runs for what is traced now; None: it does not, see `choice.takes`."""
    if shards.of_layers():
        return None
    _, length, width = x.shape
    # Weights, their gradients' sums and one on its way; some arrays of rows; logits of a head.
    held = width**2 * (4 * (jnp.dtype(dtype).itemsize + 4) + 6)
    held += 64 * length * width + 40 * length**2
    fits = held < choice.vmem() and width // heads % 8 == 0
    if not choice.takes(kernels, 'self-attention', fits, error, dtype, width // heads):
        return None
    return branches.plan(length, width // heads, epsilon)


def add(
    plan: Plan,
    x: Float32[Array, 'B L D'],
    weights: Weights,
    rates: Rates,
    lengths: Int[Array, ' B'] | None,
    keys: tuple[PRNGKeyArray | None, PRNGKeyArray | None],
) -> Float32[Array, 'B L D']:
    """x + dropout(attention(norm(x))).

    Args:
      plan: from `plan`.
      x: activations.
      weights: of `Weights.own`.
      rates: of dropout.
      lengths: keys at or beyond them are hidden; None: all are seen.
      keys: of the dropout of attention weights, and of what comes out; None: there is none.
    """
    images, length, width = x.shape
    lengths = jnp.full(images, length) if lengths is None else lengths
    of_heads, outer = None, branches.words(keys[1], rates.out, images)
    if keys[0] is not None and rates.weights > 0.0:
        # Each head draws from a key of its own, as in `nn.attention`.
        draw = lambda key: branches.words(key, rates.weights, images)
        of_heads = jax.vmap(draw, out_axes=1)(jax.random.split(keys[0], width // plan.part))
    of_images = lengths.astype(jnp.int32)[:, None, None], of_heads, outer
    plan = plan._replace(rate=rates.out, inner_rate=rates.weights)
    return branches.add(_BRANCH, plan, x, weights, of_images)


def _projected(x, matrix, bias):
    return (product(x, matrix) + bias).astype(x.dtype)


def _read(ref):
    return None if ref is None else ref[...]


def _heads(plan, w):
    width = w.query.shape[0]
    return enumerate(slice(first, first + plan.part) for first in range(0, width, plan.part))


def _forward(
    plan: Plan,
    x: Float32[Array, 'B L D'],
    weights: Weights,
    lengths: Int32[Array, 'B 1 1'],
    of_heads: UInt32[Array, 'B H 2 1'] | None,
    outer: UInt32[Array, 'B 2 1'] | None,
) -> Float32[Array, 'B L D']:
    dtype = weights.query.dtype

    def kernel(_, given, w, of_image, out, __, scratch):
        (x,), (mixed,) = given, scratch
        seen, (of_heads, outer) = of_image[0][...], map(_read, of_image[1:])
        y = normed(plan, x, w.norm_scale[...], w.norm_bias[...]).astype(dtype)
        q = _projected(y, w.query[...], w.query_bias[...])
        k = _projected(y, w.key[...], w.key_bias[...])
        v = _projected(y, w.value[...], w.value_bias[...])
        for h, one in _heads(plan, w):
            words = None if of_heads is None else of_heads[h]
            mixed[:, one] = head(plan.inner_rate, seen, words, q[:, one], k[:, one], v[:, one])
        total = product(mixed[...], w.out[...]) + w.out_bias[...]
        out[...] = x + dropped(plan.rate, outer, total)

    scratch = [pltpu.VMEM(x.shape[1:], dtype)]
    of_images = lengths, of_heads, outer
    return branches.call(kernel, plan, _work(x, plan, 1), [x], weights, of_images, scratch)[0]


def _backward(
    plan: Plan,
    gradient: Float32[Array, 'B L D'],
    x: Float32[Array, 'B L D'],
    weights: Weights,
    lengths: Int32[Array, 'B 1 1'],
    of_heads: UInt32[Array, 'B H 2 1'] | None,
    outer: UInt32[Array, 'B 2 1'] | None,
) -> tuple[Float32[Array, 'B L D'], Weights]:
    dtype = weights.query.dtype

    def kernel(_, given, w, of_image, out, of, scratch):
        (x, gradient), (mixed, *of_qkv) = given, scratch
        seen, (of_heads, outer) = of_image[0][...], map(_read, of_image[1:])
        norm = lambda *args: normed(plan, *args).astype(dtype)
        y, of_norm = jax.vjp(norm, x, w.norm_scale[...], w.norm_bias[...])
        of_total = dropped(plan.rate, outer, gradient)
        of_mixed = product(of_total.astype(dtype), w.out[...], True).astype(dtype)
        names = 'query', 'key', 'value'
        held = [(getattr(w, name), getattr(w, f'{name}_bias')) for name in names]
        q, k, v = (_projected(y, matrix[...], bias[...]) for matrix, bias in held)
        for h, one in _heads(plan, w):
            words = None if of_heads is None else of_heads[h]
            of_head = lambda *qkv, words=words: head(plan.inner_rate, seen, words, *qkv)
            mixed[:, one], back = jax.vjp(of_head, q[:, one], k[:, one], v[:, one])
            for ref, found in zip(of_qkv, back(of_mixed[:, one]), strict=True):
                ref[:, one] = found
        last = lambda matrix, bias: product(mixed[...], matrix) + bias
        of_out, of_bias = jax.vjp(last, w.out[...], w.out_bias[...])[1](of_total)
        of.out[...] += of_out.astype(jnp.float32)
        of.out_bias[...] += of_bias
        of_y = jnp.zeros(x.shape, jnp.float32)
        for name, (matrix, bias), ref in zip(names, held, of_qkv, strict=True):
            _, back = jax.vjp(_projected, y, matrix[...], bias[...])
            more, of_matrix, of_bias = back(ref[...])
            of_y += more.astype(jnp.float32)
            getattr(of, name)[...] += of_matrix.astype(jnp.float32)
            getattr(of, f'{name}_bias')[...] += of_bias
        of_x, of_scale, of_bias = of_norm(of_y.astype(dtype))
        of.norm_scale[...] += of_scale
        of.norm_bias[...] += of_bias
        out[...] = gradient + of_x

    scratch = [pltpu.VMEM(x.shape[1:], dtype)] * 4
    of_images, work = (lengths, of_heads, outer), _work(x, plan, 2)
    found = branches.call(kernel, plan, work, [x, gradient], weights, of_images, scratch)
    of_x, of_weights = found
    assert of_weights is not None
    return of_x, of_weights


_BRANCH = Branch(_forward, _backward)


def _work(x, plan, passes):
    """Forwards four projections and two products of logits; backwards they are twice as many, and
    what is needed of them is worked out again.
    """
    images, length, width = x.shape
    projections, logits = 2 * x.size * width, 2 * images * length**2 * width
    again = passes - 1
    flops = (4 * passes + 3 * again) * projections + (2 * passes + again) * logits
    name = 'self_attention_backward' if again else 'self_attention'
    return Work(name, flops, logits // (2 * plan.part))


def error(dtype: DTypeLike, size: int) -> float:
    """How far the kernels are from plain operations on the default device, for heads of `size`."""
    batch, length, heads, rates = 2, 40, 2, Rates(0.3, 0.2)
    width = heads * size
    keys = iter(jax.random.split(randomness.key(0), 20))
    normal = lambda *shape: jax.random.normal(next(keys), shape, jnp.float32)
    pairs = [((normal(width, width) * width**-0.5).astype(dtype), normal(1, width)) for _ in '1234']
    weights = Weights(
        1.0 + normal(1, width), normal(1, width), *(a for pair in pairs for a in pair)
    )
    x, lengths = normal(batch, length, width), jnp.array([length, 13])
    dropping = next(keys), next(keys)

    def definition(x, w):
        linear = lambda x, kernel, bias: x.astype(kernel.dtype) @ kernel + bias.astype(kernel.dtype)
        y = branches.plain_norm(x, w.norm_scale, w.norm_bias)
        qkv = zip((w.query, w.key, w.value), (w.query_bias, w.key_bias, w.value_bias), strict=True)
        q, k, v = (linear(y, *pair) for pair in qkv)
        seen = (jnp.arange(length) < lengths[:, None])[:, None]
        mixed = []
        for h, key in enumerate(jax.random.split(dropping[0], heads)):
            of = lambda a, h=h: a[..., h * size : (h + 1) * size]
            logits = jnp.einsum('bqd,bkd->bqk', of(q), of(k), preferred_element_type=jnp.float32)
            shown = jnp.where(seen, logits * size**-0.5, -jnp.inf)
            share = dropout(jax.nn.softmax(shown).astype(v.dtype), rates.weights, key)
            mixed.append(jnp.einsum('bqk,bkd->bqd', share, of(v)))
        out = linear(jnp.concatenate(mixed, axis=-1), w.out, w.out_bias)
        return x + dropout(out, rates.out, dropping[1]).astype(jnp.float32)

    run = branches.plan(length, size, LAYER_NORM_EPSILON)
    kernel = lambda x, w: add(run, x, w.own(), rates, lengths, dropping)
    return branches.error(kernel, definition, x, weights)
