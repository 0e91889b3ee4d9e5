"""Orders of epochs: every example once, whatever their number, and as they were recorded."""

import time
import tracemalloc

import numpy as np
import pytest

from emigm_jax.config import settings
from emigm_jax.config.load import load_config
from emigm_jax.data import orders, pipeline
from emigm_jax.data.interface import Dataset
from emigm_jax.errors import UserError
from emigm_jax.training import loop, program

MANY = 100_000_000
KEYED = [89680238, 88631423, 40435695, 42191445, 83332959]
PERMUTED = [6, 8, 4, 1, 3, 5, 9, 7, 0, 2]


class Numbered(Dataset):
    """Data whose rows are their own indices."""

    flip = one_by_one = False
    examples = MANY

    def read(self, indices, mirrored):
        return {'tokens': indices}

    def to_batch(self, params, rows, key):
        raise AssertionError('nothing here comes to a device')


@pytest.mark.parametrize('order', orders.ORDERS)
@pytest.mark.parametrize('examples', [1, 2, 3, 10, 1000, 4097])
def test_each_example_once_an_epoch(order, examples):
    stream = orders.indices(order, examples, 7, np.arange(3 * examples)).reshape(3, examples)
    np.testing.assert_array_equal(np.sort(stream, axis=1), np.tile(np.arange(examples), (3, 1)))
    if (
        examples > 10 and order != orders.BLOCKS
    ):  # another order in each epoch and for each seed, and neighbours part
        other = orders.indices(order, examples, 8, np.arange(examples))
        assert len({row.tobytes() for row in (*stream, other)}) == 4
        assert abs(np.corrcoef(stream[0], np.arange(examples))[0, 1]) < 0.1
        assert np.mean(np.abs(np.diff(stream[0])) == 1) < 0.01


def test_a_hundred_million_examples_begin_at_once():
    data = Numbered()
    seconds = []
    for seed in range(3):
        start = time.process_time()
        (first,) = pipeline.host_rows(data, 1024, seed, 0, 1)
        seconds.append(time.process_time() - start)
    tracemalloc.start()
    (first,) = pipeline.host_rows(data, 1024, 5, 100_000, 100_001)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f'first batch of 1024 of {MANY:,}: {min(seconds) * 1e3:.1f} ms, {peak / 1e6:.2f} MB more')
    assert min(seconds) < 0.05
    assert peak < 50e6
    assert len(np.unique(first['tokens'])) == 1024
    # A part of an epoch holds no example twice, and comes from all of it.
    some = orders.indices('auto', MANY, 5, np.arange(20_000))
    assert len(np.unique(some)) == 20_000
    np.testing.assert_allclose(np.histogram(some, 4, (0, MANY))[0], 5000, rtol=0.05)


def test_orders_are_what_runs_have_recorded():
    """A run that goes on takes the examples that it would have taken."""
    keyed = orders.indices('keyed', MANY, 3, np.array([0, 1, 2, MANY, 2 * MANY - 1]))
    assert keyed.tolist() == KEYED
    permuted = orders.indices('permuted', 10, 3, np.arange(10))
    assert permuted.tolist() == PERMUTED
    for examples, name in ((2**21, 'permuted'), (2**21 + 1, 'keyed')):
        found = (orders.indices(o, examples, 3, np.arange(5)) for o in ('auto', name))
        np.testing.assert_array_equal(*found)


def test_the_setting_names_them_all():
    assert tuple(orders.ORDERS) == settings.EPOCH_ORDERS
    with pytest.raises(UserError, match=r'more than data\.order counts'):
        orders.indices('auto', 2**32 + 1, 0, np.arange(1))


def test_a_run_takes_the_order_that_its_settings_say(tmp_path, monkeypatch):
    class Taken(Exception):
        pass

    def batches(*which):
        raise Taken(which[-1])
        yield  # when it is asked for the first one

    monkeypatch.setattr(program.Program, 'compile', lambda self: None)
    monkeypatch.setattr(pipeline, 'batches', batches)
    config = load_config('digits:smoke', ['--config.data.order=keyed'])
    with pytest.raises(Taken, match=r'^keyed$'):
        loop.train(config, tmp_path / 'run')
