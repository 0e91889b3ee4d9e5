"""The simplest codes: patches of quantised pixels, for a categorical head without a network."""

import dataclasses
from typing import final

import jax
import jax.numpy as jnp
import numpy as np

from emigm_jax.errors import UserError
from emigm_jax.nn.functional import Params
from emigm_jax.tokenizers import pixels
from emigm_jax.tokenizers.interface import Spec, Tokenizer

MOST = 2**16  # codes: a larger table than that of any VQGAN says that a setting is wrong


@final
@dataclasses.dataclass(frozen=True)
class PixelCodes(Tokenizer):
    """Patches of `patch` x `patch` pixels, each colour in one of `levels` steps, as one code.

    A code is the number whose digits in base `levels` are the colours q_k of its patch, the first
    one counting least: sum_k q_k levels^k, with q = round(pixel / 255 * (levels - 1)). Nothing is
    learned; with as many levels as the images have nothing is lost.

    Raises:
      UserError: patches do not make up an image, or there are more codes than `MOST`.
    """

    image_size: int
    patch: int
    colours: int
    levels: int

    def __post_init__(self):
        pixels.check_patch(self.image_size, self.patch)
        if not fits(self.levels, self._digits):
            raise UserError(
                f'data.levels = {self.levels} and data.patch = {self.patch} make '
                f'{self.levels}^{self._digits} codes, more than {MOST:,}: say {self._advice()}'
            )

    def _advice(self):
        """The flags of settings nearby that fit."""
        digits = self._digits
        one = [p for p in range(1, self.patch) if self.image_size % p == 0]
        patches = [p for p in one if fits(self.levels, p**2 * self.colours)]
        said = [f'--config.data.levels={most_levels(digits)}'] if most_levels(digits) else []
        said += [f'--config.data.patch={patches[-1]}'] if patches else []
        return ' or '.join(said) or (
            f'--config.data.levels={most_levels(self.colours)} --config.data.patch=1'
        )

    @property
    def _digits(self):
        return self.patch**2 * self.colours

    @property
    def grid(self) -> int:
        """Tokens per side."""
        return self.image_size // self.patch

    @property
    def spec(self) -> Spec:
        """See `Tokenizer`."""
        codes, origin = self.levels**self._digits, 'codes have no scale'
        return Spec(
            'pixel_codes',
            'pixels as codes',
            self.patch,
            0,
            1.0,
            origin,
            codes,
            self.levels,
            self.colours,
            self._digits,
        )

    def _places(self):
        return self.levels ** np.arange(self._digits, dtype=np.int32)

    def encode(self, params: Params, images: jax.Array) -> jax.Array:
        """See `Tokenizer`; no weights. Codes int32."""
        # In integers: no device rounds another way. A level and a half never is a pixel.
        steps = jnp.asarray(images).astype(jnp.int32) * (2 * (self.levels - 1))
        colours = (steps + 255) // 510
        return (pixels.patches(colours, self.patch) * self._places()).sum(-1, dtype=jnp.int32)

    def to_tokens(self, raw: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """See `Tokenizer`; nothing is drawn."""
        return raw.reshape(len(raw), -1)

    def decode(self, params: Params, tokens: jax.Array) -> jax.Array:
        """See `Tokenizer`: codes that there are not give NaN."""
        if tokens.shape[1:] != (self.grid**2,):
            raise UserError(
                f'codes {tokens.shape[1:]} do not fit images of {self.grid**2} patches of pixels'
            )
        codes = jnp.asarray(tokens, jnp.int32)[..., None]
        colours = (codes // self._places() % self.levels).astype(jnp.float32) / (self.levels - 1)
        there = (codes >= 0) & (codes < self.spec.codes)
        return pixels.whole(jnp.where(there, colours, jnp.nan), self.grid, self.patch)

    def raw_shape(self, image_size: int) -> tuple[int, ...]:
        """See `Tokenizer`."""
        side = image_size // self.patch
        return side, side

    def latent_moments(self, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Tokenizer`."""
        raise UserError('codes have no scale')

    def from_official_cache(self, array: np.ndarray) -> np.ndarray:
        """See `Tokenizer`; there are none of pixels."""
        raise UserError('there are no official caches of pixels')


def most_levels(digits: int) -> int:
    """The most steps of each of `digits` colours whose codes are at most `MOST`; 0: none."""
    return max((n for n in range(2, 257) if fits(n, digits)), default=0)


def fits(levels: int, digits: int) -> bool:
    """Whether `digits` colours of `levels` steps make at most `MOST` codes."""
    # Beyond that even two levels make too many, and the power would be a huge number.
    return digits < MOST.bit_length() and levels**digits <= MOST
