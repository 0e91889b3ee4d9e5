"""A latent cache copied to a disk of each host, whole, several shards at a time.

No order of reading has a host read some shards only. A shuffle of all rows has every host meet rows
of every shard; `blocks` gives a host whole blocks, but other ones in each epoch, which lie in all
shards. So every host copies all of them.
"""

import os
import pathlib
from collections.abc import Callable, Iterable
from concurrent import futures

from etils import epath

from emigm_jax.data import latents
from emigm_jax.data import manifest as manifests
from emigm_jax.errors import UserError
from emigm_jax.io import files, paths

PARALLEL = 8  # shards at a time; each holds a piece in memory
_PIECE = 2**24


def copied(
    path: os.PathLike | str,
    target: os.PathLike | str,
    progress: Callable[[range], Iterable[int]] = lambda shards: shards,
) -> epath.Path:
    """Copies a cache to a local folder, checking every shard; what is there already is kept.

    The manifest comes last: without it nobody takes what is there for a cache.

    Returns:
      `target`. Of several processes on a host one copies, the others wait.

    Raises:
      UserError: `path` holds no cache, `target` another one, or a shard did not arrive as it was
        made.
    """
    import fcntl

    source, target = paths.absolute(path), paths.absolute(target)
    manifest = latents.read_manifest(source)
    with files.reported(target):
        target.mkdir(parents=True, exist_ok=True)
        with open(target / '.lock', 'w') as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            existing = files.read_json(target / 'manifest.json')
            if existing is not None and manifests.from_json(existing, target) == manifest:
                return target
            if existing is not None:
                raise UserError(
                    f'{target}: holds another cache; delete it or choose another data.local_copy'
                )
            _clear(pathlib.Path(target))
            _copy_shards(source, target, manifest.shards, progress)
            for name in ('labels.npy', 'names.txt', 'manifest.json'):
                _copy(source / name, target / name)
    return target


def _clear(target):
    """Removes what killed processes had half written."""
    for file in target.rglob('.*'):
        if files.is_partial(file):
            file.unlink()


def _copy_shards(source, target, shards, progress):
    def one(number):
        name, shard = latents.shard_file(number), shards[number]
        there = target / name
        size = there.stat().length if there.exists() else -1
        if size == shard.bytes and files.sha256(there) == shard.sha256:
            return
        _copy(source / name, there)
        latents.check_shard(target, number, shard)

    with futures.ThreadPoolExecutor(PARALLEL) as pool:
        ends = [pool.submit(one, number) for number in range(len(shards))]
        try:
            for number in progress(range(len(shards))):
                ends[number].result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _copy(source, target):
    with files.reported(source), source.open('rb') as f:
        files.write(target, iter(lambda: f.read(_PIECE), b''))
