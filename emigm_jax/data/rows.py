"""What latent caches are made of: pictures through a tokenizer, or the official per-image files."""

import itertools
import os
from collections.abc import Callable, Iterator
from typing import TypeVar, final

import grain
import numpy as np

from emigm_jax.data.manifest import Contents, Maker, Origin
from emigm_jax.data.pictures import center_crop
from emigm_jax.data.prepare import Row, Rows, Skipped
from emigm_jax.data.sources import Source, Unreadable
from emigm_jax.errors import UserError
from emigm_jax.io import files, gcs, npz, paths
from emigm_jax.parallel import batches
from emigm_jax.tokenizers import learned
from emigm_jax.tokenizers.codec import Codec
from emigm_jax.tokenizers.interface import Spec

_T = TypeVar('_T')

CODES, MOST_CODES = 'uint16', 2**16  # dtype of rows of codes, and what fits
THREADS = 16  # that read and decode pictures; Pillow and files let go of the interpreter


def read_all(read: Callable[[int], _T], start: int, stop: int) -> Iterator[_T]:
    """Yields read(i) for start <= i < stop, in order, some of them ahead in other threads."""
    options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=4 * THREADS)
    yield from grain.MapDataset.range(start, stop).map(read).to_iter_dataset(options)


def _maker(codec):
    spec, dtype = codec.spec, codec.tokenizer.config.dtype
    return Maker(spec.kind, codec.fingerprint, spec.channels, spec.stride, dtype, spec.codes)


def dtype(spec: Spec, asked: str | None) -> str:
    """Of a cache's rows: that of `CODES` for codes, else what was asked for, float16 by default.

    Raises:
      UserError: codes do not fit, or were asked for as numbers.
    """
    if not spec.codes:
        return asked or 'float16'
    if spec.codes > MOST_CODES:
        raise UserError(
            f'{spec.title} has {spec.codes:,} codes, a cache holds up to {MOST_CODES:,}: encode '
            'while training (data.name = folder with data.tokenizer)'
        )
    if asked not in (None, CODES):
        raise UserError(
            f'--dtype {asked} goes with latents: the codes of {spec.title} are held as {CODES}, '
            'leave it out'
        )
    return CODES


@final
class Encoded(Rows):
    """The pictures of a `Source`, cropped and encoded.

    Args:
      source: of pictures.
      codec: of a `Learned` tokenizer; `codec.batch` pictures at a time on each device.
      image_size: pixels per side of the crops; None: what the tokenizer is published for.
    """

    def __init__(self, source: Source, codec: Codec, image_size: int | None = None):
        spec = codec.spec
        image_size = image_size or learned.KINDS[spec.kind].image_size
        if image_size % spec.stride:
            raise UserError(
                f'--image-size {image_size} is no multiple of the {spec.stride} pixels per token '
                f'of {spec.title}'
            )
        self._source, self._codec, self.image_size = source, codec, image_size
        self.class_names = source.class_names

    def __len__(self) -> int:
        return len(self._source)

    def contents(self, dtype: str, shard_rows: int) -> Contents:
        """See `Rows`."""
        origin = Origin(self._source.kind, self._source.fingerprint(), len(self))
        return Contents(origin, _maker(self._codec), self.image_size, dtype, shard_rows)

    def _read(self, i):
        try:
            example = self._source.example(i)
            return center_crop(example.image, self.image_size), example.label, example.name
        except Unreadable as error:
            return Skipped(error.name, error.reason)

    def rows(self, start: int, stop: int) -> Iterator[Row | Skipped]:
        """See `Rows`."""
        size = batches.padded(self._codec.batch)
        read = read_all(self._read, start, stop)
        while batch := list(itertools.islice(read, size)):
            readable = [entry for entry in batch if not isinstance(entry, Skipped)]
            views = iter(self._encode([image for image, _, _ in readable], size))
            for entry in batch:
                skipped = isinstance(entry, Skipped)
                yield entry if skipped else Row(entry[1], entry[2], next(views))

    def _encode(self, images, size):
        """(B, 2, h, w, ...) of images; every batch has the one shape that was compiled."""
        if not images:
            return []
        pixels = batches.fill(np.stack(images), size)
        both = [np.asarray(self._codec.encode(view)) for view in (pixels, pixels[:, :, ::-1])]
        return np.stack(both, axis=1)[: len(images)]


@final
class OfficialFiles(Rows):
    """The official cache: CLASS/FILE.JPEG.npz with `moments` and `moments_flip`, (c, h, w) each.

    KL-16 moments are stored as they are; DC-AE latents were stored times 0.3189, which is undone.

    Raises:
      UserError: no such files there.
    """

    def __init__(self, folder: os.PathLike | str, codec: Codec):
        self._root = paths.absolute(folder)
        with files.reported(self._root):
            if not self._root.is_dir():
                raise UserError(f'{folder}: no such folder')
            classes = sorted(p.name for p in self._root.iterdir() if p.is_dir())
            names = {
                name: sorted(p.name for p in (self._root / name).iterdir()) for name in classes
            }
        self.class_names = tuple(classes)
        every = [(c, file) for c, name in enumerate(classes) for file in names[name]]
        self._files = [(c, file) for c, file in every if file.endswith('.npz')]
        self.left_out = len(every) - len(self._files)  # files that are no .npz
        if not self._files:
            raise UserError(f'{folder}: holds no CLASS/FILE.npz')
        self._codec = codec

    def __len__(self) -> int:
        return len(self._files)

    def contents(self, dtype: str, shard_rows: int) -> Contents:
        """See `Rows`; the pictures' size is told by the first readable file."""
        names = files.text_hash(f'{self.class_names[c]}/{file}' for c, file in self._files)
        maker = _maker(self._codec)
        for row in self.rows(0, len(self)):
            if isinstance(row, Row):
                image_size = row.views.shape[1] * maker.stride
                return Contents(
                    Origin('npz', names, len(self)), maker, image_size, dtype, shard_rows
                )
        raise UserError(f'{self._root}: not one file could be read')

    def _read(self, i):
        label, file = self._files[i]
        name = f'{self.class_names[label]}/{file}'
        try:
            data = (self._root / name).read_bytes()
            views = np.stack(npz.loads(data, ('moments', 'moments_flip')))
            if views.dtype.kind != 'f':
                raise ValueError(f'holds {views.dtype}, no real numbers')
        except OSError as error:
            return Skipped(name, error.strerror or gcs.brief(error))
        except ValueError as error:
            return Skipped(name, str(error))
        try:
            views = self._codec.tokenizer.from_official_cache(views)
        except UserError as error:
            raise UserError(f'{name}: {error}') from error
        return Row(label, name.removesuffix('.npz'), views)

    def rows(self, start: int, stop: int) -> Iterator[Row | Skipped]:
        """See `Rows`."""
        return read_all(self._read, start, stop)
