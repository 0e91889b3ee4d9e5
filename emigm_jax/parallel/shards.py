"""Functions that each device runs on its own shards: kernels, and encoders of pictures."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.sharding import PartitionSpec as P

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


def summed(tree: _T, spec: P) -> _T:
    """In a `mapped` function: sums over all shards of what is sharded like `spec`."""
    axes = (axis if isinstance(axis, tuple) else (axis,) for axis in spec)
    names = tuple(name for axis in axes for name in axis if name is not None)
    return jax.lax.psum(tree, names) if names else tree
