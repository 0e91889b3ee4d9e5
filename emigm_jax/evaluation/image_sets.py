"""Sets of images to be measured: made by a model, pictures in files, or in an npz file."""

import collections
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, final

import numpy as np

from emigm_jax.data import folder as folders
from emigm_jax.data import listing
from emigm_jax.data import rows as readers
from emigm_jax.data.pictures import center_crop
from emigm_jax.data.sources import Example, Source, Unreadable
from emigm_jax.errors import UserError, printable
from emigm_jax.io import files, npz, paths
from emigm_jax.parallel import batches as spread

_SEARCHED = 10_000  # pictures, for more that cannot be read
_NAMED = 4  # of these
_LARGEST = 2**12  # pixels per side of images in an npz file, of which a batch is in memory


class ImageSet(Protocol):
    """Images of one size, numbered from 0."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    @property
    def labels(self) -> np.ndarray | None:
        """(N,) classes that the images were made for; None: nobody knows them."""
        ...

    def batches(self, pieces: Sequence[slice], size: int) -> Iterator[np.ndarray]:
        """Yields uint8 (B, H, W, 3) of every piece, B its length.

        Args:
          pieces: of at most `size` images each, in rising order.
          size: of the batches, so that all can be computed by one program.

        Raises:
          UserError: while it is read, an image that cannot be.
        """
        ...

    def fingerprint(self) -> str:
        """Short digest of what decides the images."""
        ...


@final
@dataclasses.dataclass(frozen=True)
class Generated:
    """`count` images made by a function, class by class; image i from seed i."""

    make: Callable[[np.ndarray, np.ndarray], np.ndarray]  # labels, seeds (B,) -> (B, H, W, colours)
    count: int
    classes: int
    name: str  # of the function: what decides its images, weights and settings
    side: int | None = None  # pixels; None: nobody said

    @property
    def labels(self) -> np.ndarray:
        """As many of each class as of any other, in order."""
        return np.arange(self.count) * self.classes // self.count

    def __len__(self) -> int:
        return self.count

    def fingerprint(self) -> str:
        """See `ImageSet`."""
        return files.text_hash([f'{self.name} {self.count} {self.classes}'])

    def batches(self, pieces: Sequence[slice], size: int) -> Iterator[np.ndarray]:
        """See `ImageSet`; images in grey come in three equal colours."""
        labels = self.labels
        for piece in pieces:
            # Every batch is filled up to the shape that was compiled.
            numbers = np.asarray(spread.fill(np.arange(self.count)[piece], size))
            batch = _coloured(self.make(labels[numbers], numbers))
            yield batch[: piece.stop - piece.start]


@final
class Below(Source):
    """The `Source` of all pictures below a folder, local or gs://, in order of their names;
    it knows no labels.

    Raises:
      UserError: no such folder, or no pictures in it.
    """

    kind = 'folder'
    class_names = ()

    def __init__(self, path: os.PathLike | str):
        self._root = paths.absolute(path)
        listed = listing.below(self._root)
        # What `emigm sample` keeps beside its pictures is nothing that was left out.
        own = collections.Counter({'.json': int(files.claimed(self._root))})
        self.passed_over = collections.Counter(listed.passed_over) - own
        if not listed.pictures:
            others = listing.described(self.passed_over)
            raise UserError(f'{path}: holds no pictures' + f', but {others}' * bool(others))
        self._names, self._bytes = zip(*sorted(listed.pictures), strict=True)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, i: int) -> str:
        """Path of picture i below the folder."""
        return self._names[i]

    def example(self, i: int) -> Example:
        """`Example` i; raises `sources.Unreadable`."""
        return folders.read(self._root, self._names[i], self._bytes[i], -1)

    def fingerprint(self) -> str:
        """Digest of names and sizes of the files."""
        pairs = zip(self._names, self._bytes, strict=True)
        return files.text_hash(f'{name} {size}' for name, size in pairs)


@final
class Pictures:
    """The pictures of a `sources.Source`, all of one size.

    Args:
      source: where they are.
      place: what messages call it.
      image_size: pixels per side of an ADM centre crop; None: pictures as they are.

    Raises:
      UserError: while reading, a picture that cannot be read or has another size than the first.
    """

    labels = None

    def __init__(self, source: Source, place: os.PathLike | str, image_size: int | None = None):
        self._source, self._place, self._size = source, place, image_size
        self.passed_over = source.passed_over

    def __len__(self) -> int:
        return len(self._source)

    def fingerprint(self) -> str:
        """See `ImageSet`."""
        return files.text_hash([f'{self._source.fingerprint()} {self._size}'])

    def _read(self, i):
        try:
            image = self._source.example(i).image
        except Unreadable as error:
            raise UserError(self._unreadable(i, error)) from error
        return np.asarray(image) if self._size is None else center_crop(image, self._size)

    def _unreadable(self, i, error):
        """One line on picture i and the next that cannot be read, to be mended at once."""
        name, reason = printable(error.name), error.reason
        troubles = readers.read_all(self._trouble, i + 1, min(len(self), i + 1 + _SEARCHED))
        others = list(filter(None, troubles))
        also = [f'{name} ({reason})' for name, reason in others[:_NAMED]]
        also += [f'{len(others) - _NAMED} more'] * (len(others) > _NAMED)
        return (
            f'{self._place}/{name}: cannot be read ({reason})'
            + f', nor can {", ".join(also)}' * bool(also)
            + f'; mend or remove {"them" if also else "it"}'
        )

    def _trouble(self, i):
        try:
            self._source.example(i)
        except Unreadable as error:
            return printable(error.name), error.reason
        return None

    def batches(self, pieces: Sequence[slice], size: int) -> Iterator[np.ndarray]:
        """See `ImageSet`."""
        # Whoever begins in the middle must not take the sizes there for those of all.
        shape, numbers = self._read(0).shape, [i for p in pieces for i in range(p.start, p.stop)]
        images = readers.read_all(lambda at: self._read(numbers[at]), 0, len(numbers))
        for piece in pieces:
            batch = []
            for i, image in zip(range(piece.start, piece.stop), images, strict=False):
                if image.shape != shape:
                    shapes = ' and '.join(f'{s[1]}x{s[0]}' for s in (shape, image.shape))
                    raise UserError(
                        f'{self._place}/{self._source.name(i)}: the pictures have several sizes '
                        f'({shapes}); measure one size at a time, or crop them with --image-size'
                    )
                batch.append(image)
            yield np.stack(batch)


@final
@dataclasses.dataclass(frozen=True)
class Stored:
    """The images (N, H, W, 1 or 3) of an `npz.Rows`."""

    rows: npz.Rows
    labels = None

    def __len__(self) -> int:
        return len(self.rows)

    def fingerprint(self) -> str:
        """See `ImageSet`; of the whole file."""
        return files.sha256(self.rows.path)[:16]

    def batches(self, pieces: Sequence[slice], size: int) -> Iterator[np.ndarray]:
        """See `ImageSet`; images in grey come in three equal colours."""
        return map(_coloured, self.rows.slices(pieces))


def side(images: ImageSet, size: int) -> int | None:
    """Pixels per side of the images; None if they are no squares.

    Args:
      images: of which the first batch is made, if need be.
      size: of the batches.
    """
    if isinstance(images, Generated) and images.side is not None:
        return images.side
    height, width = next(iter(images.batches([slice(0, 1)], size))).shape[1:3]
    return height if height == width else None


def folder(path: os.PathLike | str, image_size: int | None = None) -> Pictures:
    """All pictures below a folder, or of one of `emigm sample` its images; UserError as `Below`."""
    images = paths.absolute(path) / 'images'
    if files.claimed(images):  # beside them lies a grid of them all
        path = images
    return Pictures(Below(path), path, image_size)


def stored(path: os.PathLike | str) -> Stored:
    """The images of an npz file: uint8 (N, H, W, 3) in arr_0, as ADM's, or in images, as ours.

    Raises:
      UserError: the file is missing, damaged, or holds something else.
    """
    members = npz.members(path)
    name = next((name for name in ('arr_0', 'images') if name in members), None)
    if name is None:
        raise UserError(f'{path}: has no arr_0 or images (uint8), but {", ".join(members)}')
    rows = members[name]
    fits = rows.dtype == np.uint8 and len(rows.shape) == 4 and rows.shape[-1] in (1, 3)
    if not fits or not min(rows.shape) or max(rows.shape[1:]) > _LARGEST:
        raise UserError(
            f'{path}: {name} is {rows.dtype} {rows.shape}, not uint8 (N, H, W, 3) with up to '
            f'{_LARGEST} pixels per side'
        )
    return Stored(rows)


def _coloured(images):
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images
