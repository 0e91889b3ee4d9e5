"""Kernels for TPUs, interpreted, against the definitions that they stand for."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emigm_jax.models import diffusion_head
from emigm_jax.models.config import ModelConfig
from emigm_jax.nn import attention, functional, loops, transformer
from emigm_jax.nn.kernels import (
    branches,
    choice,
    mlp,
    residual,
    residual_block,
    self_attention,
    whole_rows,
)
from emigm_jax.parallel import sharding, shards

slow = functools.partial(pytest.param, marks=pytest.mark.slow)
TOLERANCE = {'float32': 1e-5, 'bfloat16': 0.04}


def close(found, wanted, dtype):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert not jnp.any(b) or choice.distance(a, b) < TOLERANCE[dtype]


def with_gradients(function, *args):
    """(values, gradients) of a function, as programs work them out."""

    @jax.jit
    def run(*args):
        out, back = jax.vjp(function, *args)
        return out, back(jnp.cos(out.astype(jnp.float32)).astype(out.dtype))

    return run(*args)


def noisy(params, rng):
    """None of them is zero, which would hide mistakes."""
    add = lambda a: a + (0.1 * rng.standard_normal(a.shape)).astype(a.dtype)
    return jax.tree.map(add, jax.device_get(params))


@pytest.mark.parametrize(
    ('size', 'rate', 'dtype'),
    [
        (56, 0.3, 'float32'),
        slow(56, 0.0, 'float32'),
        slow(56, 0.0, 'bfloat16'),
        slow(56, 0.3, 'bfloat16'),
        (64, 0.0, 'float32'),
        (64, 0.3, 'bfloat16'),
        slow(64, 0.3, 'float32'),
        slow(64, 0.0, 'bfloat16'),
        (80, 0.3, 'float32'),
        (80, 0.0, 'bfloat16'),
        slow(80, 0.0, 'float32'),
        slow(80, 0.3, 'bfloat16'),
    ],
)
def test_attention(size, rate, dtype):
    """Whole rows of queries and keys, some hidden, with what is dropped the very same."""
    keys = jax.random.split(jax.random.key(0), 4)
    normal = lambda key, rows: jax.random.normal(key, (3, rows, 2 * size)).astype(dtype)
    q, k, v = map(normal, keys, (24, 40, 40))
    run = lambda kernels: with_gradients(
        lambda *qkv: attention.attend(
            *qkv, attention.Softmax(2, rate, kernels), jnp.array([40, 13, 1]), keys[3]
        ),
        *(q, k, v),
    )
    close(run('pallas'), run('xla'), dtype)


def head(dtype, kernels, remat='none', width=128):
    config = ModelConfig(
        grid=4, channels=4, classes=3, width=16, head_width=width, head_depth=2, dtype=dtype
    )
    config = dataclasses.replace(config, kernels=kernels, remat=remat)
    kind = diffusion_head.DiffusionHead
    build = lambda rngs: kind(config, kind.embedding(config, rngs), rngs)
    return functional.functional(build)


@pytest.mark.parametrize(
    ('remat', 'dtype'),
    [
        ('none', 'float32'),
        slow('none', 'bfloat16'),
        slow('dots', 'float32'),
        ('dots', 'bfloat16'),
        ('full', 'float32'),
        slow('full', 'bfloat16'),
    ],
)
def test_blocks_of_the_diffusion_head(remat, dtype):
    """Rows that fill no tile; products that are kept, and that are worked out again."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.standard_normal(shape, np.float32)
    of = lambda kernels: head(dtype, kernels, remat)
    params = noisy(jax.jit(of('xla').init)(jax.random.key(1)), rng)
    x, time, condition = normal(2, 3, 35, 4), normal(2, 3, 35, 128), normal(3, 35, 128)
    run = lambda kernels: with_gradients(
        lambda params, *args: of(kernels).bind(params)(*args), params, x, time, condition
    )
    close(run('pallas'), run('xla'), dtype)


slow = lambda *values: pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ('dtype', 'dropout'),
    [('float32', True), slow('float32', False), slow('bfloat16', True), slow('bfloat16', False)],
)
def test_halves_of_a_block(dtype, dropout):
    """Two layers, some keys hidden, rows of a number that fills no tile."""
    keys = iter(jax.random.split(jax.random.key(0), 60))

    def stack(kernels):
        config = transformer.BlockConfig(32, 2, 4.0, 0.3, 0.2, jnp.dtype(dtype), kernels=kernels)
        build = lambda rngs: transformer.Stack(2, config, loops.PLAIN, rngs)
        return functional.functional(build)

    noisy = lambda a: a + 0.1 * jax.random.normal(next(keys), a.shape)
    params = jax.tree.map(noisy, stack('xla').init(jax.random.key(1)))
    # A bias of keys changes nothing, so that its gradient is rounding alone.
    fixed = params['blocks']['attention']['qkv'].pop('bias')
    x, lengths = jax.random.normal(next(keys), (2, 27, 32)), jnp.array([27, 9])

    def run(kernels, params, x):
        qkv = {**params['blocks']['attention']['qkv'], 'bias': fixed}
        blocks = {**params['blocks'], 'attention': {**params['blocks']['attention'], 'qkv': qkv}}
        key = jax.random.key(3) if dropout else None
        return stack(kernels).bind({'blocks': blocks})([x], [lengths], key)[0]

    found, wanted = (
        with_gradients(functools.partial(run, kernels), params, x) for kernels in ('pallas', 'xla')
    )
    close(found, wanted, dtype)


@pytest.mark.slow
@pytest.mark.parametrize('images', [(8, 16), (6, 8)])  # all, or only some, go round 8 devices
def test_halves_of_a_block_on_a_mesh(images):
    """Each device takes its images, and gradients of gathered weights are summed over all."""

    def stack(kernels):
        config = transformer.BlockConfig(32, 2, 4.0, 0.3, 0.2, jnp.float32, kernels=kernels)
        build = lambda rngs: transformer.Stack(2, config, loops.PLAIN, rngs)
        return functional.functional(build)

    params = stack('xla').init(jax.random.key(1))
    params['blocks']['attention']['qkv']['bias'] += 0.1
    keys = jax.random.split(jax.random.key(2))
    xs = [jax.random.normal(key, (n, 16, 32)) for key, n in zip(keys, images, strict=True)]
    lengths = [jnp.arange(n) % 16 + 1 for n in images]

    def run(kernels, params, *xs):
        found = stack(kernels).bind(params)(xs, lengths, jax.random.key(3))
        return jnp.concatenate(found)

    with jax.set_mesh(sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=4))):
        found, gradients = with_gradients(functools.partial(run, 'pallas'), params, *xs)
        backward = jax.grad(lambda *args: jnp.sum(run('pallas', *args)))
        text = jax.jit(backward).lower(params, *xs).as_text()
    assert text.count('"stablehlo.reduce_scatter"') == 6  # matrices, whatever the batches
    wanted, expected = with_gradients(functools.partial(run, 'xla'), params, *xs)
    close(found, wanted, 'float32')
    for of in (gradients[0], expected[0]):
        bias = of['blocks']['attention']['qkv'].pop('bias')
        assert jnp.abs(bias[:, 32:64]).max() < 1e-4  # a bias of keys changes nothing
    close(gradients, expected, 'float32')


@pytest.mark.slow
def test_kernels_where_devices_work_apart():
    """In what each device runs on its images, as microbatches are, there is no mesh to sum over."""
    config = transformer.BlockConfig(32, 2, 4.0, 0.0, 0.0, jnp.float32, kernels='pallas')
    stack = functional.functional(
        lambda rngs: transformer.Stack(2, config, loops.Loop(unroll=True), rngs)
    )
    of_head = head('float32', 'pallas')
    rng = np.random.default_rng(0)
    params = noisy((stack.init(jax.random.key(1)), of_head.init(jax.random.key(2))), rng)
    x, q = (jnp.asarray(rng.standard_normal(s, np.float32)) for s in ((8, 4, 4), (8, 8, 32)))
    time, condition = (rng.standard_normal((8, 4, 128), np.float32) for _ in range(2))

    def gradient(params, q, *args):
        def total(params):
            (out,) = stack.bind(params[0])([q])
            return jnp.sum(jnp.sin(out)) + jnp.sum(jnp.sin(of_head.bind(params[1])(*args)))

        return jax.grad(total)(params)

    args = (params, q, x, time, condition)
    expected = jax.jit(gradient)(*args)
    given = (shards.REPLICATED, *[shards.BATCH] * 4)
    with jax.set_mesh(sharding.make_mesh(sharding.MeshConfig(data=4, fsdp=2))):
        summed = lambda *args: shards.summed(gradient(*args), shards.BATCH)
        found = jax.jit(shards.mapped(summed, given, shards.REPLICATED))(*args)
    close(found, expected, 'float32')


@pytest.mark.slow
@pytest.mark.parametrize('half', [mlp, self_attention])
def test_cores_share_the_images(half, monkeypatch):
    one = half.error('float32', 16)
    monkeypatch.setattr(choice, 'cores', lambda: 2)
    assert max(one, half.error('float32', 16)) < TOLERANCE['float32']


@pytest.mark.parametrize('cores', [1, 2])
@pytest.mark.parametrize('rows', [128, 300])
def test_cores_share_the_rows(cores, rows):
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.standard_normal(shape, np.float32))
    parts = [normal(1, 8) if i % 2 else normal(8, 8) for i in range(10)]
    weights = residual.Weights(normal(1, 8), normal(1, 8), *parts)
    x, activated, gradient = (normal(rows, 8) for _ in range(3))
    plan = residual.Plan(64, False, None, cores, True)
    found = jax.jit(residual.backward, static_argnums=5)(
        x, activated, weights, None, gradient, plan
    )
    formula = lambda *args: residual.block(*args)[0]
    back = jax.jit(lambda gradient, *args: jax.vjp(formula, *args)[1](gradient))
    close(found, back(gradient, x, activated, weights), 'float32')


@pytest.mark.parametrize(
    'mesh',
    [
        {'data': 2, 'fsdp': 2, 'tensor': 2},
        slow({'data': 8}),
        slow({'data': 2, 'tensor': 4}),
        slow({'fsdp': 4, 'tensor': 2}),
        slow({'slices': 2}),
    ],
)
def test_each_device_works_on_its_shards(mesh):
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.standard_normal(shape, np.float32)
    of = lambda kernels: head('float32', kernels)
    params = noisy(jax.jit(of('xla').init)(jax.random.key(1)), rng)
    x, q = normal(2, 8, 12, 4), normal(8, 12, 32)
    time, condition = normal(2, 8, 12, 128), normal(8, 12, 128)

    def both(kernels, params, q, *args):
        softmax = attention.Softmax(4, 0.2, kernels)
        mixed = attention.attend(q, q, q, softmax, jnp.arange(8) + 1, jax.random.key(5))
        params = sharding.gathered_for_use(params)
        return jnp.mean(of(kernels).bind(params)(*args)) + jnp.mean(jnp.sin(mixed))

    run = lambda kernels: with_gradients(
        functools.partial(both, kernels), params, q, x, time, condition
    )
    with jax.set_mesh(sharding.make_mesh(sharding.MeshConfig(**mesh))):
        sharded = run('pallas')
    close(sharded, run('xla'), 'float32')


# --- Which runs ----------------------------------------------------------------------------------


def test_kernels_are_for_tpus():
    taken = functools.partial(choice.takes, error=lambda *_: 0.0, dtype='float32', size=64)
    assert [taken(kernels, 'attention', True) for kernels in ('auto', 'xla', 'pallas')] == [
        False,
        False,
        True,
    ]


@pytest.mark.parametrize(
    ('off', 'fits', 'taken', 'says'),
    [
        (0.001, True, True, 'attention by kernel: the kernel is off by 1.0e-03'),
        (0.5, True, False, 'attention by XLA: the kernel is off by 5.0e-01'),
        (None, True, False, 'attention by XLA, as its kernel fails here: ZeroDivisionError'),
        (0.001, False, False, ''),
    ],
)
def test_a_kernel_is_taken_that_agrees(off, fits, taken, says, monkeypatch, caplog):
    monkeypatch.setattr(sharding, 'platform', lambda: 'tpu')
    monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
    error = lambda *_: 1 // 0 if off is None else off
    with caplog.at_level('INFO'):
        for _ in range(2):
            assert choice.takes('auto', 'attention', fits, error, 'bfloat16', 64) is taken
    assert says in caplog.text
    assert len(caplog.records) == bool(says)  # it is said once


@pytest.mark.parametrize('kernel', [whole_rows, residual_block, mlp, self_attention])
@pytest.mark.parametrize('dtype', TOLERANCE)
def test_the_check_at_the_start(kernel, dtype):
    """What it finds is small; and with the kernel broken it is not."""
    assert kernel.error(dtype, 64) < TOLERANCE[dtype]


def test_the_check_sees_a_broken_kernel(monkeypatch):
    right = residual.forward
    wrong = lambda *args: jax.tree.map(lambda a: 1.1 * a, right(*args))
    monkeypatch.setattr(residual_block, 'forward', wrong)
    assert residual_block.error('float32', 64) > 0.02
    backward = whole_rows.backward
    wrong = lambda *args, **given: tuple(1.1 * a for a in backward(*args, **given))
    monkeypatch.setattr(whole_rows, 'backward', wrong)
    assert whole_rows.error('float32', 64) > 0.02
    for half in (mlp, self_attention):
        forward, back = half._BRANCH
        wrong = lambda *args, back=back: jax.tree.map(lambda a: 1.1 * a, back(*args))
        monkeypatch.setattr(half, '_BRANCH', branches.Branch(forward, wrong))
        assert half.error('float32', 64) > 0.02


def test_what_fits():
    """H's backward kernel fits v6e's VMEM in smaller tiles, v5p's not at all."""
    mib = 2**20
    rows = functools.partial(residual.tile, dtype=jnp.bfloat16)
    assert [rows(width, room=int(0.92 * 128 * mib)) for width in (1024, 1280, 1536)] == [
        256,
        256,
        128,
    ]
    assert [rows(width, room=int(0.92 * 64 * mib)) for width in (1024, 1280)] == [128, 0]
    assert np.array_equal([rows(1024, room=16 * mib)], [0])


def test_which_halves_of_a_block_fit():
    """H's MLP fits v6e's VMEM by half an image at a time, and v5p's not at all."""
    of = lambda width, mib: mlp.sizes(320, width, 4 * width, jnp.bfloat16, int(0.92 * mib * 2**20))
    assert of(448, 64) == (320, 896) and of(1024, 128) == (320, 1024)
    assert of(1280, 128) == (160, 1024) and of(1280, 64) is None and of(448, 16) is None
