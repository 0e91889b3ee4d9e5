"""The per-token diffusion MLP (official SimpleMLPAdaLN): p(x^i | z^i) of paper Eq. 8."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, final

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, Int32, Key, Num, PRNGKeyArray

from emigm_jax.core import gaussian, solvers
from emigm_jax.core.guidance import guided
from emigm_jax.models.config import ModelConfig
from emigm_jax.models.interface import Drawing, Drawn, Guide, Head, Objective, TokenLoss
from emigm_jax.nn import functional, row_tiles
from emigm_jax.nn.kernels import residual_block
from emigm_jax.nn.kernels.residual import Weights
from emigm_jax.nn.layers import layer_norm, linear, normal, time_features, zeros
from emigm_jax.parallel import sharding

TIME_FEATURES = 256


class ResBlock(nnx.Module):
    """x + gate mlp(modulate(norm(x))), modulated by adaLN."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        width, dtype = config.head_width, config.compute_dtype
        self.config = config
        self.norm = layer_norm(width, rngs)
        self.modulation = linear(width, 3 * width, rngs, dtype, zeros)
        self.linear1 = linear(width, width, rngs, dtype)
        self.linear2 = linear(width, width, rngs, dtype)

    def __call__(
        self, x: Float32[Array, '*B W'], activated: Float32[Array, '*#B W']
    ) -> Float32[Array, '*B W']:
        config = self.config
        if (plan := _plan(config)) is not None:
            rows = jnp.broadcast_to(activated, x.shape).astype(config.compute_dtype)
            return residual_block.residual(x, rows, self._weights().own(), plan)
        shift, scale, gate = jnp.split(self.modulation(activated).astype(jnp.float32), 3, axis=-1)
        h = self.norm(x) * (1.0 + scale) + shift
        h = self.linear2(jax.nn.silu(self.linear1(h)))
        return sharding.unsharded_features(x + gate * h.astype(jnp.float32))

    def _weights(self):
        """As the kernel takes them."""
        dtype = self.config.compute_dtype
        parts = []
        for layer, count in ((self.modulation, 3), (self.linear1, 1), (self.linear2, 1)):
            assert layer.bias is not None
            kernels = jnp.split(layer.kernel[...].astype(dtype), count, axis=1)
            biases = jnp.split(layer.bias[...][None], count, axis=1)
            parts += [part for pair in zip(kernels, biases, strict=True) for part in pair]
        assert self.norm.scale is not None and self.norm.bias is not None
        return Weights(self.norm.scale[...][None], self.norm.bias[...][None], *parts)


def _plan(config):
    """How the kernel of blocks runs, if it does."""
    keep = config.remat != 'full'
    return residual_block.plan(config.kernels, config.compute_dtype, config.head_width, keep)


class Draws(NamedTuple):
    """All that is random in the loss of B images."""

    time: Int32[Array, 'copies B N']
    noise: Float32[Array, 'copies B N C']


@final
class DiffusionHead(Head):
    """Predicts (epsilon, v) of a noisy token, given diffusion time and condition."""

    def __init__(self, config: ModelConfig, token_embed: nnx.Module, rngs: nnx.Rngs):
        self.config, self.channels, self.loop = config, config.channels, config.loop
        width, dtype = config.head_width, config.compute_dtype
        self.input = linear(config.channels, width, rngs, dtype)
        self.time1 = linear(TIME_FEATURES, width, rngs, dtype, normal)
        self.time2 = linear(width, width, rngs, dtype, normal)
        self.condition_embed = linear(config.width, width, rngs, dtype)
        build = lambda rngs: ResBlock(config, rngs)
        self.blocks = functional.stack(build, config.head_depth, rngs)
        self.final_norm = layer_norm(width, rngs, affine=False)
        self.final_modulation = linear(width, 2 * width, rngs, dtype, zeros)
        self.output = linear(width, 2 * config.channels, rngs, dtype, zeros)

    @staticmethod
    def token(config: ModelConfig) -> jax.ShapeDtypeStruct:
        """A vector."""
        return jax.ShapeDtypeStruct((config.channels,), jnp.float32)

    @staticmethod
    def embedding(config: ModelConfig, rngs: nnx.Rngs) -> nnx.Module:
        """A linear layer."""
        return linear(config.channels, config.width, rngs, config.compute_dtype)

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
        return self._output(x, time, condition, self.loop)

    def _output(self, x, time, condition, loop):
        """`__call__` with its blocks run so."""
        activated = sharding.unsharded_features(jax.nn.silu(condition + time))
        x = sharding.unsharded_features(self.input(x).astype(jnp.float32))
        body = lambda block, x, _: block(x, activated)
        if _plan(self.config) is not None:
            # What a kernel keeps then goes nowhere: stacking it would be a third of all traffic.
            loop = dataclasses.replace(loop, unroll=True)
        x = functional.scan(self.blocks, x, body, loop)
        shift, scale = jnp.split(self.final_modulation(activated).astype(jnp.float32), 2, axis=-1)
        x = self.final_norm(x) * (1.0 + scale) + shift
        return self.output(x).astype(jnp.float32)

    def draws(self, keys: Key[Array, ' B'], copies: int, tokens: int) -> Draws:
        """Diffusion times and noises of every token and copy."""

        def one(key):
            time_key, noise_key = jax.random.split(key)
            shape = copies, tokens
            time = jax.random.randint(time_key, shape, 0, gaussian.TIMESTEPS, jnp.int32)
            noise = jax.random.normal(noise_key, (*shape, self.channels), jnp.float32)
            return Draws(time, noise)

        return jax.vmap(one, out_axes=1)(keys)

    def loss(
        self,
        z: Float32[Array, 'B R D'],
        clean: Float[Array, 'B R C'],
        draws: Draws,
        settings: Objective,
    ) -> TokenLoss:
        """Error of the predicted noise plus the bound that trains the variance (paper Eq. 8)."""
        time, noise = draws
        x_t = gaussian.q_sample(clean, time, noise)
        loop = functional.unstacked(self.loop)
        output = self._output(x_t, self._times(time), self.condition(z), loop)
        terms = gaussian.loss_terms(output, clean, x_t, time, noise)
        return TokenLoss(terms.total, terms._asdict())

    def weighed(
        self,
        z: Float32[Array, 'B R D'],
        clean: Float[Array, 'B R C'],
        draws: Draws,
        settings: Objective,
        weight: Float32[Array, 'B R'],
    ) -> tuple[Float32[Array, ''], dict[str, Float32[Array, '']]]:
        """See `Head`; on a CPU by tiles of rows."""
        tiled = row_tiles.pay(weight.size) and _plan(self.config) is None
        if not tiled or draws.time.size <= gaussian.TIMESTEPS:
            return super().weighed(z, clean, draws, settings, weight)
        graph, state = nnx.split(self)
        flat, copies = lambda a: a.reshape(-1, *a.shape[2:]), len(draws.time)
        z, clean, weight = map(flat, (z, clean, weight))
        time, noise = (jax.vmap(flat, out_axes=1)(a) for a in draws)

        def of_tile(shared, z, fixed, weight):
            state, table = shared
            clean, time, noise = fixed
            head = nnx.merge(graph, state)
            # One axis of rows, as XLA's CPU products have slow gradients for stacks of matrices.
            copied = lambda a: jnp.repeat(a, copies, axis=0)
            clean, time, noise = copied(clean), time.reshape(-1), flat(noise)
            x_t = gaussian.q_sample(clean, time, noise)
            output = head(x_t, table[time], copied(head.condition(z)))
            terms = gaussian.loss_terms(output, clean, x_t, time, noise)
            add = lambda term: jnp.sum(term * copied(weight))
            return add(terms.total), {name: add(term) for name, term in terms._asdict().items()}

        table = self.time(jnp.arange(gaussian.TIMESTEPS))
        return row_tiles.summed(of_tile, (state, table), z, (clean, time, noise), weight)

    def _times(self, t):
        """Embeddings of integer t; with more rows than times they are looked up in a table."""
        if t.size <= gaussian.TIMESTEPS:
            return self.time(t)
        return self.time(jnp.arange(gaussian.TIMESTEPS))[t]

    def noise(self, key: PRNGKeyArray) -> Float32[Array, ' C']:
        """Normal."""
        return jax.random.normal(key, (self.channels,), jnp.float32)

    def sample(
        self,
        z: Float32[Array, 'guides B R D'],
        guidance: Float32[Array, ' B'],
        noise: Callable[[int | Int[Array, '']], Float32[Array, 'B R C']],
        settings: Drawing,
        guide: Guide | None = None,
    ) -> Drawn:
        """Runs the solver from draw 0; draw 1 + r is the noise of its row r.

        Guidance acts on the noise that is predicted, the variance is that of the class.
        """
        condition = self.condition(z)
        weaker = None
        if guide is not None:
            head = guide.head
            assert isinstance(head, DiffusionHead)
            of_guide = head.condition(guide.z)
            weaker = lambda x, t: jnp.split(head(x, head.time(t), of_guide), 2, axis=-1)[0]

        def network(x, t):
            both = jnp.broadcast_to(x, (condition.shape[0], *x.shape))
            epsilon, v = jnp.split(self(both, self.time(t), condition), 2, axis=-1)
            other = epsilon[1] if len(condition) == 2 else weaker and weaker(x, t)
            return guided(epsilon[0], other, guidance), v[0]

        table = solvers.table(settings.solver)
        tokens = solvers.solve(table, network, noise(0), lambda row: noise(1 + row))
        return Drawn(tokens, None)
