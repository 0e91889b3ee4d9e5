"""Caches copied to a disk: several shards at a time, and nothing half-written is believed."""

import threading
import time

import numpy as np
import pytest

from emigm_jax.data import copies, latents
from emigm_jax.errors import UserError
from emigm_jax.io import files
from support.caches import make

SHARDS = 7


def same(one, other):
    both = [latents.Cache(path) for path in (one, other)]
    rows = [cache.take(np.arange(len(cache)), np.zeros(len(cache), bool)) for cache in both]
    np.testing.assert_array_equal(*rows)


def watched(monkeypatch, act=lambda path: None):
    """Has act(path) called before a file is written; what was written so far, by name."""
    written, write = [], files.write

    def watching(path, chunks):
        act(path)
        write(path, chunks)
        written.append(path.name)

    monkeypatch.setattr(files, 'write', watching)
    return written


def test_shards_are_copied_several_at_a_time(tmp_path, monkeypatch):
    make(tmp_path / 'cache')
    make(tmp_path / 'other', dtype='float32')
    monkeypatch.setattr(copies, 'PARALLEL', 3)
    lock, now, most = threading.Lock(), [], []
    first = threading.Barrier(3, timeout=30)  # three shards that wait for one another

    def act(path):
        with lock:
            now.append(path.name)
            most.append(len(now))
        if path.name in ('00000.npy', '00001.npy', '00002.npy'):
            first.wait()
        time.sleep(0.01)
        with lock:
            now.remove(path.name)

    written = watched(monkeypatch, act)
    copies.copied(tmp_path / 'cache', tmp_path / 'copy')
    same(tmp_path / 'cache', tmp_path / 'copy')
    assert max(most) == 3
    assert len(written) == SHARDS + 3
    assert written[-1] == 'manifest.json'
    with pytest.raises(UserError, match='holds another cache'):
        copies.copied(tmp_path / 'other', tmp_path / 'copy')


def test_what_is_cut_off_is_not_believed(tmp_path, monkeypatch):
    make(tmp_path / 'cache')
    target = tmp_path / 'copy'

    def act(path):
        if path.name == '00005.npy':
            raise KeyboardInterrupt

    with monkeypatch.context() as cut:
        kept = set(watched(cut, act))
        with pytest.raises(KeyboardInterrupt):
            copies.copied(tmp_path / 'cache', target)
        kept = {file.name for file in (target / 'shards').iterdir()}
    assert not kept >= {f'{n:05}.npy' for n in range(SHARDS)}
    with pytest.raises(UserError, match='holds no finished latent cache'):
        latents.Cache(target)
    # As a process leaves them that is killed: a file begun, one cut short, one of zeros.
    (target / latents.shard_file(6)).unlink(missing_ok=True)
    begun = target / 'shards/.00006.npy.12345.partial'
    begun.write_bytes(b'half')
    whole = (target / latents.shard_file(0)).read_bytes()
    (target / latents.shard_file(0)).write_bytes(whole[:-1])
    (target / latents.shard_file(1)).write_bytes(bytes(len(whole)))
    written = watched(monkeypatch)
    copies.copied(tmp_path / 'cache', target)
    same(tmp_path / 'cache', target)
    assert not begun.exists()
    again = {'00000.npy', '00001.npy'} | {f'{n:05}.npy' for n in range(SHARDS)} - kept
    assert {*written} == again | {'00006.npy', 'labels.npy', 'names.txt', 'manifest.json'}


def test_a_source_that_is_damaged_is_named(tmp_path):
    make(tmp_path / 'cache')
    file = tmp_path / 'cache' / latents.shard_file(3)
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(UserError, match=r'copy/shards/00003.npy: .*checksum differs'):
        copies.copied(tmp_path / 'cache', tmp_path / 'copy')
    with pytest.raises(UserError, match='holds no finished latent cache'):
        latents.Cache(tmp_path / 'copy')
