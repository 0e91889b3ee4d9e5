"""A weighted sum over rows and its gradient, on a CPU a tile of rows at a time.

What a row passes through then stays in the cache, between products and from the forward pass to the
backward one: as only a sum is differentiated, the gradient of a tile is worked out at once, and
nothing is kept. Rows of weight 0 come last, and tiles of such rows alone are skipped.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from emigm_jax.parallel import sharding

ROWS = 128  # of a tile

# (shared, rows, fixed, weight) -> (sum, what is reported beside it: nested scalars)
Sum = Callable[[Any, Any, Any, Float32[Array, ' R']], tuple[Float32[Array, ''], Any]]


def pay(rows: int) -> bool:
    """Whether tiles are quicker for what is traced now; a mesh of several devices cuts rows."""
    mesh = sharding.mesh_in_force()
    alone = mesh is None or mesh.size == 1
    return sharding.platform() == 'cpu' and alone and rows > ROWS


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def summed(
    function: Sum, shared: Any, rows: Any, fixed: Any, weight: Float32[Array, ' R']
) -> tuple[Float32[Array, ''], Any]:
    """`function` of all rows.

    Args:
      function: a sum over rows, each times its weight; it holds no arrays.
      shared: pytree of float arrays, such as parameters.
      rows: float array (R, ...) of each row's own.
      fixed: pytree of arrays (R, ...) that are not differentiated.
      weight: of rows, not differentiated.

    Returns:
      The sum, which alone has a derivative, and what is reported.
    """
    return function(shared, rows, fixed, weight)


def _forward(function, shared, rows, fixed, weight):
    count = len(weight)
    tiles = -(-count // ROWS)
    order = jnp.pad(jnp.argsort(weight == 0.0, stable=True), (0, tiles * ROWS - count))
    weight = jnp.where(jnp.arange(tiles * ROWS) < count, weight[order], 0.0)
    of_rows = jax.value_and_grad(function, (0, 1), has_aux=True)

    def add(tile, sums):
        found, of_shared, gradient = sums
        at = jax.lax.dynamic_slice_in_dim(order, tile * ROWS, ROWS)
        cut = lambda a: a[at]
        given = jax.tree.map(cut, (rows, fixed))
        here = jax.lax.dynamic_slice_in_dim(weight, tile * ROWS, ROWS)
        more, (more_shared, own) = of_rows(shared, *given, here)
        found, of_shared = jax.tree.map(jnp.add, (found, of_shared), (more, more_shared))
        return found, of_shared, gradient.at[at].add(own)

    zeros = lambda tree: jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), tree)
    found = jax.eval_shape(function, shared, rows, fixed, weight[:count])
    live = jnp.sum(weight != 0.0)
    sums = jax.lax.fori_loop(0, (live + ROWS - 1) // ROWS, add, zeros((found, shared, rows)))
    return sums[0], sums[1:]


def _backward(function, kept, cotangent):
    del function
    return *jax.tree.map(lambda a: a * cotangent[0], kept), None, None


summed.defvjp(_forward, _backward)
