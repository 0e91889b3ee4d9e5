"""Losses and drawing of codes, against sums over all codes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from emigm_jax.core import categorical
from emigm_jax.core.categorical import CodesConfig

LOGITS = jax.random.normal(jax.random.key(0), (5, 3, 7)) * 2.0
CODES = jax.random.randint(jax.random.key(1), (5, 3), 0, 7)


@pytest.mark.parametrize('smoothing', [0.0, 0.1, 1.0])
def test_cross_entropy_is_the_sum_over_codes(smoothing):
    log_p = scipy.special.log_softmax(np.asarray(LOGITS, np.float64), axis=-1)
    q = np.eye(7)[CODES] * (1 - smoothing) + smoothing / 7
    found = categorical.cross_entropy(LOGITS, CODES, smoothing)
    np.testing.assert_allclose(found, -np.sum(q * log_p, axis=-1), rtol=1e-5)


def test_large_logits_stay_finite():
    logits = jnp.asarray([[1e4, 0.0, -1e4]])
    for code, expected in ((0, 0.0), (1, -1e4), (2, -2e4)):
        found = categorical.log_probability(logits, jnp.asarray([code]))
        np.testing.assert_allclose(found, [expected])


def probabilities(config):
    logits = categorical.allowed(LOGITS, config)
    return np.asarray(jax.nn.softmax(logits, axis=-1), np.float64)


def test_what_may_be_drawn():
    plain = probabilities(CodesConfig())
    np.testing.assert_allclose(plain, jax.nn.softmax(LOGITS, axis=-1), rtol=1e-6)
    warm = np.asarray(plain**0.5)
    np.testing.assert_allclose(
        probabilities(CodesConfig(temperature=2.0)),
        warm / warm.sum(axis=-1, keepdims=True),
        rtol=1e-5,
    )
    ranked = np.sort(plain, axis=-1)[..., ::-1]
    top = probabilities(CodesConfig(top_k=3))
    assert (np.count_nonzero(top, axis=-1) == 3).all()
    kept = np.sort(top, axis=-1)[..., ::-1][..., :3]
    np.testing.assert_allclose(kept, ranked[..., :3] / ranked[..., :3].sum(-1, keepdims=True), 1e-5)
    for nucleus in (1e-6, 0.5, 0.9, 0.999):
        nuclear = probabilities(CodesConfig(nucleus=nucleus))
        count = np.count_nonzero(nuclear, axis=-1)
        reached = np.cumsum(ranked, axis=-1)
        expected = 1 + np.sum(reached < nucleus, axis=-1)
        np.testing.assert_array_equal(count, expected)
    np.testing.assert_allclose(probabilities(CodesConfig(top_k=9)), plain, rtol=1e-6)


def test_draws_follow_the_probabilities():
    logits, count = LOGITS[0, 0], 20_000
    gumbel = jax.random.gumbel(jax.random.key(2), (count, 7))
    config = CodesConfig(temperature=0.7, top_k=5)
    drawn = categorical.draw(jnp.broadcast_to(logits, (count, 7)), gumbel, config)
    expected = np.asarray(jax.nn.softmax(categorical.allowed(logits, config)))
    found = np.bincount(drawn, minlength=7) / count
    np.testing.assert_allclose(found, expected, atol=4 * np.sqrt(0.25 / count))
    greedy = categorical.draw(LOGITS, gumbel[:15].reshape(5, 3, 7), CodesConfig(temperature=0.0))
    np.testing.assert_array_equal(greedy, jnp.argmax(LOGITS, axis=-1))
