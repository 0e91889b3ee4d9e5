"""Matrix products of tiles in VMEM that can be differentiated within a kernel."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32


def product(
    x: Float[Array, 'M K'],
    y: Float[Array, '_ _'],
    transposed: bool = False,
    known: Float[Array, 'M N'] | None = None,
) -> Float32[Array, 'M N']:
    """x y, or x y^T, in float32; forwards and backwards the operands are of one dtype.

    Args:
      x, y: of the dtype that is computed in.
      transposed: y is (N, K), not (K, N).
      known: the result, which is then taken and not worked out; derivatives are the same.
    """
    return _product(x, y, transposed, known)  # pyright: ignore[reportReturnType]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x, y, transposed, known):
    if known is not None:
        return known.astype(jnp.float32)
    return _dot(x, y, 1, int(transposed))


def _forward(x, y, transposed, known):
    return _product(x, y, transposed, known), (x, y, known)


def _backward(transposed, kept, gradient):
    x, y, known = kept
    gradient = gradient.astype(x.dtype)
    of_x = _dot(gradient, y, 1, 1 - transposed)
    of_y = _dot(gradient, x, 0, 0) if transposed else _dot(x, gradient, 0, 0)
    nothing = None if known is None else jnp.zeros_like(known)
    return of_x.astype(x.dtype), of_y.astype(y.dtype), nothing


_product.defvjp(_forward, _backward)


def _dot(x, y, of_x, of_y):
    """Sums over these axes of x and y."""
    return jax.lax.dot_general(
        x, y, (((of_x,), (of_y,)), ((), ())), preferred_element_type=jnp.float32
    )
