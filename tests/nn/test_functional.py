"""Layers and groups that are alike share a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emigm_jax.nn import functional, loops
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
