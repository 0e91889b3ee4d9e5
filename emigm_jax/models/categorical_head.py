"""The categorical head: p(x^i | z^i) of a token that is one of V codes (paper Table 1)."""

from collections.abc import Callable
from typing import final

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, Int32, Key, PRNGKeyArray

from emigm_jax.core import categorical
from emigm_jax.core.guidance import guided
from emigm_jax.models.config import ModelConfig
from emigm_jax.models.interface import Drawing, Drawn, Guide, Head, Objective, TokenLoss
from emigm_jax.nn.layers import embedding
from emigm_jax.parallel import sharding


@final
class Words(nnx.Module):
    """The table of codes, which looks tokens up."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.words = embedding((config.words, config.width), rngs)

    def __call__(self, codes: Int[Array, '*B']) -> Float32[Array, '*B D']:
        return self.words[...][codes]


@final
class CategoricalHead(Head):
    """Logits are z's products with the table that embeds the codes, plus a bias (MaskGIT)."""

    def __init__(self, config: ModelConfig, token_embed: nnx.Module, rngs: nnx.Rngs):
        assert isinstance(token_embed, Words)
        self.codes, self.dtype = config.codes, config.compute_dtype
        self.words = token_embed.words  # one parameter, in two places
        self.bias = nnx.Param(jnp.zeros(config.words, jnp.float32))

    @staticmethod
    def token(config: ModelConfig) -> jax.ShapeDtypeStruct:
        """A code."""
        return jax.ShapeDtypeStruct((), jnp.int32)

    @staticmethod
    def embedding(config: ModelConfig, rngs: nnx.Rngs) -> nnx.Module:
        """A table."""
        return Words(config, rngs)

    def logits(self, z: Float[Array, '*B D']) -> Float32[Array, '*B words']:
        """Of all rows of the table; codes are its first."""
        words = self.words[...].astype(self.dtype)
        products = jnp.einsum(
            '...d,vd->...v', z.astype(self.dtype), words, preferred_element_type=jnp.float32
        )
        return sharding.unsharded_features(products + self.bias[...])

    def draws(
        self, keys: Key[Array, ' B'], copies: int, tokens: int
    ) -> Float32[Array, 'copies B N 0']:
        """Nothing: copies of a token have the same loss."""
        return jnp.zeros((copies, len(keys), tokens, 0), jnp.float32)

    def loss(
        self,
        z: Float32[Array, 'B R D'],
        clean: Int[Array, 'B R'],
        draws: Float32[Array, 'copies B R 0'],
        settings: Objective,
    ) -> TokenLoss:
        """Cross-entropy, -log p(clean | z) in nats where labels are not smoothed."""
        logits = self.logits(z)
        copied = lambda loss: jnp.broadcast_to(loss, (len(draws), *loss.shape))
        return TokenLoss(
            copied(categorical.cross_entropy(logits, clean, settings.label_smoothing)),
            {'cross_entropy': copied(categorical.cross_entropy(logits, clean))},
        )

    def noise(self, key: PRNGKeyArray) -> Float32[Array, ' V']:
        """Gumbel."""
        return jax.random.gumbel(key, (self.codes,), jnp.float32)

    def sample(
        self,
        z: Float32[Array, 'guides B R D'],
        guidance: Float32[Array, ' B'],
        noise: Callable[[int | Int[Array, '']], Float32[Array, 'B R V']],
        settings: Drawing,
        guide: Guide | None = None,
    ) -> Drawn:
        """The largest of guided logits plus noise; draw 0 is the only one."""
        logits = self.logits(z)[..., : self.codes]
        other = logits[1] if len(logits) == 2 else None
        if guide is not None:
            assert isinstance(guide.head, CategoricalHead)
            other = guide.head.logits(guide.z)[..., : self.codes]
        mixed = guided(logits[0], other, guidance)
        codes: Int32[Array, 'B R'] = categorical.draw(mixed, noise(0), settings.codes)
        return Drawn(codes, categorical.log_probability(mixed, codes))
