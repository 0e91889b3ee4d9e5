"""Sets of images to be measured: made by a checkpoint, in a folder, or in an npz file."""

import dataclasses

import numpy as np

from emigm_jax import files, spread, storage
from emigm_jax.data import folder as folders
from emigm_jax.data import rows as readers
from emigm_jax.data.pictures import center_crop, decode
from emigm_jax.data.sources import Unreadable
from emigm_jax.errors import UserError
from emigm_jax.evaluation import npz


@dataclasses.dataclass(frozen=True)
class Generated:
    """`count` images of a `generate.Generator`, class by class; image i from seed i."""

    generator: object
    count: int
    classes: int

    @property
    def labels(self):
        """(N,): as many of each class as of any other, in order."""
        return np.arange(self.count) * self.classes // self.count

    def __len__(self):
        return self.count

    def batches(self, size, start=0):
        """Yields uint8 (B, H, W, 3) from image `start` on, B = `size` but for the last."""
        labels = self.labels
        for at in range(start, self.count, size):
            stop = min(at + size, self.count)
            # The last batch is filled up, so that every batch has the shape that was compiled.
            fill = lambda a: spread.fill(a, size)
            made = self.generator.batch(fill(labels[at:stop]), fill(np.arange(at, stop)))
            made = np.repeat(made, 3, axis=-1) if made.shape[-1] == 1 else made  # grey
            yield made[: stop - at]


class Folder:
    """The pictures below a folder in order of their names, all of one size.

    Args:
      path: local or gs://.
      image_size: pixels per side of an ADM centre crop; None: pictures as they are.

    Raises:
      UserError: no such folder, or no pictures in it; while reading, a picture that cannot be read
        or has another size than the first.
    """

    def __init__(self, path, image_size=None):
        self._root, self._size = storage.absolute(path), image_size
        self._names, self._bytes = zip(*folders.below(self._root), strict=True)
        self._shape = None

    def __len__(self):
        return len(self._names)

    def fingerprint(self):
        """Digest of names and sizes of the files."""
        pairs = zip(self._names, self._bytes, strict=True)
        return files.text_hash(f'{name} {size} {self._size}' for name, size in pairs)

    def _read(self, i):
        name = self._names[i]
        try:
            image = decode((self._root / name).read_bytes(), name)
        except (OSError, Unreadable) as error:
            reason = getattr(error, 'reason', error)
            raise UserError(f'{self._root}/{name}: cannot be read ({reason})') from error
        return np.asarray(image) if self._size is None else center_crop(image, self._size)

    def batches(self, size, start=0):
        """As `Generated.batches`."""
        held = []
        for i, image in enumerate(readers.read_all(self._read, start, len(self)), start):
            self._shape = self._shape or image.shape
            if image.shape != self._shape:
                shapes = ' and '.join(f'{s[1]}x{s[0]}' for s in (self._shape, image.shape))
                raise UserError(
                    f'{self._root}/{self._names[i]}: the folder holds pictures of several sizes '
                    f'({shapes}); measure one size at a time, or say --image-size'
                )
            held.append(image)
            if len(held) == size or i == len(self) - 1:
                yield np.stack(held)
                held = []


class Npz:
    """The images of an npz file in ADM's layout: arr_0 uint8 (N, H, W, 3)."""

    def __init__(self, path):
        found = npz.members(path)
        if 'arr_0' not in found:
            raise UserError(f'{path}: has no arr_0 (uint8 images), but {", ".join(found)}')
        self.rows = found['arr_0']
        if self.rows.dtype != np.uint8 or len(self.rows.shape) != 4 or self.rows.shape[-1] != 3:
            raise UserError(f'{path}: arr_0 is {self.rows.dtype} {self.rows.shape}, not uint8 '
                            '(N, H, W, 3)')  # fmt: skip

    def __len__(self):
        return len(self.rows)

    def fingerprint(self):
        """Digest of the file."""
        return files.sha256(self.rows.path)[:16]

    def batches(self, size, start=0):
        """As `Generated.batches`; `start` is a multiple of `size`."""
        for number, block in enumerate(self.rows.blocks(size)):
            if number * size >= start:
                yield block
