"""The masked autoencoder: encoder over visible tokens, decoder over all (paper section 4).

Tokens come in generation order, so the visible ones are a prefix. The encoder runs on a prefix of
static length V with the few slots beyond an image's own count hidden from attention; masked tokens
are never in it. The decoder's last block computes only the rows that are read.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, PRNGKeyArray

from emigm_jax.models.config import ModelConfig
from emigm_jax.nn import transformer
from emigm_jax.nn.layers import embedding, layer_norm, linear
from emigm_jax.parallel import sharding


class Positions(NamedTuple):
    """Position embeddings gathered into generation order."""

    encoder: Float32[Array, 'B N D']
    decoder: Float32[Array, 'B N D']
    output: Float32[Array, 'B N D']  # added to z ("diffusion position embedding")


class Visible(NamedTuple):
    """What the encoder is given of a group of B images: their visible prefixes, of length V."""

    tokens: Float[Array, 'B V C']  # the first V tokens in generation order
    position: Float32[Array, 'B V D']  # encoder position embeddings of these tokens
    condition: Float32[Array, 'B D']  # class embeddings
    # How many of the V tokens each image really sees. (Nobody counts in this tuple.)
    count: Int32[Array, ' B']  # pyright: ignore[reportIncompatibleMethodOverride]


class MaskedAutoencoder(nnx.Module):
    """Maps visible tokens and a class to conditions z of masked tokens."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        width, dtype = config.width, config.compute_dtype
        block = transformer.BlockConfig(
            width,
            config.heads,
            config.mlp_ratio,
            config.attention_dropout,
            config.projection_dropout,
            dtype,
        )
        loop = config.loop
        length = config.buffer + config.tokens
        self.class_embed = embedding((config.classes, width), rngs)
        # "CFG with mask": one parameter is the decoder's mask token and the null class.
        self.mask_token = embedding((width,), rngs)
        if not config.shared_null:
            self.null_token = embedding((width,), rngs)
        self.encoder_position = embedding((length, width), rngs)
        self.decoder_position = embedding((length, width), rngs)
        self.output_position = embedding((config.tokens, width), rngs)
        self.token_embed = linear(config.channels, width, rngs, dtype)
        self.token_norm = layer_norm(width, rngs)
        self.encoder = transformer.Stack(config.encoder_depth, block, loop, rngs)
        self.encoder_norm = layer_norm(width, rngs)
        self.decoder_embed = linear(width, width, rngs, dtype)
        self.decoder = transformer.Stack(config.decoder_depth - 1, block, loop, rngs)
        # Apart from the stack, because it alone runs on the rows that are read.
        self.decoder_last = transformer.Block(block, rngs)
        self.decoder_norm = layer_norm(width, rngs)

    def condition(
        self, labels: Int[Array, ' B'], null: Bool[Array, ' B'] | None = None
    ) -> Float32[Array, 'B D']:
        """Class embeddings; rows where `null` is set get the null class."""
        embedded = self.class_embed[...][labels]
        if null is not None:
            embedded = jnp.where(null[:, None], self.null(), embedded)
        return sharding.constrain_batch(embedded)

    def null(self) -> Float32[Array, ' D']:
        """Embedding of the null class."""
        return (self.mask_token if self.config.shared_null else self.null_token)[...]

    def positions(self, order: Int[Array, 'B N']) -> Positions:
        """Gathers the position embeddings once for an order."""
        buffer = self.config.buffer
        return sharding.constrain_batch(
            Positions(
                self.encoder_position[...][buffer:][order],
                self.decoder_position[...][buffer:][order],
                self.output_position[...][order],
            )
        )

    def encode(
        self, groups: Sequence[Visible], key: PRNGKeyArray | None = None
    ) -> list[Float32[Array, '_B _L D']]:
        """Encodes the visible prefixes of groups of images.

        Args:
          groups: their prefixes may have different lengths V.
          key: dropout key or None.

        Returns:
          Per group (B, buffer + V, D); rows beyond an image's count are meaningless.
        """
        lengths = None
        if self.config.mae:
            lengths = [self.config.buffer + group.count for group in groups]
        encoded = self.encoder([self._embedded(group) for group in groups], lengths, key)
        return [self.encoder_norm(x) for x in encoded]

    def _embedded(self, group):
        """Encoder input (B, buffer + V, D) float32 of a `Visible`."""
        buffer = self.config.buffer
        x = self.token_embed(group.tokens).astype(jnp.float32) + group.position
        head = group.condition[:, None] + self.encoder_position[...][:buffer]
        # The position is added before the LayerNorm, for buffer tokens as well.
        x = self.token_norm(sharding.constrain_batch(jnp.concatenate([head, x], axis=1)))
        if self.config.mae:
            return x
        # "Single encoder": masked positions enter as bare mask tokens, position and all gone.
        seen = jnp.arange(x.shape[1]) < (buffer + group.count)[:, None]
        return jnp.where(seen[..., None], x, self.mask_token[...])

    def decoder_input(
        self,
        encoded: Float32[Array, 'B E D'],
        position: Float32[Array, 'B N D'],
        visible: Int[Array, ' B'],
    ) -> Float32[Array, 'B N+{self.config.buffer} D']:
        """Decoder tokens before the first block.

        Args:
          encoded: from `encode`; E = buffer + V.
          position: decoder position embeddings in generation order.
          visible: how many tokens each image sees.
        """
        buffer, tokens = self.config.buffer, self.config.tokens
        x = self.decoder_embed(encoded).astype(jnp.float32)
        if self.config.mae:
            x = jnp.pad(x, ((0, 0), (0, buffer + tokens - x.shape[1]), (0, 0)))
            seen = jnp.arange(buffer + tokens) < (buffer + visible)[:, None]
            # The mask token itself is not passed through decoder_embed.
            x = jnp.where(seen[..., None], x, self.mask_token[...])
        shape = (position.shape[0], buffer, position.shape[-1])
        head = jnp.broadcast_to(self.decoder_position[...][:buffer], shape)
        return sharding.constrain_batch(x + jnp.concatenate([head, position], axis=1))

    def decode(
        self, x: Float32[Array, 'B L D'], key: PRNGKeyArray | None = None
    ) -> Float32[Array, 'B L D']:
        """All decoder blocks but the last."""
        return self.decoder([x], key=key)[0]

    def read_out(
        self,
        x: Float32[Array, 'B L D'],
        rows: Float32[Array, 'B R D'],
        position: Float32[Array, 'B R D'],
        key: PRNGKeyArray | None = None,
    ) -> Float32[Array, 'B R D']:
        """The last block and norm for some rows only.

        Args:
          x: from `decode`.
          rows: the rows of x to read (buffer tokens not counted among positions).
          position: output position embeddings of these rows.
          key: dropout key or None.

        Returns:
          Conditions z.
        """
        z = self.decoder_norm(self.decoder_last(x, read=rows, key=key)) + position
        return sharding.constrain_batch(z)
