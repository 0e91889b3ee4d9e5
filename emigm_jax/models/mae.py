"""The masked autoencoder: encoder over visible tokens, decoder over all (paper section 4).

Tokens come in generation order, so the visible ones are a prefix. The encoder runs on a prefix of
static length V with the few slots beyond an image's own count hidden from attention; masked tokens
are never in it. The decoder's last block computes only the rows that are read.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, final

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float32, Int, PRNGKeyArray

from emigm_jax.models.config import ModelConfig
from emigm_jax.models.interface import Group, Trunk
from emigm_jax.nn import functional, transformer
from emigm_jax.nn.layers import embedding, layer_norm, linear
from emigm_jax.parallel import sharding


class Positions(NamedTuple):
    """Position embeddings gathered into generation order."""

    encoder: Float32[Array, 'B N D']
    decoder: Float32[Array, 'B N D']
    output: Float32[Array, 'B N D']  # added to z ("diffusion position embedding")


@final
class MaskedAutoencoder(Trunk):
    """The trunk of MAR and eMIGM.

    Args:
      config: sizes.
      token_embed: builds what turns tokens into (..., D).
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
            kernels=config.kernels,
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
        self.token_embed = token_embed(config, rngs)
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

    def __call__(
        self, groups: Sequence[Group], key: PRNGKeyArray | None = None
    ) -> list[Float32[Array, '_B _R D']]:
        """Conditions z of the rows that each group reads."""
        count = len(groups)
        keys = [None] * (2 + count) if key is None else jax.random.split(key, 2 + count)
        inputs = [
            self.decoder_input(encoded, group)
            for group, encoded in zip(groups, self.encode(groups, keys[0]), strict=True)
        ]
        # Image j of a batch is in group j % G: so it stays on its device.
        h = jnp.stack(inputs, axis=1).reshape(-1, *inputs[0].shape[1:])
        h = self.decode(h, keys[1]).reshape(-1, count, *h.shape[1:])
        items = [
            (h[:, g], group.read, group.read(group.positions.output), keys[2 + g])
            for g, group in enumerate(groups)
        ]
        held = transformer.Held(self.decoder_last)
        # Made before a loop of groups, each turn of which would sum gradients over devices.
        held.mlp  # noqa: B018
        return functional.each(lambda item: self._last(*item, held=held), items, self.config.loop)

    def encode(
        self, groups: Sequence[Group], key: PRNGKeyArray | None = None
    ) -> list[Float32[Array, '_B _L D']]:
        """Encodes what is visible.

        Returns:
          Per group (B, buffer + V, D), V its budget; rows beyond an image's own count are
          meaningless.
        """
        lengths = None
        if self.config.mae:
            lengths = [self.config.buffer + group.visible for group in groups]
        encoded = self.encoder([self._embedded(group) for group in groups], lengths, key)
        return [self.encoder_norm(x) for x in encoded]

    def _embedded(self, group):
        """Encoder input (B, buffer + V, D) float32."""
        buffer = self.config.buffer
        seen = slice(group.budget if self.config.mae else self.config.tokens)
        x = self.token_embed(group.tokens[:, seen]).astype(jnp.float32)
        x = x + group.positions.encoder[:, seen]
        head = group.condition[:, None] + self.encoder_position[...][:buffer]
        # The position is added before the LayerNorm, for buffer tokens as well.
        x = self.token_norm(sharding.constrain_batch(jnp.concatenate([head, x], axis=1)))
        if self.config.mae:
            return x
        # "Single encoder": masked positions enter as bare mask tokens, position and all gone.
        seen = jnp.arange(x.shape[1]) < (buffer + group.visible)[:, None]
        return jnp.where(seen[..., None], x, self.mask_token[...])

    def decoder_input(
        self, encoded: Float32[Array, 'B E D'], group: Group
    ) -> Float32[Array, 'B {self.config.buffer+self.config.tokens} D']:
        """Decoder tokens before the first block; E = buffer + V, from `encode`."""
        buffer, tokens, position = self.config.buffer, self.config.tokens, group.positions.decoder
        x = self.decoder_embed(encoded).astype(jnp.float32)
        if self.config.mae:
            x = jnp.pad(x, ((0, 0), (0, buffer + tokens - x.shape[1]), (0, 0)))
            seen = jnp.arange(buffer + tokens) < (buffer + group.visible)[:, None]
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
        self, x: Float32[Array, 'B L D'], group: Group, key: PRNGKeyArray | None = None
    ) -> Float32[Array, 'B R D']:
        """The last block and norm for the rows that are read of x, from `decode`: z."""
        return self._last(x, group.read, group.read(group.positions.output), key)

    def _last(self, x, read, position, key, held=None):
        rows = read(x[:, self.config.buffer :])
        z = self.decoder_norm(self.decoder_last(x, read=rows, key=key, held=held)) + position
        return sharding.constrain_batch(z)
