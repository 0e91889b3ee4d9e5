"""What a latent cache says about itself: manifest.json, and settings.json while it is made."""

import dataclasses
import os
from typing import Any, final

import numpy as np

from emigm_jax.errors import UserError

FORMAT = 1  # of a cache's layout, see `latents`


@final
@dataclasses.dataclass(frozen=True)
class Origin:
    """Where the pictures came from."""

    kind: str  # folder, tfds, npz
    fingerprint: str  # of names and sizes, in order
    pictures: int  # unreadable ones included


@final
@dataclasses.dataclass(frozen=True)
class Maker:
    """The tokenizer that made the latents."""

    name: str  # a key of learned.KINDS
    fingerprint: str  # of its weights
    channels: int  # C of a token; 0: tokens are codes
    stride: int  # pixels per side of a token
    dtype: str = 'float32'  # of its convolutions
    codes: int = 0  # V of a token; 0: tokens are vectors


@final
@dataclasses.dataclass(frozen=True)
class Contents:
    """All that decides the content of a cache."""

    source: Origin
    tokenizer: Maker
    image_size: int  # pixels per side of the pictures
    dtype: str  # of the rows
    shard_rows: int  # source pictures per shard

    def to_json(self) -> dict[str, Any]:
        """JSON-like."""
        value = dataclasses.asdict(self)
        if not self.tokenizer.codes:  # as caches that were begun before there were codes have it
            del value['tokenizer']['codes']
        return value


@final
@dataclasses.dataclass(frozen=True)
class Shard:
    """One .npy file of rows."""

    rows: int
    bytes: int
    sha256: str


@final
@dataclasses.dataclass(frozen=True)
class Manifest:
    """A finished cache."""

    contents: Contents
    count: int  # rows
    skipped: int  # pictures that could not be read
    shape: tuple[int, ...]  # (h, w, c) of a row; (h, w) of codes
    class_names: tuple[str, ...]  # in label order
    shards: tuple[Shard, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON-like; `contents` lie beside the rest."""
        own = dataclasses.asdict(self)
        del own['contents']
        lists = {name: list(own[name]) for name in ('shape', 'class_names', 'shards')}
        return {**self.contents.to_json(), 'format': FORMAT, **own, **lists}


def from_json(value: dict[str, Any], origin: os.PathLike | str) -> Manifest:
    """The `Manifest` in a JSON object.

    Args:
      value: of manifest.json.
      origin: path of the cache, for messages.

    Raises:
      UserError: it is of a format of the future, lacks something, or contradicts itself.
    """
    if value.get('format') != FORMAT:
        raise UserError(
            f'{origin}: is a cache of format {value.get("format")!r}, this version reads {FORMAT}'
        )
    try:
        manifest = Manifest(
            contents=Contents(
                Origin(**value['source']),
                Maker(**value['tokenizer']),
                value['image_size'],
                value['dtype'],
                value['shard_rows'],
            ),
            count=value['count'],
            skipped=value['skipped'],
            shape=tuple(value['shape']),
            class_names=tuple(value['class_names']),
            shards=tuple(Shard(**shard) for shard in value['shards']),
        )
        _check(manifest)
    except (KeyError, TypeError) as error:
        raise UserError(f'{origin}: its manifest.json is damaged ({error})') from error
    return manifest


def _check(manifest):
    """Raises TypeError unless rows are what the tokenizer makes: codes, or vectors."""
    contents, shape = manifest.contents, manifest.shape
    codes = contents.tokenizer.codes
    expected = ('u', 2) if codes else ('f', 3)
    if (np.dtype(contents.dtype).kind, len(shape)) != expected:
        what = f'{codes} codes' if codes else 'vectors'
        raise TypeError(f'rows {shape} {contents.dtype} of {what}')
