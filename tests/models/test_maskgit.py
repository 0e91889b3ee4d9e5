"""MaskGIT's transformer against recordings of the official one, and what its trunk promises."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emigm_jax.core import flops
from emigm_jax.models import emigm
from emigm_jax.models.interface import Group, Slots, Suffix
from emigm_jax.nn import functional
from emigm_jax.training import state
from support import golden

TINY = golden.MASKGIT_TINY
ERROR = 2e-5  # of the standard deviation
LONGER = dataclasses.replace(TINY, buffer=3, grid=3)  # more class tokens, fewer others


@pytest.fixture(scope='module')
def tiny():
    tree = golden.torch_files.read(golden.path('maskgit_tiny_checkpoint'))
    params = jax.tree.map(jnp.asarray, golden.maskgit_params(TINY, tree))
    return params, golden.arrays('maskgit_tiny_outputs.npz')


@functools.partial(jax.jit, static_argnames=('config', 'count'))
def conditions(config, count, params, tokens, order, visible, labels, null=False, key=None):
    """z of the last `count` tokens, which come in generation order."""
    trunk = emigm.network(config).bind(params).trunk
    condition = trunk.condition(labels, jnp.broadcast_to(null, labels.shape))
    group = Group(
        tokens, trunk.positions(order), condition, visible, tokens.shape[1], Suffix(count)
    )
    (z,) = trunk([group], key)
    return z


def logits(config, params, sequence, order):
    """Of all columns and positions, in raster order, of an official sequence (-1: masked).

    `order` must have the visible positions first.
    """
    sequence, order = np.asarray(sequence, np.int32), np.asarray(order, np.int32)
    tokens = np.take_along_axis(sequence[:, 1:], order, axis=1)
    visible = (tokens >= 0).sum(axis=1).astype(np.int32)
    z = conditions(
        config, config.tokens, params, tokens, order, visible, sequence[:, 0] - config.codes
    )
    out = jax.jit(lambda params, z: emigm.network(config).bind(params).head.logits(z))(params, z)
    return np.take_along_axis(np.asarray(out), np.argsort(order, axis=1)[..., None], axis=1)


def visible_first(sequence, seed):
    """A random order with the visible positions first."""
    masked = np.asarray(sequence)[:, 1:] < 0
    chance = np.random.default_rng(seed).random(masked.shape)
    return np.argsort(masked + chance, axis=1)


@pytest.mark.parametrize('seed', [0, 1])
def test_recorded_logits(tiny, seed):
    params, data = tiny
    masked = data['sequence'].copy()
    masked[:, 1:] = -1
    for sequence, recorded in ((data['sequence'], 'logits'), (masked, 'logits_fully_masked')):
        order = visible_first(sequence, seed)
        # The official logits of the class token itself nobody reads.
        golden.close(logits(TINY, params, sequence, order), data[recorded][:, 1:], ERROR)


def test_only_the_rows_that_are_read_are_computed(tiny):
    params, data = tiny
    order = jnp.asarray(visible_first(data['sequence'], 0), jnp.int32)
    tokens = jnp.take_along_axis(jnp.asarray(data['codes'], jnp.int32), order, axis=1)
    visible, labels = jnp.array([9, 6, 0]), jnp.asarray(data['labels'], jnp.int32)
    every = conditions(TINY, 16, params, tokens, order, visible, labels)
    slots = jnp.array([[9, 15, 3], [6, 7, 8], [0, 1, 15]])
    reads = ((jnp.array([0, 1, 2]), Slots(slots)), (jnp.array([2, 0, 1]), Suffix(5)))

    @jax.jit
    def both(params):
        trunk = emigm.network(TINY).bind(params).trunk
        position, condition = trunk.positions(order), trunk.condition(labels)
        groups = [
            Group(tokens[of], position[of], condition[of], visible[of], 16, read)
            for of, read in reads
        ]
        return trunk(groups)  # which share the stack

    (_, first), (rows, second) = zip([None, reads[1][0]], both(params), strict=True)
    golden.close(first, jnp.take_along_axis(every, slots[..., None], axis=1), 1e-5)
    golden.close(second, every[rows, 11:], 1e-5)


def test_what_masked_slots_hold_is_not_seen():
    config = LONGER
    total, params = config.tokens, random_params(config)
    order = jnp.tile(jnp.arange(total), (2, 1))
    visible, labels = jnp.array([0, 5]), jnp.array([3, 3])
    tokens = jax.random.randint(jax.random.key(1), (2, total), 0, config.codes)
    run = functools.partial(conditions, config, total, params)
    z = run(tokens, order, visible, labels)
    assert z.shape == (2, total, config.width) and z.dtype == jnp.float32
    hidden = jnp.arange(total) >= visible[:, None]
    np.testing.assert_array_equal(run(jnp.where(hidden, -7, tokens), order, visible, labels), z)
    other = run(tokens.at[:, 4].set((tokens[:, 4] + 1) % config.codes), order, visible, labels)
    np.testing.assert_array_equal(other[0], z[0])
    assert jnp.abs(other[1] - z[1]).max() > 1e-3
    # Another class, and none.
    changed = run(tokens, order, visible, labels + 1)
    null, same = (run(tokens, order, visible, n, True) for n in (labels, labels + 1))
    np.testing.assert_array_equal(null, same)
    for one, two in ((z, changed), (z, null), (changed, null)):
        assert (jnp.abs(one - two).max(axis=(1, 2)) > 1e-3).all()


def random_params(config):
    """Larger than initial values, which would hide mistakes."""
    draw = np.random.default_rng(0).standard_normal
    shapes = emigm.network(config).shapes()
    return jax.tree.map(lambda leaf: 0.3 * jnp.asarray(draw(leaf.shape, np.float32)), shapes)


TOKENS = np.random.default_rng(0).integers(TINY.codes, size=(2, 16)).astype(np.int32)
SEEN = (
    TOKENS,
    np.tile(np.arange(16, dtype=np.int32), (2, 1)),
    *np.array([[3, 8], [0, 1]], np.int32),
)


def test_every_parameter_has_a_gradient(tiny):
    params, _ = tiny

    def value(params):
        z = conditions(TINY, 8, params, *SEEN)
        logits = emigm.network(TINY).bind(params).head.logits(z)
        return -jax.nn.log_softmax(logits)[..., 0].mean()

    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(value))(params)):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, path


@pytest.mark.parametrize('left', ['attention_dropout', 'projection_dropout'])
def test_dropout_is_a_function_of_its_key(tiny, left):
    params, _ = tiny
    other = {'attention_dropout': 0.0, 'projection_dropout': 0.0, left: 0.1}
    run = functools.partial(conditions, dataclasses.replace(TINY, **other), 8, params, *SEEN)
    exact, one, two, again = (run(key=key) for key in (None, *map(jax.random.key, (0, 1, 0))))
    np.testing.assert_array_equal(one, again)
    for x, y in ((exact, one), (exact, two), (one, two)):
        assert (jnp.abs(x - y).max(axis=-1) > 1e-3).all()  # every row


def test_bfloat16_stays_near_float32(tiny):
    params, data = tiny
    order = visible_first(data['sequence'], 0)
    half = dataclasses.replace(TINY, dtype='bfloat16')
    exact = logits(TINY, params, data['sequence'], order)
    rounded = logits(half, params, data['sequence'], order)
    assert rounded.dtype == np.float32
    assert 1e-4 < np.abs(rounded - exact).max() / exact.std() < 0.1


@pytest.mark.parametrize('key', emigm.MASKGIT)
def test_parameter_counts(key):
    config = emigm.maskgit(*key)
    shapes = emigm.network(config).shapes()
    assert functional.parameter_count(shapes) == emigm.MASKGIT[key][1]
    assert emigm.preset_name(config) == key
    assert emigm.preset_name(dataclasses.replace(config, width=512)) is None
    decayed = state.decayed(shapes)
    assert decayed['bert']['stack']['blocks']['attention']['qkv']['kernel']


@pytest.mark.full
def test_full_size_logits():
    """172 million parameters by formula: half a minute and 2.3 GB."""
    data = golden.arrays('maskgit_256_outputs.npz')
    config = emigm.maskgit(256)
    tree = golden.formula().flax_tree(golden.path('maskgit_256_keys.json'))
    params = jax.tree.map(jnp.asarray, golden.maskgit_params(config, tree))
    out = logits(config, params, data['sequence'], visible_first(data['sequence'], 0))
    rows = out[:, data['rows'] - 1]
    golden.close(rows, data['logits'], ERROR)
    np.testing.assert_allclose((out.mean(), out.std()), (data['mean'], data['std']), rtol=1e-4)


def test_flops_are_those_of_the_compiled_program():
    """The compiler counts elementwise work as well, hence the allowance."""
    config = dataclasses.replace(
        TINY, grid=8, codes=500, width=128, heads=4, encoder_depth=2, mlp_ratio=4.0, unroll=True
    )
    net, read = emigm.network(config), 40

    def step(params, tokens, order):
        bound = net.bind(params)
        labels, visible = jnp.zeros(2, jnp.int32), jnp.full(2, 24, jnp.int32)
        positions = bound.trunk.positions(order)
        group = Group(tokens, positions, bound.trunk.condition(labels), visible, 24, Suffix(read))
        return bound.head.logits(bound.trunk([group])[0])

    tokens, order = jnp.zeros((2, 64), jnp.int32), jnp.tile(jnp.arange(64), (2, 1))
    compiled = jax.jit(step).lower(net.shapes(), tokens, order).compile()
    mine = 2 * flops.sample_step(config, 1, 24, read)
    assert 1.0 <= compiled.cost_analysis()['flops'] / mine < 1.1
