"""Dropout: its rate, its independence, and that no cut of an array changes what is dropped."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emigm_jax.aot import collectives, hlo
from emigm_jax.nn import dropout as dropout_module
from emigm_jax.nn import functional, transformer
from emigm_jax.nn.dropout import dropout
from emigm_jax.parallel import sharding


def kept(shape, rate=0.5, seed=0):
    return np.asarray(dropout(jnp.ones(shape), rate, jax.random.key(seed))) != 0


@pytest.mark.parametrize('rate', [0.1, 0.5, 0.9])
def test_rate_and_scale(rate):
    y = np.asarray(dropout(jnp.full((400, 500), 2.0), rate, jax.random.key(0)))
    mask = y != 0
    assert abs(mask.mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / y.size)
    np.testing.assert_allclose(y[mask], 2 / (1 - rate), rtol=1e-4)
    assert y.mean() == pytest.approx(2, abs=0.05)


def test_nothing_is_dropped_without_a_key_or_a_rate():
    x = jnp.ones((4, 8))
    assert dropout(x, 0.1, None) is x
    assert dropout(x, 0.0, jax.random.key(0)) is x


@pytest.mark.parametrize('shape', [(2, 1, 3), (3, 5, 7), (4, 6), (2, 3, 9, 8)])
def test_any_number_of_rows(shape):
    mask = kept(shape)
    assert mask.shape == shape
    assert 0 < mask.mean() < 1


def test_entries_are_independent():
    """Of each other, along every dimension and at distances that a hash might repeat at."""
    mask = kept((64, 80, 64)).astype(np.float64) - 0.5
    noise = 5 * 0.25 / np.sqrt(mask.size / 8)
    for axis in range(3):
        for distance in (1, 2, 4, 8, 20, 32, 40, 60):
            if distance < mask.shape[axis]:
                rest = np.take(mask, range(mask.shape[axis] - distance), axis)
                moved = np.take(mask, range(distance, mask.shape[axis]), axis)
                assert abs((rest * moved).mean()) < noise, (axis, distance)
    # Sums over whole rows, columns and images spread as independent entries do.
    for axes in ((0, 1), (0, 2), (1, 2)):
        sums = mask.sum(axes)
        count = mask.size / sums.size
        assert np.var(sums) == pytest.approx(count / 4, rel=0.7)


def test_keys_differ():
    a, b = kept((40, 50)), kept((40, 50), seed=1)
    assert 0.4 < (a == b).mean() < 0.6
    np.testing.assert_array_equal(a, kept((40, 50)))


def test_merged_dimensions_drop_the_same():
    x = jax.random.normal(jax.random.key(1), (3, 10, 4))
    key = jax.random.key(0)
    merged = dropout(x.reshape(30, 4), 0.3, key, x.shape)
    np.testing.assert_array_equal(merged.reshape(x.shape), dropout(x, 0.3, key))


@pytest.mark.parametrize('sizes', [(1, 8, 1, 1), (1, 2, 2, 2), (2, 2, 2, 1), (1, 1, 2, 4)])
def test_cuts_change_nothing(sizes):
    x = jax.random.normal(jax.random.key(1), (8, 11, 16))
    run = lambda x, key: dropout(sharding.constrain(x, 'batch', None, 'tensor'), 0.3, key)
    whole = run(x, jax.random.key(0))
    mesh = sharding.make_mesh(sharding.MeshConfig(*sizes), jax.devices())
    cut = sharding.with_mesh(mesh, jax.jit(run))(x, jax.random.key(0))
    assert len(cut.sharding.device_set) == 8
    np.testing.assert_array_equal(whole, cut)


def test_gradient_is_that_of_the_mask():
    x = jax.random.normal(jax.random.key(1), (4, 8, 16))
    key = jax.random.key(0)
    gradient = jax.grad(lambda x: dropout(x, 0.3, key).sum())(x)
    np.testing.assert_allclose(gradient * x, dropout(x, 0.3, key), rtol=1e-6)


def test_no_mask_is_kept_for_the_backward_pass():
    """It is worked out again: nothing of the size of the array goes from one pass to the other."""
    x, key = jnp.ones((8, 64, 32)), jax.random.key(0)
    _, backward = jax.vjp(lambda x: dropout(x, 0.1, key), x)
    kept_arrays = jax.tree.leaves(backward)
    assert sum(a.size for a in kept_arrays) < x.size // 8


@pytest.mark.parametrize('word', [0, 1])
def test_rows_that_share_one_word_drop_differently(word):
    words = jax.random.bits(jax.random.key(0), (2, 40), jnp.uint32)
    mask = np.asarray(dropout_module.kept(0.5, words.at[word].set(7), (40, 2000)))
    alike = (mask[:, None] == mask[None]).mean(-1)[np.triu_indices(40, 1)]
    assert alike.min() > 0.43 and alike.max() < 0.57


def test_a_layer_moves_no_mask_between_devices():
    """An MLP merges the rows of several images; what it drops is drawn image by image."""
    block = transformer.BlockConfig(16, 4, 4.0, 0.3, 0.3, jnp.float32)
    net = functional.functional(lambda rngs: transformer.Mlp(block, rngs))
    run = lambda params, x, key: net.bind(params)(x, key)
    params, key = net.init(jax.random.key(1)), jax.random.key(0)
    x = jax.random.normal(jax.random.key(2), (16, 10, 16))
    mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices())
    place = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    with jax.set_mesh(mesh):
        jitted = jax.jit(run, in_shardings=(place[1], place[0], place[1]), out_shardings=place[0])
        compiled = jitted.lower(params, x, key).compile()
    assert not collectives.collectives(hlo.parse(compiled.as_text()))
    np.testing.assert_allclose(compiled(params, x, key), run(params, x, key), rtol=1e-5, atol=1e-6)


def test_layers_share_no_array_of_positions():
    """XLA takes what is the same for all layers out of their loop, and reads it in each."""
    shape = 2, 24, 40

    def layers(x, keys):
        return jax.lax.scan(lambda x, key: (dropout(jnp.sin(x), 0.1, key), None), x, keys)[0]

    keys = jax.random.split(jax.random.key(0), 3)
    module = hlo.parse(jax.jit(layers).lower(jnp.ones(shape), keys).compile().as_text())
    run = (step.instruction for step in hlo.executed(module))
    loops = [instruction for instruction in run if instruction.opcode == 'while']
    carried = {(s.dtype, s.dims) for loop in loops for s in loop.shapes}
    assert {a for a in carried if math.prod(a[1]) > 1000} == {('f32', shape)}
