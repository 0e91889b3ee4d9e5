"""Layers and groups that are alike share a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emigm_jax.config.settings import LossConfig
from emigm_jax.models.config import ModelConfig
from emigm_jax.models.diffusion_head import DiffusionHead
from emigm_jax.nn import functional, layers, loops, transformer
from emigm_jax.parallel import sharding


@pytest.mark.parametrize('unroll', [False, True])
def test_what_is_alike_is_traced_once_and_comes_back_in_order(unroll):
    traced = []

    def last(item):
        x, count = item
        traced.append(x.shape)
        return jnp.cumsum(x, axis=0)[-count.size :]

    rows = (3, 5, 3, 3, 5)
    items = [(jnp.arange(1.0 * n) + i, jnp.zeros(2)) for i, n in enumerate(rows)]
    items.append((jnp.arange(3.0), jnp.zeros(1)))  # not like the others
    found = functional.each(last, items, loops.Loop(unroll=unroll))
    assert len(traced) == (6 if unroll else 3)
    for (x, count), value in zip(items, found, strict=True):
        np.testing.assert_array_equal(value, np.cumsum(x)[-count.size :])


def test_one_of_its_kind_is_in_no_loop():
    items = [jnp.zeros(2), jnp.zeros(3)]
    program = jax.make_jaxpr(lambda items: functional.each(jnp.sin, items))(items)
    assert [e.primitive.name for e in program.eqns] == ['sin', 'sin']


@pytest.mark.parametrize(
    ('platform', 'mesh', 'unroll'),
    [('gpu', None, True), ('gpu', (2, 1), True), ('gpu', (1, 2), False), ('cpu', None, False)],
)
def test_nothing_is_stacked_on_a_gpu_that_has_all_weights(platform, mesh, unroll, monkeypatch):
    monkeypatch.setattr(sharding, 'platform', lambda: platform)
    config = sharding.MeshConfig(data=mesh[0], fsdp=mesh[1]) if mesh else sharding.MeshConfig()
    with jax.set_mesh(sharding.make_mesh(config, jax.devices()[: 2 if mesh else 1])):
        found = functional.unstacked(loops.Loop(remat='dots'))
    assert found == loops.Loop(remat='dots', unroll=unroll)


@pytest.mark.parametrize(
    ('groups', 'key', 'scans'), [(1, jax.random.key(0), 0), (1, None, 1), (2, jax.random.key(0), 1)]
)
def test_one_batch_is_trained_in_line_on_a_gpu(groups, key, scans, monkeypatch):
    monkeypatch.setattr(sharding, 'platform', lambda: 'gpu')
    block = transformer.BlockConfig(16, 2, 2.0, 0.0, 0.1, jnp.float32, kernels='xla')
    make = lambda rngs: transformer.Stack(3, block, loops.Loop(remat='dots'), rngs)
    net = functional.functional(make)
    run = lambda params, xs: net.bind(params)(xs, key=key)
    params, xs = net.init(jax.random.key(1)), [jnp.ones((2, 5, 16))] * groups
    program = jax.make_jaxpr(run)(params, xs)
    assert [e.primitive.name for e in program.eqns].count('scan') == scans
    found = run(params, xs)
    monkeypatch.setattr(sharding, 'platform', lambda: 'cpu')
    for a, b in zip(found, run(params, xs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_heads_blocks_are_trained_in_line_on_a_gpu(monkeypatch):
    monkeypatch.setattr(sharding, 'platform', lambda: 'gpu')
    config = ModelConfig(width=16, heads=2, channels=3, head_width=16, head_depth=3, kernels='xla')
    make = lambda rngs: DiffusionHead(config, layers.linear(3, 16, rngs, None), rngs)
    net = functional.functional(make)
    params, z, clean = net.init(jax.random.key(1)), jnp.ones((2, 5, 16)), jnp.ones((2, 5, 3))

    def loss(params):
        head = net.bind(params)
        draws = head.draws(jax.random.split(jax.random.key(2), 2), 1, 5)
        return head.loss(z, clean, draws, LossConfig()).value

    def output(params):
        head = net.bind(params)
        return head(clean, head.time(jnp.float32(3.0)), head.condition(z))

    scans = lambda f: str(jax.make_jaxpr(f)(params)).count('scan[')
    assert (scans(loss), scans(output)) == (0, 1)
