"""What a latent cache says about itself: manifest.json, and settings.json while it is made."""

import dataclasses
import math
import os
from typing import Any, final

import numpy as np

from emigm_jax.errors import UserError
from emigm_jax.io import bounded
from emigm_jax.tokenizers import learned

FORMAT = 1  # of a cache's layout, see `latents`
VIEWS = 2  # of a picture: as it is, mirrored
CODES, VECTORS = ('uint16',), ('float16', 'float32')  # dtypes that rows may have
_LARGEST = 2**16  # side of a row, or bytes of a shard before its rows


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
        of = lambda cls: {f.name: value[f.name] for f in dataclasses.fields(cls) if f.name in value}
        manifest = bounded.typed(Manifest, {**of(Manifest), 'contents': of(Contents)})
        _check(manifest)
    except ValueError as error:
        raise UserError(f'{origin}: its manifest.json is damaged ({error})') from error
    return manifest


def _check(manifest):
    """Raises ValueError unless rows are what the tokenizer makes, and shards hold all of them."""
    contents, shape, maker = manifest.contents, manifest.shape, manifest.contents.tokenizer
    if maker.name not in learned.KINDS:
        raise ValueError(f'its tokenizer is {maker.name}, and none of {", ".join(learned.KINDS)}')
    raw = learned.KINDS[maker.name].raw
    wanted = (shape[0], shape[0], *raw.channels(maker.channels)) if shape else (0,)
    dtypes = CODES if raw.codes else VECTORS
    if contents.dtype not in dtypes or shape != wanted or bool(maker.codes) != raw.codes:
        what = f'{maker.codes} codes' if maker.codes else f'vectors of {maker.channels}'
        raise ValueError(f'rows {shape[:4]} {contents.dtype} of {what}')
    if not (min(shape) > 0 and max(shape) < _LARGEST) or maker.codes > 2**16:
        raise ValueError(f'rows {shape} of {maker.codes} codes')
    if sum(shard.rows for shard in manifest.shards) != manifest.count:
        raise ValueError(f'its shards do not hold {manifest.count} rows')
    size = VIEWS * math.prod(shape) * np.dtype(contents.dtype).itemsize
    for number, shard in enumerate(manifest.shards):
        if not 0 < shard.bytes - shard.rows * size < _LARGEST:
            raise ValueError(f'shard {number} of {shard.bytes} bytes cannot hold {shard.rows} rows')
