"""Attention for NVIDIA GPUs, tile by tile, interpreted, against the definition."""

import sys

import jax
import jax.numpy as jnp
import pytest
from jax import Array
from jax.ad_checkpoint import print_saved_residuals

from emigm_jax.nn import attention, loops
from emigm_jax.nn.kernels import choice, tiles, whole_rows
from emigm_jax.parallel import sharding

TOLERANCE = {'float32': 1e-5, 'bfloat16': 0.04}
LENGTHS = jnp.array([100, 65, 1])


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    """What is traced takes the devices for GPUs."""
    monkeypatch.setattr(sharding, 'platform', lambda: 'gpu')


def inputs(size, dtype, batch=3) -> tuple[Array, Array, Array, Array]:
    """q of 70 rows, k and v of 100, of two heads, with a gradient of the result."""
    keys, rows = jax.random.split(jax.random.key(0), 4), (70, 100, 100, 70)
    normal = lambda key, rows: jax.random.normal(key, (batch, rows, 2 * size)).astype(dtype)
    q, k, v, gradient = map(normal, keys, rows)
    return q, k, v, gradient


def run(kernels, rate, lengths, q, k, v, gradient):
    """The result and the gradients of q, k and v."""
    softmax, key = attention.Softmax(2, rate, kernels), jax.random.key(1)

    @jax.jit
    def both(q, k, v, gradient):
        one = lambda q, k, v: attention.attend(q, k, v, softmax, lengths, key)
        out, back = jax.vjp(one, q, k, v)
        return out, *back(gradient)

    return both(q, k, v, gradient)


def close(found, wanted, dtype):
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert choice.distance(a, b) < TOLERANCE[dtype]


@pytest.mark.parametrize(
    ('size', 'rate', 'dtype'),
    [
        (56, 0.3, 'float32'),
        (64, 0.3, 'bfloat16'),
        pytest.param(80, 0.3, 'float32', marks=pytest.mark.slow),
        pytest.param(64, 0.0, 'float32', marks=pytest.mark.slow),
    ],
)
def test_values_and_gradients(size, rate, dtype):
    """Tiles that are not full, heads of no power of two, hidden keys, the very same dropped."""
    given = inputs(size, dtype)
    close(run('pallas', rate, LENGTHS, *given), run('xla', rate, LENGTHS, *given), dtype)


def test_tiles_that_are_full():
    """As at 256 pixels, where no tile has a part that is not there."""
    q, k, v, gradient = (a[:, :64].repeat(2, axis=1) for a in inputs(16, 'float32'))
    args = q, k, v, jnp.full((3, 1, 1), 128), jnp.ones((3, 2, 2, 1), jnp.uint32)
    small, large = (
        tiles.Plan(16, 0.3, interpret=True, queries=queries, keys=keys)
        for queries, keys in ((16, 32), (128, 128))
    )

    def all_of(plan):
        out, kept = tiles.forward(plan, *args)
        return out, *tiles.backward(plan, args, kept, gradient)

    found, wanted = (jax.jit(all_of, static_argnums=0)(plan) for plan in (small, large))
    close(found, wanted, 'float32')


def test_each_device_works_on_its_shards():
    given = inputs(16, 'float32', batch=4)
    lengths = jnp.array([100, 65, 1, 70])
    with jax.set_mesh(sharding.make_mesh(sharding.MeshConfig(data=4, tensor=2))):
        sharded = run('pallas', 0.3, lengths, *given)
    close(sharded, run('xla', 0.3, lengths, *given), 'float32')


@pytest.mark.parametrize(('remat', 'kept'), [('dots', True), ('full', False)])
def test_what_is_costly_is_kept(remat, kept, capsys):
    """The result and the sums, so that the backward pass does not run the forward kernel again."""
    q, k, v, _ = inputs(16, 'bfloat16')
    softmax = attention.Softmax(2, 0.3, 'pallas')
    key = jax.random.key(0)
    one = lambda q, k, v: jnp.sin(attention.attend(q, k, v, softmax, None, key))
    print_saved_residuals(jax.checkpoint(one, policy=loops.REMAT[remat]), q, k, v)
    saved = capsys.readouterr().out
    assert [f"{a} named '{loops.COSTLY}'" in saved for a in ('bf16[3,70,32]', 'f32[3,2,70]')] == [
        kept
    ] * 2


@pytest.mark.parametrize(
    ('dtype', 'rate', 'taken'),
    [('bfloat16', 0.3, True), ('bfloat16', 0.0, False), ('float32', 0.3, False)],
)
def test_dropout_in_half_precision_takes_them(dtype, rate, taken, monkeypatch):
    """The rest is cuDNN's or XLA's."""
    choice._agrees.cache_clear()
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    monkeypatch.setattr(whole_rows, 'error', lambda *_: 0.0)
    q, k, *_ = inputs(16, dtype)
    plan = whole_rows.plan('auto', q, k, 2, rate)
    assert (plan == tiles.Plan(16, rate)) if taken else plan is None
    choice._agrees.cache_clear()


@pytest.mark.slow
def test_the_check_at_the_start(monkeypatch):
    assert whole_rows.error('bfloat16', 64) < TOLERANCE['bfloat16']
    right = tiles.stays
    monkeypatch.setattr(tiles, 'stays', lambda *args: ~right(*args))
    assert whole_rows.error('bfloat16', 64) > 0.1


def test_without_the_backend_the_definition_runs(monkeypatch, caplog):
    """JAX means to drop it."""
    monkeypatch.setitem(sys.modules, 'jax.experimental.pallas.triton', None)
    monkeypatch.delattr('jax.experimental.pallas.triton', raising=False)
    monkeypatch.setattr(choice, '_agrees', choice._agrees.__wrapped__)
    q, k, _, _ = inputs(64, 'bfloat16')
    with caplog.at_level('INFO'):
        assert whole_rows.plan('auto', q, k, 2, 0.1) is None
    assert 'attention by XLA, as its kernel fails here' in caplog.text
