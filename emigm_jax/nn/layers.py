"""Small layers shared by the transformer and the diffusion head."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Num

from emigm_jax.nn import loops

LAYER_NORM_EPSILON = 1e-6

xavier_uniform = nnx.initializers.xavier_uniform()
zeros = nnx.initializers.zeros_init()
normal = nnx.initializers.normal(0.02)


def linear(
    inputs: int,
    outputs: int,
    rngs: nnx.Rngs,
    dtype: DTypeLike | None,
    init: Initializer = xavier_uniform,
) -> nnx.Linear:
    """Linear layer with bias: float32 parameters, computes in and returns `dtype`."""
    return nnx.Linear(inputs, outputs, dtype=dtype, kernel_init=init, rngs=rngs)


class LayerNorm(nnx.LayerNorm):
    """Float32, whatever x is; its derivative takes few passes over memory."""

    def __call__(self, x: Float[Array, '*B D']) -> Float32[Array, '*B D']:
        scale = None if self.scale is None else self.scale[...]
        bias = None if self.bias is None else self.bias[...]
        return _normed(self.epsilon, x.astype(jnp.float32), scale, bias)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _normed(epsilon, x, scale, bias):
    return _normed_forward(epsilon, x, scale, bias)[0]


def _normed_forward(epsilon, x, scale, bias):
    mean = jnp.mean(x, axis=-1, keepdims=True)
    # E[x^2] - E[x]^2 would lose the digits that parity needs.
    variance = jnp.mean(jnp.square(x - mean), axis=-1, keepdims=True)
    factor = jax.lax.rsqrt(variance + epsilon)
    mean, factor = (checkpoint_name(a, loops.COSTLY) for a in (mean, factor))
    y = (x - mean) * (factor if scale is None else factor * scale)
    return y if bias is None else y + bias, (x, mean, factor, scale, bias)


def _normed_backward(epsilon, kept, gradient):
    x, mean, factor, scale, bias = kept
    rows = tuple(range(x.ndim - 1))
    normed = (x - mean) * factor
    above = gradient if scale is None else gradient * scale
    mean_of = lambda a: jnp.mean(a, axis=-1, keepdims=True)
    of_x = factor * (above - mean_of(above) - normed * mean_of(above * normed))
    of_scale = None if scale is None else jnp.sum(gradient * normed, axis=rows)
    return of_x, of_scale, None if bias is None else jnp.sum(gradient, axis=rows)


_normed.defvjp(_normed_forward, _normed_backward)


def layer_norm(
    width: int, rngs: nnx.Rngs, affine: bool = True, epsilon: float = LAYER_NORM_EPSILON
) -> LayerNorm:
    """LayerNorm with `scale` and `bias`, or neither of them."""
    return LayerNorm(width, epsilon=epsilon, use_bias=affine, use_scale=affine, rngs=rngs)


def gelu(x: Float[Array, '*B']) -> Float[Array, '*B']:
    """x P(X <= x) of a normal X by erf and in float32, as PyTorch works it out.

    `jax.nn.gelu` takes erfc, which is exact in the left tail, too, and costs several times as much.
    """
    y = x.astype(jnp.float32)
    return (0.5 * y * (1.0 + jax.lax.erf(y * np.float32(0.5**0.5)))).astype(x.dtype)


def embedding(shape: tuple[int, ...], rngs: nnx.Rngs) -> nnx.Param:
    """Learned table, N(0, 0.02)."""
    return nnx.Param(normal(rngs.params(), shape, jnp.float32))


def time_features(
    t: Num[Array, '*T'], width: int = 256, max_period: float = 10000.0
) -> Float32[Array, '*T {width}']:
    """Sinusoids of diffusion time t, cosines first."""
    half = width // 2
    frequency = jnp.exp(-math.log(max_period) / half * jnp.arange(half, dtype=jnp.float32))
    angle = t.astype(jnp.float32)[..., None] * frequency
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
