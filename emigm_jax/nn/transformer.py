"""Pre-LayerNorm ViT blocks (timm 0.9.12 `Block`) as a scanned, optionally rematerialised stack.

The residual stream, LayerNorm and softmax are float32; matrix products run in the compute dtype.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from emigm_jax.nn import attention, functional
from emigm_jax.nn.layers import dropout, layer_norm, linear


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """Sizes of one block."""

    width: int
    heads: int
    mlp_ratio: float
    attention_dropout: float
    projection_dropout: float
    dtype: jnp.dtype


class Attention(nnx.Module):
    """Multi-head attention with one fused q|k|v matrix, softmax scale head_dim^-0.5."""

    def __init__(self, config, rngs):
        self.config = config
        self.qkv = linear(config.width, 3 * config.width, rngs, config.dtype)
        self.out = linear(config.width, config.width, rngs, config.dtype)

    def __call__(self, x, read=None, lengths=None, key=None):
        """Attends from `read` (B, Q, D), or from x itself, to x (B, L, D): (B, Q, D).

        Args:
          x: normalised tokens, the keys and values.
          read: normalised tokens that ask; only these rows are computed.
          lengths: (B,) keys at or beyond the length are hidden; None: all are seen.
          key: dropout key or None.
        """
        config = self.config
        width, heads = config.width, config.heads
        if read is None:
            q, k, v = jnp.split(self.qkv(x), 3, axis=-1)
        else:
            q = self._project(read, slice(0, width))
            k, v = jnp.split(self._project(x, slice(width, None)), 2, axis=-1)
        mixed = attention.attend(q, k, v, heads, lengths, config.attention_dropout, _fold(key, 0))
        out = self.out(mixed)
        return dropout(out, config.projection_dropout, _fold(key, 1))

    def _project(self, x, columns):
        dtype = self.config.dtype
        kernel, bias = self.qkv.kernel[...][:, columns], self.qkv.bias[...][columns]
        return x.astype(dtype) @ kernel.astype(dtype) + bias.astype(dtype)


class Mlp(nnx.Module):
    """Two linear layers with exact (erf) GELU, dropout after both."""

    def __init__(self, config, rngs):
        self.config = config
        hidden = round(config.width * config.mlp_ratio)
        self.expand = linear(config.width, hidden, rngs, config.dtype)
        self.contract = linear(hidden, config.width, rngs, config.dtype)

    def __call__(self, x, key=None):
        rate, shape = self.config.projection_dropout, x.shape
        x = x.reshape(-1, shape[-1])  # XLA's CPU products of matrices are faster than of stacks
        x = dropout(jax.nn.gelu(self.expand(x), approximate=False), rate, _fold(key, 0))
        return dropout(self.contract(x), rate, _fold(key, 1)).reshape(shape)


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config, rngs):
        self.norm1 = layer_norm(config.width, rngs)
        self.attention = Attention(config, rngs)
        self.norm2 = layer_norm(config.width, rngs)
        self.mlp = Mlp(config, rngs)

    def __call__(self, x, read=None, lengths=None, key=None):
        """Transforms x (B, L, D) float32, or only its rows `read` (B, Q, D); see `Attention`."""
        normed = self.norm1(x)
        asked = None if read is None else self.norm1(read)
        x = x if read is None else read
        attended = self.attention(normed, asked, lengths, _fold(key, 0))
        x = x + attended.astype(jnp.float32)
        return x + self.mlp(self.norm2(x), _fold(key, 1)).astype(jnp.float32)


class Stack(nnx.Module):
    """`depth` blocks with stacked parameters, run by one scan."""

    def __init__(self, depth, config, remat, unroll, rngs):
        self.depth, self.remat, self.unroll = depth, remat, unroll
        self.blocks = functional.stack(lambda rngs: Block(config, rngs), depth, rngs)

    def __call__(self, x, lengths=None, key=None):
        """x (B, L, D) float32 through all blocks."""
        keys = None if key is None else jax.random.split(key, self.depth)
        body = lambda block, x, key: block(x, lengths=lengths, key=key)
        return functional.scan(self.blocks, x, body, remat=self.remat, unroll=self.unroll, xs=keys)


def _fold(key, i):
    return None if key is None else jax.random.fold_in(key, i)
