"""Caches of many shards: how many files are open, how many descriptions are read."""

import os
import subprocess
import sys

import numpy as np
import pytest

from emigm_jax.benchmark import scale
from emigm_jax.data import latents, prepare
from emigm_jax.io import files
from support.caches import CONTENTS, GOOD, Made, make

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


@pytest.mark.slow
def test_every_row_is_read_with_256_open_files(tmp_path):
    command = [sys.executable, '-c', READS, str(scale.many_shards(tmp_path / 'cache'))]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    print(told)
    assert told.startswith(f'{scale.SHARDS} shards')


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


def test_a_worker_reads_no_descriptions_but_the_last(tmp_path, monkeypatch):
    read, inner = [], files.read_json
    monkeypatch.setattr(
        files, 'read_json', lambda path: read.append(os.path.basename(path)) or inner(path)
    )
    shards = -(-50 // CONTENTS.shard_rows)
    described = []
    for worker in range(3):
        read.clear()
        prepare.prepare(tmp_path, Made(), CONTENTS, (worker, 3), max_unreadable=0.2)
        described.append({name for name in read if name[:5].isdigit()})
    assert [len(names) for names in described] == [0, 0, shards]
    assert latents.Cache(tmp_path).manifest.count == len(GOOD)
