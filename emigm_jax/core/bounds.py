"""Bounds of -log p of an image that masked diffusion gives, as weights of how much is masked.

A masked-diffusion model is a network that predicts masked codes from visible ones. Its bounds are
sums over the number k of masked tokens, of N,

    L = sum_k c_k E[mean over the k masked tokens of -log p(x_i | visible)]    in nats per image,

the mask being uniform among those of k tokens. In continuous time all c_k are 1, whatever the
schedule: the weight gamma'/gamma (Eq. 4) undoes how often it draws each k. So the bound is also
-log p of an autoregressive model in random order.
"""

import numpy as np
import scipy  # whose parts are imported when they are used
from jaxtyping import Float64

from emigm_jax.core import reveal


def continuous(tokens: int) -> Float64[np.ndarray, ' {tokens}']:
    """c_1 to c_N of MDM's continuous-time bound (MD4, arXiv 2406.04329; Eq. 4)."""
    return np.ones(tokens)


def discrete(config: reveal.RevealConfig, tokens: int) -> Float64[np.ndarray, ' {tokens}']:
    """c_1 to c_N of images that the steps of `config` make in ancestral sampling.

    Step i finds a token masked with probability m_i and reveals it with probability p_i, so
    c_k = k sum_i p_i Binomial(k; N, m_i). Above `continuous`, and falling to it with more steps.
    """
    p = reveal.reveal_probabilities(config)
    masked = np.cumprod(np.concatenate([[1.0], 1.0 - p[:-1]]))
    k = np.arange(1, tokens + 1)
    return k * (p @ scipy.stats.binom.pmf(k, tokens, masked[:, None]))
