"""The network: sizes, masking that is real, dtypes; FLOPs against the compiler's count."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emigm_jax.core import flops, masking
from emigm_jax.errors import UserError
from emigm_jax.models import emigm
from emigm_jax.models.interface import Group, Slots, Suffix
from emigm_jax.nn import attention, functional
from emigm_jax.training import state
from support.weights import random_weights

TINY = emigm.ModelConfig(
    grid=4,
    channels=3,
    classes=5,
    width=32,
    heads=4,
    encoder_depth=2,
    decoder_depth=2,
    buffer=4,
    head_width=24,
    head_depth=2,
)

BERT = dataclasses.replace(TINY, trunk='bert', head='categorical', channels=0, codes=7)

slow = lambda config, **change: pytest.param(config, change, marks=pytest.mark.slow)
LAYERS = [slow(TINY, remat='full'), slow(TINY, remat='dots')]
LAYERS += [slow(TINY, unroll=True), slow(BERT, unroll=True)]


@pytest.mark.parametrize('key', emigm.PRESETS)
def test_parameter_counts(key):
    shapes = emigm.network(emigm.preset(*key)).shapes()
    assert functional.parameter_count(shapes) == emigm.PRESETS[key][2]


def test_decay_mask_of_xs():
    """204 official tensors without decay and 87 with, 49,226,688 parameters."""
    shapes = emigm.network(emigm.preset(256, 'xs')).shapes()
    decayed = jax.tree.leaves(state.decayed(shapes))
    sizes = [p.size for p in jax.tree.leaves(shapes)]
    assert sum(s for s, d in zip(sizes, decayed, strict=True) if d) == 49_226_688


@pytest.fixture(scope='module')
def params():
    return random_weights(emigm.network(TINY))


def conditions(config, params, tokens, visible, prefix, key=None, read=None):
    """z of the positions that are read (all), in generation order (the identity)."""
    slots = read.index if isinstance(read, Slots) else None
    count = read.size if isinstance(read, Suffix) else config.tokens
    return _conditions(config, prefix, count, params, tokens, visible, key, slots)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _conditions(config, prefix, count, params, tokens, visible, key, slots):
    trunk = emigm.network(config).bind(params).trunk
    read = Suffix(count) if slots is None else Slots(slots)
    (z,) = trunk([_group(trunk, tokens, visible, prefix, read)], key)
    return z


def _group(trunk, tokens, visible, prefix, read):
    batch, total = tokens.shape[:2]
    positions = trunk.positions(jnp.tile(jnp.arange(total), (batch, 1)))
    condition = trunk.condition(jnp.zeros(batch, jnp.int32))
    return Group(tokens, positions, condition, jnp.full(batch, visible, jnp.int32), prefix, read)


@pytest.mark.parametrize('mae', [True, False])
@pytest.mark.parametrize('shared_null', [True, False])
def test_masked_tokens_are_not_seen(mae, shared_null):
    config = dataclasses.replace(TINY, mae=mae, shared_null=shared_null)
    params = random_weights(emigm.network(config))
    tokens = jax.random.normal(jax.random.key(2), (2, 16, 3))
    other = tokens.at[:, 6:].add(5.0)
    z = conditions(config, params, tokens, 6, 16)
    np.testing.assert_allclose(z, conditions(config, params, other, 6, 16), atol=1e-5)
    changed = conditions(config, params, tokens.at[:, 5].add(1.0), 6, 16)
    assert float(jnp.abs(changed - z).max()) > 1e-3
    if mae:  # padding of the encoder, however long, changes nothing
        np.testing.assert_allclose(z, conditions(config, params, tokens, 6, 6), atol=1e-5)


def test_only_the_rows_that_are_read_are_computed(params):
    tokens = jax.random.normal(jax.random.key(3), (2, 16, 3))
    every = conditions(TINY, params, tokens, 6, 8)
    slots = jnp.array([[7, 9, 15], [0, 6, 8]])
    for read, expected in (
        (Suffix(5), every[:, 11:]),
        (Slots(slots), jnp.take_along_axis(every, slots[..., None], axis=1)),
    ):
        z = conditions(TINY, params, tokens, 6, 8, read=read)
        np.testing.assert_allclose(z, expected, atol=1e-5)


@pytest.mark.parametrize(('tiny', 'change'), LAYERS)
def test_how_layers_run_changes_no_gradient(tiny, change):
    params = random_weights(emigm.network(tiny))
    tokens = jax.random.normal(jax.random.key(4), (3, 2, 16, 3))
    tokens = tokens if tiny.channels else (tokens[..., 0] > 0.0).astype(jnp.int32)

    def value(params, config):
        net = emigm.network(config).bind(params)
        reads = zip(tokens, (6, 3, 5), (8, 4, 8), (10, 16, 10), strict=True)  # two read alike
        groups = [_group(net.trunk, t, seen, most, Suffix(rows)) for t, seen, most, rows in reads]
        found = net.trunk(groups, jax.random.key(5))
        if config.channels:  # blocks of the head are a stack, too
            time = net.head.time(jnp.float32(3.0))
            of = lambda t, z: net.head(t[:, -z.shape[1] :], time, net.head.condition(z))
            found = [of(t, z) for t, z in zip(tokens, found, strict=True)]
        weights = jax.random.normal(jax.random.key(6), (3, 16, found[0].shape[-1]))
        return sum(jnp.sum(a * w[: a.shape[1]]) for a, w in zip(found, weights, strict=True))

    gradient = jax.jit(jax.grad(value), static_argnums=1)
    expected = gradient(params, tiny)
    actual = gradient(params, dataclasses.replace(tiny, **change))
    most = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * most)
    jax.tree.map(near, actual, expected)


def test_bfloat16_stays_near_float32(params):
    tokens = jax.random.normal(jax.random.key(4), (2, 16, 3))
    exact = conditions(TINY, params, tokens, 6, 8)
    half = conditions(dataclasses.replace(TINY, dtype='bfloat16'), params, tokens, 6, 8)
    assert half.dtype == jnp.float32
    assert 0.0 < float(jnp.abs(half - exact).max() / exact.std()) < 0.1


@pytest.mark.parametrize('hidden', [False, True])
@pytest.mark.parametrize('rate', [0.0, 0.3])
def test_attention_by_turns_is_the_same(hidden, rate, monkeypatch):
    """On a CPU logits beyond the cache are worked on head by head."""
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v = (jax.random.normal(key, (2, 6, 12)) for key in keys[:3])
    lengths = jnp.array([6, 4]) if hidden else None

    def value(q, k, v):
        out = attention.attend(q, k, v, attention.Softmax(3, rate), lengths, keys[3])
        return jnp.sum(jnp.sin(out)), out

    def both():
        # A new function each time, as jit would find the program of the other order.
        run = jax.jit(jax.value_and_grad(lambda *a: value(*a), argnums=(0, 1, 2), has_aux=True))
        return run(q, k, v)

    at_once = both()
    monkeypatch.setattr(attention, 'CACHE_BYTES', 0)
    by_turns = both()
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, by_turns, at_once)
    if not rate:  # the formula, one image and head by hand
        n = 4 if hidden else 6
        i, c = 1, slice(4, 8)
        weights = jax.nn.softmax(q[i, :, c] @ k[i, :n, c].T / 2.0, axis=-1)
        close(at_once[0][1][i, :, c], weights @ v[i, :n, c])


def counted(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().cost_analysis()['flops']


def test_flops_are_those_of_the_compiled_program():
    """The compiler counts elementwise work as well, hence the allowance."""
    config = emigm.ModelConfig(
        grid=16,
        channels=16,
        classes=10,
        width=128,
        heads=4,
        encoder_depth=2,
        decoder_depth=3,
        buffer=64,
        head_width=256,
        head_depth=2,
        unroll=True,
    )
    net = emigm.network(config)
    shapes = net.shapes()
    tokens = jnp.zeros((1, 256, 16))
    real = counted(lambda p, x: conditions(config, p, x, 30, 40), shapes, tokens)
    mine = flops.encoder(config, 40) + flops.decoder(config, 256)
    assert 1.0 <= real / mine < 1.15

    def head(p, x, z):
        head = net.bind(p).head
        return head(x, head.time(jnp.zeros((4, 512))), head.condition(z))

    real = counted(head, shapes, jnp.zeros((4, 512, 16)), jnp.zeros((1, 512, 128)))
    assert 1.0 <= real / flops.head(config, 4 * 512, 512, 4 * 512) < 1.15


def test_padded_training_flops_are_near_the_ideal():
    """The official layout: 62.6 GF forward per image for XS at 256 pixels."""
    config = emigm.preset(256, 'xs')
    loss = masking.MaskingConfig()
    for batch in (8, 64):
        groups = masking.group_count(loss, batch)
        padded = flops.train_image(config, masking.budgets(loss, 256, groups), 4)
        assert padded < 1.15 * 62.6e9
        assert padded > 0.85 * 62.6e9


@pytest.mark.parametrize(
    'change',
    [
        dict(width=30),
        dict(heads=0),
        dict(grid=1),
        dict(dtype='float16'),
        dict(remat='all'),
        dict(decoder_depth=1),
        dict(attention_dropout=1.0),
    ],
)
def test_bad_sizes(change):
    with pytest.raises(UserError, match='model'):
        dataclasses.replace(TINY, **change)
