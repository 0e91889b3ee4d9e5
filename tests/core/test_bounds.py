"""Weights of MDM's bounds, against integrals over time and the weight of the loss."""

import jax
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from emigm_jax.core import bounds, masking, schedules
from emigm_jax.core.masking import MaskingConfig
from emigm_jax.core.reveal import RevealConfig

N = 9


@pytest.mark.parametrize('name', schedules.SCHEDULES)
def test_the_weight_of_the_loss_gives_the_continuous_bound(name):
    """Integral of w(t) k Binomial(k; N, gamma(t)) over t; the exponential one ends before 1."""
    gamma = schedules.SCHEDULES[name]
    with jax.enable_x64(True):
        weight = jax.jit(lambda t: schedules.mdm_weight(name, t))

        def integrand(t, k):
            t = np.float64(t)
            return float(weight(t)) * k * scipy.stats.binom.pmf(k, N, gamma(t))

        for k in (1, 4, N):
            found, _ = scipy.integrate.quad(integrand, 0.0, 1.0, args=(k,), limit=200)
            # Of k masked at the end of the schedule the rest is missing: 1 - I_gamma(1)(k, N-k+1).
            reached = scipy.stats.beta.cdf(gamma(np.float64(1.0)), k, N - k + 1)
            np.testing.assert_allclose(found, bounds.continuous(N)[k - 1] * reached, rtol=1e-4)


@pytest.mark.parametrize('name', schedules.SCHEDULES)
@pytest.mark.parametrize('times', ['uniform', 'cosine'])
def test_steps_cost_more_than_none_and_less_with_every_doubling(name, times):
    """An average token: one step codes it alone, many as in random order."""
    before = np.inf
    share = np.arange(1, N + 1) / N  # a loss that grows with what is masked, as real ones do
    for steps in (1, 2, 8, 64, 2048):
        config = RevealConfig(steps=steps, schedule=name, times=times, rule='ancestral')
        weights = bounds.discrete(config, N)
        cost = weights @ share
        assert cost < before
        before = cost
        # Each token is revealed once: with a loss of 1 for every token the bound is N.
        np.testing.assert_allclose(weights.sum(), N, rtol=1e-9)
    least = bounds.continuous(N) @ share
    assert least <= before < 1.01 * least


def test_masks_of_training_draw_the_bound():
    """The mean of w(t) k over masks of k tokens is c_k, if none are masked by force."""
    config = MaskingConfig(
        schedule='linear', weight='mdm', times='range', t_min=0.0, least=0, groups=1
    )
    draw = jax.jit(lambda key: masking.draw(config, key, 4, 4096, 1))
    drawn = [draw(key) for key in jax.random.split(jax.random.key(0), 40)]
    weight = np.concatenate([np.asarray(each.weight) for each in drawn])
    masked = 4 - np.concatenate([np.asarray(each.visible) for each in drawn])
    assert masked.min() == 0
    found = [np.mean(weight * k * (masked == k)) for k in range(1, 5)]
    np.testing.assert_allclose(found, bounds.continuous(4), atol=0.06)
