"""Layers and groups that are alike share a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emigm_jax.nn import functional, loops


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
