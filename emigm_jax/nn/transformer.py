"""Blocks of transformers and a scanned, optionally rematerialised stack of them.

Blocks are those of ViT, which normalise before (timm 0.9.12 `Block`), or those of BERT, which
normalise after (maskgit/nets/maskgit_transformer.py, `TransformerLayer`). The residual stream,
LayerNorm and softmax are float32; matrix products run in the compute dtype.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int, PRNGKeyArray

from emigm_jax.nn import attention, functional, loops
from emigm_jax.nn.dropout import dropout
from emigm_jax.nn.kernels import mlp, self_attention
from emigm_jax.nn.layers import LAYER_NORM_EPSILON, gelu, layer_norm, linear, xavier_uniform
from emigm_jax.parallel import sharding


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """Sizes of one block, and in what those of ViT (the defaults) and BERT differ."""

    width: int
    heads: int
    mlp_ratio: float
    attention_dropout: float
    projection_dropout: float
    dtype: DTypeLike  # of matrix products
    tanh_gelu: bool = False  # GELU by its approximation with tanh, not exact (erf)
    hidden_dropout: bool = True  # of the hidden units of the MLP, too
    epsilon: float = LAYER_NORM_EPSILON
    init: Initializer = xavier_uniform  # of matrices
    kernels: str = 'auto'  # see `kernels.choice`

    @property
    def softmax(self) -> attention.Softmax:
        """What its attention is set to."""
        return attention.Softmax(self.heads, self.attention_dropout, self.kernels)


class Attention(nnx.Module):
    """Multi-head attention with one fused q|k|v matrix, softmax scale head_dim^-0.5."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs):
        self.config = config
        self.qkv = linear(config.width, 3 * config.width, rngs, config.dtype, config.init)
        self.out = linear(config.width, config.width, rngs, config.dtype, config.init)

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
        mixed = attention.attend(q, k, v, config.softmax, lengths, _fold(key, 0))
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
    """Two linear layers with GELU between, dropout after both or the second."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs):
        self.config = config
        hidden = round(config.width * config.mlp_ratio)
        self.expand = linear(config.width, hidden, rngs, config.dtype, config.init)
        self.contract = linear(hidden, config.width, rngs, config.dtype, config.init)

    def __call__(
        self, x: Float[Array, '*B D'], key: PRNGKeyArray | None = None
    ) -> Float[Array, '*B D']:
        config, rate, shape = self.config, self.config.projection_dropout, x.shape
        x = x.reshape(-1, shape[-1])  # XLA's CPU products of matrices are faster than of stacks
        hidden = sharding.constrain(self.expand(x), 'batch', 'tensor')
        inner = *shape[:-1], hidden.shape[-1]
        x = jax.nn.gelu(hidden, approximate=True) if config.tanh_gelu else gelu(hidden)
        if config.hidden_dropout:
            x = dropout(x, rate, _fold(key, 0), inner)
        return dropout(self.contract(x).reshape(shape), rate, _fold(key, 1))


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs):
        self.config = config
        self.norm1 = layer_norm(config.width, rngs, epsilon=config.epsilon)
        self.attention = Attention(config, rngs)
        self.norm2 = layer_norm(config.width, rngs, epsilon=config.epsilon)
        self.mlp = Mlp(config, rngs)

    def __call__(
        self,
        x: Float32[Array, 'B L D'],
        read: Float32[Array, 'B Q D'] | None = None,
        lengths: Int[Array, ' B'] | None = None,
        key: PRNGKeyArray | None = None,
        held: 'Held | None' = None,
    ) -> Float32[Array, 'B Q D']:
        """Transforms x, or only its rows `read`; see `Attention`. For `held` see `for_batches`."""
        config, held = self.config, held or Held(self)
        plan = None
        if read is None:
            plan = self_attention.plan(
                config.kernels, x, config.heads, config.dtype, config.epsilon
            )
        if plan is not None:
            rates = self_attention.Rates(config.attention_dropout, config.projection_dropout)
            keys = _folds(_fold(key, 0))
            x = self_attention.add(plan, x, held.attention, rates, lengths, keys)
            x = checkpoint_name(x, loops.COSTLY)
        else:
            normed = self.norm1(x)
            queries = None if read is None else self.norm1(read)
            attended = self.attention(normed, queries, lengths, _fold(key, 0))
            x = _residual(x if read is None else read, attended)
        plan = self._mlp_plan(x)
        if plan is not None:
            rate, keys = config.projection_dropout, _folds(_fold(key, 1))
            return mlp.add(plan, x, held.mlp, rate, keys)
        return _residual(x, self.mlp(self.norm2(x), _fold(key, 1)))

    def for_batches(self) -> Callable[..., Array]:
        """Itself for several batches, the gradients of whose weights are then summed together."""
        return functools.partial(self, held=Held(self))

    def _mlp_plan(self, x):
        """How the kernel of the MLP runs, if it does; its GELU is exact."""
        config, hidden = self.config, self.mlp.expand.out_features
        if config.tanh_gelu or not config.hidden_dropout:
            return None
        return mlp.plan(config.kernels, x, hidden, config.dtype, config.epsilon)


class Held:
    """The weights of a block as kernels take them, made when one asks for them."""

    def __init__(self, block: Block):
        self.block = block

    @functools.cached_property
    def attention(self) -> self_attention.Weights:
        """Of the norm and attention."""
        width, qkv = self.block.config.width, self.block.attention.qkv
        parts = [*self._of_norm(self.block.norm1)]
        matrix, bias = self._of_linear(qkv)
        for first in range(0, 3 * width, width):
            parts += [matrix[:, first : first + width], bias[:, first : first + width]]
        parts += self._of_linear(self.block.attention.out)
        return self_attention.Weights(*parts).own()

    @functools.cached_property
    def mlp(self) -> mlp.Weights:
        """Of the norm and MLP."""
        expand, contract = map(self._of_linear, (self.block.mlp.expand, self.block.mlp.contract))
        return mlp.Weights(*self._of_norm(self.block.norm2), *expand, *contract).own()

    def _of_linear(self, layer):
        return layer.kernel[...].astype(self.block.config.dtype), layer.bias[...][None]

    @staticmethod
    def _of_norm(norm):
        return norm.scale[...][None], norm.bias[...][None]


class PostNormBlock(nnx.Module):
    """norm(x + attention(x)), then norm(x + mlp(x))."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs):
        self.attention = Attention(config, rngs)
        self.norm1 = layer_norm(config.width, rngs, epsilon=config.epsilon)
        self.mlp = Mlp(config, rngs)
        self.norm2 = layer_norm(config.width, rngs, epsilon=config.epsilon)

    def __call__(
        self,
        x: Float32[Array, 'B L D'],
        read: Float32[Array, 'B Q D'] | None = None,
        lengths: Int[Array, ' B'] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float32[Array, 'B Q D']:
        """Transforms x, or only its rows `read`; see `Attention`."""
        attended = self.attention(x, read, lengths, _fold(key, 0))
        x = self.norm1(_residual(x if read is None else read, attended))
        return self.norm2(_residual(x, self.mlp(x, _fold(key, 1))))

    def for_batches(self) -> Callable[..., Array]:
        """Itself: no kernel reads its weights."""
        return self


class Stack(nnx.Module):
    """`depth` blocks of a class with stacked parameters, run by one scan."""

    def __init__(
        self,
        depth: int,
        config: BlockConfig,
        loop: loops.Loop,
        rngs: nnx.Rngs,
        block: type[Block] | type[PostNormBlock] = Block,
    ):
        self.depth, self.loop = depth, loop
        self.blocks = functional.stack(lambda rngs: block(config, rngs), depth, rngs)

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
            block = block.for_batches()
            return tuple(
                block(x, lengths=seen, key=_fold(key, i))
                for i, (x, seen) in enumerate(zip(xs, lengths, strict=True))
            )

        # Dropout tells training. The encoder's groups would make too large a program.
        trained = key is not None and len(xs) == 1
        loop = functional.unstacked(self.loop) if trained else self.loop
        return functional.scan(self.blocks, tuple(xs), body, loop, keys)


def _residual(x, more):
    return sharding.constrain(x + more.astype(jnp.float32), 'batch', None, None)


def _fold(key, i):
    return None if key is None else jax.random.fold_in(key, i)


def _folds(key):
    return _fold(key, 0), _fold(key, 1)
