"""Checkpoints of older code are read by this code, and say so when they are of newer code."""

import functools
import json
import warnings
import zipfile

import jax
import numpy as np
import pytest

import emigm_jax as em
from emigm_jax.checkpoints import runs, store
from emigm_jax.cli import main
from emigm_jax.config import liftings, nested
from emigm_jax.config.settings import Config
from emigm_jax.core import randomness
from emigm_jax.errors import UserError
from support import golden
from support.runs import SMOKE

OLD = golden.FOLDER / 'checkpoint_36fa651'
CHANGES = {
    'model.width': 8,
    'model.heads': 2,
    'model.head_width': 8,
    'model.encoder_depth': 1,
    'model.buffer': 1,
    'model.mlp_ratio': 1.0,
    'training.keep': 1,
}


@pytest.fixture
def run(tmp_path):
    """A workdir of the old code."""
    with zipfile.ZipFile(OLD / 'checkpoint.zip') as archive:
        archive.extractall(tmp_path / 'run/checkpoints/12')
    return tmp_path / 'run'


def test_an_old_checkpoint_draws_the_same_images(run):
    assert liftings.KEY not in store.checkpoint(run / 'checkpoints/12').description
    with np.load(OLD / 'samples.npz') as recorded:
        images = em.load(run).sample(classes=range(10), seeds=[0, 1])
        difference = images.astype(int) - np.broadcast_to(recorded['images'], images.shape)
    # The digits have 17 grey levels.
    assert np.abs(difference).max() <= 16
    assert np.mean(difference != 0) < 0.01


@pytest.mark.slow
def test_an_old_run_goes_on(run, capsys):
    em.train(SMOKE, run, **CHANGES, **{'training.total': '16 steps'})
    said = capsys.readouterr().out
    assert 'resumed from step 12' in said
    assert 'data.order stays permuted, as the run began' in said  # however many examples there are
    recorded = json.loads((OLD / 'resumed.json').read_text())
    values = json.loads((run / 'metrics.jsonl').read_text().splitlines()[-1])
    for name, value in recorded.items():
        assert values[name] == pytest.approx(value, rel=1e-4), name
    saved = runs.require(run)
    assert saved.step == 16
    assert saved.stored.description[liftings.KEY] == liftings.VERSION


def test_the_table_has_no_gaps():
    assert list(liftings.LIFTINGS) == list(range(liftings.VERSION))


def test_what_is_lifted_means_what_it_did():
    config = nested.as_dict(Config())
    assert liftings.lifted(config, liftings.VERSION) == config
    old = {'model': {'width': 8}}
    assert nested.resolve(liftings.lifted(old, 0)).model.grid == 16
    assert old == {'model': {'width': 8}}
    full = {**config, 'model': {**config['model'], 'grid': 3, 'channels': 4, 'classes': 5}}
    assert liftings.lifted(full, 0) == full


@pytest.mark.parametrize(('seed', 'now'), [(-1, 2**32 - 1), (2**32 + 3, 3), (7, 7)])
def test_old_seeds_mean_what_they_did(seed, now):
    with warnings.catch_warnings(action='ignore'):  # jax says that it cuts the number off
        old = jax.random.key_data(jax.random.key(seed))
    np.testing.assert_array_equal(jax.random.key_data(randomness.key(now)), old)
    config = liftings.lifted({'seed': seed, 'sampling': {'seed': seed}}, 1)
    assert (config['seed'], config['sampling']) == (now, {'seed': now})
    assert 'seed' not in liftings.lifted({}, 1)


def test_liftings_follow_one_another():
    table = {
        0: lambda config: {**config, 'steps': config.pop('count')},
        1: lambda config: {'reveal': {'steps': config['steps']}},
    }
    lifted = functools.partial(liftings.lifted, liftings=table)
    assert lifted({'count': 3}, 0) == lifted({'steps': 3}, 1) == {'reveal': {'steps': 3}}
    assert lifted({'reveal': {}}, 2) == {'reveal': {}}


@pytest.mark.parametrize(
    ('version', 'says'),
    [
        (liftings.VERSION + 1, 'update emigm_jax'),
        ('new', "version 'new', which is no version"),
        (True, 'no version'),
        (-1, 'no version'),
    ],
)
def test_versions_that_cannot_be_read(version, says, run, capsys):
    file = run / 'checkpoints/12/_CHECKPOINT_METADATA'
    described = json.loads(file.read_text())
    described['custom_metadata'][liftings.KEY] = version
    file.write_text(json.dumps(described))
    with pytest.raises(UserError, match=says):
        runs.require(run)
    assert main.main(['sample', '--checkpoint', str(run), '--out', str(run / 'out')]) == 2
    error = capsys.readouterr().err
    assert f'{run}/checkpoints/12: ' in error
    assert error.count('\n') == 1


def test_a_saved_setting_that_nobody_knows_is_named_with_its_place(run):
    file = run / 'checkpoints/12/_CHECKPOINT_METADATA'
    file.write_text(file.read_text().replace('"width"', '"widht"'))
    with pytest.raises(UserError, match=r"checkpoints/12: unknown setting model.widht .*'width'"):
        runs.require(run)
