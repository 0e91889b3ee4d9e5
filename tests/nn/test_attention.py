"""Attention: what it keeps for the backward pass, and which of its ways is taken."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emigm_jax.nn import attention, cudnn, loops
from emigm_jax.nn.attention import Softmax
from emigm_jax.parallel import sharding

FOUR = Softmax(4)


def inputs(dtype=jnp.float32, rows=24, width=32):
    keys = jax.random.split(jax.random.key(0), 3)
    return [jax.random.normal(key, (2, rows, width)).astype(dtype) for key in keys]


@pytest.mark.parametrize('rate', [0.0, 0.3])
@pytest.mark.parametrize('cache', [0, attention.CACHE_BYTES])
def test_logits_are_not_kept_for_the_backward_pass(rate, cache, monkeypatch):
    monkeypatch.setattr(attention, 'CACHE_BYTES', cache)
    q, k, v = inputs(rows=64)
    key = jax.random.key(1)
    run = lambda q, k, v: attention.attend(q, k, v, Softmax(4, rate), key=key)
    _, backward = jax.vjp(run, q, k, v)
    assert sum(a.size for a in jax.tree.leaves(backward)) <= 3 * q.size + 100


def test_remat_dots_keeps_what_attention_gives(capsys):
    q, k, v = inputs()
    layer = lambda q, k, v: jnp.sin(attention.attend(q, k, v, FOUR)).sum()
    for remat, times in (('dots', 1), ('full', 0)):
        kept = jax.checkpoint(layer, policy=loops.REMAT[remat])
        jax.ad_checkpoint.print_saved_residuals(kept, q, k, v)
        assert capsys.readouterr().out.count(f"named '{loops.COSTLY}'") == times


def test_platform_is_that_of_the_mesh_else_of_the_device_by_default():
    assert sharding.platform() == 'cpu'
    mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices())
    with jax.set_mesh(mesh):
        assert sharding.platform() == 'cpu'
    with jax.default_device(jax.devices('cpu')[1]):
        assert sharding.platform() == 'cpu'


def test_a_gpu_whose_cudnn_does_not_work_takes_the_plain_way(monkeypatch, caplog):
    cudnn._agrees.cache_clear()
    q, k, v = inputs(jnp.bfloat16)
    expected = attention.attend(q, k, v, FOUR)
    monkeypatch.setattr(sharding, 'platform', lambda: 'gpu')
    with caplog.at_level(logging.INFO):
        actual = attention.attend(q, k, v, FOUR)
    np.testing.assert_array_equal(actual, expected)
    assert caplog.messages[0].startswith('attention by XLA, as cuDNN')
    assert len(caplog.messages) == 1


@pytest.mark.parametrize('off', [0.0, 1.0])
def test_cudnn_is_taken_where_it_agrees(off, monkeypatch):
    """A stand-in for its kernel, which is right, or off."""
    cudnn._agrees.cache_clear()
    q, k, v = inputs(jnp.bfloat16)
    lengths = jnp.array([24, 5])
    expected = attention.attend(q, k, v, FOUR, lengths)
    calls, real = [], jax.nn.dot_product_attention

    def stand_in(*args, implementation, **options):
        assert implementation == 'cudnn'
        calls.append(args[0].shape)
        with jax.numpy_dtype_promotion('standard'):
            return real(*args, implementation='xla', **options) + off

    monkeypatch.setattr(jax.nn, 'dot_product_attention', stand_in)
    monkeypatch.setattr(sharding, 'platform', lambda: 'gpu')
    actual = attention.attend(q, k, v, FOUR, lengths)
    assert (q.reshape(2, 24, 4, 8).shape in calls) == (off == 0.0)
    np.testing.assert_allclose(
        np.asarray(actual, np.float32), np.asarray(expected, np.float32), atol=0.03
    )
    # Neither with dropout nor in float32.
    calls.clear()
    attention.attend(q, k, v, Softmax(4, 0.5), key=jax.random.key(0))
    attention.attend(q.astype(jnp.float32), k.astype(jnp.float32), v.astype(jnp.float32), FOUR)
    assert not calls
    cudnn._agrees.cache_clear()
