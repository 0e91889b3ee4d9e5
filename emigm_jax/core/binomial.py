"""Quantiles of binomial counts by scipy.special alone: scipy.stats takes a second to import."""

import numpy as np
import scipy  # whose parts are imported when they are used


def exceeded(tail: float, trials: int, chance: np.ndarray) -> np.ndarray:
    """The least k that a count exceeds with probability `tail` at most.

    Args:
      tail: of a probability.
      trials: n of the counts.
      chance: (...) probabilities p.

    Returns:
      (...) int, `scipy.stats.binom.isf(tail, trials, chance)`.
    """
    k = np.arange(trials + 1.0)
    beyond = scipy.special.bdtrc(k, trials, np.asarray(chance, np.float64)[..., None])
    return np.argmax(beyond <= tail, axis=-1)


def reached(tail: float, trials: int, chance: np.ndarray) -> np.ndarray:
    """The least k below or at which a count lies with probability `tail` at least.

    Args and result as of `exceeded`: `scipy.stats.binom.ppf(tail, trials, chance)`.
    """
    k = np.arange(trials + 1.0)
    within = scipy.special.bdtr(k, trials, np.asarray(chance, np.float64)[..., None])
    return np.argmax(within >= tail, axis=-1)
