"""The categorical distribution of a token's code: losses, bounds and drawing (paper Table 1).

Logits are over the V codes of a tokenizer; everything here is about one token at a time, whatever
axes come before it.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int, Int32

from emigm_jax.core.setting import setting, validate

_NEVER = -1e30  # logit of a code that is not drawn; finite, as infinities make NaN of differences


@dataclasses.dataclass(frozen=True)
class CodesConfig:
    """How codes are drawn from a categorical head."""

    temperature: float = setting(
        1.0, 'divides the logits before a code is drawn; 0: the most probable', low=0.0
    )
    top_k: int = setting(0, 'only the K most probable codes are drawn; 0: all', low=0)
    nucleus: float = setting(
        1.0,
        'only the most probable codes that make up this probability are drawn',
        low=1e-6,
        high=1.0,
    )

    def __post_init__(self):
        validate(self, 'sampling.codes')


def cross_entropy(
    logits: Float32[Array, '*B V'], codes: Int[Array, '*B'], smoothing: float = 0.0
) -> Float32[Array, '*B']:
    """-sum_v q_v log p_v in nats, q = (1 - smoothing) one-hot + smoothing / V.

    MaskGIT's label smoothing (libml/losses.py, apply_label_smoothing); 0 gives -log p(code).
    """
    total = jax.nn.logsumexp(logits, axis=-1)
    right = jnp.take_along_axis(logits, codes[..., None], axis=-1)[..., 0]
    return total - (1.0 - smoothing) * right - smoothing * jnp.mean(logits, axis=-1)


def log_probability(
    logits: Float32[Array, '*B V'], codes: Int[Array, '*B']
) -> Float32[Array, '*B']:
    """log p(code)."""
    return -cross_entropy(logits, codes)


def allowed(logits: Float32[Array, '*B V'], config: CodesConfig) -> Float32[Array, '*B V']:
    """Logits at the temperature, those of codes that top-k or the nucleus leave out very low.

    The nucleus is the smallest set of most probable codes whose probability reaches it
    (arXiv 1904.09751), after the temperature and of what top-k leaves.
    """
    codes = logits.shape[-1]
    if config.temperature > 0.0:
        logits = logits / config.temperature
    if 0 < config.top_k < codes:
        least = jax.lax.top_k(logits, config.top_k)[0][..., -1:]
        logits = jnp.where(logits < least, _NEVER, logits)
    if config.nucleus < 1.0:
        ranked = -jnp.sort(-logits, axis=-1)
        before = jnp.cumsum(jax.nn.softmax(ranked, axis=-1), axis=-1) - jax.nn.softmax(ranked)
        inside = jnp.sum(before < config.nucleus, axis=-1, keepdims=True)
        least = jnp.take_along_axis(ranked, inside - 1, axis=-1)
        logits = jnp.where(logits < least, _NEVER, logits)
    return logits


def draw(
    logits: Float32[Array, '*B V'], gumbel: Float32[Array, '*B V'], config: CodesConfig
) -> Int32[Array, '*B']:
    """Codes by the Gumbel trick: argmax of logits plus noise; without noise at temperature 0."""
    noisy = allowed(logits, config)
    if config.temperature > 0.0:
        noisy = noisy + gumbel
    return jnp.argmax(noisy, axis=-1).astype(jnp.int32)
