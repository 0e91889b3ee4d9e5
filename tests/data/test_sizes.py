"""Sizes of a model that a config leaves out are those of its data."""

import dataclasses
import json

import numpy as np
import pytest

import emigm_jax as em
from emigm_jax.checkpoints import runs
from emigm_jax.cli import main
from emigm_jax.config.load import config_of
from emigm_jax.config.settings import Config, DataConfig
from emigm_jax.data import datasets, sizes
from emigm_jax.errors import UserError
from emigm_jax.models import emigm
from support import caches
from support.pictures import write_folder

# In a config that sets them.
LEFT_OUT = {'model.grid': 0, 'model.channels': 0, 'model.classes': 0}


def of(config):
    model = config.model
    return model.grid, model.channels, model.classes


@pytest.mark.parametrize('patch', [1, 2, 4])
def test_what_is_told_of_digits_is_what_they_have(patch):
    config = config_of('digits:smoke', {'data.patch': patch})
    assert of(config) == (0, 0, 0)
    data = datasets.dataset(config)
    assert sizes.known(config) == sizes.fitted(config, data) == sizes.without_data(config)
    assert of(sizes.known(config)) == (8 // patch, patch**2, 10)


def test_a_size_that_is_set_stays():
    config = config_of('digits:smoke', {'model.classes': 7})
    assert of(sizes.known(config)) == (2, 16, 7)
    with pytest.raises(
        UserError, match=r'model.classes = 7 does not fit .*: say --config.model.classes=10$'
    ):
        datasets.dataset(config)
    config = config_of('imagenet256:size=xs', {})
    assert sizes.known(config) == config
    assert of(config) == (16, 16, 1000)


def test_synthetic_data_have_no_sizes_of_their_own():
    config = config_of('digits:smoke', {'data.name': 'synthetic'})
    with pytest.raises(UserError, match=r'model.grid, .* are not set, .* say --config.model.grid='):
        sizes.fitted(config, datasets.dataset(config))


def test_no_network_is_built_without_sizes():
    with pytest.raises(UserError, match=r'model.grid, .* are not set'):
        emigm.network(Config().model)


def test_a_cache_tells_its_sizes(tmp_path):
    caches.make(tmp_path / 'cache')
    settings = {**LEFT_OUT, 'data.name': 'latents', 'data.path': str(tmp_path / 'cache')}
    config = config_of('imagenet256:size=xs,tiny', settings)
    assert sizes.known(config) == sizes.fitted(config, datasets.dataset(config))
    assert of(sizes.known(config)) == (4, 3, 3)
    missing = config_of(config, {'data.path': str(tmp_path / 'none')})
    assert of(sizes.known(missing)) == (0, 0, 0)
    with pytest.raises(UserError, match=r'model.grid, .* are not set'):
        sizes.without_data(missing)


def test_pictures_tell_their_sizes_but_for_the_classes(tmp_path):
    folder = write_folder(tmp_path / 'pictures', 30, np.random.default_rng(0))
    data = DataConfig('folder', str(folder.path), image_size=16, patch=4)
    config = dataclasses.replace(Config(), data=data)
    assert of(sizes.known(config)) == (4, 48, 0)
    assert of(sizes.fitted(config, datasets.dataset(config))) == (4, 48, len(folder.classes))
    with pytest.raises(UserError, match=r'model.classes is not set, .* --config.model.classes='):
        sizes.without_data(config)
    # How many numbers a token has is known to the tokenizer's checkpoint alone.
    encoded = dataclasses.replace(data, tokenizer='kl16')
    assert of(sizes.known(dataclasses.replace(config, data=encoded))) == (0, 0, 0)


# With a rate that stays the program is one that other tests have compiled.
SHORT = {
    'optimizer.lr_schedule': 'constant',
    'training.total': '3 steps',
    'training.sample_every': '0 steps',
}


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('run')
    em.train('digits:smoke', workdir, **SHORT)
    return workdir


@pytest.mark.slow
def test_what_a_run_saves_has_all_sizes(run, capsys):
    assert of(runs.require(run).config) == (2, 16, 10)
    saved = json.loads((run / 'config.json').read_text())['model']
    assert [saved[name] for name in ('grid', 'channels', 'classes')] == [2, 16, 10]
    command = ['checkpoint', 'inspect', str(run), '--against', 'digits:smoke']
    assert main.main([*command, '--json', '-']) == 0
    assert set(json.loads(capsys.readouterr().out)['differences']) == set(SHORT)


def test_a_run_goes_on_whether_sizes_are_set_or_left_out(run, capsys):
    settings = {'model.grid': 2, 'model.classes': 10}
    em.train('digits:smoke', run, **{**SHORT, **settings})
    assert 'resumed from step 3' in capsys.readouterr().out


def test_a_dry_run_shows_the_sizes_it_can_tell(capsys):
    assert main.main(['train', '--config', 'digits', '--dry-run', '--config.data.patch=2']) == 0
    model = json.loads(capsys.readouterr().out)['model']
    assert [model[name] for name in ('grid', 'channels', 'classes')] == [4, 4, 10]


@pytest.mark.parametrize(
    'command',
    [
        ['benchmark', 'train'],
        ['benchmark', 'sample'],
        ['compile', '--topology', 'v5e:2x2', '--dry-run'],
        ['train', '--workdir', 'run'],
    ],
)
def test_commands_name_a_size_that_nothing_tells(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ['--config', 'digits:smoke', '--config.data.name=synthetic', '--config.model.grid=2']
    assert main.main([*command, *flags]) == 2
    error = capsys.readouterr().err
    assert 'model.channels, model.classes are not set' in error
    assert error.endswith('say --config.model.channels=... --config.model.classes=...\n')
    assert error.count('\n') == 1
