"""A residual block of the diffusion head as one kernel for TPUs: nothing between its products is
written to memory.

Rows are independent, so the kernel is the block's formula on a tile of rows, with the weights held
in VMEM; the backward kernel is the derivative of that formula on the tile and adds up the gradients
of the weights in VMEM. What products gave is kept for it, in the compute dtype, or worked out
again. Per row and unit a block then moves 48 bytes (28 if nothing is kept), and about 270 where XLA
fuses what it can.
"""

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32

from emigm_jax.nn.kernels.products import product
from emigm_jax.nn.layers import LAYER_NORM_EPSILON
from emigm_jax.parallel import shards


class Weights(NamedTuple):
    """Of a block of width W: vectors (1, n) in float32, matrices in the compute dtype."""

    norm_scale: Float32[Array, '1 W']
    norm_bias: Float32[Array, '1 W']
    shift: Float[Array, 'W W']
    shift_bias: Float32[Array, '1 W']
    scale: Float[Array, 'W W']
    scale_bias: Float32[Array, '1 W']
    gate: Float[Array, 'W W']
    gate_bias: Float32[Array, '1 W']
    linear1: Float[Array, 'W W']
    bias1: Float32[Array, '1 W']
    linear2: Float[Array, 'W W']
    bias2: Float32[Array, '1 W']

    def own(self) -> 'Weights':
        """As `residual_block.residual` takes them, see `shards.own`."""
        return shards.own(self, (None, None, *(0, None) * 3, *(1, None) * 2))


class Products(NamedTuple):
    """What the products of a block give, before biases."""

    shift: Float[Array, 'R W']
    scale: Float[Array, 'R W']
    gate: Float[Array, 'R W']
    linear1: Float[Array, 'R W']
    linear2: Float[Array, 'R W']


def block(
    x: Float32[Array, 'R W'],
    activated: Float[Array, 'R W'],
    weights: Weights,
    known: Products | None = None,
) -> tuple[Float32[Array, 'R W'], Products]:
    """x + gate mlp(modulate(norm(x))), as `ResBlock` of the diffusion head, and its products.

    Products that are known are taken and not worked out; derivatives are the same.
    """
    w, dtype = weights, weights.linear1.dtype
    known = known or Products(*[None] * len(Products._fields))  # pyright: ignore
    shift = product(activated, w.shift, known=known.shift)
    scale = product(activated, w.scale, known=known.scale)
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    normed = centred * jax.lax.rsqrt(variance + LAYER_NORM_EPSILON) * w.norm_scale + w.norm_bias
    modulated = normed * (1.0 + (scale + w.scale_bias)) + (shift + w.shift_bias)
    linear1 = product(modulated.astype(dtype), w.linear1, known=known.linear1)
    hidden = linear1 + w.bias1
    hidden = hidden * jax.nn.sigmoid(hidden)
    linear2 = product(hidden.astype(dtype), w.linear2, known=known.linear2)
    gate = product(activated, w.gate, known=known.gate)
    out = x + (gate + w.gate_bias) * (linear2 + w.bias2)
    return out, Products(shift, scale, gate, linear1, linear2)


def tile(width: int, dtype: DTypeLike, room: int) -> int:
    """Rows at a time for which both kernels take at most `room` bytes of VMEM; 0: none do."""
    # Weights, their gradients' sums, and one gradient on its way; about thirty arrays of rows.
    held = width**2 * (5 * (jnp.dtype(dtype).itemsize + 4) + 4)
    return next((rows for rows in (256, 128, 64) if held + 120 * width * rows < room), 0)


class Plan(NamedTuple):
    """How the kernels run."""

    rows: int  # of a tile
    keep: bool = True  # products for the backward pass, which else works them out again
    room: int | None = None  # bytes of VMEM
    cores: int = 1  # that share the rows
    interpret: bool = False


def forward(
    x: Float32[Array, 'R W'],
    activated: Float[Array, 'R W'],
    weights: Weights,
    plan: Plan,
) -> tuple[Float32[Array, 'R W'], Products | None]:
    """`block` of any number of rows, and its products in the compute dtype if they are kept."""
    count, width = x.shape
    dtype = weights.linear1.dtype

    def kernel(x, activated, *refs):
        held, (out, *kept) = refs[: len(weights)], refs[len(weights) :]
        out[...], products = block(x[...], activated[...], Weights(*(w[...] for w in held)))
        for ref, made in zip(kept, products if kept else (), strict=True):
            ref[...] = made.astype(dtype)

    rows = pl.BlockSpec((plan.rows, width), lambda step: (step, 0))
    given, like = (x, activated), [jax.ShapeDtypeStruct(x.shape, jnp.float32)]
    like += [jax.ShapeDtypeStruct(x.shape, dtype)] * (len(Products._fields) * plan.keep)
    out, *products = pl.pallas_call(
        kernel,
        like,
        grid=(pl.cdiv(count, plan.rows),),
        in_specs=[rows, rows, *map(_held, weights)],
        out_specs=[rows] * len(like),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=('parallel',), vmem_limit_bytes=plan.room
        ),
        cost_estimate=_cost((*given, *like), weights, 1),
        interpret=plan.interpret,
        name='residual_block',
    )(*given, *weights)
    return out, Products(*products) if plan.keep else None


def backward(
    x: Float32[Array, 'R W'],
    activated: Float[Array, 'R W'],
    weights: Weights,
    known: Products | None,
    gradient: Float32[Array, 'R W'],
    plan: Plan,
) -> tuple[Float32[Array, 'R W'], Float[Array, 'R W'], Weights]:
    """Gradients of x, of what is activated, and of the weights in float32, summed over rows."""
    count, width = x.shape
    given = [x, activated, gradient, *(known or ())]
    tiles = pl.cdiv(count, plan.rows)
    cores = plan.cores if tiles % plan.cores == 0 else 1
    place = lambda core, step: core * (tiles // cores) + step

    def kernel(*refs):
        core, step = pl.program_id(0), pl.program_id(1)
        refs, held, (of_x, of_activated, *sums) = _split(refs, len(given), len(weights))
        rows = [ref[...] for ref in refs]
        if count % plan.rows:  # the last tile has rows beyond the last
            row = place(core, step) * plan.rows
            row += jax.lax.broadcasted_iota(jnp.int32, (plan.rows, 1), 0)
            rows = [jnp.where(row < count, r, jnp.zeros_like(r)) for r in rows]
        made = Products(*rows[3:]) if known else None
        formula = lambda x, activated, weights: block(x, activated, weights, made)[0]
        back = jax.vjp(formula, *rows[:2], Weights(*(w[...] for w in held)))[1]
        of_x[...], of_activated[...], of_weights = back(rows[2])

        @pl.when(step == 0)
        def _():
            for total in sums:
                total[...] = jnp.zeros_like(total)

        for total, part in zip(sums, of_weights, strict=True):
            total[0] += part.astype(jnp.float32)

    rows = pl.BlockSpec((plan.rows, width), lambda core, step: (place(core, step), 0))
    like = [
        jax.ShapeDtypeStruct(x.shape, jnp.float32),
        jax.ShapeDtypeStruct(x.shape, activated.dtype),
        *(jax.ShapeDtypeStruct((cores, *w.shape), jnp.float32) for w in weights),
    ]
    of_core = lambda w: pl.BlockSpec(
        (1, *w.shape), lambda core, step: (core, 0, 0), pipeline_mode=pl.Buffered(1)
    )
    of_x, of_activated, *sums = pl.pallas_call(
        kernel,
        like,
        grid=(cores, tiles // cores),
        in_specs=[*[rows] * len(given), *map(_held, weights)],
        out_specs=[rows, rows, *map(of_core, weights)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=('parallel', 'arbitrary'), vmem_limit_bytes=plan.room
        ),
        cost_estimate=_cost((*given, *like), weights, 2 if known else 3),
        interpret=plan.interpret,
        name='residual_block_backward',
    )(*given, *weights)
    return of_x, of_activated, Weights(*(total.sum(0) for total in sums))


def _split(items, *counts):
    """The first so many, the next so many, and the rest."""
    ends = [0, *itertools.accumulate(counts), len(items)]
    return [items[i:j] for i, j in itertools.pairwise(ends)]


def _held(weight):
    """The whole of an array, once for all tiles."""
    return pl.BlockSpec(weight.shape, lambda *_: (0, 0), pipeline_mode=pl.Buffered(1))


def _cost(moved, weights, products):
    """What the compiler's scheduler and `emigm compile` count.

    Args:
      moved: arrays that cross, but for the weights.
      weights: as in `block`.
      products: matrix products per weight.
    """
    matrices = sum(w.size for w in weights if len(w) > 1)
    sizes = (math.prod(a.shape) * a.dtype.itemsize for a in (*moved, *weights))
    return pl.CostEstimate(
        flops=2 * products * len(moved[0]) * matrices,
        bytes_accessed=sum(sizes),
        transcendentals=math.prod(moved[0].shape),
    )
