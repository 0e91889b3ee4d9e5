"""The loss of the diffusion head by tiles of rows is that of all rows at once."""

import jax
import jax.numpy as jnp
import numpy as np

from emigm_jax.config.settings import LossConfig
from emigm_jax.models import emigm
from emigm_jax.models.interface import Head

MODEL = emigm.ModelConfig(
    grid=4, channels=3, classes=2, width=16, heads=2, encoder_depth=1, decoder_depth=2,
    head_width=24, head_depth=1,
)  # fmt: skip


def _case():
    """Parameters, z and the loss (weighed by a method) as a function of both and of weights."""
    net = emigm.network(MODEL)
    keys = jax.random.split(jax.random.key(0), 5)
    # The output of a fresh network is 0 whatever comes in.
    nudge = lambda a: a + 0.1 * jax.random.normal(keys[0], a.shape)
    params = jax.tree.map(nudge, jax.jit(net.init)(keys[1]))
    draws = net.bind(params).head.draws(jax.random.split(keys[2], 2), 4, 150)
    z = jax.random.normal(keys[3], (2, 150, 16))
    clean = jax.random.normal(keys[4], (2, 150, 3))

    def gradients(method, weight, z=z):
        def loss(params, z):
            value, parts = method(net.bind(params).head, z, clean, draws, LossConfig(), weight)
            return 3.0 * value, (value, parts)

        return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, z)

    return z, gradients


def test_tiles_give_the_loss_and_gradients_of_all_rows():
    _, gradients = _case()
    weight = jnp.where(jnp.arange(150) < jnp.array([[20], [139]]), 0.01, 0.0)
    found = gradients(lambda head, *args: head.weighed(*args), weight)
    expected = gradients(Head.weighed, weight)
    near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    jax.tree.map(near, found, expected)


def test_tiles_without_weight_are_skipped():
    z, gradients = _case()
    # 120 rows of 300, which all are in the first of three tiles.
    weight = jnp.broadcast_to(jnp.where(jnp.arange(150) < 60, 0.01, 0.0), (2, 150))
    z = z.at[:, 100:].set(jnp.nan)
    tiles = gradients(lambda head, *args: head.weighed(*args), weight, z)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tiles))
    assert not np.isfinite(gradients(Head.weighed, weight, z)[1][0])
