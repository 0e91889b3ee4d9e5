"""The latent cache: what is written is what is read, whatever interrupts the writing."""

import errno
import os
import threading

import numpy as np
import pytest

from emigm_jax.cli import main
from emigm_jax.data import latents, prepare, scale
from emigm_jax.data.prepare import Row, Skipped
from emigm_jax.errors import UserError
from emigm_jax.io import files
from support.caches import CONTENTS, GOOD, SHAPE, Made, contents, make


def test_rows_come_back(tmp_path):
    manifest = make(tmp_path / 'cache')
    assert (manifest.count, manifest.skipped) == (len(GOOD), 7)
    cache = latents.Cache(tmp_path / 'cache')
    np.testing.assert_array_equal(cache.labels, [i % 3 for i in GOOD])
    order = np.random.default_rng(0).permutation(len(GOOD))
    mirrored = order % 2 == 1
    taken = cache.take(order, mirrored)
    assert taken.dtype == np.float16
    for row, i, flip in zip(taken, order, mirrored, strict=True):
        np.testing.assert_array_equal(row, Made.views(GOOD[i])[int(flip)].astype(np.float16))
    np.testing.assert_array_equal(cache.shard(0)[0], Made.views(0).astype(np.float16))
    names = (tmp_path / 'cache/names.txt').read_text().splitlines()
    assert names[:4] == ['"0.png"', '"1.png"', '"2.png"', '"4.png"']
    assert '"torn"' in (tmp_path / 'cache/skipped.jsonl').read_text()
    with pytest.raises(IndexError):
        cache.take([len(GOOD)], [False])


def test_many_threads_read_the_same(tmp_path):
    make(tmp_path / 'cache')
    cache = latents.Cache(tmp_path / 'cache')
    order, found = np.arange(len(cache)), {}
    read = lambda n: found.update({n: cache.take(order, order % 2 == 0)})
    threads = [threading.Thread(target=read, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    for other in found.values():
        np.testing.assert_array_equal(other, found[0])


def test_a_shard_of_unreadable_pictures_only(tmp_path):
    class Torn(Made):
        def rows(self, start, stop):
            for row, i in zip(super().rows(start, stop), range(start, stop), strict=True):
                yield Skipped(f'{i}.png', 'torn') if 8 <= i < 16 else row

    with pytest.raises(UserError, match=r'1[1-4] of 50 pictures cannot be read'):
        prepare.prepare(tmp_path / 'strict', Torn(), CONTENTS, max_unreadable=0.2)
    manifest = prepare.prepare(tmp_path / 'c', Torn(), CONTENTS, max_unreadable=0.5)
    assert [shard.rows for shard in manifest.shards][:3] == [7, 0, 7]
    cache = latents.Cache(tmp_path / 'c')
    np.testing.assert_array_equal(cache.take([7], [True])[0], Made.views(16)[1].astype(np.float16))


def test_workers_share_the_shards(tmp_path):
    make(tmp_path / 'one')
    run = lambda worker: prepare.prepare(
        tmp_path / 'three', Made(), CONTENTS, worker, max_unreadable=0.2
    )
    assert run((0, 3)) is None
    assert run((2, 3)) is None
    assert run((1, 3)).count == len(GOOD)
    assert contents(tmp_path / 'one') == contents(tmp_path / 'three')


@pytest.mark.parametrize('fails_at', [1, 2, 5, 9, 16, 17, 19])
def test_a_write_that_fails_loses_nothing(tmp_path, monkeypatch, fails_at):
    """The disk is full at the n-th file; afterwards the same command makes the same bytes."""
    make(tmp_path / 'whole')
    calls, fsync = [], os.fsync

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == fails_at:
            raise OSError(errno.ENOSPC, 'No space left on device')
        fsync(descriptor)

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(UserError, match='No space left on device'):
        make(tmp_path / 'cache')
    assert not list((tmp_path / 'cache').rglob('*.partial'))
    with pytest.raises(UserError, match='no finished latent cache'):
        latents.Cache(tmp_path / 'cache')
    again = Made()
    make(tmp_path / 'cache', again)
    assert contents(tmp_path / 'cache') == contents(tmp_path / 'whole')
    assert len(again.asked) == max(
        0, 7 - max(0, fails_at - 2) // 2
    )  # finished shards are not made again


def test_bad_caches(tmp_path):
    cache = tmp_path / 'cache'
    make(cache)
    with pytest.raises(UserError, match='holds a cache with dtype = "float16", not "float32"'):
        make(cache, dtype='float32')
    with pytest.raises(UserError, match='holds no finished latent cache; `emigm prepare'):
        latents.Cache(tmp_path / 'nothing')
    (tmp_path / 'other').mkdir()
    (tmp_path / 'other/thesis.txt').write_text('mine')
    with pytest.raises(UserError, match='holds something else'):
        make(tmp_path / 'other')
    with pytest.raises(UserError, match=r'do not fit float16; use --dtype float32'):
        make(
            tmp_path / 'large',
            type('Large', (Made,), {'views': lambda _, i: Made.views(i) * 1e6})(),
        )
    shard = cache / latents.shard_file(2)
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r'00002.npy: the shard is corrupted'):
        latents.Cache(cache).verify()
    with pytest.raises(UserError, match=r'00002.npy: the shard is corrupted'):
        scale.measure(latents.Cache(cache))
    shard.write_bytes(content[:-1])
    with pytest.raises(UserError, match=r'00002.npy: has \d+ bytes in place of'):
        latents.Cache(cache)
    shard.unlink()
    with pytest.raises(UserError, match=r'00002.npy: the shard is missing'):
        latents.Cache(cache)
    # The remedy that the lines name works.
    latents_json = shard.with_suffix('.json')
    latents_json.unlink()
    make(cache)
    latents.Cache(cache).verify()
    manifest = files.read_json(cache / 'manifest.json')
    files.write_json(cache / 'manifest.json', {**manifest, 'format': 99})
    with pytest.raises(UserError, match='format 99'):
        latents.Cache(cache)


MAKER = {'name': 'kl16', 'fingerprint': '0', 'channels': 3, 'stride': 16, 'dtype': 'float32'}
CHANGED = {
    'objects': dict(dtype='O'),
    'the other byte order': dict(dtype='>f2'),
    'twice the bytes': dict(dtype='float32'),
    'records': dict(dtype=[['a', 'f2']]),
    'several dtypes': dict(dtype='f2,O'),
    'codes of vectors': dict(dtype='uint16'),
    'negative': dict(shape=[-4, -4, 6]),
    'nothing': dict(shape=[]),
    'a text': dict(shape='446'),
    'no square': dict(shape=[2, 8, 6]),
    'other channels': dict(shape=[4, 4, 5]),
    'a wrong count': dict(count=4),
    'a truth': dict(skipped=True),
    'names by number': dict(class_names=[1, 2, 3]),
    'another tokenizer': dict(tokenizer={**MAKER, 'name': 'os.system'}),
    'more of it': dict(tokenizer={**MAKER, '\x1b[31mred': 1}),
    'no shards': dict(shards=[]),
    'a shard of rows alone': dict(shards=[{'rows': 4, 'bytes': 4, 'sha256': ''}]),
    'a shard of no form': dict(shards=[7]),
}


@pytest.mark.parametrize('what', CHANGED)
def test_a_manifest_is_checked_before_it_is_believed(tmp_path, what):
    make(tmp_path / 'cache', Made(8))
    manifest = files.read_json(tmp_path / 'cache/manifest.json')
    files.write_json(tmp_path / 'cache/manifest.json', {**manifest, **CHANGED[what]})
    with pytest.raises(UserError, match=r'its manifest.json is damaged \(') as caught:
        latents.Cache(tmp_path / 'cache')
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    'labels',
    [
        np.array([{}] * 7),
        np.zeros(7, np.float32),
        np.zeros(7, np.int64),
        np.zeros((7, 1), np.int32),
        np.array([0, 1, 2, 3, 0, 1, 2], np.int32),
        np.full(7, -1, np.int32),
    ],
    ids=['objects', 'floats', 'wide', 'rows', 'of no class', 'negative'],
)
def test_labels_are_those_of_classes(tmp_path, labels):
    make(tmp_path / 'cache', Made(8))
    np.save(tmp_path / 'cache/labels.npy', labels)
    with pytest.raises(UserError, match=r'labels.npy: (has labels|is damaged)'):
        latents.Cache(tmp_path / 'cache')


def test_rows_of_one_cache_have_one_shape(tmp_path):
    class Torn(Made):
        def rows(self, start, stop):
            for i in range(start, stop):
                yield Row(0, f'{i}', Made.views(i)[:, : 4 - (i == 12)])

    with pytest.raises(UserError, match=r'one shape, not .* of 15, \[2, 3, 4, 6\] of 12'):
        make(tmp_path / 'cache', Torn())


def test_bucket(tmp_path):
    """Ranged reads through a file system of its own (in memory) give the rows of the disk."""
    import fsspec

    make(tmp_path / 'cache')
    memory = fsspec.filesystem('memory')
    memory.put(str(tmp_path / 'cache'), '/bucket/cache', recursive=True)
    disk = latents.Cache(tmp_path / 'cache')
    bucket = latents._Bucket('memory://bucket/cache', disk.shards)
    order = np.random.default_rng(1).permutation(len(disk))[:20]
    shards = np.searchsorted(disk._ends, order, side='right')
    size = disk._row_bytes
    offsets = disk._offsets[shards] + (order - disk._starts[shards]) * 2 * size
    out = np.empty((20, *SHAPE), np.float16)
    bucket.read(shards, offsets, out)
    np.testing.assert_array_equal(out, disk.take(order, np.zeros(20, bool)))


def test_scale(tmp_path, capsys):
    """A known distribution: means N(0.5, 2^2), sigma 1.5, so Var = 4 + 2.25."""

    class Known(Made):
        def rows(self, start, stop):
            for i in range(start, stop):
                rng = np.random.default_rng(i)
                mean = 0.5 + 2.0 * rng.standard_normal((2, 4, 4, 3))
                log_variance = np.full((2, 4, 4, 3), 2.0 * np.log(1.5))
                yield Row(0, str(i), np.concatenate([mean, log_variance], -1))

    make(tmp_path / 'cache', Known(400), dtype='float32')
    found = scale.measure(latents.Cache(tmp_path / 'cache'))
    assert abs(found.scale - 6.25**-0.5) < 4 * found.error < 0.01
    # Independent values: the error of a variance is known in closed form.
    values = 400 * 96
    variance_error = np.sqrt(2 * 4.0**2 / values)
    np.testing.assert_allclose(found.error, 0.5 * 6.25**-1.5 * variance_error, rtol=0.2)
    assert main.main(['prepare', 'stats', str(tmp_path / 'cache')]) == 0
    assert "tokenizer's scale   0.23250" in capsys.readouterr().out
