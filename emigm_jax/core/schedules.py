"""Mask schedules: one function gamma(t) each, everything else is derived (paper Table 4, App. D).

gamma(t) is the probability that a token is masked at time t; t = 1 is (almost) fully masked.
The functions take NumPy or JAX arrays alike: reveal plans are drawn on the host in float64,
training masks on the device in float32.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_Either = TypeVar('_Either', Array, np.ndarray)

RATE = 5.0  # of the two exponential schedules; App. D prints 5, the official code as well


def _linear(t):
    return t


def _cosine(t):
    # cos(pi/2 (1 - t)) of Table 4, in the form that keeps its digits near t = 0.
    return t.__array_namespace__().sin(np.pi / 2 * t)


def _exp(t):
    return -t.__array_namespace__().expm1(-RATE * t)


def _log_exp(t):
    return t.__array_namespace__().log1p(float(np.expm1(RATE)) * t) / RATE


def _poly_half(t):
    return t.__array_namespace__().sqrt(t)


SCHEDULES = {
    'linear': _linear,
    'cosine': _cosine,
    'exp': _exp,
    'log-exp': _log_exp,
    'poly-0.5': _poly_half,
}


def mdm_weight(schedule: str, t: Float[Array, '*T']) -> Float[Array, '*T']:
    """w(t) = gamma'(t) / gamma(t) = d/dt log gamma(t), the MDM weight of Eq. 4."""
    log_gamma = lambda t: jnp.log(SCHEDULES[schedule](t))
    return jax.jvp(log_gamma, (t,), (jnp.ones_like(t),))[1]


def reveal_probability(
    schedule: str, t: Float[_Either, '*T'], s: Float[_Either, '*T']
) -> Float[_Either, '*T']:
    """Probability that a token masked at t is revealed by s < t: 1 - gamma(s)/gamma(t) (Eq. 6)."""
    gamma = SCHEDULES[schedule]
    return 1.0 - gamma(s) / gamma(t)
