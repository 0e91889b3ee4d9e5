"""What a tokenizer is: images to raw latents, raw latents to tokens, tokens to images.

Raw is what a network gives and what a latent cache stores; tokens are what the transformer sees.
A tokenizer is a pure description: it holds no weights, which are passed to `encode` and `decode`.
"""

import abc
import dataclasses

import jax
import numpy as np

from emigm_jax.nn.functional import Params


@dataclasses.dataclass(frozen=True)
class Spec:
    """Facts about a tokenizer's tokens."""

    kind: str  # its name in checkpoints and caches
    title: str  # its name for people
    stride: int  # pixels per side of one token
    channels: int  # C, numbers per token that is a vector; 0: tokens are codes
    scale: float  # tokens = raw latents * scale, so that they have about unit variance
    origin: str  # where the scale comes from
    codes: int = 0  # V, values of a token that is a code; 0: tokens are vectors
    levels: int = 256  # grey levels of the images
    colours: int = 3  # of their pixels; 1: grey
    dimensions: int = 1  # numbers that a code stands for without loss, by which bits are counted


class Tokenizer(abc.ABC):
    """Turns images into tokens and tokens into pixels; all methods are pure and can be traced."""

    @property
    @abc.abstractmethod
    def spec(self) -> Spec:
        """The facts."""

    @abc.abstractmethod
    def encode(self, params: Params, images: jax.Array) -> jax.Array:
        """uint8 (B, H, W, colours) -> raw (B, h, w, ...), or codes (B, h, w), h = H / stride."""

    @abc.abstractmethod
    def to_tokens(self, raw: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Raw (B, h, w, ...) -> tokens (B, N, C) float32, or codes (B, N) int32, in raster order.

        Args:
          raw: as `encode` gives it.
          key: draws latents where raw is a distribution; None takes its mean.
        """

    @abc.abstractmethod
    def decode(self, params: Params, tokens: jax.Array) -> jax.Array:
        """Tokens (B, N, C), or codes (B, N), of a square grid -> pixels (B, H, W, colours).

        Returns:
          float32, about [0, 1] and not clipped; not finite where codes are from V on.

        Raises:
          UserError: the shape does not fit.
        """

    @abc.abstractmethod
    def raw_shape(self, image_size: int) -> tuple[int, ...]:
        """Shape of one raw row of a square image of `image_size` pixels per side."""

    @abc.abstractmethod
    def latent_moments(self, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of the latents, before the scale, that raw stands for.

        Raises:
          UserError: raw are codes, which have none.
        """

    @abc.abstractmethod
    def from_official_cache(self, array: np.ndarray) -> np.ndarray:
        """An array (B, c, h, w) of the official per-image caches -> raw (B, h, w, c)."""
