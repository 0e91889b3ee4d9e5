"""A tokenizer with its weights on the devices of this process, and its checkpoints."""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from emigm_jax.checkpoints import store
from emigm_jax.core import randomness
from emigm_jax.errors import UserError
from emigm_jax.io import bounded
from emigm_jax.nn import functional
from emigm_jax.nn.functional import Params
from emigm_jax.parallel import batches
from emigm_jax.tokenizers.interface import Spec, Tokenizer
from emigm_jax.tokenizers.learned import KINDS, Learned

ENTRY = 'tokenizer'  # of a checkpoint's description
_BLOCKS = ('blocks', 'encoder_depths', 'decoder_depths')  # of a config
_DEEPEST = 64  # blocks of a level, and levels


class NonFinite(UserError):
    """Tokens or pixels that are not finite numbers."""


@final
@dataclasses.dataclass(frozen=True)
class Codec:
    """A tokenizer ready for use; rows are spread over the devices of this process.

    A device never works on more than `batch` images at a time.
    """

    tokenizer: Tokenizer
    params: Params = dataclasses.field(default_factory=dict)
    batch: int = 16

    @property
    def spec(self) -> Spec:
        """The tokenizer's facts."""
        return self.tokenizer.spec

    def encode(self, images: np.ndarray | jax.Array) -> jax.Array:
        """uint8 (B, H, W, colours) -> raw (B, h, w, ...)."""
        return _program(self.tokenizer, 'encode', self.batch)(self._placed, images)

    @randomness.pinned()
    def to_tokens(self, raw: np.ndarray | jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Raw -> tokens (B, N, C) float32, or codes (B, N) int32; see `Tokenizer`."""
        return self.tokenizer.to_tokens(jnp.asarray(raw), key)

    def decode(self, tokens: np.ndarray | jax.Array) -> UInt8[np.ndarray, 'B H W colours']:
        """Tokens (B, N, C), or codes (B, N) -> images, rounded to the grey levels there are.

        Raises:
          NonFinite: tokens or pixels are not finite: as images they would be black.
          UserError: the shape does not fit.
        """
        images, finite = _program(self.tokenizer, 'images', self.batch)(self._placed, tokens)
        if not (finite := np.asarray(finite)).all():
            bad = np.count_nonzero(~finite)
            raise NonFinite(f'{bad} of {len(finite)} images are not finite: {self._blame(tokens)}')
        return np.asarray(images)

    def prepared(self, tokens: np.ndarray) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """The jitted program of `decode` and its arguments, padded and placed."""
        return _program(self.tokenizer, 'images', self.batch).prepared(self._placed, tokens)

    def _blame(self, tokens):
        if codes := self.spec.codes:
            drawn = np.asarray(tokens)
            if len(none := drawn[(drawn < 0) | (drawn >= codes)]):
                return f'the model drew code {none[0]}, {self.spec.title} has 0 to {codes - 1}'
        if np.isfinite(np.asarray(tokens)).all():
            return (
                f'the tokens are, their pixels are not; the weights of {self.spec.title} may be '
                'broken, or --dtype float32 is needed'
            )
        return (
            'the model drew tokens that are no numbers; its weights may be broken (are other '
            '--weights better?), or --dtype float32 or less --guidance is needed'
        )

    def with_scale(self, scale: float) -> 'Codec':
        """The same tokenizer with another scale of its latents; 0: with the published one."""
        assert isinstance(self.tokenizer, Learned)
        return dataclasses.replace(self, tokenizer=dataclasses.replace(self.tokenizer, scale=scale))

    @functools.cached_property
    def fingerprint(self) -> str:
        """Short hex digest of what decides raw latents: the kind, and every weight."""
        return functional.fingerprint(self.params, self.spec.kind)

    @functools.cached_property
    def _placed(self):
        return batches.place(self.params)


def _images(tokenizer, params, tokens):
    """Images (B, H, W, colours), and which of them are of finite pixels (B,)."""
    pixels, steps = tokenizer.decode(params, tokens), tokenizer.spec.levels - 1
    images = jnp.round(jnp.round(jnp.clip(pixels, 0.0, 1.0) * steps) / steps * 255.0)
    return images.astype(jnp.uint8), jnp.isfinite(pixels).all((1, 2, 3))


@functools.cache
def _program(tokenizer, direction, batch):
    run = {'encode': tokenizer.encode, 'images': functools.partial(_images, tokenizer)}[direction]
    return batches.OverDevices(
        lambda params, rows: batches.in_chunks(functools.partial(run, params), rows, batch)
    )


def save(path: os.PathLike | str, codec: Codec, **facts: Any) -> None:
    """Writes a `Learned` tokenizer's checkpoint; `facts` (JSON-like) go into its description."""
    tokenizer = codec.tokenizer
    assert isinstance(tokenizer, Learned)
    described = {'name': tokenizer.name, 'config': dataclasses.asdict(tokenizer.config)}
    store.save(path, {'params': codec.params}, {ENTRY: described, **facts})


def load(path: os.PathLike | str, dtype: str | None = None, batch: int = 16) -> Codec:
    """The `Codec` of a tokenizer's checkpoint.

    Args:
      path: local or gs://.
      dtype: of convolutions, 'float32' or 'bfloat16'; None: as saved.
      batch: images at a time on a device.

    Raises:
      UserError: there is no tokenizer at `path`, or it is damaged.
    """
    if not store.is_checkpoint(path):
        raise UserError(f'{path}: no tokenizer checkpoint there; `emigm convert` makes one')
    return of(store.checkpoint(path), dtype, batch)


def of(stored: store.Checkpoint, dtype: str | None = None, batch: int = 16) -> Codec:
    """As `load`, of a checkpoint whose description was read."""
    if ENTRY not in stored.description:
        raise UserError(f'{stored.path}: holds no tokenizer')
    described = stored.description[ENTRY]
    name, values = described.get('name'), described.get('config')
    if not isinstance(name, str) or name not in KINDS:
        raise UserError(
            f'{stored.path}: holds a tokenizer {name!r}, and none of {", ".join(KINDS)}'
        )
    try:
        config = bounded.typed(KINDS[name].config, values)
    except ValueError as error:
        raise UserError(
            f'{stored.path}: the config of its tokenizer is damaged: {error}'
        ) from error
    if dtype is not None:
        config = dataclasses.replace(config, dtype=dtype)
    tokenizer, arrays = Learned(name, config), stored.tree.get('params', {})
    # Blocks are made one by one: before, as nobody makes a million of them.
    levels = [len(value) for value in dataclasses.astuple(config) if isinstance(value, tuple)]
    blocks = [n for field in _BLOCKS for n in np.ravel(getattr(config, field, 0)).tolist()]
    wrong = f'{max(levels)} levels, {max(blocks)} blocks' * (max(levels + blocks) > _DEEPEST)
    if wrong := wrong or functional.misfit(arrays, lambda: tokenizer.network):
        raise UserError(f'{stored.path}: its arrays are not those of its config: {wrong}')
    return Codec(tokenizer, stored.load_part('params'), batch)
