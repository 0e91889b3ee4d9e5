"""What latent caches are made of: pictures through a tokenizer, or the official per-image files."""

import io
import itertools

import grain
import numpy as np

from emigm_jax.data.pictures import center_crop
from emigm_jax.data.prepare import Row, Skipped
from emigm_jax.data.sources import Unreadable
from emigm_jax.errors import UserError
from emigm_jax.io import files, paths
from emigm_jax.parallel import batches
from emigm_jax.tokenizers import learned

THREADS = 16  # that read and decode pictures; Pillow and files let go of the interpreter


def read_all(read, start, stop):
    """Yields read(i) for start <= i < stop, in order, some of them ahead in other threads."""
    options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=4 * THREADS)
    yield from grain.MapDataset.range(start, stop).map(read).to_iter_dataset(options)


class Encoded:
    """The pictures of a `sources.Source`, cropped and encoded.

    Args:
      source: `sources.Source`.
      tokenizer: `learned.Learned`; `tokenizer.batch` pictures at a time on each device.
      image_size: pixels per side of the crops.
    """

    def __init__(self, source, tokenizer, image_size):
        if learned.KINDS[tokenizer.name].raw == 'codes':
            raise UserError(
                f'{tokenizer.spec.name} makes codes, which nothing here is trained on; '
                'use KL-16 or DC-AE'
            )
        if image_size % tokenizer.spec.stride:
            raise UserError(
                f'--image-size {image_size} is no multiple of the '
                f'{tokenizer.spec.stride} pixels per token of {tokenizer.spec.name}'
            )
        self._source, self._tokenizer, self._size = source, tokenizer, image_size
        self.class_names = source.class_names

    def __len__(self):
        return len(self._source)

    def _read(self, i):
        try:
            example = self._source.example(i)
            return center_crop(example.image, self._size), example.label, example.name
        except Unreadable as error:
            return Skipped(error.name, error.reason)

    def rows(self, start, stop):
        """See `prepare.Rows`."""
        size = batches.padded(self._tokenizer.batch)
        read = read_all(self._read, start, stop)
        while batch := list(itertools.islice(read, size)):
            whole = [entry for entry in batch if not isinstance(entry, Skipped)]
            views = iter(self._encode([image for image, _, _ in whole], size))
            for entry in batch:
                skipped = isinstance(entry, Skipped)
                yield entry if skipped else Row(entry[1], entry[2], next(views))

    def _encode(self, images, size):
        """(B, 2, h, w, c) of images; every batch has the one shape that was compiled."""
        if not images:
            return []
        pixels = batches.fill(np.stack(images), size)
        both = [self._tokenizer.encode(view) for view in (pixels, pixels[:, :, ::-1])]
        return np.stack(both, axis=1)[: len(images)]


class OfficialFiles:
    """The official cache: CLASS/FILE.JPEG.npz with `moments` and `moments_flip`, (c, h, w) each.

    KL-16 moments are stored as they are; DC-AE latents were stored times 0.3189, which is undone.

    Raises:
      UserError: no such files there.
    """

    def __init__(self, folder, tokenizer):
        self._root = paths.absolute(folder)
        with files.reported(self._root):
            if not self._root.is_dir():
                raise UserError(f'{folder}: no such folder')
            classes = sorted(p.name for p in self._root.iterdir() if p.is_dir())
            found = {
                name: sorted(p.name for p in (self._root / name).iterdir() if p.suffix == '.npz')
                for name in classes
            }
        self.class_names = tuple(classes)
        self._files = [(c, file) for c, name in enumerate(classes) for file in found[name]]
        if not self._files:
            raise UserError(f'{folder}: holds no CLASS/FILE.npz')
        kind = learned.KINDS[tokenizer.name]
        self._channels = tokenizer.spec.channels * (2 if kind.raw == 'moments' else 1)
        self._scale = 1.0 if kind.raw == 'moments' else kind.scale
        self._title = tokenizer.spec.name

    def __len__(self):
        return len(self._files)

    def fingerprint(self):
        """Hash of the files' names."""
        return files.text_hash(f'{self.class_names[c]}/{file}' for c, file in self._files)

    def image_size(self, tokenizer):
        """Pixels per side of the pictures behind the latents, by the first readable file."""
        for row in self.rows(0, len(self)):
            if isinstance(row, Row):
                return row.views.shape[1] * tokenizer.spec.stride
        raise UserError(f'{self._root}: not one file could be read')

    def _read(self, i):
        label, file = self._files[i]
        name = f'{self.class_names[label]}/{file}'
        try:
            data = (self._root / name).read_bytes()
            with np.load(io.BytesIO(data), allow_pickle=False) as held:
                views = np.stack([held['moments'], held['moments_flip']])
        except Exception as error:  # zipfile, zlib and NumPy each have their own
            return Skipped(name, f'{type(error).__name__}: {" ".join(str(error).split())[:120]}')
        if views.ndim != 4 or views.shape[1] != self._channels:
            raise UserError(
                f'{name}: arrays of {views.shape[1:]} are none of {self._title}, whose '
                f'have {self._channels} channels first'
            )
        return Row(label, name.removesuffix('.npz'), views.transpose(0, 2, 3, 1) / self._scale)

    def rows(self, start, stop):
        """See `prepare.Rows`."""
        return read_all(self._read, start, stop)
