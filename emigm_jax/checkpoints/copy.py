"""Checkpoint folders copied between local disks and buckets, verified, whole or not at all.

What makes a folder a checkpoint comes last: on a local disk the folder gets its name by being
renamed, in a bucket (nothing is renamed there) the mark of the end is the last object. So a copy
that was killed is never taken for a checkpoint, and the same copy begun again goes on: files that
are there with the right size and checksum stay.
"""

import base64
import concurrent.futures
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable

from emigm_jax.checkpoints import store
from emigm_jax.errors import UserError
from emigm_jax.io import access, files, hub, paths

PARALLEL = 8  # files at a time
_PIECE = 2**24


@dataclasses.dataclass(frozen=True)
class File:
    """A file below a folder."""

    name: str  # relative, with slashes
    size: int
    changed: float  # seconds since 1970
    md5: str = ''  # as a bucket knows it (hex); '' on a local disk


def listing(folder: os.PathLike | str) -> dict[str, File]:
    """Everything below `folder` by name, local or gs://; {} if there is no such folder."""
    folder = paths.absolute(folder)
    with files.reported(folder):
        return _in_bucket(folder) if files.remote(folder) else _on_disk(folder)


def _on_disk(folder):
    root, listed = pathlib.Path(folder), {}
    for path in sorted(root.rglob('*')):
        if path.is_file():
            name, facts = path.relative_to(root).as_posix(), path.stat()
            listed[name] = File(name, facts.st_size, facts.st_mtime)
    return listed


def _in_bucket(folder):
    import fsspec

    system, root = fsspec.core.url_to_fs(str(folder))
    listed = {}
    for path, facts in sorted(system.find(root, detail=True).items()):
        name = path.removeprefix(root).lstrip('/')
        if name:
            md5 = base64.b64decode(facts.get('md5Hash') or '').hex()
            listed[name] = File(name, int(facts['size']), facts['mtime'].timestamp(), md5)
    return listed


def copy(
    source: os.PathLike | str,
    target: os.PathLike | str,
    progress: Callable[[int], object] = lambda size: None,
) -> tuple[int, int, int]:
    """Copies the checkpoint at `source` to `target`, each local or gs://.

    Args:
      source: a finished checkpoint.
      target: a folder that does not exist, or holds part of the same copy.
      progress: called with the bytes just done.

    Returns:
      (number of files, bytes, bytes that were there already).

    Raises:
      UserError: the source is no checkpoint, the target holds something else, or bytes did not
        arrive as they were sent.
    """
    hub.check_not_target(target)
    source, target = paths.absolute(source), paths.absolute(target)
    if not store.is_checkpoint(source):
        raise UserError(f'{source}: holds no finished checkpoint')
    access.probe(source, write=False)
    wanted = listing(source)
    wanted.pop(store.COMMIT_MARK, None)  # the target gets its own
    place = _place(target)
    with files.reported(target):
        if (target / store.mark(target)).exists() or (place != target and target.exists()):
            raise UserError(store.taken(target))
    access.probe(place)
    existing = _cleared(place)
    strange = sorted(existing.keys() - wanted.keys() - {store.COMMIT_MARK})
    if strange:
        raise UserError(
            f'{place}: holds something else ({strange[0]}); choose another target or delete it'
        )

    def one(file):
        kept = _same(source, place, file, existing.get(file.name))
        if not kept:
            _send(source, place, file)
        progress(file.size)
        return file.size if kept else 0

    last = wanted.pop(store.MARK)
    with concurrent.futures.ThreadPoolExecutor(PARALLEL) as pool:
        futures = [pool.submit(one, file) for file in wanted.values()]
        try:
            kept = sum(future.result() for future in concurrent.futures.as_completed(futures))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    kept += one(last)
    _finish(place, target)
    return len(wanted) + 1, sum(f.size for f in wanted.values()) + last.size, kept


def _place(target):
    """Where files gather: a bucket's target itself, on a local disk a folder beside it."""
    return target if files.remote(target) else target.parent / f'.{target.name}.copying'


def _cleared(place):
    """The `listing` of what is there, without the half-written file of a killed process."""
    existing = listing(place)
    for name in [n for n in existing if files.is_partial(n)]:
        with files.reported(place / name):
            (place / name).unlink(missing_ok=True)
        del existing[name]
    return existing


def _same(source, place, file, existing):
    """Whether `existing` at the target (a File or None) is `file` of the source."""
    if existing is None or existing.size != file.size:
        return False
    return _md5(place / file.name, existing.md5) == _md5(source / file.name, file.md5)


def _md5(path, stored=''):
    """Hex digest of a file, `stored` by a bucket, or computed."""
    if stored:
        return stored
    digest = hashlib.md5(usedforsecurity=False)
    with files.reported(path), path.open('rb') as f:
        while piece := f.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _send(source, place, file):
    """Copies one file and reads back what arrived."""
    digest, size = hashlib.md5(usedforsecurity=False), 0

    def pieces():
        nonlocal size
        with files.reported(source / file.name), (source / file.name).open('rb') as f:
            while piece := f.read(_PIECE):
                digest.update(piece)
                size += len(piece)
                yield piece

    files.write(place / file.name, pieces())
    sent = digest.hexdigest()
    if size != file.size or (file.md5 and file.md5 != sent):
        raise UserError(
            f'{source / file.name}: was not read as it is stored (it changed, or the '
            'transfer failed); run the same command again'
        )
    arrived = _arrived(place / file.name)
    if (arrived.size, _md5(place / file.name, arrived.md5)) != (size, sent):
        raise UserError(
            f'{place / file.name}: did not arrive as it was sent; run the same command again'
        )


def _arrived(path):
    """The `File` at `path`."""
    with files.reported(path):
        if not files.remote(path):
            return File(path.name, os.stat(path).st_size, 0.0)
        import fsspec

        system, name = fsspec.core.url_to_fs(str(path))
        facts = system.info(name)
        md5 = base64.b64decode(facts.get('md5Hash') or '').hex()
        return File(path.name, int(facts['size']), 0.0, md5)


def _finish(place, target):
    """Makes what has arrived a checkpoint."""
    files.write_text(place / store.COMMIT_MARK, f'Checkpoint copied whole to {target}')
    if files.remote(target):
        return
    with files.reported(target):
        os.rename(place, target)
        folder = os.open(target.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
