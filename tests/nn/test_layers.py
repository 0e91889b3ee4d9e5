"""Layers: their values against other definitions, their gradients, what is kept of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from flax import nnx

from emigm_jax.nn import layers, loops

WIDTH = 24


def norms(affine):
    """Ours and Flax's, of the same parameters."""
    ours = layers.layer_norm(WIDTH, nnx.Rngs(0), affine)
    theirs = nnx.LayerNorm(
        WIDTH,
        epsilon=layers.LAYER_NORM_EPSILON,
        use_bias=affine,
        use_scale=affine,
        use_fast_variance=False,
        rngs=nnx.Rngs(0),
    )
    if affine:
        for i, name in enumerate(('scale', 'bias')):
            value = jax.random.normal(jax.random.key(i), (WIDTH,))
            setattr(ours, name, nnx.Param(value))
            setattr(theirs, name, nnx.Param(value))
    return ours, theirs


@pytest.mark.parametrize('affine', [True, False])
def test_layer_norm_is_flaxs(affine):
    x = 3.0 + 2.0 * jax.random.normal(jax.random.key(2), (3, 5, WIDTH))
    found, wanted = (
        jax.value_and_grad(lambda norm, x: jnp.sum(jnp.sin(norm(x))), argnums=(0, 1))(norm, x)
        for norm in norms(affine)
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5 * np.abs(b).max())


def test_layer_norm_draws_and_is_stored_as_flaxs():
    """A seed gives the same network, and checkpoints keep their names."""
    ours, theirs = nnx.Rngs(0), nnx.Rngs(0)
    state = nnx.state(layers.layer_norm(WIDTH, ours), nnx.Param)
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(
        jnp.shape, nnx.state(nnx.LayerNorm(WIDTH, rngs=theirs), nnx.Param)
    )
    assert ours.params() == theirs.params()


def test_a_norm_of_half_precision_is_float32():
    x = jax.random.normal(jax.random.key(0), (4, WIDTH), jnp.bfloat16)
    norm, _ = norms(affine=True)
    assert norm(x).dtype == jnp.float32
    assert jax.grad(lambda x: norm(x).sum())(x).dtype == jnp.bfloat16


def test_statistics_are_kept_where_products_are():
    """So that the backward pass does not work them out again."""
    norm, _ = norms(affine=True)
    x = jnp.ones((4, WIDTH))

    def sums(remat):
        run = jax.checkpoint(lambda x: jnp.sin(norm(x)), policy=loops.REMAT[remat])
        program = jax.make_jaxpr(jax.grad(lambda x: run(x).sum()))(x)
        return str(program).count('reduce_sum')

    assert sums('full') == sums('dots') + 2


def test_gelu():
    x = jnp.linspace(-6.0, 6.0, 1001)
    exact = np.asarray(x, np.float64)
    wanted = exact * scipy.special.ndtr(exact)
    np.testing.assert_allclose(layers.gelu(x), wanted, atol=1e-6)
    slope = scipy.special.ndtr(exact) + exact * np.exp(-(exact**2) / 2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(jax.vmap(jax.grad(layers.gelu))(x), slope, atol=1e-6)
    half = layers.gelu(x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), layers.gelu(x), rtol=0.02, atol=0.02)
