"""Gaussian diffusion of one token: cosine betas, forward process, loss (official diffusion/).

Everything that depends on the schedule alone is a float64 table made once on the host.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int

TIMESTEPS = 1000


class Tables(NamedTuple):
    """Tables over the T diffusion steps."""

    timesteps: Int[np.ndarray, ' T']  # times of the network, 0..999 (a subset if respaced)
    betas: Float64[np.ndarray, ' T']
    alpha_bar: Float64[np.ndarray, ' T']
    alpha_bar_prev: Float64[np.ndarray, ' T']
    posterior_log_variance: Float64[np.ndarray, ' T']  # clipped at t=0 to the value at t=1
    posterior_mean_x0: Float64[np.ndarray, ' T']  # coefficient of x_0
    posterior_mean_xt: Float64[np.ndarray, ' T']  # coefficient of x_t


def cosine_alpha_bar(t: float) -> float:
    """alpha_bar(t) = cos^2((t + 0.008)/1.008 pi/2), t in [0, 1] (Nichol & Dhariwal Eq. 17)."""
    return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2


def _betas():
    steps = range(TIMESTEPS)
    ratio = [cosine_alpha_bar((i + 1) / TIMESTEPS) / cosine_alpha_bar(i / TIMESTEPS) for i in steps]
    return np.minimum(1.0 - np.array(ratio), 0.999)


def _tables(betas, timesteps):
    alpha_bar = np.cumprod(1.0 - betas)
    previous = np.append(1.0, alpha_bar[:-1])
    variance = betas * (1.0 - previous) / (1.0 - alpha_bar)
    log_variance = np.log(np.append(variance[1], variance[1:])) if len(betas) > 1 else np.log(betas)
    return Tables(
        timesteps=timesteps,
        betas=betas,
        alpha_bar=alpha_bar,
        alpha_bar_prev=previous,
        posterior_log_variance=log_variance,
        posterior_mean_x0=betas * np.sqrt(previous) / (1.0 - alpha_bar),
        posterior_mean_xt=(1.0 - previous) * np.sqrt(1.0 - betas) / (1.0 - alpha_bar),
    )


@functools.cache
def tables() -> Tables:
    """Tables of the 1000-step process used in training."""
    return _tables(_betas(), np.arange(TIMESTEPS))


@functools.cache
def respaced(steps: int) -> Tables:
    """Tables of the process that visits `steps` evenly spaced timesteps (both ends included).

    100 steps give timesteps 0, 10, 20, ..., 989, 999 as the official `space_timesteps` does.
    """
    stride = (TIMESTEPS - 1) / (steps - 1) if steps > 1 else 1.0
    timesteps = np.array([round(i * stride) for i in range(steps)])
    alpha_bar = tables().alpha_bar[timesteps]
    betas = 1.0 - alpha_bar / np.append(1.0, alpha_bar[:-1])
    return _tables(betas, timesteps)


def q_sample(
    x0: Float[Array, '*#B C'], t: Int[Array, '*B'], noise: Float[Array, '*B C']
) -> Float[Array, '*B C']:
    """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise."""
    alpha_bar = tables().alpha_bar
    a = jnp.asarray(np.sqrt(alpha_bar), x0.dtype)[t][..., None]
    s = jnp.asarray(np.sqrt(1.0 - alpha_bar), x0.dtype)[t][..., None]
    return a * x0 + s * noise


def _normal_kl(mean1, log_variance1, mean2, log_variance2):
    gap = log_variance1 - log_variance2
    return 0.5 * (-1.0 - gap + jnp.exp(gap) + jnp.square(mean1 - mean2) * jnp.exp(-log_variance2))


def _gelu_cdf(x):
    # The tanh approximation of the normal CDF that the official likelihood uses.
    return 0.5 * (1.0 + jnp.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def _discretized_log_likelihood(x, mean, log_scale):
    """log P of the 1/255-wide bin around x, with open ends beyond +-0.999."""
    centred, inverse_std = x - mean, jnp.exp(-log_scale)
    upper = _gelu_cdf(inverse_std * (centred + 1.0 / 255.0))
    lower = _gelu_cdf(inverse_std * (centred - 1.0 / 255.0))
    floor = lambda p: jnp.log(jnp.maximum(p, 1e-12))
    inside = jnp.where(x > 0.999, floor(1.0 - lower), floor(upper - lower))
    return jnp.where(x < -0.999, floor(upper), inside)


class LossTerms(NamedTuple):
    """Loss parts per row."""

    mse: Float[Array, '*B']  # mean over channels of the squared error of epsilon
    vlb: Float[Array, '*B']  # variational bound in bits, mean over channels; no 1/1000 factor

    @property
    def total(self) -> Float[Array, '*B']:
        """The training loss, MSE + VLB (official LossType.MSE with LEARNED_RANGE)."""
        return self.mse + self.vlb


def loss_terms(
    output: Float[Array, '*B C2'],
    x0: Float[Array, '*#B C'],
    x_t: Float[Array, '*B C'],
    t: Int[Array, '*B'],
    noise: Float[Array, '*B C'],
) -> LossTerms:
    """Loss of the network's `output` (epsilon, then v: C2 = 2C) for clean x0 and noisy x_t.

    The bound trains the variance alone: the mean prediction inside it is detached. At t = 0 it is
    the discretised likelihood. All in float32.
    """
    table = tables()
    take = lambda values: jnp.asarray(values, jnp.float32)[t][..., None]
    epsilon, v = jnp.split(output.astype(jnp.float32), 2, axis=-1)
    mse = jnp.mean(jnp.square(noise - epsilon), axis=-1)

    low, high = take(table.posterior_log_variance), take(np.log(table.betas))
    fraction = (v + 1.0) / 2.0
    log_variance = fraction * high + (1.0 - fraction) * low
    frozen = jax.lax.stop_gradient(epsilon)
    x0_hat = take(np.sqrt(1.0 / table.alpha_bar)) * x_t
    x0_hat = x0_hat - take(np.sqrt(1.0 / table.alpha_bar - 1.0)) * frozen
    mean = lambda x: take(table.posterior_mean_x0) * x + take(table.posterior_mean_xt) * x_t
    kl = _normal_kl(mean(x0), low, mean(x0_hat), log_variance)
    likelihood = _discretized_log_likelihood(x0, mean(x0_hat), 0.5 * log_variance)
    nats = jnp.where(t[..., None] == 0, -likelihood, kl)
    return LossTerms(mse, jnp.mean(nats, axis=-1) / math.log(2.0))
