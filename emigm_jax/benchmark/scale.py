"""What a pod of many processes and data of a hundred million images cost, shown by fakes."""

import os
import pathlib
import resource
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from emigm_jax.benchmark import pods, traffic
from emigm_jax.data import blocks, latents, orders, plan
from emigm_jax.data.manifest import Contents, Maker, Manifest, Origin, Shard
from emigm_jax.io import files, npz

PROCESSES, IMAGES, SHARDS, OPEN = 1024, 100_000_000, 25_000, 256
_DEAD, _AT = 700, 100.0  # a process that dies, and when
_BATCH, _SHARES, _STEPS = 1024, 16, 200  # of a batch over processes; batches
# Numbers that an evaluation adds up: pooled and spatial features, splits of the Inception Score.
_TOTALS = 2048 * 2049 + 2023 * 2024 + 10 * 1010 + 1
_SHAPE = (4, 4, 6)  # of a row of the cache that is made


class Figure(NamedTuple):
    """One number that is bounded."""

    what: str
    value: float
    most: float  # that it should be
    unit: str = ''

    @property
    def good(self) -> bool:
        """Whether it is within its bound."""
        return self.value <= self.most


def figures() -> Iterator[Figure]:
    """Yields all of them, in a minute or less."""
    yield from _signs_of_life()
    yield from _sums()
    yield from _order()
    yield from _requests()
    yield from _prepared()
    yield from _shards()


def _signs_of_life():
    pod = f'{PROCESSES:,} processes, {pods.RATE:,} calls/s'
    well = pods.lives(PROCESSES, 300.0)
    yield Figure(f'{pod}: calls of each per beat', well.calls, 4)
    yield Figure(f'{pod}: ended by mistake in 300 s', len(well.ended), 0)
    found = pods.lives(PROCESSES, _AT + 100.0, (_DEAD,), _AT)
    named = [when - _AT for when, said in found.ended.values() if f'process {_DEAD} ' in said]
    late = max(named) if len(named) == PROCESSES - 1 else np.inf
    yield Figure(f'{pod}: a dead one named by all after', late, 60, 's')


def _sums():
    for processes in (2, 64, 256):
        share = traffic.of_sums(processes, 4, _TOTALS) / (8 * _TOTALS)
        what = f'{processes} processes: each receives of the sums of an evaluation'
        yield Figure(what, share, 3, 'x')


def _order():
    what = f'first {_BATCH:,} of {IMAGES:,} images'
    seconds = []
    for seed in range(3):
        start = time.perf_counter()
        orders.indices(orders.AUTO, IMAGES, seed, np.arange(_BATCH))
        seconds.append(time.perf_counter() - start)
    yield Figure(f'{what}: time', min(seconds) * 1e3, 50, 'ms')
    tracemalloc.start()
    orders.indices(orders.AUTO, IMAGES, 0, np.arange(_BATCH))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    yield Figure(f'{what}: memory', peak / 1e6, 50, 'MB')


def _requests():
    """A share of many batches, read in blocks; one by one it is a request for each row."""
    asked, mine = [], np.arange(_BATCH // _SHARES)

    def fetch(ends):
        asked.extend(ends)
        return [np.arange(*stretch) for stretch in ends]

    held = blocks.Blocks(fetch, orders.BLOCK, IMAGES, blocks.MOST)
    for step in range(_STEPS):
        held.take(orders.indices(orders.BLOCKS, IMAGES, 0, step * _BATCH + mine, _BATCH))
    what = f'{IMAGES:,} images on gs:// in {orders.BLOCKS}: requests per 1,000'
    yield Figure(what, 1e3 * len(asked) / (_STEPS * len(mine)), 100)


def _prepared():
    """What eight workers ask a bucket to make a cache of KL-16 latents, which tests count."""
    asked = plan.of(IMAGES, (16, 16, 32), 'float16', 4096, workers=8).requests
    what = f'{IMAGES:,} images prepared on gs:// by 8 workers: requests per 1,000'
    yield Figure(what, 1e3 * asked / IMAGES, 2)


def _shards():
    """Reads every row of a cache of many shards while few files may be open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = len(os.listdir('/dev/fd'))
    with tempfile.TemporaryDirectory() as folder:
        resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN, hard))
        try:
            cache = latents.Cache(many_shards(pathlib.Path(folder)))
            rows = np.random.default_rng(0).permutation(len(cache))
            for batch in np.array_split(rows, 25):
                assert (cache.take(batch, batch % 2 == 1)[:, 0, 0, 0] == batch % 2).all()
            opened = len(os.listdir('/dev/fd')) - before
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    yield Figure(f'{SHARDS:,} shards, each read: files that stay open', opened, OPEN)


def many_shards(folder: pathlib.Path) -> pathlib.Path:
    """Makes a finished cache of `SHARDS` shards of one row, zeros and, mirrored, ones.

    All of them are one file. Returns the folder.
    """
    (folder / 'shards').mkdir(parents=True)
    views = np.stack([np.zeros(_SHAPE, np.float16), np.ones(_SHAPE, np.float16)])[None]
    content = b''.join(npz.npy(views))
    (folder / 'row').write_bytes(content)
    for number in range(SHARDS):
        os.symlink('../row', folder / latents.shard_file(number))
    np.save(folder / 'labels.npy', np.zeros(SHARDS, np.int32))
    contents = Contents(Origin('made', '0', SHARDS), Maker('kl16', '0', 3, 16), 64, 'float16', 1)
    shards = (Shard(1, len(content), '0'),) * SHARDS
    manifest = Manifest(contents, SHARDS, 0, _SHAPE, ('a',), shards)
    files.write_json(folder / 'manifest.json', manifest.to_json())
    return folder
