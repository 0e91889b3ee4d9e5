"""Microbatches on several devices: the same gradients, summed over devices once per step."""

import dataclasses

import jax
import numpy as np
import pytest

from emigm_jax.aot import microbatches
from emigm_jax.config import settings as configs
from emigm_jax.core.masking import MaskingConfig
from emigm_jax.data.interface import Batch
from emigm_jax.parallel import sharding, shards
from emigm_jax.training import program

BATCH = 64


def built(devices, **mesh):
    defaults = configs.Config()
    config = dataclasses.replace(
        defaults,
        model=microbatches.MODEL,
        loss=dataclasses.replace(defaults.loss, masking=MaskingConfig(groups=2)),
        training=dataclasses.replace(
            defaults.training, batch_size=BATCH, accumulate=microbatches.ACCUMULATE
        ),
    )
    mesh = sharding.make_mesh(sharding.MeshConfig(**mesh), jax.devices()[:devices])
    return program.build(config, mesh, 2, 10)


def gradients(of):
    """(first moments, which are gradients to a factor, and the metrics) of one step."""
    rng, model = np.random.default_rng(0), microbatches.MODEL
    host = Batch(
        labels=rng.integers(model.classes, size=BATCH).astype(np.int32),
        tokens=rng.standard_normal((BATCH, model.tokens, model.channels), np.float32),
    )
    rows = sharding.batch_sharding(of.mesh)
    batch = sharding.place_rows(rows, np.arange(BATCH), BATCH, host)
    state, metrics = of.step(of.create(), batch, np.int32(0))
    return jax.tree.map(np.asarray, (state['opt'][1][0].mu, metrics))


def same(found, expected):
    def near(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * max(np.abs(b).max(), 1e-6))

    jax.tree.map(near, found, expected)


@pytest.fixture(scope='module')
def alone():
    """Gradients on one device."""
    return gradients(built(1, data=1))


@pytest.mark.slow
@pytest.mark.parametrize('sizes', [dict(), dict(slices=2, data=1, fsdp=2, tensor=2)], ids=str)
def test_gradients_of_microbatches_are_the_same_on_every_mesh(sizes, alone):
    """Dropout included, which is drawn for the rows of the whole batch."""
    model = microbatches.MODEL
    assert model.attention_dropout and model.projection_dropout
    same(gradients(built(8, **sizes)), alone)


@pytest.mark.slow
def test_they_are_summed_over_devices_once_a_step():
    """And not in every microbatch, as where parameters are sharded."""
    share = microbatches.summed()
    print(f'{microbatches.ACCUMULATE} microbatches: {share:.3f} times the gradients')
    assert 1 <= share < 1.1


def test_a_key_of_rows_draws_what_the_whole_batch_draws():
    mesh = sharding.make_mesh(sharding.MeshConfig(data=4, fsdp=2))
    key = jax.random.key(3)
    draw = lambda key: jax.random.bits(jax.random.split(key)[1], (2, 16 // 8), jax.numpy.uint32)
    with jax.set_mesh(mesh):
        spec = jax.sharding.PartitionSpec(None, sharding.BATCH)
        mine = shards.mapped(lambda key: draw(shards.key_of_rows(key)), shards.REPLICATED, spec)
        found = jax.jit(mine)(key)
        with pytest.raises(NotImplementedError, match=r'draws words \(2, B\)'):
            other = lambda key: jax.random.normal(shards.key_of_rows(key), (3,))
            jax.jit(shards.mapped(other, shards.REPLICATED, shards.REPLICATED))(key)
    whole = jax.random.bits(jax.random.split(key)[1], (2, 16), jax.numpy.uint32)
    np.testing.assert_array_equal(found, whole)
