"""What a tokenizer's network gives: moments of a Gaussian, latents, or codes."""

import abc
from typing import final

import jax
import numpy as np

from emigm_jax.errors import UserError
from emigm_jax.tokenizers import kl_vae


class Raw(abc.ABC):
    """One form of raw latents."""

    codes = False  # whether tokens are codes, not vectors

    @abc.abstractmethod
    def channels(self, latent: int) -> tuple[int, ...]:
        """Trailing dimensions of raw whose latents have `latent` channels."""

    @abc.abstractmethod
    def to_latents(self, raw: jax.Array, key: jax.Array | None) -> jax.Array:
        """Latents (..., C), or codes as they are; `key` None takes the mean."""

    @abc.abstractmethod
    def moments(self, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of the latents."""


@final
class Moments(Raw):
    """(..., 2C): means, then log variances."""

    def channels(self, latent: int) -> tuple[int, ...]:
        """See `Raw`."""
        return (2 * latent,)

    def to_latents(self, raw: jax.Array, key: jax.Array | None) -> jax.Array:
        """See `Raw`."""
        return kl_vae.sample_moments(raw, key)

    def moments(self, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Raw`."""
        mean, log_variance = np.split(raw, 2, axis=-1)
        return mean, np.exp(np.clip(log_variance, *kl_vae.LOG_VARIANCE_RANGE))


@final
class Latents(Raw):
    """(..., C)."""

    def channels(self, latent: int) -> tuple[int, ...]:
        """See `Raw`."""
        return (latent,)

    def to_latents(self, raw: jax.Array, key: jax.Array | None) -> jax.Array:
        """See `Raw`."""
        return raw

    def moments(self, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Raw`."""
        return raw, np.zeros_like(raw)


@final
class Codes(Raw):
    """(...) int32."""

    codes = True

    def channels(self, latent: int) -> tuple[int, ...]:
        """See `Raw`."""
        return ()

    def to_latents(self, raw: jax.Array, key: jax.Array | None) -> jax.Array:
        """See `Raw`."""
        return raw

    def moments(self, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Raw`."""
        raise UserError('codes have no scale')
