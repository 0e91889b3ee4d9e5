"""What a tokenizer is, and the simplest one: patches of pixels."""

import dataclasses
from typing import Protocol

import jax.numpy as jnp

from emigm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Spec:
    """Facts about a tokenizer's tokens."""

    name: str
    stride: int  # pixels per side of one token
    channels: int  # C, numbers per token
    scale: float  # tokens = raw latents * scale, so that they have about unit variance
    origin: str  # where the scale comes from


class Tokenizer(Protocol):
    """Turns uint8 images into tokens and back."""

    spec: Spec

    def encode(self, images):
        """uint8 (B, H, W, colours) -> tokens (B, N, C) float32 in raster order."""

    def decode(self, tokens):
        """Tokens (B, N, C) -> uint8 (B, H, W, colours)."""


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Patches of `patch` x `patch` pixels as tokens; nothing is learned.

    Pixels are mapped to [-1, 1] and multiplied by `scale`; `decode` rounds to `levels` grey levels.
    """

    image_size: int
    patch: int
    colours: int
    levels: int = 256
    scale: float = 1.0

    def __post_init__(self):
        if self.patch < 1 or self.image_size % self.patch:
            raise UserError(
                f'data.patch = {self.patch} does not divide the image size {self.image_size}'
            )

    @property
    def grid(self):
        """Tokens per side."""
        return self.image_size // self.patch

    @property
    def spec(self):
        """The `Spec` of these patches."""
        channels = self.patch**2 * self.colours
        return Spec('pixels', self.patch, channels, self.scale, 'config.data.scale')

    def encode(self, images):
        """uint8 (B, H, W, colours) -> tokens (B, N, C) float32."""
        g, p, c = self.grid, self.patch, self.colours
        x = jnp.asarray(images, jnp.float32) / 127.5 - 1.0
        x = x.reshape(-1, g, p, g, p, c).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(-1, g * g, p * p * c) * self.scale

    def decode(self, tokens):
        """Tokens (B, N, C) -> uint8 (B, H, W, colours), clipped and rounded to the grey levels."""
        g, p, c = self.grid, self.patch, self.colours
        x = jnp.asarray(tokens, jnp.float32) / self.scale
        x = x.reshape(-1, g, g, p, p, c).transpose(0, 1, 3, 2, 4, 5)
        x = jnp.clip((x.reshape(-1, g * p, g * p, c) + 1.0) / 2.0, 0.0, 1.0)
        steps = self.levels - 1
        return jnp.round(jnp.round(x * steps) / steps * 255.0).astype(jnp.uint8)
