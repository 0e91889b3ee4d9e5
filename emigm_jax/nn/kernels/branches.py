"""Kernels of x + branch(norm(x)), a half of a transformer's block: what the two halves share.

A grid step is some rows of an image, with all weights in VMEM; backwards their gradients are added
up there. As models use it a branch is one function with a derivative, each device working on its
own images.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Float32, PRNGKeyArray, UInt32

from emigm_jax.nn.kernels import choice
from emigm_jax.parallel import sharding, shards

_Weights = TypeVar('_Weights', bound=tuple[Array, ...])


class Plan(NamedTuple):
    """How the kernels run."""

    rows: int  # of an image at a time
    part: int  # what is worked on together of them: hidden units, or the units of a head
    epsilon: float  # of the norm
    rate: float = 0.0  # of the dropout of what comes out, and of hidden units
    inner_rate: float = 0.0  # of the dropout of attention weights
    room: int | None = None  # bytes of VMEM
    cores: int = 1  # that share the images
    interpret: bool = False


def plan(rows: int, part: int, epsilon: float) -> Plan:
    """A plan for the devices that are traced for; see `Plan`."""
    room, cores = choice.vmem() or None, choice.cores()
    return Plan(rows, part, epsilon, room=room, cores=cores, interpret=choice.interpreted())


class Branch(NamedTuple):
    """Its two kernels; what belongs to images, dropout's words say, comes after the weights."""

    forward: Callable[..., Any]  # (plan, x, weights, *of images) -> like x
    backward: Callable[..., Any]  # (plan, gradient, x, weights, *of images) -> of x, of weights


class Work(NamedTuple):
    """What the compiler's scheduler and `emigm compile` count."""

    name: str  # of the kernel
    flops: int  # of products
    transcendentals: int


# --- Within kernels ------------------------------------------------------------------------------


def normed(
    plan: Plan, x: Float32[Array, 'R D'], scale: Float32[Array, '1 D'], bias: Float32[Array, '1 D']
) -> Float32[Array, 'R D']:
    """LayerNorm."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + plan.epsilon) * scale + bias


# --- Around them ---------------------------------------------------------------------------------


def call(
    kernel: Callable[..., None],
    plan: Plan,
    work: Work,
    given: Sequence[Float32[Array, 'B L D']],
    weights: _Weights,
    of_images: Sequence[Array | None],
    scratch: Sequence[Any] = (),
) -> tuple[Float32[Array, 'B L D'], _Weights | None]:
    """Runs a kernel on all rows: (what comes out, gradients of weights if it is a backward one).

    Args:
      kernel: (tile, given, weights, of_images, out, sums, scratch), all but the first references,
        or lists of them, without a leading axis of images; the tile is the number of the first row.
      given: x, and backwards its gradient as well.
      of_images: (B, ...) each; None is left out, and the kernel gets None.
      scratch: of VMEM.
    """
    images, length, width = given[0].shape
    backwards = len(given) > 1
    cores = plan.cores if backwards and images % plan.cores == 0 else 1
    each = images // cores
    rows = pl.BlockSpec((1, plan.rows, width), lambda core, b, tile: (core * each + b, tile, 0))
    whole = lambda a: pl.BlockSpec(
        (1, *a.shape[1:]), lambda core, b, tile: (core * each + b, *[0] * (a.ndim - 1))
    )
    held = lambda w: pl.BlockSpec(w.shape, lambda *_: (0, 0), pipeline_mode=pl.Buffered(1))
    of_core = lambda w: pl.BlockSpec(
        (1, *w.shape), lambda core, *_: (core, 0, 0), pipeline_mode=pl.Buffered(1)
    )
    like = [jax.ShapeDtypeStruct(given[0].shape, jnp.float32)]
    summed = [*weights] if backwards else []
    like += [jax.ShapeDtypeStruct((cores, *w.shape), jnp.float32) for w in summed]
    there = [a for a in of_images if a is not None]

    def run(*refs):
        left = iter(refs)
        take = lambda count: [next(left) for _ in range(count)]
        rows, held = take(len(given)), type(weights)(*take(len(weights)))
        more = [None if a is None else next(left)[0] for a in of_images]
        out, totals, sums = next(left), take(len(summed)), None
        if backwards:
            sums = type(weights)(*(total.at[0] for total in totals))

            @pl.when((pl.program_id(1) == 0) & (pl.program_id(2) == 0))
            def _():
                for total in totals:
                    total[...] = jnp.zeros_like(total)

        tile = pl.program_id(2) * plan.rows
        whole_rows = [_within(ref[0], tile, length) for ref in rows]
        kernel(tile, whole_rows, held, more, out.at[0], sums, list(left))

    order = 'arbitrary' if backwards else 'parallel'
    out, *sums = pl.pallas_call(
        run,
        like,
        grid=(cores, each, pl.cdiv(length, plan.rows)),
        in_specs=[*[rows] * len(given), *map(held, weights), *map(whole, there)],
        out_specs=[rows, *map(of_core, summed)],
        scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=('parallel', order, order), vmem_limit_bytes=plan.room
        ),
        cost_estimate=pl.CostEstimate(
            flops=work.flops,
            bytes_accessed=sum(
                a.size * a.dtype.itemsize for a in (*given, *weights, *there, *like)
            ),
            transcendentals=work.transcendentals,
        ),
        interpret=plan.interpret,
        name=work.name,
    )(*given, *weights, *there)
    return out, type(weights)(*(total.sum(0) for total in sums)) if backwards else None


def _within(rows, first, length):
    """Zeros in place of rows beyond the last, which only the last tile has."""
    if length % len(rows) == 0:
        return rows
    row = jax.lax.broadcasted_iota(jnp.int32, (len(rows), 1), 0) + first
    return jnp.where(row < length, rows, 0.0)


# --- As models use it ----------------------------------------------------------------------------


def words(key: PRNGKeyArray | None, rate: float, images: int) -> UInt32[Array, 'B 2 1'] | None:
    """What `nn.dropout` draws for each image."""
    if key is None or rate == 0.0:
        return None
    return jax.random.bits(key, (2, images), jnp.uint32).T[..., None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def add(
    branch: Branch,
    plan: Plan,
    x: Float32[Array, 'B L D'],
    weights: tuple[Array, ...],
    of_images: tuple[Array | None, ...],
) -> Float32[Array, 'B L D']:
    """x + branch(norm(x)), whatever mesh is in force; weights are of `Weights.own`."""
    rows = _spec(x)
    run = lambda x, weights, more: branch.forward(plan, x, shards.mine(weights), *more)
    return shards.mapped(run, (rows, shards.EACH, rows), rows)(x, weights, of_images)


def _add_forward(branch, plan, *args):
    return add(branch, plan, *args), args


def _add_backward(branch, plan, args, gradient):
    rows = _spec(gradient)
    again = shards.alike(rows)

    def run(gradient, x, weights, more):
        of_x, of_weights = branch.backward(plan, gradient, x, shards.mine(weights), *more)
        return of_x, shards.of_mine(of_weights, weights, again)

    given = rows, rows, shards.EACH, rows
    return *shards.mapped(run, given, (rows, shards.EACH))(gradient, *args), None


add.defvjp(_add_forward, _add_backward)


def _spec(x):
    """How images are sharded."""
    return P(*sharding.spec(x.shape[:1], 'batch'))


def error(
    branch: Callable[..., Array], definition: Callable[..., Array], x: Array, weights: tuple
) -> float:
    """How far gradients are from those of a definition, relative to the largest value."""

    # In one array: a bias of keys changes nothing, so that its gradient alone is all rounding.
    def gradients(function):
        loss = lambda *args: jnp.sum(jnp.sin(function(*args)))
        found = jax.tree.leaves(jax.jit(jax.grad(loss, (0, 1)))(x, weights))
        return jnp.concatenate([a.astype(jnp.float32).reshape(-1) for a in found])

    return choice.distance(gradients(branch), gradients(definition))


def plain_norm(
    x: Float[Array, '*B D'], scale: Float32[Array, '1 D'], bias: Float32[Array, '1 D']
) -> Float32[Array, '*B D']:
    """LayerNorm by other operations than the kernels' are, which definitions begin with."""
    return jax.nn.standardize(x, epsilon=1e-6) * scale + bias
