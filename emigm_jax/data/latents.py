"""A cache of raw latents on disk: sharded .npy files beside a manifest that says what they are.

    CACHE/manifest.json      tokenizer, source, counts, shape, dtype, checksums; written last
    CACHE/labels.npy         (M,) int32
    CACHE/names.txt          the source name of every row, one JSON string a line
    CACHE/skipped.jsonl      pictures that could not be read, and why
    CACHE/shards/00000.npy   (R, 2, h, w, c): row r as it is, and of the mirrored picture;
                             codes (R, 2, h, w) uint16
    CACHE/shards/00000.json  rows, labels, names and checksum of that shard

Rows hold what the tokenizer's network gave (moments, latents or codes; raw latents are cached,
scale is data), so that moments are sampled afresh and scaled when they are used.
"""

import contextlib
import itertools
import os
import resource
import threading
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from etils import epath

from emigm_jax.data import manifest as manifests
from emigm_jax.errors import UserError
from emigm_jax.io import files, npz, paths

VIEWS = manifests.VIEWS


def shard_file(number: int, ending: str = 'npy') -> str:
    """Path of a shard inside its cache."""
    return f'shards/{number:05}.{ending}'


class Cache:
    """A finished cache, opened for reading rows at random from any number of threads.

    Rows are read with positioned reads into the batch itself, not mapped: mapped pages would count
    as this process's memory, and a cache is larger than that.

    Raises:
      UserError: there is no finished cache at `path`, or a shard is missing or cut short.
    """

    def __init__(self, path: os.PathLike | str):
        self.path = paths.absolute(path)
        self.manifest = read_manifest(self.path)
        self.labels = _labels(self.path, self.manifest)
        self.shape = tuple(self.manifest.shape)
        self.dtype = np.dtype(self.manifest.contents.dtype)
        self.shards = self.manifest.shards
        rows = np.array([shard.rows for shard in self.shards], np.int64)
        self._row_bytes = int(np.prod(self.shape)) * self.dtype.itemsize
        self._ends = np.cumsum(rows)
        self._starts = self._ends - rows
        # What stands before a shard's rows is the header of its .npy.
        sizes = np.array([shard.bytes for shard in self.shards], np.int64)
        self._offsets = sizes - rows * VIEWS * self._row_bytes
        self.far = files.remote(self.path)  # a request takes longer than a row
        kind = _Bucket if self.far else _Disk
        self._files = kind(self.path, self.shards)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def take(self, indices: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
        """Rows (B, h, w, c), or codes (B, h, w), of `indices` (B,).

        Mirrored where `mirrored` (B,) says so.
        """
        indices = np.asarray(indices, np.int64)
        if len(indices) and (indices.min() < 0 or indices.max() >= len(self)):
            raise IndexError(f'rows 0 to {len(self) - 1}, not {indices.min()}..{indices.max()}')
        shards = np.searchsorted(self._ends, indices, side='right')
        rows = (indices - self._starts[shards]) * VIEWS + np.asarray(mirrored, np.int64)
        out = np.empty((len(indices), *self.shape), self.dtype)
        with files.reported(self.path):
            self._files.read(shards, self._offsets[shards] + rows * self._row_bytes, out)
        return out

    def _shard(self, row):
        return int(np.searchsorted(self._ends, row, side='right'))

    def stretches(self, ends: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        """Rows from one index to before another, both views (R, 2, h, w, ...), of each pair.

        Of a cache that is `far`. A stretch is one read, or one of each shard in which it lies; all
        at the same time.
        """
        parts = [
            (number, max(begin, int(self._starts[number])), min(end, int(self._ends[number])))
            for begin, end in ends
            for number in range(self._shard(begin), self._shard(end - 1) + 1)
            if self.shards[number].rows
        ]
        size = VIEWS * self._row_bytes
        ranges = [
            (n, int(self._offsets[n]) + (a - int(self._starts[n])) * size, (b - a) * size)
            for n, a, b in parts
        ]
        assert isinstance(self._files, _Bucket)  # what is near is read row by row
        with files.reported(self.path):
            content = b''.join(self._files.ranges(ranges))
        rows = np.frombuffer(content, self.dtype).reshape(-1, VIEWS, *self.shape)
        edges = np.cumsum([end - begin for begin, end in ends])[:-1]
        return [stretch.copy() for stretch in np.split(rows, edges)]  # one goes before the others

    def shard(self, number: int) -> np.ndarray:
        """A whole shard (R, 2, h, w, ...), checked against its checksum."""
        check_shard(self.path, number, self.shards[number])
        rows = _array(self.path / shard_file(number))
        wanted = (self.shards[number].rows, VIEWS, *self.shape)
        if rows.shape != wanted or rows.dtype != self.dtype:
            raise UserError(
                f'{self.path / shard_file(number)}: holds {rows.dtype} {rows.shape}, the manifest '
                f'says {self.dtype} {wanted}'
            )
        return rows

    def verify(self, progress: Callable[[range], Iterable[int]] = lambda shards: shards) -> None:
        """Compares every shard with its checksum, and codes with the codebook.

        `progress` wraps the iteration.
        """
        maker = self.manifest.contents.tokenizer
        for number in progress(range(len(self.shards))):
            if not maker.codes:
                check_shard(self.path, number, self.shards[number])
            elif (largest := self.shard(number).max(initial=0)) >= maker.codes:
                raise UserError(
                    f'{self.path / shard_file(number)}: holds code {largest}, {maker.name} has 0 '
                    f'to {maker.codes - 1}; prepare the cache again'
                )


class _Disk:
    """Positioned reads of local shards.

    Half of the files that this process may open stay open once they are. Which rows come is random,
    so of more shards none is likelier to be asked for soon, and the others are opened each time.
    """

    def __init__(self, path, shards):
        self._paths = [os.path.join(path, shard_file(n)) for n in range(len(shards))]
        self._open, self._lock = {}, threading.Lock()
        may_open, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._stay = may_open // 2 if may_open != resource.RLIM_INFINITY else len(shards)
        for file, shard in zip(self._paths, shards, strict=True):
            if not os.path.exists(file):
                raise UserError(
                    f'{file}: the shard is missing; copy it again, or delete its .json '
                    'and run `emigm prepare latents` again'
                )
            size = os.path.getsize(file)
            if size != shard.bytes:
                raise UserError(
                    f'{file}: has {size} bytes in place of {shard.bytes}; copy it again, or '
                    'delete its .json and run `emigm prepare latents` again'
                )

    @contextlib.contextmanager
    def _descriptor(self, number):
        with self._lock:
            descriptor = self._open.get(number)
            if descriptor is None and len(self._open) < self._stay:
                descriptor = self._open[number] = os.open(self._paths[number], os.O_RDONLY)
        if descriptor is not None:
            yield descriptor
            return
        descriptor = os.open(self._paths[number], os.O_RDONLY)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def read(self, shards, offsets, out):
        # In the order in which they lie on the disk.
        buffer, size = memoryview(out).cast('B'), out[0].nbytes
        order = np.lexsort((offsets, shards))
        for number, rows in itertools.groupby(order.tolist(), lambda i: int(shards[i])):
            with self._descriptor(number) as descriptor:
                for i in rows:
                    part = buffer[i * size : (i + 1) * size]
                    if os.preadv(descriptor, [part], int(offsets[i])) != size:
                        raise UserError(f'{self._paths[number]}: the shard was cut short')

    def __del__(self):
        for descriptor in self._open.values():
            os.close(descriptor)


class _Bucket:
    """Ranged reads of the shards in a bucket, all rows of a batch at the same time."""

    def __init__(self, path, shards):
        import fsspec

        self._system, root = fsspec.core.url_to_fs(str(path))
        self._paths = [f'{root}/{shard_file(n)}' for n in range(len(shards))]

    def read(self, shards, offsets, out):
        rows = out.reshape(len(out), -1).view(np.uint8)
        size = rows.shape[1]
        wanted = [(n, at, size) for n, at in zip(shards.tolist(), offsets.tolist(), strict=True)]
        for row, part in zip(rows, self.ranges(wanted), strict=True):
            row[:] = np.frombuffer(part, np.uint8)

    def ranges(self, wanted):
        """The bytes of each (number of a shard, offset, size)."""
        numbers, starts, sizes = zip(*wanted, strict=True)
        ends = [start + size for start, size in zip(starts, sizes, strict=True)]
        names = [self._paths[n] for n in numbers]
        parts = self._system.cat_ranges(names, list(starts), ends, on_error='raise')
        if tuple(map(len, parts)) != sizes:
            raise UserError('a shard was cut short')
        return parts


def read_manifest(path: os.PathLike | str) -> manifests.Manifest:
    """The manifest of a finished cache.

    Raises:
      UserError: none there, or of a format of the future.
    """
    path = paths.absolute(path)
    value = files.read_json(path / 'manifest.json')
    if value is None:
        hint = (
            'preparing it has not ended: run the same `emigm prepare latents` again'
            if (path / 'settings.json').exists()
            else '`emigm prepare latents` makes one'
        )
        raise UserError(f'{path}: holds no finished latent cache; {hint}')
    return manifests.from_json(value, path)


def _array(file):
    """The array in an .npy file that is small enough to be read whole."""
    with files.reported(file):
        content = file.read_bytes()
    try:
        return npz.array(content)
    except ValueError as error:
        raise UserError(f'{file}: is damaged ({error})') from error


def _labels(path, manifest):
    file, classes = path / 'labels.npy', len(manifest.class_names)
    labels = _array(file)
    if labels.shape != (manifest.count,) or labels.dtype != np.int32:
        raise UserError(
            f'{file}: has labels {labels.dtype} {labels.shape} for {manifest.count} rows'
        )
    if len(labels) and not (labels.min() >= 0 and labels.max() < classes):
        raise UserError(
            f'{file}: has labels {labels.min()} to {labels.max()}, there are {classes} classes'
        )
    return labels


def check_shard(path: epath.Path, number: int, shard: manifests.Shard) -> None:
    """Raises UserError unless a shard has the content that its checksum says."""
    file = path / shard_file(number)
    if not file.exists():
        raise UserError(f'{file}: the shard is missing')
    if files.sha256(file) != shard.sha256:
        raise UserError(
            f'{file}: the shard is corrupted (its checksum differs); copy it again, or delete it '
            'and its .json and run `emigm prepare latents` again'
        )
