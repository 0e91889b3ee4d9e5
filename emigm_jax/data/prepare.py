"""Makes a latent cache shard by shard; may be killed at any moment and run again.

A shard covers a fixed range of source indices and appears under its name only when it is whole,
its .json after it. So a run that is repeated skips what is finished, makes what is not, and ends
with the same bytes as one that was never disturbed. Any number of workers may share the shards.
"""

import abc
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import NamedTuple

import numpy as np

from emigm_jax.checkpoints import copy
from emigm_jax.data import latents
from emigm_jax.data.manifest import Contents, Manifest, Shard
from emigm_jax.errors import UserError
from emigm_jax.io import bounded, files, npz, paths

AHEAD = 16  # descriptions of shards that are read at a time, when all are put together


class Row(NamedTuple):
    """One source picture as the tokenizer's network sees it."""

    label: int
    name: str
    views: np.ndarray  # (2, h, w, c), or codes (2, h, w): as it is, mirrored


class Skipped(NamedTuple):
    """A source picture that cannot be read."""

    name: str
    reason: str


class Rows(abc.ABC):
    """What a cache is made of, in a fixed order."""

    class_names: tuple[str, ...]

    @abc.abstractmethod
    def __len__(self) -> int:
        """How many source pictures there are, unreadable ones included."""

    @abc.abstractmethod
    def contents(self, dtype: str, shard_rows: int) -> Contents:
        """All that decides the content of a cache of these rows."""

    @abc.abstractmethod
    def rows(self, start: int, stop: int) -> Iterator[Row | Skipped]:
        """Yields a `Row` or a `Skipped` for every index from start to stop, in order."""


def prepare(
    target: os.PathLike | str,
    rows: Rows,
    contents: Contents,
    worker: tuple[int, int] = (0, 1),
    max_unreadable: float = 0.001,
    progress: Callable[[int, bool], object] = lambda count, new: None,
) -> Manifest | None:
    """Makes what is missing of the cache at `target`.

    Args:
      target: folder, local or gs://; new, or holding part of the same cache.
      rows: what it is made of.
      contents: of the rows.
      worker: (i, n): makes the shards i, i + n, ...; whoever ends last finishes the cache.
      max_unreadable: share of unreadable pictures above which it fails.
      progress: called with the number of source pictures just done, and whether they are new.

    Returns:
      None if other workers have shards left to make.

    Raises:
      UserError: another cache is there, too much is unreadable, or the place cannot be written.
    """
    target = paths.absolute(target)
    total, size = len(rows), contents.shard_rows
    count = -(-total // size)
    files.claim(target, contents.to_json(), 'a cache')
    skipped = {}
    check = functools.partial(_check_readable, total=total, share=max_unreadable)
    there = _listed(target)
    for number in range(worker[0], count, worker[1]):
        start, stop = number * size, min(total, (number + 1) * size)
        described = _finished(target, number, there)
        if described is None:
            described = _write_shard(
                target, number, rows.rows(start, stop), contents.dtype, progress
            )
        else:
            progress(stop - start, False)
        skipped.update(described['skipped'])
        check(skipped)
    there = _listed(target)
    names = {latents.shard_file(number, 'json') for number in range(count)}
    if not names <= there.keys():
        return None
    return _finish(target, _every(target, count, there), contents, rows.class_names, check)


@dataclasses.dataclass(frozen=True)
class _Described:
    """What the .json of a shard holds; the last three only where there are rows."""

    rows: int
    labels: tuple[int, ...]  # of each row
    names: tuple[str, ...]
    skipped: tuple[tuple[str, ...], ...]  # name and reason of each picture that could not be read
    bytes: int = 0
    sha256: str = ''
    shape: tuple[int, ...] = ()

    def __post_init__(self):
        if max(self.labels, default=0) >= 2**31:
            raise ValueError(f'label {max(self.labels)} is out of range')
        lengths = {len(self.labels), len(self.names)}
        if lengths != {self.rows} or {*map(len, self.skipped)} - {2}:
            raise ValueError(f'names and labels of {self.rows} rows, {lengths} are there')
        if self.rows and not (self.bytes and self.sha256 and self.shape):
            raise ValueError('bytes, sha256 or shape is missing')


def _listed(target):
    """{path inside the cache: bytes} of all shards and their descriptions, by one listing."""
    folder = pathlib.PurePosixPath(latents.shard_file(0)).parent
    found = copy.listing(target / folder)
    return {f'{folder}/{name}': file.size for name, file in found.items()}


def _finished(target, number, there):
    """The description of a shard that is whole, by what was `_listed`, else None."""
    name = latents.shard_file(number, 'json')
    described = files.read_json(target / name) if name in there else None
    if described is None:
        return None
    try:
        bounded.typed(_Described, described)
    except ValueError as error:
        raise UserError(f'{target / name}: is damaged ({error}); delete it') from error
    if not described['rows']:
        return described  # a shard of nothing but unreadable pictures has no rows
    return described if there.get(latents.shard_file(number)) == described['bytes'] else None


def _every(target, count, there):
    """Yields the descriptions of all shards in order, or None and no more; some are read ahead."""
    one = functools.partial(_finished, target, there=there)
    with futures.ThreadPoolExecutor(AHEAD) as pool:
        for first in range(0, count, AHEAD):  # the names of all would take GB
            yield from pool.map(one, range(first, min(first + AHEAD, count)))


def _check_readable(skipped, total, share):
    if len(skipped) > share * total:
        some = '; '.join(f'{n}: {r}' for n, r in sorted(skipped.items())[:3])
        raise UserError(
            f'{len(skipped)} of {total} pictures cannot be read ({some}), more than the share '
            f'{share:g} that --max-unreadable allows'
        )


def _write_shard(target, number, rows, dtype, progress):
    readable, skipped = [], []
    for row in rows:
        progress(1, True)
        (skipped if isinstance(row, Skipped) else readable).append(row)
    described = {
        'rows': len(readable),
        'labels': [int(row.label) for row in readable],
        'names': [row.name for row in readable],
        'skipped': [list(row) for row in skipped],
    }
    if readable:
        _check_alike(target, {row.views.shape: row.name for row in readable})
        views = _converted(np.stack([row.views for row in readable]), dtype, target)
        described |= _write_array(target / latents.shard_file(number), views)
        described['shape'] = list(views.shape[2:])
    files.write_json(target / latents.shard_file(number, 'json'), described)
    return described


def _write_array(path, array):
    """Writes an .npy file; what a shard's description says of it: {bytes, sha256}."""
    content, digest = npz.npy(array), hashlib.sha256()
    for piece in content:
        digest.update(piece)
    files.write(path, content)
    return {'bytes': sum(map(len, content)), 'sha256': digest.hexdigest()}


def _check_alike(target, named):
    """Raises UserError unless rows, {their shape: the name of one of them}, have one shape."""
    if len(named) > 1:
        shown = ', '.join(f'{list(shape)} of {name}' for shape, name in [*named.items()][:2])
        raise UserError(f'{target}: rows of one cache have one shape, not {shown}')


def _converted(views, dtype, target):
    with np.errstate(over='ignore'):
        converted = views.astype(dtype)
    if not np.isfinite(views).all():
        raise UserError(f'{target}: the tokenizer gave numbers that are not finite')
    if not np.isfinite(converted).all():
        raise UserError(
            f'{target}: numbers up to {np.abs(views).max():.3g} do not fit {dtype}; '
            'use --dtype float32 and another target'
        )
    return converted


class _Unfinished(Exception):
    """A shard is not whole after all."""


def _finish(target, every, contents, class_names, check):
    """Writes names, labels and, last of all, the manifest, of the descriptions `every`.

    Returns None if one of them is missing. `check` raises UserError if too much was unreadable.
    """
    shards, labels, skipped, shapes = [], [np.zeros(0, np.int32)], [], {}

    def names():
        for described in every:
            if described is None:
                raise _Unfinished
            labels.append(np.asarray(described['labels'], np.int32))
            skipped.extend(described['skipped'])
            facts = {'bytes': described.get('bytes', 0), 'sha256': described.get('sha256', '')}
            shards.append(Shard(described['rows'], **facts))
            if described['rows']:
                shapes.setdefault(tuple(described['shape']), described['names'][0])
            yield ''.join(json.dumps(name) + '\n' for name in described['names']).encode()

    try:
        files.write(target / 'names.txt', names())
    except _Unfinished:
        return None
    check(dict(skipped))
    if not shapes:
        raise UserError(f'{target}: not one picture could be read')
    _check_alike(target, shapes)
    [shape] = shapes
    # Empty shards get a place too, so that a shard's number says where its pictures come from.
    for number, shard in enumerate(shards):
        if not shard.rows:
            nothing = np.zeros((0, latents.VIEWS, *shape), contents.dtype)
            shards[number] = Shard(0, **_write_array(target / latents.shard_file(number), nothing))
    of_all = np.concatenate(labels)
    _write_array(target / 'labels.npy', of_all)
    lines = (json.dumps({'name': n, 'reason': r}) + '\n' for n, r in skipped)
    files.write(target / 'skipped.jsonl', (line.encode() for line in lines))
    _sweep(target)
    manifest = Manifest(
        contents,
        count=len(of_all),
        skipped=len(skipped),
        shape=shape,
        class_names=tuple(class_names),
        shards=tuple(shards),
    )
    files.write_json(target / 'manifest.json', manifest.to_json())
    return manifest


def _sweep(target):
    """Removes what killed processes left under temporary names."""
    if files.remote(target):
        return
    for folder in (target, target / 'shards'):
        for partial in folder.glob('.*.partial'):
            partial.unlink(missing_ok=True)
