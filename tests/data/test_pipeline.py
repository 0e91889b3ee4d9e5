"""Order over epochs, steps and hosts; how rows become tokens."""

import numpy as np
import pytest

from emigm_jax.config import settings
from emigm_jax.data import datasets, pipeline
from emigm_jax.data.interface import Dataset
from emigm_jax.errors import UserError
from emigm_jax.parallel import sharding
from emigm_jax.tokenizers import codec
from support.caches import GOOD, Made, make
from support.small_tokenizers import small


class Numbered(Dataset):
    """Data whose rows are their own indices."""

    flip = True

    def __init__(self, examples, one_by_one):
        self.examples, self.one_by_one = examples, one_by_one

    def read(self, indices, mirrored):
        assert len(indices) == 1 or not self.one_by_one
        return {'tokens': np.stack([indices, mirrored], 1)}

    def to_batch(self, params, rows, key):
        raise AssertionError('nothing here comes to a device')


def stream(hosts, start=0, stop=30, batch=20, examples=200, one_by_one=False):
    """(rows, 2) of steps start to stop, put together from the shares of several hosts."""
    data = Numbered(examples, one_by_one)
    parts = [
        [b['tokens'] for b in pipeline.host_rows(data, batch, 5, start, stop, rows)]
        for rows in np.split(np.arange(batch), hosts)
    ]
    return np.concatenate([np.concatenate(step) for step in zip(*parts, strict=True)])


def test_every_index_once_an_epoch_on_any_number_of_hosts():
    one = stream(1)
    for hosts in (1, 2, 4):
        seen = stream(hosts)
        np.testing.assert_array_equal(np.bincount(seen[:, 0]), 3)
        np.testing.assert_array_equal(seen, one)
    for epoch in range(3):
        np.testing.assert_array_equal(np.sort(one[epoch * 200 : (epoch + 1) * 200, 0]), range(200))
    assert 0.4 < one[:, 1].mean() < 0.6


def test_pictures_come_in_the_same_order():
    one = stream(1)
    for hosts in (1, 2, 4):
        np.testing.assert_array_equal(stream(hosts, one_by_one=True), one)
    np.testing.assert_array_equal(stream(2, 7, one_by_one=True), one[140:])


def test_resuming_continues_the_sequence():
    one = stream(1)
    for start in range(1, 30):
        np.testing.assert_array_equal(stream((1, 2, 4)[start % 3], start), one[start * 20 :])
    # Epochs that end inside a batch.
    whole = stream(1, examples=33)
    np.testing.assert_array_equal(stream(4, 11, examples=33), whole[220:])
    np.testing.assert_array_equal(np.bincount(whole[: 33 * 18, 0]), 18)


def test_moments_are_drawn_afresh_and_scaled(tmp_path):
    make(tmp_path / 'cache')
    config = settings.DataConfig('latents', str(tmp_path / 'cache'), flip=False)
    data = datasets.Latents(config)
    mesh = sharding.make_mesh(sharding.MeshConfig())
    steps = list(pipeline.batches(data, 40, 0, 0, 4, mesh))
    again = list(pipeline.batches(data, 40, 0, 2, 4, mesh))
    for a, b in zip(steps[2:], again, strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens)
    assert steps[0].tokens.shape == (40, 16, 3)
    # The same row in two epochs: another draw around the same mean.
    indices = [pipeline.indices(len(data.cache), 40, 0, step) for step in range(2)]
    row = np.intersect1d(*indices)[0]
    first, second = (steps[s].tokens[list(indices[s]).index(row)] for s in range(2))
    assert float(np.abs(first - second).max()) > 1e-3
    mean, log_variance = np.split(Made.views(GOOD[row])[0].reshape(16, 6), 2, axis=1)
    noise = (np.asarray(first) / 0.2325 - mean) / np.exp(0.5 * log_variance)
    assert 0.5 < noise.std() < 1.5


def test_another_tokenizer_is_refused(tmp_path):
    tokenizer = small('kl16')
    codec.save(tmp_path / 'kl16', tokenizer)
    make(tmp_path / 'cache')
    config = settings.DataConfig('latents', str(tmp_path / 'cache'), str(tmp_path / 'kl16'))
    with pytest.raises(UserError, match='was made with another tokenizer'):
        datasets.Latents(config)
