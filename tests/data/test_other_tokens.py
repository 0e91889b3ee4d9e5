"""Codes where vectors are needed, and the other way round: one line each says what to do."""

import dataclasses
import types

import numpy as np
import pytest

from emigm_jax.checkpoints import runs
from emigm_jax.config.load import config_of
from emigm_jax.config.settings import Config, DataConfig, SamplingConfig
from emigm_jax.data import datasets, sizes
from emigm_jax.errors import UserError
from emigm_jax.models.config import ModelConfig
from emigm_jax.sampling import generator
from emigm_jax.tokenizers.codec import Codec
from emigm_jax.tokenizers.learned import Learned
from emigm_jax.training import initial
from support import caches
from support.small_tokenizers import SMALL

CODES = {'model.head': 'categorical'}
LEVELS = {'data.patch': 1, 'data.levels': 17}


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        (
            LEVELS,
            "model.head = diffusion does not fit the data (data.name = 'digits', data.patch = 1, "
            'data.levels = 17): say --config.model.head=categorical',
        ),
        (
            {**LEVELS, 'model.grid': 2, 'model.channels': 16},
            'model.head = diffusion, model.grid = 2, model.channels = 16 do not fit the data '
            "(data.name = 'digits', data.patch = 1, data.levels = 17): say "
            '--config.model.head=categorical --config.model.grid=8 --config.model.channels=0',
        ),
        (
            {**LEVELS, **CODES, 'model.codes': 16},
            "model.codes = 16 does not fit the data (data.name = 'digits', data.patch = 1, "
            'data.levels = 17): say --config.model.codes=17',
        ),
        (
            CODES,
            "model.head = categorical does not fit the data (data.name = 'digits', data.patch = "
            '4): say --config.model.head=diffusion, or, for codes, --config.data.levels=17 '
            '--config.data.patch=1',
        ),
        (
            {**CODES, 'model.trunk': 'bert', 'model.codes': 1024},
            'model.head = categorical, model.trunk = bert, model.codes = 1024 do not fit the data '
            "(data.name = 'digits', data.patch = 4): say --config.model.head=diffusion "
            '--config.model.trunk=mae --config.model.codes=0, or, for codes, '
            '--config.data.levels=17 --config.data.patch=1',
        ),
    ],
)
def test_misfits(changes, says):
    config = config_of('digits:smoke', changes)
    with pytest.raises(UserError) as error:
        datasets.dataset(config)
    assert str(error.value) == says
    first = says.partition(': say ')[2].partition(', or')[0]
    flags = dict(flag.removeprefix('--config.').split('=') for flag in first.split())
    mended = {n: int(v) if v.isdecimal() else v for n, v in flags.items()}
    datasets.dataset(config_of(config, mended))


def test_misfits_of_caches(tmp_path):
    caches.make_coded(tmp_path / 'codes')
    caches.make(tmp_path / 'vectors')
    for name, head, other in (
        ('codes', 'diffusion', 'categorical'),
        ('vectors', 'categorical', 'diffusion'),
    ):
        settings = DataConfig('latents', str(tmp_path / name))
        config = dataclasses.replace(Config(model=ModelConfig(head=head)), data=settings)
        says = rf'model.head = {head} does not fit the data .*say --config.model.head={other}$'
        with pytest.raises(UserError, match=says):
            datasets.dataset(config)
        # Those who ask for the sizes alone do not hear of sizes that such data never have.
        with pytest.raises(UserError, match=says.replace(' .*', ': ')):
            sizes.without_data(config)
    # Whoever sets all sizes needs no data.
    whole = dataclasses.replace(
        Config(model=ModelConfig(head='categorical', grid=4, codes=9, classes=3)), data=settings
    )
    assert sizes.without_data(whole) == whole


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """Checkpoints of models of vectors and of codes, of which nobody reads the weights."""
    root = tmp_path_factory.mktemp('models')
    found = {}
    for name, model in {
        'vectors': ModelConfig(grid=4, channels=16, classes=3),
        'codes': ModelConfig(grid=4, head='categorical', codes=16, classes=3),
    }.items():
        runs.export(root / name, Config(model=model), {'a': np.ones(1)}, {}, {})
        found[name] = runs.require(root / name)
    return types.SimpleNamespace(**found)


@pytest.mark.parametrize(
    ('model', 'tokenizer', 'says'),
    [
        ('vectors', 'vqgan', "VQGAN has 16 codes, this model's tokens are of 16 numbers: at 256"),
        ('codes', 'kl16', "KL-16 has tokens of 16 numbers, this model's are of 16 codes: it is"),
        ('codes', 'many', "VQGAN has 99 codes, this model's tokens are of 16: it is the tokenizer"),
        ('vectors', 'dc_ae', "DC-AE has tokens of 8 numbers, this model's tokens have 16: at 256"),
    ],
)
def test_tokenizers_that_do_not_fit_a_model(model, tokenizer, says, models):
    configs = {**SMALL, 'many': dataclasses.replace(SMALL['vqgan'], codes=99)}
    kind = tokenizer if tokenizer in SMALL else 'vqgan'
    given = Codec(Learned(kind, configs[tokenizer]))
    with pytest.raises(UserError) as error:
        generator.from_checkpoint(getattr(models, model), SamplingConfig(), codec=given)
    assert f'the tokenizer {says}' in str(error.value) and '\n' not in str(error.value)


def test_tokenizers_that_fit_a_model(models):
    for model, tokenizer in (('vectors', 'kl16'), ('codes', 'vqgan')):
        generator._check_tokens(
            Learned(tokenizer, SMALL[tokenizer]).spec, getattr(models, model).config.model
        )


@pytest.mark.parametrize(
    ('saved', 'changes', 'says'),
    [
        ('codes', dict(codes=17), 'its tokens are of 16 codes, those here of 17 codes'),
        (
            'codes',
            dict(codes=0, channels=3, head='diffusion'),
            'its tokens are of 16 codes, those here of 3 numbers; its network is another: say '
            '--config.model.head=categorical',
        ),
        (
            'vectors',
            dict(codes=9, channels=0, head='categorical', trunk='bert'),
            'its tokens are of 16 numbers, those here of 9 codes; its network is another: say '
            '--config.model.trunk=mae --config.model.head=diffusion',
        ),
    ],
)
def test_weights_of_other_tokens(saved, changes, says, models):
    there = getattr(models, saved)
    with pytest.raises(UserError) as error:
        initial.check_fits(there, dataclasses.replace(there.config.model, **changes))
    assert str(error.value) == f'training.init = {there.path}: {says}'
    initial.check_fits(there, there.config.model)
