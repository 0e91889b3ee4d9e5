"""Examples that are held back from training: which they are, and that nothing else changes."""

import dataclasses
import inspect

import numpy as np
import pytest

from emigm_jax.checkpoints import runs, store
from emigm_jax.config import resuming
from emigm_jax.config.load import config_of
from emigm_jax.config.settings import Config, DataConfig
from emigm_jax.data import datasets, parts, pipeline, sizes
from emigm_jax.data.interface import Dataset
from emigm_jax.errors import UserError
from emigm_jax.io import paths
from emigm_jax.parallel import sharding
from emigm_jax.training import start
from support import caches
from support.pictures import write_folder


class Numbered(Dataset):
    """Data whose rows are their own indices."""

    flip, class_names, fingerprint, misfits = True, ('a', 'b'), 'numbered', {'data.patch': 3}
    grid, channels, codes, classes, codec, params = 4, 0, 7, 2, None, {'w': 1}
    settings, remarks, enlarges, one_by_one = DataConfig(), ('two of them',), True, True

    def __init__(self, examples):
        self.examples = examples

    def read(self, indices, mirrored):
        return {'index': indices, 'mirrored': mirrored}

    def to_batch(self, params, rows, key):
        return params, rows, key


@pytest.fixture(scope='module')
def config():
    return sizes.known(config_of('digits:smoke', {'data.held_back': 10}))


def both(whole, n):
    return parts.trained(whole, n), parts.held_back(whole, n)


def rows(data, indices=None):
    indices = np.arange(data.examples) if indices is None else indices
    return data.read(indices, np.zeros(len(indices), bool))


def refused(says, make):
    with pytest.raises(UserError) as error:
        make()
    assert str(error.value) == says


# --- Of any data ---------------------------------------------------------------------------------


@pytest.mark.parametrize('n', [2, 3, 10, 33])
@pytest.mark.parametrize('examples', [33, 34, 60, 1000])
def test_every_example_is_in_one_part(n, examples):
    trained, held_back = (rows(part)['index'] for part in both(Numbered(examples), n))
    of = np.arange(examples)
    np.testing.assert_array_equal(trained, of[of % n != n - 1])
    np.testing.assert_array_equal(held_back, of[of % n == n - 1])
    assert len(held_back) == examples // n


def test_all_else_is_as_in_the_whole():
    whole = Numbered(30)
    for part in both(whole, 4):
        for name in inspect.get_annotations(Dataset).keys() - {'examples', 'fingerprint'}:
            assert getattr(part, name) == getattr(whole, name)
        mirrored = np.array([True, False])
        np.testing.assert_array_equal(part.read(np.arange(2), mirrored)['mirrored'], mirrored)
        assert part.to_batch(1, 2, 3) == (1, 2, 3)


def test_fingerprints():
    whole = Numbered(30)
    found = {whole.fingerprint, *(part.fingerprint for n in (2, 4) for part in both(whole, n))}
    assert len(found) == 5
    assert parts.trained(whole, 0) is whole


def test_an_epoch_is_a_permutation_of_the_part():
    (trained, _), seen = both(Numbered(25), 5), []
    for batch in pipeline.host_rows(trained, 10, 3, 0, 4):
        seen += list(batch['index'])
    for epoch in (seen[:20], seen[20:]):
        assert sorted(epoch) == [i for i in range(25) if i % 5 != 4]
    assert seen[:20] != seen[20:]


def test_too_few():
    for part in (parts.trained, parts.held_back):
        says = 'data.held_back = 10 holds back none of 9 examples: say --config.data.held_back='
        refused(f'{says}9 or less', lambda part=part: part(Numbered(9), 10))
        says = 'data.held_back = 2 holds back none of 1 examples: say --config.data.held_back=0'
        refused(says, lambda part=part: part(Numbered(1), 2))
    refused('data.held_back must be at least 2, not 1', lambda: DataConfig(held_back=1))


# --- Digits, caches and pictures -----------------------------------------------------------------


@pytest.mark.parametrize(
    'changes', [{}, {'model.head': 'categorical', 'data.levels': 17, 'data.patch': 1}]
)
def test_digits(changes):
    config = config_of('digits:smoke', {**changes, 'data.held_back': 7})
    whole = datasets.dataset(config_of(config, {'data.held_back': 0}))
    assert isinstance(whole, datasets.Digits) and whole.fingerprint == 'digits'
    of, read = np.arange(whole.examples), rows(whole)
    for part, chosen in (
        (datasets.dataset(config), of % 7 != 6),
        (datasets.held_back(config), of % 7 == 6),
    ):
        assert part.examples == chosen.sum()
        for name, values in rows(part).items():
            np.testing.assert_array_equal(values, read[name][chosen])
        # Every class is in both parts.
        assert len(np.unique(rows(part)['labels'])) == 10
    assert sizes.fitted(config, datasets.dataset(config)) == sizes.known(config)


def test_synthetic(config):
    changes = {'data.name': 'synthetic', 'data.examples': 10, 'data.held_back': 3}
    config = config_of(config, changes)
    assert [d.examples for d in (datasets.dataset(config), datasets.held_back(config))] == [7, 3]


def test_a_cache(tmp_path):
    path, others = tmp_path / 'cache', tmp_path / 'others'
    caches.make(path)
    caches.make(others, caches.Made(20))
    data = DataConfig('latents', str(path), held_back=4, local_copy=str(tmp_path / 'copy'))
    config = dataclasses.replace(Config(), data=data)
    config = sizes.fitted(config, datasets.dataset(config))
    (tmp_path / 'copy').rename(tmp_path / 'gone')  # which is of the hosts that trained
    whole = datasets.Latents(DataConfig('latents', str(path)))
    held_back = datasets.held_back(config)
    np.testing.assert_array_equal(rows(held_back)['raw'], rows(whole)['raw'][3::4])
    assert whole.flip and datasets.dataset(config).flip and not held_back.flip
    # Other data are taken as a whole, whatever was held back of the first.
    other = datasets.held_back(config, str(others))
    assert isinstance(other, datasets.Latents) and not other.flip
    assert (other.examples, whole.examples) == (17, 43)
    assert rows(other)['raw'].shape[0] == 17


def test_what_stands_in_is_of_the_same_part(tmp_path):
    """A held-back picture is never trained on, not even for one that cannot be read."""
    for n in (0, 2, 3, 7):
        for index in range(8):
            found = list(parts.stand_ins(index, 8, n))
            want = [i for i in range(8) if not n or (i % n == n - 1) == (index % n == n - 1)]
            assert found[0] == index and sorted(found) == want
    folder = write_folder(tmp_path / 'pictures', 14, np.random.default_rng(0))
    data = DataConfig('folder', str(folder.path), image_size=8, patch=4, held_back=2)
    config = dataclasses.replace(Config(), data=data)
    images = [rows(d)['images'] for d in (datasets.dataset(config), datasets.held_back(config))]
    seen = [{image.tobytes() for image in part} for part in images]
    assert sum(map(len, seen)) == len(folder.readable) and not seen[0] & seen[1]


# --- Runs ----------------------------------------------------------------------------------------


def test_a_run_goes_on_with_the_same_part_only(config, tmp_path):
    data, tmp_path = datasets.dataset(config), paths.absolute(tmp_path)
    assert data.fingerprint != 'digits'
    stored = store.Checkpoint(tmp_path, {}, {})
    saved = runs.Saved(stored, 1, config, {}, {}, data.fingerprint)
    start.check_resumable(saved, config, data, tmp_path)
    assert datasets.held_back(saved.config, trained_on=saved.data).examples == 179
    for n in (0, 5):
        other = config_of(config, {'data.held_back': n})
        data = datasets.dataset(other)
        with pytest.raises(UserError, match=r'data.held_back 10 -> .*use another --workdir'):
            start.check_resumable(saved, other, data, tmp_path, ('data.flip',))
        with pytest.raises(UserError, match='trained on other data of the same kind'):
            start.check_resumable(saved, config, data, tmp_path)


def test_batches_of_a_part(config):
    data, mesh = datasets.dataset(config), sharding.make_mesh(config.mesh)
    (batch,) = pipeline.batches(data, 16, 0, 5, 6, mesh)
    want = rows(data, pipeline.indices(data.examples, 16, 0, 5))
    np.testing.assert_array_equal(batch.labels, want['labels'])
    np.testing.assert_array_equal(batch.tokens, want['tokens'])


def test_no_run_goes_on_with_another_part():
    assert not resuming.changeable('data.held_back')
    with pytest.raises(UserError, match=r'--allow-changes data.held_back: cannot change'):
        resuming.check_names(['data.held_back'])


def test_nothing_was_held_back(config):
    refused(
        'nothing was held back from training: train with --config.data.held_back=10, or name '
        'other data with --data',
        lambda: datasets.held_back(config_of(config, {'data.held_back': 0})),
    )


def test_data_that_cannot_be_taken(config, tmp_path):
    refused(
        '--data goes with latents, folder, tfds, not with digits',
        lambda: datasets.held_back(config, str(tmp_path)),
    )
    with pytest.raises(UserError, match='the data have changed since training'):
        datasets.held_back(config, trained_on='digits')
    caches.make(tmp_path / 'cache')
    fits = {'grid': 4, 'channels': 3, 'classes': 4}
    other = config_of(
        Config(),
        {
            'data.name': 'latents',
            'data.path': str(tmp_path / 'none'),
            **{f'model.{name}': size for name, size in fits.items()},
        },
    )
    refused(
        f'{tmp_path}/cache: needs model.classes = 3, not 4',
        lambda: datasets.held_back(other, str(tmp_path / 'cache')),
    )
    with pytest.raises(UserError, match=f'{tmp_path}/none'):
        datasets.held_back(other, str(tmp_path / 'none'))
