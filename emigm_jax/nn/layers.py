"""Small layers shared by the transformer and the diffusion head."""

import math

import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float32, Num

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


def layer_norm(
    width: int, rngs: nnx.Rngs, affine: bool = True, epsilon: float = LAYER_NORM_EPSILON
) -> nnx.LayerNorm:
    """LayerNorm in float32, whatever the input."""
    return nnx.LayerNorm(
        width,
        epsilon=epsilon,
        dtype=jnp.float32,
        use_bias=affine,
        use_scale=affine,
        use_fast_variance=False,  # E[x^2] - E[x]^2 loses the digits that parity needs
        rngs=rngs,
    )


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
