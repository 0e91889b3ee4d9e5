"""The published image tokenizers behind one face: uint8 images <-> raw latents <-> tokens.

Raw is what a network gives (moments, latents or codes) and what a latent cache stores. Tokens are
what the transformer sees. The scale between them is a fact about a tokenizer, with its origin.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emigm_jax.checkpoints import store
from emigm_jax.errors import UserError
from emigm_jax.nn import functional
from emigm_jax.parallel import batches
from emigm_jax.tokenizers import dc_ae, kl_vae, vqgan
from emigm_jax.tokenizers.base import Spec

ENTRY = 'tokenizer'  # of a checkpoint's description


class Kind(NamedTuple):
    """What distinguishes one tokenizer from another."""

    title: str
    module: object  # network(config) -> Functional of a module with encode and decode
    config: type  # its defaults are the published sizes
    scale: float  # of tokens over raw latents
    origin: str
    low: float  # the network's pixels run from `low` to 1
    raw: str  # what `encode` gives: moments, latents or codes


KINDS = {
    'kl16': Kind(
        'KL-16',
        kl_vae,
        kl_vae.KLVAEConfig,
        0.2325,
        '1 / standard deviation of the latents of ImageNet 256 (MAR; eMIGM at 256)',
        -1.0,
        'moments',
    ),
    'dc_ae': Kind(
        'DC-AE',
        dc_ae,
        dc_ae.DCAEConfig,
        0.3189,
        '1 / standard deviation of the latents of ImageNet 512 (eMIGM at 512)',
        -1.0,
        'latents',
    ),
    'vqgan': Kind('VQGAN', vqgan, vqgan.VQGANConfig, 1.0, 'codes have no scale', 0.0, 'codes'),
}


@dataclasses.dataclass(frozen=True)
class Learned:
    """A tokenizer with its weights; see `tokenizers.base.Tokenizer`.

    A device never holds more than `batch` images at a time; every batch has the same shape, so
    each direction compiles once. Batches are split over the devices of this process.
    """

    name: str  # a key of KINDS
    config: object
    params: dict
    batch: int = 16

    @property
    def spec(self):
        """The `Spec`."""
        kind = KINDS[self.name]
        return Spec(kind.title, self.config.stride, self.config.channels, kind.scale, kind.origin)

    def encode(self, images):
        """uint8 (B, H, W, 3) -> raw NumPy array: moments (B, h, w, 2C), latents (B, h, w, C) or
        codes (B, h, w)."""
        return self._batched(_encode(self.name, self.config), np.asarray(images))

    def tokens(self, raw, key=None):
        """Raw -> tokens (B, N, C) float32, or codes (B, N) int32.

        Args:
          raw: as `encode` gives it.
          key: draws latents of moments; None takes the mean. Latents and codes need none.
        """
        return to_tokens(KINDS[self.name], jnp.asarray(raw), key)

    def decode(self, tokens):
        """Tokens (B, N, C), or codes (B, N), of a square grid -> uint8 (B, H, W, 3)."""
        tokens = np.asarray(tokens)
        side = round(tokens.shape[1] ** 0.5)
        if side**2 != tokens.shape[1]:
            raise UserError(f'{tokens.shape[1]} tokens are no square grid')
        if KINDS[self.name].raw != 'codes' and tokens.shape[-1] != self.config.channels:
            raise UserError(
                f'tokens of {tokens.shape[-1]} numbers do not fit {self.spec.name}, whose tokens '
                f'have {self.config.channels}'
            )
        raw = tokens.reshape(len(tokens), side, side, *tokens.shape[2:])
        return self._batched(_decode(self.name, self.config), raw)

    def _batched(self, run, rows):
        size = batches.padded(min(self.batch * jax.local_device_count(), len(rows)))
        params, made = self._placed, []
        for start in range(0, len(rows), size):
            made.append(np.asarray(run(params, batches.fill(rows[start : start + size], size))))
        return np.concatenate(made)[: len(rows)]

    @functools.cached_property
    def _placed(self):
        return batches.place(self.params)


def to_tokens(kind, raw, key=None):
    """Raw latents of a `Kind` -> tokens; see `Learned.tokens`. Pure."""
    if kind.raw == 'codes':
        return raw.reshape(len(raw), -1)
    latents = kl_vae.sample_moments(raw, key) if kind.raw == 'moments' else raw
    return latents.reshape(len(raw), -1, latents.shape[-1]) * kind.scale


def encoder(name, config):
    """The pure function (params, uint8 (B, H, W, 3)) -> raw, as `Learned.encode` but traceable."""
    kind = KINDS[name]
    bind = kind.module.network(config).bind

    def run(params, images):
        pixels = images.astype(jnp.float32) / 255.0
        return bind(params).encode(pixels * (1.0 - kind.low) + kind.low)

    return run


@functools.cache
def _encode(name, config):
    return batches.over_devices(encoder(name, config))


@functools.cache
def _decode(name, config):
    kind = KINDS[name]
    bind = kind.module.network(config).bind

    def run(params, raw):
        if kind.raw != 'codes':
            raw = raw / kind.scale
        pixels = (bind(params).decode(raw) - kind.low) / (1.0 - kind.low)
        return jnp.round(jnp.clip(pixels, 0.0, 1.0) * 255.0).astype(jnp.uint8)

    return batches.over_devices(run)


def save(path, name, config, params, **facts):
    """Writes a tokenizer checkpoint; `facts` (JSON-like) go into its description."""
    described = {'name': name, 'config': dataclasses.asdict(config)}
    store.save(path, {'params': params}, {ENTRY: described, **facts})


def fingerprint(tokenizer):
    """Short hex digest of a `Learned`'s sizes and weights: what decides the raw latents."""
    return functional.fingerprint(tokenizer.params, tokenizer.name)


def is_tokenizer(path):
    """Whether the checkpoint at `path` is a tokenizer's."""
    return ENTRY in (store.describe(path)[0] or {})


def load(path, dtype=None, batch=16):
    """The `Learned` of a tokenizer checkpoint.

    Args:
      path: local or gs://.
      dtype: of convolutions, 'float32' or 'bfloat16'; None: as saved.
      batch: images on the device at a time.

    Raises:
      UserError: there is no tokenizer at `path`, or it is damaged.
    """
    if not store.is_checkpoint(path):
        raise UserError(f'{path}: no tokenizer checkpoint there; `emigm convert` makes one')
    if not is_tokenizer(path):
        raise UserError(f'{path}: holds no tokenizer')
    description, _ = store.describe(path)
    name, values = description[ENTRY]['name'], description[ENTRY]['config']
    # JSON made lists of the tuples.
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    config = KINDS[name].config(**values)
    if dtype is not None:
        config = dataclasses.replace(config, dtype=dtype)
    return Learned(name, config, store.load_part(path, ('params',)), batch)
