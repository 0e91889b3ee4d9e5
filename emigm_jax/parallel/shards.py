"""Functions that each device runs on its own shards: kernels, encoders, microbatches."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.extend.random import define_prng_impl
from jax.sharding import PartitionSpec as P
from jaxtyping import PRNGKeyArray

from emigm_jax.core.randomness import of_data
from emigm_jax.parallel import sharding

_T = TypeVar('_T')

REPLICATED, BATCH = P(), P(sharding.BATCH)


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
    words = jax.random.bits(of_data(data), (2, rows * shards), jax.numpy.uint32)
    first = jax.lax.axis_index(sharding.BATCH) * rows
    return jax.lax.dynamic_slice_in_dim(words, first, rows, 1)


_ROWS = define_prng_impl(
    key_shape=(2,),
    seed=lambda seed: jax.numpy.stack([jax.numpy.zeros_like(seed), seed]),
    split=lambda data, shape: jax.random.key_data(jax.random.split(of_data(data), shape)),
    random_bits=_rows_bits,
    fold_in=lambda data, number: jax.random.key_data(jax.random.fold_in(of_data(data), number)),
    name='emigm_rows',
    tag='rows',
)
