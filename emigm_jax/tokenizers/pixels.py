"""The simplest tokenizer: patches of pixels."""

import dataclasses
from typing import final

import jax
import jax.numpy as jnp
import numpy as np

from emigm_jax.errors import UserError
from emigm_jax.nn.functional import Params
from emigm_jax.tokenizers.interface import Spec, Tokenizer


def check_patch(image_size: int, patch: int) -> None:
    """Raises UserError unless patches of `patch` x `patch` pixels make up an image."""
    if patch < 1 or image_size % patch:
        raise UserError(f'data.patch = {patch} does not divide the image size {image_size}')


def patches(images: jax.Array, patch: int) -> jax.Array:
    """Square images (B, S, S, colours) -> patches (B, g, g, patch * patch * colours)."""
    _, side, _, c = images.shape
    g, p = side // patch, patch
    x = images.reshape(-1, g, p, g, p, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, g, g, p * p * c)


def whole(x: jax.Array, grid: int, patch: int) -> jax.Array:
    """What `patches` made, of any shape that has as many numbers, -> images."""
    g, p = grid, patch
    c = x.shape[-1] // p**2
    x = x.reshape(-1, g, g, p, p, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, g * p, g * p, c)


@final
@dataclasses.dataclass(frozen=True)
class Pixels(Tokenizer):
    """Patches of `patch` x `patch` pixels as tokens; nothing is learned.

    Raw are patches (B, h, w, C) with pixels in [-1, 1]; tokens are these times `scale`.
    """

    image_size: int
    patch: int
    colours: int
    levels: int = 256
    scale: float = 1.0

    def __post_init__(self):
        check_patch(self.image_size, self.patch)

    @property
    def grid(self) -> int:
        """Tokens per side."""
        return self.image_size // self.patch

    @property
    def spec(self) -> Spec:
        """See `Tokenizer`."""
        channels = self.patch**2 * self.colours
        origin = 'config.data.scale'
        return Spec(
            'pixels',
            'pixels',
            self.patch,
            channels,
            self.scale,
            origin,
            levels=self.levels,
            colours=self.colours,
        )

    def encode(self, params: Params, images: jax.Array) -> jax.Array:
        """See `Tokenizer`; no weights."""
        return patches(jnp.asarray(images, jnp.float32) / 127.5 - 1.0, self.patch)

    def to_tokens(self, raw: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """See `Tokenizer`; nothing is drawn."""
        return raw.reshape(len(raw), -1, raw.shape[-1]) * self.scale

    def decode(self, params: Params, tokens: jax.Array) -> jax.Array:
        """See `Tokenizer`."""
        x = jnp.asarray(tokens, jnp.float32) / self.scale
        return (whole(x, self.grid, self.patch) + 1.0) / 2.0

    def raw_shape(self, image_size: int) -> tuple[int, ...]:
        """See `Tokenizer`."""
        side = image_size // self.patch
        return side, side, self.spec.channels

    def latent_moments(self, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Tokenizer`."""
        return raw, np.zeros_like(raw)

    def from_official_cache(self, array: np.ndarray) -> np.ndarray:
        """See `Tokenizer`; there are none of pixels."""
        raise UserError('there are no official caches of pixels')
