"""Small layers shared by the transformer and the diffusion head."""

import math

import jax.numpy as jnp
from flax import nnx

LAYER_NORM_EPSILON = 1e-6

xavier_uniform = nnx.initializers.xavier_uniform()
zeros = nnx.initializers.zeros_init()
normal = nnx.initializers.normal(0.02)


def linear(inputs, outputs, rngs, dtype, init=xavier_uniform):
    """Linear layer with bias: float32 parameters, computes in and returns `dtype`."""
    return nnx.Linear(inputs, outputs, dtype=dtype, kernel_init=init, rngs=rngs)


def layer_norm(width, rngs, affine=True):
    """LayerNorm in float32, whatever the input."""
    return nnx.LayerNorm(
        width,
        epsilon=LAYER_NORM_EPSILON,
        dtype=jnp.float32,
        use_bias=affine,
        use_scale=affine,
        use_fast_variance=False,  # E[x^2] - E[x]^2 loses the digits that parity needs
        rngs=rngs,
    )


def embedding(shape, rngs):
    """Learned table, N(0, 0.02)."""
    return nnx.Param(normal(rngs.params(), shape, jnp.float32))


def time_features(t, width=256, max_period=10000.0):
    """Sinusoids of diffusion time t (...,), cosines first: (..., width) float32."""
    half = width // 2
    frequency = jnp.exp(-math.log(max_period) / half * jnp.arange(half, dtype=jnp.float32))
    angle = t.astype(jnp.float32)[..., None] * frequency
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
