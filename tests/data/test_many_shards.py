"""Caches of tens of thousands of shards: how many files are open, how many descriptions are read."""

import os
import subprocess
import sys

import numpy as np
import pytest

from emigm_jax.data import latents, prepare
from emigm_jax.data.manifest import Manifest, Shard
from emigm_jax.io import files, npz
from support.caches import CONTENTS, GOOD, SHAPE, Made, make

SHARDS = 25_000

READS = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
import numpy as np
from emigm_jax.data import latents
cache = latents.Cache(sys.argv[1])
rows = np.random.default_rng(0).permutation(len(cache))
for batch in np.array_split(rows, 10):
    found = cache.take(batch, batch % 2 == 1)
    assert (found[:, 0, 0, 0] == batch % 2).all()
    assert len(os.listdir('/proc/self/fd')) <= 200
print(len(cache.shards), 'shards,', len(os.listdir('/proc/self/fd')), 'open files')
"""


def many(folder):
    """A finished cache of `SHARDS` shards of one row, which all are one file."""
    (folder / 'shards').mkdir(parents=True)
    views = np.stack([np.zeros(SHAPE, np.float16), np.ones(SHAPE, np.float16)])[None]
    content = b''.join(npz.npy(views))
    (folder / 'row').write_bytes(content)
    for number in range(SHARDS):
        os.symlink('../row', folder / latents.shard_file(number))
    np.save(folder / 'labels.npy', np.zeros(SHARDS, np.int32))
    shards = (Shard(1, len(content), '0'),) * SHARDS
    manifest = Manifest(CONTENTS, SHARDS, 0, SHAPE, ('a',), shards)
    files.write_json(folder / 'manifest.json', manifest.to_json())
    return folder


@pytest.mark.slow
def test_every_row_is_read_with_256_open_files(tmp_path):
    command = [sys.executable, '-c', READS, str(many(tmp_path / 'cache'))]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    print(told)
    assert told.startswith(f'{SHARDS} shards')


def test_rows_are_the_same_whether_files_stay_open_or_not(tmp_path, monkeypatch):
    make(tmp_path / 'cache')
    cache = latents.Cache(tmp_path / 'cache')
    rows = np.random.default_rng(1).permutation(len(GOOD))
    wanted = cache.take(rows, rows % 3 == 0)
    monkeypatch.setattr(latents.resource, 'getrlimit', lambda _: (4, 4))
    bounded = latents.Cache(tmp_path / 'cache')
    for _ in range(2):
        np.testing.assert_array_equal(bounded.take(rows, rows % 3 == 0), wanted)
    assert len(bounded._files._open) == 2 < len(bounded.shards)


def test_a_worker_reads_no_descriptions_of_others_but_the_last(tmp_path, monkeypatch):
    read, inner = [], files.read_json
    monkeypatch.setattr(
        files, 'read_json', lambda path: read.append(os.path.basename(path)) or inner(path)
    )
    shards = range(-(-50 // CONTENTS.shard_rows))
    described = []
    for worker in range(3):
        read.clear()
        prepare.prepare(tmp_path, Made(), CONTENTS, (worker, 3), max_unreadable=0.2)
        described.append({name for name in read if name[:5].isdigit()})
    assert [len(names) for names in described] == [3, 2, len(shards)]
    assert latents.Cache(tmp_path).manifest.count == len(GOOD)
