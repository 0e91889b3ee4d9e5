"""What guidance leads away from: the null class of the model itself, or a weaker model."""

import dataclasses
import types

import jax.numpy as jnp
import numpy as np
import pytest

from emigm_jax.checkpoints import runs
from emigm_jax.config.load import config_of
from emigm_jax.config.settings import Config, SamplingConfig
from emigm_jax.core.categorical import CodesConfig
from emigm_jax.core.reveal import RevealConfig
from emigm_jax.core.solvers import SolverConfig
from emigm_jax.errors import UserError
from emigm_jax.models import emigm
from emigm_jax.sampling import generator
from emigm_jax.sampling.sampler import Sampler
from support.weights import random_weights

SIZES = dict(
    grid=4, classes=5, width=16, heads=2, encoder_depth=1, decoder_depth=2, buffer=2, unroll=True
)
MODELS = {
    'diffusion': emigm.ModelConfig(**SIZES, channels=3, head_width=16, head_depth=1),
    'categorical': emigm.ModelConfig(**SIZES, head='categorical', codes=7),
}
REVEAL = RevealConfig(steps=2, guidance=1.7, guidance_from=0.2, guidance_to=0.8)
CONFIG = SamplingConfig(
    reveal=REVEAL, solver=SolverConfig(steps=3), codes=CodesConfig(temperature=0.8)
)
LABELS, SEEDS = np.arange(16) % 5, np.arange(16)


def weights(model, seed=0):
    """Random ones, of which none is zero, so that all of them matter."""
    return random_weights(emigm.network(model), seed)


def of_no_class(params):
    """The same network with the null class for every class."""
    trunk = params['mae']
    everywhere = np.broadcast_to(trunk['mask_token'], trunk['class_embed'].shape)
    return {**params, 'mae': {**trunk, 'class_embed': everywhere}}


def close(one, other):
    # Random weights give tokens of hundreds, and small ones are differences of these.
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6 * np.abs(other).max())


@pytest.mark.parametrize('head', ['diffusion', pytest.param('categorical', marks=pytest.mark.slow)])
def test_what_guides(head):
    model = MODELS[head]
    params = weights(model)
    draw = lambda sampler, params: sampler(params, LABELS, SEEDS)
    without = dataclasses.replace(CONFIG, reveal=dataclasses.replace(REVEAL, guidance=1.0))
    alone, guided = Sampler(model, CONFIG), Sampler(model, CONFIG, guide=model)
    unguided, by_null_class = draw(Sampler(model, without), params), draw(alone, params)
    assert jnp.any(unguided != by_null_class)
    # A guide that knows no classes is the null class, and nothing leads away from itself.
    close(draw(guided, (params, of_no_class(params))), by_null_class)
    close(draw(guided, (params, params)), unguided)
    assert guided.nfe == alone.nfe == 2 + 1
    assert guided.flops == alone.flops


@pytest.mark.slow
def test_a_guide_of_another_size_and_an_order_that_chooses():
    """Steps one by one are the whole program, tokens moved about included."""
    model = MODELS['categorical']
    small = dataclasses.replace(model, width=8, buffer=1, trunk='bert')
    reveal = dataclasses.replace(
        REVEAL, order='confidence', guidance_from=-1.0, guidance_to=1.0, guidance=3.0
    )
    config = dataclasses.replace(CONFIG, reveal=reveal)
    sampler = Sampler(model, config, guide=small)
    both = weights(model), weights(small)
    tokens = sampler(both, LABELS, SEEDS)
    *_, last = sampler.steps(both, LABELS, SEEDS)
    np.testing.assert_array_equal(tokens, last.tokens)
    # The guide sees tokens in the order that they were moved to.
    params, alone = both[0], Sampler(model, config)
    by_null_class = Sampler(model, config, guide=model)(
        (params, of_no_class(params)), LABELS, SEEDS
    )
    close(by_null_class, alone(params, LABELS, SEEDS))
    # A small guide costs little.
    assert sampler.flops < alone.flops
    sampler.lower(8)


@pytest.mark.parametrize(
    ('changes', 'names', 'says'),
    [
        ({'model.classes': 9}, ('a', 'b'), 'a cannot guide b: it has model.classes = 9, not 1000'),
        ({'data.scale': 2.0}, ('a', 'b'), 'a cannot guide b: it has data.scale = 2.0, not 1.0'),
        ({}, ('b', 'a'), 'a cannot guide b: its classes have other names'),
    ],
)
def test_a_guide_of_other_tokens_is_refused(changes, names, says):
    at = lambda path: types.SimpleNamespace(path=path)
    saved = lambda path, config, names: runs.Saved(at(path), 1, config, {}, {}, '', names)
    model = saved('b', config_of(Config(), {'model.classes': 1000}), ('a', 'b'))
    with pytest.raises(UserError, match=says):
        generator.check_guide(saved('a', config_of(model.config, changes), names), model)
    generator.check_guide(saved('c', config_of(model.config, {'model.width': 512}), ()), model)
