"""Functions that each device runs on its own shards: kernels, encoders, microbatches."""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.extend.random import define_prng_impl
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PRNGKeyArray

from emigm_jax.core.randomness import of_data
from emigm_jax.parallel import sharding

_T = TypeVar('_T')
_Weights = TypeVar('_Weights', bound=tuple[Array, ...])

REPLICATED, BATCH = P(), P(sharding.BATCH)
EACH = P(sharding.AXES)  # of `own` copies


def mapped(function: Callable[..., _T], in_specs: Any, out_specs: Any) -> Callable[..., _T]:
    """`function` of shards as a function of whole arrays; without a mesh it is the function.

    Args:
      function: of arrays, which may be nested.
      in_specs: how they are sharded, by `sharding.spec` or as above, nested no deeper.
      out_specs: how what it gives is sharded.
    """
    mesh = sharding.mesh_in_force()
    if mesh is None:
        return function
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )


def of_batches_alone() -> bool:
    """Whether a mesh is in force over which batches are sharded and no parameters."""
    mesh = sharding.mesh_in_force()
    return mesh is not None and mesh.size > 1 and not sharding.is_sharded()


def of_layers() -> bool:
    """Whether a mesh is in force that cuts heads and hidden units."""
    mesh = sharding.mesh_in_force()
    return mesh is not None and mesh.shape['tensor'] > 1


def summed(tree: _T, spec: P) -> _T:
    """In a `mapped` function: sums over all shards of what is sharded like `spec`."""
    axes = (axis if isinstance(axis, tuple) else (axis,) for axis in spec)
    names = tuple(name for axis in axes for name in axis if name is not None)
    return jax.lax.psum(tree, names) if names else tree


def own(weights: _Weights, along: tuple[int | None, ...]) -> _Weights:
    """A copy of replicated weights for each device: (devices, ...), sharded like `EACH`.

    Gradients of copies, each of what its device worked on, are added up there whatever calls they
    come from, and summed over devices once, as a reduce-scatter.

    Args:
      weights: a named tuple.
      along: of each the dimension in which `sharding.RULES` store it, or the nearest to that; None:
        too small to be scattered.
    """
    return _own(weights, along)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _own(weights, along):
    del along
    mesh = sharding.mesh_in_force()
    if mesh is None:
        return jax.tree.map(lambda w: w[None], weights)
    copies = jax.tree.map(lambda w: jnp.broadcast_to(w, (mesh.size, *w.shape)), weights)
    return jax.lax.with_sharding_constraint(copies, EACH)


def _own_backward(along, _, gradients):
    mesh = sharding.mesh_in_force()
    if mesh is None:
        return (jax.tree.map(lambda g: g[0], gradients),)
    parts = math.prod(mesh.shape[axis] for axis in sharding.SHARDS)
    copies = tuple(axis for axis in sharding.AXES if axis not in sharding.SHARDS)
    along = [
        None if d is None or g.shape[1 + d] % parts else d
        for d, g in zip(along, gradients, strict=True)
    ]

    def total(gradient, d):
        here = gradient[0].astype(jnp.float32)
        if d is None:
            return jax.lax.psum(here, sharding.AXES)
        scattered = jax.lax.psum_scatter(here, sharding.SHARDS, scatter_dimension=d, tiled=True)
        # libtpu 0.0.42 fails where it would take it out of a loop that adds it up in another dtype.
        return jax.lax.psum(jax.lax.optimization_barrier(scattered), copies)

    run = lambda *gradients: tuple(map(total, gradients, along))
    made = tuple(P() if d is None else P(*[None] * d, sharding.SHARDS) for d in along)
    sums = mapped(run, EACH, made)(*gradients)
    sums = (a.astype(g.dtype) for a, g in zip(sums, gradients, strict=True))
    return (type(gradients)(*sums),)


_own.defvjp(lambda weights, along: (_own(weights, along), None), _own_backward)


def mine(weights: _Weights) -> _Weights:
    """In a `mapped` function: of `own` copies that of this device."""
    return jax.tree.map(lambda w: w[0], weights)


def alike(spec: P) -> tuple[str, ...]:
    """Axes of the mesh in force over which what is sharded like `spec` is the same."""
    mesh = sharding.mesh_in_force()
    if mesh is None:
        return ()
    named = {n for axes in spec for n in (axes if isinstance(axes, tuple) else (axes,))}
    return tuple(a for a in sharding.AXES if a not in named and mesh.shape[a] > 1)


def of_mine(gradients: _Weights, weights: _Weights, axes: tuple[str, ...]) -> _Weights:
    """In a `mapped` function: gradients of `mine` as those of the copies.

    What devices along `axes` have worked out alike, as `alike` says outside, counts once.
    """
    if axes:
        first = jax.lax.axis_index(axes) == 0
        gradients = jax.tree.map(lambda g: jnp.where(first, g, 0.0), gradients)
    return jax.tree.map(lambda g, w: g.astype(w.dtype)[None], gradients, weights)


def key_of_rows(key: PRNGKeyArray) -> PRNGKeyArray:
    """In a `mapped` function: a dropout key that draws for this shard's rows of a batch.

    Of the words (2, B) that `nn.dropout` takes it draws those of this shard, as if the batch of all
    shards were whole. So what is dropped does not depend on how the batch is sharded.
    """
    return of_data(jax.random.key_data(key), _ROWS)


def _rows_bits(data, width, shape):
    if len(shape) != 2 or shape[0] != 2 or width != 32:
        raise NotImplementedError(f'a key of rows draws words (2, B), not {shape} of {width} bits')
    rows, shards = shape[1], jax.lax.axis_size(sharding.BATCH)
    words = jax.random.bits(of_data(data), (2, rows * shards), jnp.uint32)
    first = jax.lax.axis_index(sharding.BATCH) * rows
    return jax.lax.dynamic_slice_in_dim(words, first, rows, 1)


_ROWS = define_prng_impl(
    key_shape=(2,),
    seed=lambda seed: jnp.stack([jnp.zeros_like(seed), seed]),
    split=lambda data, shape: jax.random.key_data(jax.random.split(of_data(data), shape)),
    random_bits=_rows_bits,
    fold_in=lambda data, number: jax.random.key_data(jax.random.fold_in(of_data(data), number)),
    name='emigm_rows',
    tag='rows',
)
