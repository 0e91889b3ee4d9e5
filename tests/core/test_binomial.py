"""Quantiles of binomial counts are those of scipy.stats, to the last count."""

import numpy as np
import pytest
import scipy

from emigm_jax.core import binomial


@pytest.mark.parametrize('trials', [1, 2, 16, 64, 256, 1024])
@pytest.mark.parametrize('tail', [1e-5, 0.3172])
def test_quantiles(trials, tail):
    edges = [0.0, 1e-12, 1e-9, 1e-6, 1e-3, 1.0 - 1e-3, 1.0 - 1e-9, 1.0 - 1e-16, 1.0]
    chance = np.concatenate([edges, np.linspace(0.0, 1.0, 301)])
    of_scipy = scipy.stats.binom
    found = binomial.exceeded(tail, trials, chance)
    np.testing.assert_array_equal(found, of_scipy.isf(tail, trials, chance))
    found = binomial.reached(tail, trials, chance)
    np.testing.assert_array_equal(found, np.maximum(of_scipy.ppf(tail, trials, chance), 0))
