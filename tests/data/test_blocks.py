"""The order of blocks: what it mixes, who reads what, and how seldom a bucket is asked."""

import threading

import jax
import numpy as np
import pytest

from emigm_jax.config.load import config_of
from emigm_jax.config.settings import DataConfig
from emigm_jax.data import blocks, datasets, orders, parts, pipeline
from emigm_jax.data.orders import BLOCK, BLOCKS, LANES, WINDOW
from emigm_jax.training import loop, metrics
from support.caches import GOOD, make
from support.faulty_gcs import Rule

IMAGENET, BATCH = 1_281_167, 2048
RECORDED = [62986, 62984, 788475, 1187130, 228738]


@pytest.mark.parametrize('batch', [1, 3, 100, 256, 2048])
@pytest.mark.parametrize('examples', [1, 31, 32, 33, 1000, 5000])
def test_each_example_once_an_epoch(examples, batch):
    stream = orders.indices(BLOCKS, examples, 7, np.arange(3 * examples), batch)
    stream = stream.reshape(3, examples)
    np.testing.assert_array_equal(np.sort(stream, axis=1), np.tile(np.arange(examples), (3, 1)))
    if examples >= 1000:
        other = orders.indices(BLOCKS, examples, 8, np.arange(examples), batch)
        assert len({row.tobytes() for row in (*stream, other)}) == 4


def test_the_order_is_what_runs_have_recorded():
    found = orders.indices(BLOCKS, IMAGENET, 3, np.arange(IMAGENET - 2, IMAGENET + 3), BATCH)
    assert found.tolist() == RECORDED


def test_a_batch_mixes_many_blocks_and_all_of_an_epoch():
    batch = orders.indices(BLOCKS, IMAGENET, 3, np.arange(50 * BATCH, 51 * BATCH), BATCH)
    assert len(np.unique(batch // BLOCK)) >= LANES * WINDOW // BLOCK
    assert np.mean(np.abs(np.diff(batch)) == 1) < 0.03
    np.testing.assert_allclose(np.histogram(batch, 4, (0, IMAGENET))[0], BATCH / 4, rtol=0.15)


@pytest.mark.parametrize('processes', [16, 256])
def test_a_process_reads_whole_blocks(processes):
    share = BATCH // processes
    mine = np.arange(share) + processes // 2 * share
    steps = [pipeline.indices(IMAGENET, BATCH, 3, step, mine, BLOCKS) for step in range(4 * WINDOW)]
    rows, read = np.concatenate(steps), np.unique(np.concatenate(steps) // BLOCK)
    assert len(np.unique(rows)) == len(rows)
    assert len(read) <= 1.15 * len(rows) / BLOCK


def rows_of(data, order, processes=1, batch=8, steps=6):
    share = batch // processes
    parts_ = [
        list(pipeline.host_rows(data, batch, 5, 0, steps, np.arange(share) + i * share, order))
        for i in range(processes)
    ]
    return [
        {name: np.concatenate([rows[name] for rows in step]) for name in step[0]}
        for step in zip(*parts_, strict=True)
    ]


def same(found, wanted):
    for left, right in zip(found, wanted, strict=True):
        assert left.keys() == right.keys()
        for name, values in left.items():
            np.testing.assert_array_equal(values, right[name])


def test_rows_in_blocks_are_those_of_a_disk(bucket, faults, tmp_path, monkeypatch):
    monkeypatch.setattr(orders, 'BLOCK', 4)  # shards of these rows have 8 or fewer
    monkeypatch.setattr(orders, 'WINDOW', 8)
    make(f'{bucket}/cache')
    make(tmp_path / 'cache')
    near = datasets.Latents(DataConfig(name='latents', path=str(tmp_path / 'cache')))
    away = datasets.Latents(DataConfig(name='latents', path=f'{bucket}/cache', order=BLOCKS))
    assert near.read_near is None
    wanted = rows_of(near, BLOCKS)
    for count in (1, 4):
        same(rows_of(away, BLOCKS, count), wanted)
    same(rows_of(parts.trained(away, 5), BLOCKS), rows_of(parts.trained(near, 5), BLOCKS))
    faults.use(Rule('503'), Rule('short', 'GET .*alt=media'))
    same(rows_of(away, BLOCKS), wanted)
    for data, remarks in ((near, 0), (away, 0)):
        assert len(data.remarks) == remarks
    one_by_one = datasets.Latents(DataConfig(name='latents', path=f'{bucket}/cache'))
    assert 'data.order=blocks' in one_by_one.remarks[0]


def test_a_block_is_fetched_once_and_held_until_it_is_given():
    asked = []

    def fetch(ends):
        asked.extend(ends)
        return [np.arange(*end) for end in ends]

    held = blocks.Blocks(fetch, 8, 100, 4)
    order = np.random.default_rng(0).permutation(32)
    threads = [
        threading.Thread(
            target=lambda rows=rows: np.testing.assert_array_equal(held.take(rows), rows)
        )
        for rows in np.split(order, 4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(asked) == [(0, 8), (8, 16), (16, 24), (24, 32)]
    assert not held._held
    np.testing.assert_array_equal(held.take(np.arange(96, 100)), np.arange(96, 100))
    assert not held._held  # the last one is shorter
    for first in range(0, 80, 8):
        held.take(np.array([first]))
    assert len(held._held) == 4

    def broken(ends):
        raise OSError('gone')

    held = blocks.Blocks(broken, 8, 100, 4)
    for _ in range(2):
        with pytest.raises(OSError, match='gone'):
            held.take(np.arange(3))


def test_a_bucket_is_asked_once_a_block(bucket, faults, monkeypatch):
    make(f'{bucket}/cache')
    counts = {}
    for order in ('permuted', BLOCKS):
        data = datasets.Latents(DataConfig(name='latents', path=f'{bucket}/cache', order=order))
        faults.asked.clear()
        rows = sum(len(step['labels']) for step in rows_of(data, order, steps=len(GOOD) // 8))
        counts[order] = sum('alt=media' in request for request in faults.asked)
        print(f'{order}: {counts[order]} requests for {rows} rows')
    # Two blocks lie in seven shards of seven rows.
    assert counts['permuted'] == rows > 4 * counts[BLOCKS]


@pytest.mark.slow
def test_a_killed_training_goes_on_bit_for_bit(bucket, tmp_path, monkeypatch, capsys):
    """From rows in a bucket; the end is that of an undisturbed one from a disk."""
    monkeypatch.setattr(orders, 'BLOCK', 4)
    monkeypatch.setattr(orders, 'WINDOW', 8)
    make(f'{bucket}/cache')
    make(tmp_path / 'cache')
    write = metrics.Metrics.write

    def dying(self, at, *values):
        if at == 6:
            raise ZeroDivisionError
        write(self, at, *values)

    def train(folder, path):
        changes = {
            'data.path': f'{path}/cache',
            'data.name': 'latents',
            'data.order': BLOCKS,
            'data.tokenizer': '',
            'model.grid': 4,
            'model.channels': 3,
            'model.classes': 3,
            'training.total': '8 steps',
            'training.checkpoint_every': '4 steps',
            'training.log_every': '1 step',
            'training.batch_size': 8,
        }
        return loop.train(config_of('digits:smoke', changes), tmp_path / folder)

    whole = train('whole', tmp_path)
    with monkeypatch.context() as killed, pytest.raises(ZeroDivisionError):
        killed.setattr(metrics.Metrics, 'write', dying)
        train('killed', bucket)
    capsys.readouterr()
    ended = train('killed', bucket)
    assert 'resumed from step 4' in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, ended, whole)
    losses = [
        {line['step']: line['loss'] for line in metrics.read(tmp_path / run)}
        for run in ('whole', 'killed')
    ]
    assert losses[0] == losses[1]
