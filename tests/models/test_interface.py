"""Trunk, Head and Order: what the architecture page shows of them trains and samples."""

import pathlib
import re

import jax
import numpy as np
import pytest

from emigm_jax.config.load import load_config
from emigm_jax.core import orders
from emigm_jax.data import datasets, sizes
from emigm_jax.data.interface import Batch
from emigm_jax.models import emigm
from emigm_jax.parallel import sharding
from emigm_jax.sampling.sampler import Sampler
from emigm_jax.training import program

PAGE = pathlib.Path(__file__).parents[2] / 'emigm_jax/README.md'
IMPORTS = """
from typing import final
import jax
import jax.numpy as jnp
from emigm_jax.core.guidance import guided
from emigm_jax.core.orders import Order
from emigm_jax.models.interface import Drawn, Head, TokenLoss, Trunk
from emigm_jax.nn.layers import embedding, linear
ORDERS = {}
"""


def shown(heading):
    """The names that the code under a heading of the page defines."""
    text = PAGE.read_text().partition(f'### {heading}\n')[2]
    (code,) = re.findall(r'^```python\n(.*?)^```', text.partition('\n### ')[0], re.M | re.S)
    names = {}
    exec(IMPORTS + code.replace('{..., ', '{'), names)
    return names


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setitem(emigm.TRUNKS, 'mae', shown('A trunk')['Average'])
    monkeypatch.setitem(emigm.HEADS, 'diffusion', shown('A head')['Normal'])
    monkeypatch.setitem(orders.ORDERS, 'raster', shown('An order')['ORDERS']['columns'])
    emigm.network.cache_clear()
    settings = ('sampling.reveal.order=raster', 'optimizer.base_learning_rate=0.16')
    loaded = load_config('configs/digits.py:smoke', [f'--config.{name}' for name in settings])
    yield sizes.fitted(loaded, datasets.dataset(loaded))
    emigm.network.cache_clear()


def test_a_trunk_a_head_and_an_order_of_ones_own(config):
    built = program.build(config, sharding.make_mesh(config.mesh, jax.devices()[:1]), 0, 60)
    tokens = np.tile(np.linspace(-1.0, 1.0, 16, dtype=np.float32), (16, 4, 1))
    labels = np.arange(16, dtype=np.int32) % 2
    batch = Batch(labels, tokens * (2 * labels - 1)[:, None, None].astype(np.float32))
    state, errors = built.create(), []
    for number in range(60):
        state, metrics = built.step(state, batch, np.int32(number))
        errors.append(float(metrics['error']))
        np.testing.assert_allclose(metrics['loss'], metrics['error'] / 2, rtol=1e-6)
    assert errors[-1] < 0.2 * errors[0]

    sampler = Sampler(config.model, config.sampling)
    params = jax.device_get(state['params'])
    drawn = np.asarray(sampler(params, [0, 1] * 8, range(16)))
    assert drawn.shape == (16, 4, 16)
    signs = np.einsum('bnc,c->b', drawn, tokens[0, 0])
    assert (signs[0::2] < 0).all() and (signs[1::2] > 0).all()
    first = next(sampler.steps(params, [0], [0]))
    seen = np.asarray(first.revealed)[0]
    assert seen.tolist() == [place in (0, 2, 1, 3)[: seen.sum()] for place in range(4)]


def test_an_interface_cannot_be_left_unfinished():
    for cls in (shown('A trunk')['Average'], shown('A head')['Normal']):
        half = type('Half', cls.__bases__, {})
        with pytest.raises(TypeError, match='abstract'):
            half()
