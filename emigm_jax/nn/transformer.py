"""Pre-LayerNorm ViT blocks (timm 0.9.12 `Block`) as a scanned, optionally rematerialised stack.

The residual stream, LayerNorm and softmax are float32; matrix products run in the compute dtype.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int, PRNGKeyArray

from emigm_jax.nn import attention, functional, loops
from emigm_jax.nn.dropout import dropout
from emigm_jax.nn.layers import layer_norm, linear
from emigm_jax.parallel import sharding


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """Sizes of one block."""

    width: int
    heads: int
    mlp_ratio: float
    attention_dropout: float
    projection_dropout: float
    dtype: DTypeLike  # of matrix products


class Attention(nnx.Module):
    """Multi-head attention with one fused q|k|v matrix, softmax scale head_dim^-0.5."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs):
        self.config = config
        self.qkv = linear(config.width, 3 * config.width, rngs, config.dtype)
        self.out = linear(config.width, config.width, rngs, config.dtype)

    def __call__(
        self,
        x: Float[Array, 'B L D'],
        read: Float[Array, 'B Q D'] | None = None,
        lengths: Int[Array, ' B'] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, 'B Q D']:
        """Attends from `read`, or from x itself (Q = L), to x.

        Args:
          x: normalised tokens, the keys and values.
          read: normalised tokens that ask; only these rows are computed.
          lengths: keys at or beyond the length are hidden; None: all are seen.
          key: dropout key or None.
        """
        config = self.config
        if read is None:
            q, k, v = self._project(x, slice(0, 3))
        else:
            (q,) = self._project(read, slice(0, 1))
            k, v = self._project(x, slice(1, 3))
        mixed = attention.attend(
            q, k, v, config.heads, lengths, config.attention_dropout, _fold(key, 0)
        )
        out = self.out(mixed)
        return dropout(out, config.projection_dropout, _fold(key, 1))

    def _project(self, x, which):
        """Some of q, k and v of x (B, L, D), each (B, L, D), by one product."""
        width, dtype = self.config.width, self.config.dtype
        # Sharded by heads within each of q, k and v, not along the fused columns.
        kernel = self.qkv.kernel[...].reshape(width, 3, width)[:, which].astype(dtype)
        kernel = checkpoint_name(
            sharding.constrain(kernel, None, None, 'tensor').reshape(width, -1), sharding.GATHERED
        )
        assert self.qkv.bias is not None
        bias = self.qkv.bias[...].reshape(3, width)[which].astype(dtype)
        projected = (x.astype(dtype) @ kernel).reshape(*x.shape[:-1], -1, width) + bias
        parts = (projected[..., i, :] for i in range(projected.shape[-2]))
        return [sharding.constrain(part, 'batch', None, 'tensor') for part in parts]


class Mlp(nnx.Module):
    """Two linear layers with exact (erf) GELU, dropout after both."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs):
        self.config = config
        hidden = round(config.width * config.mlp_ratio)
        self.expand = linear(config.width, hidden, rngs, config.dtype)
        self.contract = linear(hidden, config.width, rngs, config.dtype)

    def __call__(
        self, x: Float[Array, '*B D'], key: PRNGKeyArray | None = None
    ) -> Float[Array, '*B D']:
        rate, shape = self.config.projection_dropout, x.shape
        x = x.reshape(-1, shape[-1])  # XLA's CPU products of matrices are faster than of stacks
        hidden = sharding.constrain(self.expand(x), 'batch', 'tensor')
        inner = *shape[:-1], hidden.shape[-1]
        x = dropout(jax.nn.gelu(hidden, approximate=False), rate, _fold(key, 0), inner)
        return dropout(self.contract(x).reshape(shape), rate, _fold(key, 1))


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs):
        self.norm1 = layer_norm(config.width, rngs)
        self.attention = Attention(config, rngs)
        self.norm2 = layer_norm(config.width, rngs)
        self.mlp = Mlp(config, rngs)

    def __call__(
        self,
        x: Float32[Array, 'B L D'],
        read: Float32[Array, 'B Q D'] | None = None,
        lengths: Int[Array, ' B'] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float32[Array, 'B Q D']:
        """Transforms x, or only its rows `read`; see `Attention`."""
        normed = self.norm1(x)
        queries = None if read is None else self.norm1(read)
        x = x if read is None else read
        attended = self.attention(normed, queries, lengths, _fold(key, 0))
        residual = lambda x, more: sharding.constrain(
            x + more.astype(jnp.float32), 'batch', None, None
        )
        x = residual(x, attended)
        return residual(x, self.mlp(self.norm2(x), _fold(key, 1)))


class Stack(nnx.Module):
    """`depth` blocks with stacked parameters, run by one scan."""

    def __init__(self, depth: int, config: BlockConfig, loop: loops.Loop, rngs: nnx.Rngs):
        self.depth, self.loop = depth, loop
        self.blocks = functional.stack(lambda rngs: Block(config, rngs), depth, rngs)

    def __call__(
        self,
        xs: Sequence[Float32[Array, '_B _L D']],
        lengths: Sequence[Int[Array, ' _B'] | None] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float32[Array, '_B _L D'], ...]:
        """Several batches of activations through all blocks.

        A layer's weights are read, and gathered where they are sharded, once for all batches.

        Args:
          xs: activations, each with its own B and L.
          lengths: as in `Attention`, for each of them; None: all keys are seen.
          key: dropout key or None.

        Returns:
          Activations like `xs`.
        """
        lengths = (None,) * len(xs) if lengths is None else lengths
        keys = None if key is None else jax.random.split(key, self.depth)

        def body(block, xs, key):
            return tuple(
                block(x, lengths=seen, key=_fold(key, i))
                for i, (x, seen) in enumerate(zip(xs, lengths, strict=True))
            )

        return functional.scan(self.blocks, tuple(xs), body, self.loop, keys)


def _fold(key, i):
    return None if key is None else jax.random.fold_in(key, i)
