"""MaskGIT's "simplified BERT": one stack of blocks over all tokens, seen and masked ones.

The official code is maskgit/nets/maskgit_transformer.py of google-research/maskgit. Codes, classes
and the mask are words of one table. Tokens come in generation order, which attention does not heed:
each brings the embedding of its own position along. The last block and the transform behind it
compute only the rows that are read; logits are the categorical head's.
"""

from collections.abc import Callable, Sequence
from typing import final

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float32, Int, PRNGKeyArray

from emigm_jax.models.categorical_head import Words
from emigm_jax.models.config import ModelConfig
from emigm_jax.models.interface import Group, Trunk
from emigm_jax.nn import functional, transformer
from emigm_jax.nn.dropout import dropout
from emigm_jax.nn.layers import embedding, layer_norm, linear
from emigm_jax.parallel import sharding

EPSILON = 1e-12  # of every LayerNorm, as in BERT
_INIT = nnx.initializers.truncated_normal(0.02)  # cut off at two standard deviations


@final
class Bert(Trunk):
    """The trunk of MaskGIT.

    Args:
      config: sizes; encoder_depth + decoder_depth blocks.
      token_embed: builds the table of words, codes first, then classes, then the mask.
      rngs: of the initial values.
    """

    def __init__(
        self,
        config: ModelConfig,
        token_embed: Callable[[ModelConfig, nnx.Rngs], nnx.Module],
        rngs: nnx.Rngs,
    ):
        self.config = config
        width, dtype = config.width, config.compute_dtype
        block = transformer.BlockConfig(
            width,
            config.heads,
            config.mlp_ratio,
            config.attention_dropout,
            config.projection_dropout,
            dtype,
            tanh_gelu=True,
            hidden_dropout=False,
            epsilon=EPSILON,
            init=_INIT,
            kernels=config.kernels,
        )
        depth, kind = config.encoder_depth + config.decoder_depth, transformer.PostNormBlock
        self.token_embed = token_embed(config, rngs)
        self.position = embedding((config.buffer + config.tokens, width), rngs)
        self.embedding_norm = layer_norm(width, rngs, epsilon=EPSILON)
        self.stack = transformer.Stack(depth - 1, block, config.loop, rngs, kind)
        # Apart from the stack, because it alone runs on the rows that are read.
        self.last = kind(block, rngs)
        self.transform = linear(width, width, rngs, dtype, _INIT)
        self.transform_norm = layer_norm(width, rngs, epsilon=EPSILON)

    @property
    def words(self) -> Float32[Array, 'words D']:
        """The table of codes, classes and the mask."""
        assert isinstance(self.token_embed, Words)
        return self.token_embed.words[...]

    def condition(
        self, labels: Int[Array, ' B'], null: Bool[Array, ' B'] | None = None
    ) -> Float32[Array, 'B D']:
        """Class embeddings; rows where `null` is set get the null class."""
        embedded = self.words[self.config.codes + labels]
        if null is not None:
            embedded = jnp.where(null[:, None], self.null(), embedded)
        return sharding.constrain_batch(embedded)

    def null(self) -> Float32[Array, ' D']:
        """The mask ("CFG with mask"), which MaskGIT's own weights have not seen in this place."""
        return self.words[-1]

    def positions(self, order: Int[Array, 'B N']) -> Float32[Array, 'B N D']:
        """Gathers the position embeddings once for an order."""
        return sharding.constrain_batch(self.position[...][self.config.buffer :][order])

    def __call__(
        self, groups: Sequence[Group], key: PRNGKeyArray | None = None
    ) -> list[Float32[Array, '_B _R D']]:
        """Conditions z of the rows that each group reads."""
        count = len(groups)
        keys = [None] * (2 + count) if key is None else jax.random.split(key, 2 + count)
        inputs = [self._embedded(group) for group in groups]
        # Image j of a batch is in group j % G: so it stays on its device.
        h = jnp.stack(inputs, axis=1).reshape(-1, *inputs[0].shape[1:])
        h = dropout(self.embedding_norm(h), self.config.projection_dropout, keys[0])
        (h,) = self.stack([h], key=keys[1])
        h = h.reshape(-1, count, *h.shape[1:])
        items = [(h[:, g], group.read, keys[2 + g]) for g, group in enumerate(groups)]
        return functional.each(lambda item: self._read_out(*item), items, self.config.loop)

    def _embedded(self, group):
        """Words and positions (B, buffer + N, D) float32 before the first LayerNorm."""
        buffer, words = self.config.buffer, self.token_embed(group.tokens)
        seen = jnp.arange(words.shape[1]) < group.visible[:, None]
        x = jnp.where(seen[..., None], words, self.null()) + group.positions
        head = group.condition[:, None] + self.position[...][:buffer]
        return sharding.constrain_batch(jnp.concatenate([head, x], axis=1))

    def _read_out(self, x, read, key):
        """The last block and transform for the rows that are read of x (B, L, D): z (B, R, D)."""
        h = self.last(x, read=read(x[:, self.config.buffer :]), key=key)
        z = self.transform_norm(jax.nn.gelu(self.transform(h), approximate=True))
        return sharding.constrain_batch(z)
