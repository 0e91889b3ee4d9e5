"""Training masks in generation order: a time, a count and a permutation for every image.

Once an image's positions are permuted, its visible tokens are a prefix and its masked ones the
suffix, so a mask is two numbers: an order and a count. Shapes stay static because the schedule
bounds the counts (`budgets`).
"""

import dataclasses
import math
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import scipy  # whose parts are imported when they are used
from jaxtyping import Array, Float, Int32, PRNGKeyArray

from emigm_jax.core import binomial, orders, schedules
from emigm_jax.core.setting import setting, validate

_Either = TypeVar('_Either', Array, np.ndarray)

TIME_SHIFT = 1e-3  # p = (1 - 1e-3) t + 1e-3 keeps gamma above zero (official models/emigm.py:177)
# A count falls outside its static budget with at most this probability and is then moved to the
# budget's edge.
TAIL = 1e-5


def _truncated_normal(u, t_min):
    # MAR: mask ratio ~ N(1, 0.25) truncated to [t_min, 1] (with t_min = 0.7, gamma(t) = t).
    xp = u.__array_namespace__()
    low = float(scipy.special.ndtr((t_min - 1.0) / 0.25))
    ppf = scipy.special.ndtri if xp is np else jax.scipy.stats.norm.ppf
    return xp.clip(1.0 + 0.25 * ppf(low + u * (0.5 - low)), t_min, 1.0)


# Quantile functions u -> t; u is uniform on [0, 1).
TIMES = {
    # The official code: a point mass at t_min, uniform above (models/emigm.py:173-174).
    'clamp': lambda u, t_min: u.__array_namespace__().maximum(u, u.dtype.type(t_min)),
    # The paper's Eq. 7: t ~ U[t_min, 1].
    'range': lambda u, t_min: t_min + (1.0 - t_min) * u,
    'truncated_normal': _truncated_normal,
}
DISTRIBUTIONS = ('bernoulli', 'fixed')
SHARING = ('stratified', 'independent', 'shared')
WEIGHTS = ('constant', 'mdm')


@dataclasses.dataclass(frozen=True)
class MaskingConfig:
    """How training images are masked: the first two of the paper's three choices (Table 1)."""

    schedule: str = setting(
        'exp', 'gamma(t), the chance of being masked at time t', choices=schedules.SCHEDULES
    )
    distribution: str = setting(
        'bernoulli',
        'bernoulli: each token is masked alone (MDM, eMIGM); fixed: ceil(N gamma) are (MaskGIT, '
        'MAR)',
        choices=DISTRIBUTIONS,
    )
    weight: str = setting(
        'constant', "weight of the loss, w(t): 1, or that of MDM, gamma'/gamma", choices=WEIGHTS
    )
    times: str = setting(
        'clamp',
        'distribution of t: clamp, uniform with all below t_min moved to it (official code); '
        'range, uniform above t_min (Eq. 7); truncated_normal, as in MAR',
        choices=TIMES,
    )
    t_min: float = setting(0.2, 'time truncation (Eq. 7)', low=0.0, high=0.999)
    sharing: str = setting(
        'stratified',
        't over the batch: stratified, independent, or shared: one t and count per `share` images',
        choices=SHARING,
    )
    share: int = setting(
        32, "images that share t when shared (the official code: one GPU's batch)", low=1
    )
    least: int = setting(
        2,
        'tokens that are masked at least: 2 as the official eMIGM redraws until then; 0 makes the '
        'loss of MDM its bound',
        low=0,
    )
    groups: int = setting(4, 'encoder lengths compiled per step when stratified', low=1)

    def __post_init__(self):
        validate(self, 'loss.masking')


class Budget(NamedTuple):
    """Static sizes of one group of images: at most `visible` and at most `masked` tokens."""

    visible: int
    masked: int


class Masks(NamedTuple):
    """Masks of B images, in generation order."""

    t: Float[Array, ' B']  # time
    visible: Int32[Array, ' B']  # tokens order[:visible] are seen by the encoder
    order: Int32[Array, 'B N']  # permutation of positions
    weight: Float[Array, ' B']  # w(t)


def shifted(t: Float[_Either, '*T']) -> Float[_Either, '*T']:
    """The time at which gamma is read in training, p = (1 - 1e-3) t + 1e-3."""
    return (1.0 - TIME_SHIFT) * t + TIME_SHIFT


def group_count(config: MaskingConfig, batch: int) -> int:
    """Groups that a batch is cut into: `config.groups` where strata allow it, else 1."""
    return math.gcd(config.groups, batch) if config.sharing == 'stratified' else 1


def budgets(config: MaskingConfig, tokens: int, groups: int) -> tuple[Budget, ...]:
    """Static `Budget` of each group, from the range of t its stratum can draw.

    Group g of G holds the quantiles [g/G, (g+1)/G] of t. Sizes are rounded up to N/32 tokens, so
    that a TPU's tiles (8 rows at N = 256) are filled.
    """
    unit = max(1, tokens // 32)
    gamma = schedules.SCHEDULES[config.schedule]
    edges = np.linspace(0.0, 1.0, groups + 1)
    edges[-1] = np.nextafter(1.0, 0.0)
    ratio = gamma(shifted(np.asarray(TIMES[config.times](edges, config.t_min), np.float64)))
    if config.distribution == 'fixed':
        most, least = np.ceil(tokens * ratio), np.ceil(tokens * ratio - 1e-3)
    else:
        most = binomial.exceeded(TAIL, tokens, ratio)
        least = binomial.reached(TAIL, tokens, ratio)
    least = np.clip(least, config.least, tokens)
    up = lambda n: int(min(tokens, -(-int(n) // unit) * unit))
    return tuple(
        Budget(visible=up(tokens - low), masked=up(max(high, config.least, 1)))
        for low, high in zip(least[:-1], most[1:], strict=True)
    )


def _quantiles(config, key, keys, groups):
    batch = keys.shape[0]
    jitter = jax.vmap(lambda key: jax.random.uniform(key, (), jnp.float32))(keys)
    if config.sharing == 'independent':
        return jitter
    if config.sharing == 'shared':
        blocks = -(-batch // config.share)
        return jnp.repeat(jax.random.uniform(key, (blocks,), jnp.float32), config.share)[:batch]
    j = jnp.arange(batch)
    stratum = (j % groups) * (batch // groups) + j // groups
    u = (stratum.astype(jnp.float32) + jitter) / batch
    return jnp.minimum(u, np.float32(1.0 - 2.0**-24))


def draw(config: MaskingConfig, key: PRNGKeyArray, tokens: int, batch: int, groups: int) -> Masks:
    """Draws the `Masks` of a batch.

    Image j belongs to group j % groups, and its order and count depend on (key, j) alone, so that
    gradient accumulation and sharding do not change them. Counts obey `budgets`.
    """
    time_key, image_key = jax.random.split(key)
    keys = jax.vmap(lambda j: jax.random.split(jax.random.fold_in(image_key, j), 3))(
        jnp.arange(batch)
    )
    t = TIMES[config.times](_quantiles(config, time_key, keys[:, 0], groups), config.t_min)
    p = shifted(t)
    gamma = schedules.SCHEDULES[config.schedule](p)
    if config.distribution == 'fixed':
        masked = jnp.ceil(tokens * gamma).astype(jnp.int32)
    else:
        count_keys = keys[:, 1]
        if config.sharing == 'shared':  # the official code shares the count along with t
            count_keys = count_keys[jnp.arange(batch) // config.share * config.share]
        u = jax.vmap(lambda k: jax.random.uniform(k, (tokens,), jnp.float32))(count_keys)
        masked = jnp.sum(u < gamma[:, None], axis=1, dtype=jnp.int32)
    limits = budgets(config, tokens, groups)
    group = jnp.arange(batch) % groups
    low = jnp.asarray([max(config.least, tokens - b.visible) for b in limits], jnp.int32)[group]
    high = jnp.asarray([b.masked for b in limits], jnp.int32)[group]
    masked = jnp.clip(masked, low, high)
    weight = jnp.ones_like(p)
    if config.weight == 'mdm':
        weight = schedules.mdm_weight(config.schedule, p)
    return Masks(
        t, tokens - masked, jax.vmap(lambda k: orders.random(k, tokens))(keys[:, 2]), weight
    )
