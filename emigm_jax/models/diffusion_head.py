"""The per-token diffusion MLP (official SimpleMLPAdaLN): p(x^i | z^i) of paper Eq. 8."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Num

from emigm_jax.nn import functional
from emigm_jax.nn.layers import layer_norm, linear, normal, time_features, zeros
from emigm_jax.parallel import sharding

TIME_FEATURES = 256


class ResBlock(nnx.Module):
    """x + gate mlp(modulate(norm(x))), modulated by adaLN."""

    def __init__(self, width: int, dtype: DTypeLike | None, rngs: nnx.Rngs):
        self.norm = layer_norm(width, rngs)
        self.modulation = linear(width, 3 * width, rngs, dtype, zeros)
        self.linear1 = linear(width, width, rngs, dtype)
        self.linear2 = linear(width, width, rngs, dtype)

    def __call__(
        self, x: Float32[Array, '*B W'], activated: Float32[Array, '*#B W']
    ) -> Float32[Array, '*B W']:
        shift, scale, gate = jnp.split(self.modulation(activated).astype(jnp.float32), 3, axis=-1)
        h = self.norm(x) * (1.0 + scale) + shift
        h = self.linear2(jax.nn.silu(self.linear1(h)))
        return sharding.unsharded_features(x + gate * h.astype(jnp.float32))


class DiffusionHead(nnx.Module):
    """Predicts (epsilon, v) of a noisy token, given diffusion time and condition."""

    def __init__(
        self,
        channels: int,
        condition_width: int,
        width: int,
        depth: int,
        loop: functional.Loop,
        rngs: nnx.Rngs,
    ):
        self.loop, dtype = loop, loop.dtype
        self.input = linear(channels, width, rngs, dtype)
        self.time1 = linear(TIME_FEATURES, width, rngs, dtype, normal)
        self.time2 = linear(width, width, rngs, dtype, normal)
        self.condition_embed = linear(condition_width, width, rngs, dtype)
        self.blocks = functional.stack(lambda rngs: ResBlock(width, dtype, rngs), depth, rngs)
        self.final_norm = layer_norm(width, rngs, affine=False)
        self.final_modulation = linear(width, 2 * width, rngs, dtype, zeros)
        self.output = linear(width, 2 * channels, rngs, dtype, zeros)

    def condition(self, z: Float[Array, '*B D']) -> Float32[Array, '*B W']:
        """Embeds z once for all diffusion steps of a token."""
        return sharding.unsharded_features(self.condition_embed(z).astype(jnp.float32))

    def time(self, t: Num[Array, '*T']) -> Float32[Array, '*T W']:
        """Embeds diffusion times on the 0..999 scale, fractions allowed."""
        embedded = self.time2(jax.nn.silu(self.time1(time_features(t)))).astype(jnp.float32)
        return sharding.unsharded_features(embedded)

    def __call__(
        self,
        x: Float[Array, '*B C'],
        time: Float32[Array, '*#B W'],
        condition: Float32[Array, '*#B W'],
    ) -> Float32[Array, '*B C2']:
        """Network output.

        Args:
          x: noisy tokens.
          time: from `time`.
          condition: from `condition`.

        Returns:
          epsilon, then the variance interpolation v: C2 = 2C.
        """
        activated = sharding.unsharded_features(jax.nn.silu(condition + time))
        x = sharding.unsharded_features(self.input(x).astype(jnp.float32))
        body = lambda block, x, _: block(x, activated)
        x = functional.scan(self.blocks, x, body, self.loop)
        shift, scale = jnp.split(self.final_modulation(activated).astype(jnp.float32), 2, axis=-1)
        x = self.final_norm(x) * (1.0 + scale) + shift
        return self.output(x).astype(jnp.float32)
