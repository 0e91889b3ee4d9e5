"""The published image tokenizers as rows of a table, behind one interface."""

import dataclasses
import functools
import types
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np

from emigm_jax.errors import UserError
from emigm_jax.nn.functional import Functional, Params
from emigm_jax.tokenizers import dc_ae, kl_vae, vqgan
from emigm_jax.tokenizers.interface import Spec, Tokenizer
from emigm_jax.tokenizers.raw import Codes, Latents, Moments, Raw


class Kind(NamedTuple):
    """What distinguishes one tokenizer from another."""

    title: str
    module: types.ModuleType  # network(config) -> Functional of a module with encode and decode
    config: type  # its defaults are the published sizes
    scale: float  # of tokens over raw latents
    origin: str
    image_size: int  # pixels per side that it is published for
    low: float  # the network's pixels run from `low` to 1
    raw: Raw
    # The official per-image caches hold moments as they are, but latents times the scale.
    official_scale: float = 1.0


KINDS = {
    'kl16': Kind(
        'KL-16',
        kl_vae,
        kl_vae.KLVAEConfig,
        0.2325,
        '1 / standard deviation of the latents of ImageNet 256 (MAR; eMIGM at 256)',
        256,
        -1.0,
        Moments(),
    ),
    'dc_ae': Kind(
        'DC-AE',
        dc_ae,
        dc_ae.DCAEConfig,
        0.3189,
        '1 / standard deviation of the latents of ImageNet 512 (eMIGM at 512)',
        512,
        -1.0,
        Latents(),
        official_scale=0.3189,
    ),
    'vqgan': Kind('VQGAN', vqgan, vqgan.VQGANConfig, 1.0, 'codes have no scale', 256, 0.0, Codes()),
}


@final
@dataclasses.dataclass(frozen=True)
class Learned(Tokenizer):
    """A tokenizer of `KINDS` with the sizes of its network."""

    name: str  # a key of KINDS
    config: Any  # of the kind's `config`
    scale: float = 0.0  # of tokens over raw latents; 0: the published one

    @property
    def kind(self) -> Kind:
        """The row of the table."""
        return KINDS[self.name]

    @functools.cached_property
    def network(self) -> Functional:
        """The `Functional` (init, bind) of the network."""
        return self.kind.module.network(self.config)

    @property
    def spec(self) -> Spec:
        """See `Tokenizer`."""
        kind, config = self.kind, self.config
        channels, codes = (0, config.codes) if kind.raw.codes else (config.channels, 0)
        scale, origin = self.scale or kind.scale, 'data.latent_scale' if self.scale else kind.origin
        return Spec(self.name, kind.title, config.stride, channels, scale, origin, codes)

    def encode(self, params: Params, images: jax.Array) -> jax.Array:
        """See `Tokenizer`: raw float32, or codes int32."""
        pixels = images.astype(jnp.float32) / 255.0
        low = self.kind.low
        return self.network.bind(params).encode(pixels * (1.0 - low) + low)

    def to_tokens(self, raw: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """See `Tokenizer`."""
        latents = self.kind.raw.to_latents(raw, key)
        if self.kind.raw.codes:
            return latents.reshape(len(latents), -1)
        return latents.reshape(len(latents), -1, latents.shape[-1]) * self.spec.scale

    def decode(self, params: Params, tokens: jax.Array) -> jax.Array:
        """See `Tokenizer`."""
        kind, side = self.kind, round(tokens.shape[1] ** 0.5)
        if side**2 != tokens.shape[1]:
            raise UserError(f'{tokens.shape[1]} tokens are no square grid')
        if not kind.raw.codes:
            if tokens.shape[-1] != self.config.channels:
                raise UserError(
                    f'tokens of {tokens.shape[-1]} numbers do not fit {kind.title}, whose tokens '
                    f'have {self.config.channels}'
                )
            tokens = tokens / self.spec.scale
        latents = tokens.reshape(len(tokens), side, side, *tokens.shape[2:])
        pixels = self.network.bind(params).decode(latents)
        return (pixels - kind.low) / (1.0 - kind.low)

    def raw_shape(self, image_size: int) -> tuple[int, ...]:
        """See `Tokenizer`."""
        side = image_size // self.config.stride
        return side, side, *self.kind.raw.channels(self.config.channels)

    def latent_moments(self, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Tokenizer`."""
        return self.kind.raw.moments(raw)

    def from_official_cache(self, array: np.ndarray) -> np.ndarray:
        """See `Tokenizer`."""
        if self.kind.raw.codes:
            raise UserError(f'there are no official caches of the codes of {self.kind.title}')
        (channels,) = self.kind.raw.channels(self.config.channels)
        if array.ndim != 4 or array.shape[1] != channels:
            raise UserError(
                f'arrays of {array.shape[1:]} are none of {self.kind.title}, whose have {channels} '
                'channels first'
            )
        return array.transpose(0, 2, 3, 1) / self.kind.official_scale


def published(name: str, scale: float = 0.0) -> Learned:
    """The tokenizer `name` of `KINDS` in its published sizes; `scale` as in `Learned`."""
    return Learned(name, KINDS[name].config(), scale)
