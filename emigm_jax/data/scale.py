"""The scale of latents, recomputed from a cache: 1 / standard deviation, as MAR and eMIGM use it.

The mean is not removed (MAR issues #2, #62). Moments are not sampled: with z = mean + sigma * eps
the expectation of z^2 over eps is mean^2 + sigma^2, exactly.
"""

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np

from emigm_jax.data import latents
from emigm_jax.errors import UserError
from emigm_jax.tokenizers import learned

NO_MATTER = 0.1  # relative distance of the tokens' standard deviation from 1


@dataclasses.dataclass(frozen=True)
class Scale:
    """What the latents of a cache are like."""

    scale: float  # 1 / standard deviation over images, positions, channels and both views
    error: float  # standard error of `scale`, images taken as independent
    mean: float  # of all latents
    constant: float  # the tokenizer's published scale
    origin: str  # where that comes from
    images: int

    @property
    def verdict(self) -> str:
        """Whether the difference matters, and what to set if it does.

        `NO_MATTER` is a rule of thumb.
        """
        tokens = self.constant / self.scale
        told = f'tokens have a standard deviation of {tokens:.2f}, the noise is made for 1'
        off = max(tokens, 1.0 / tokens) - 1.0
        if not np.isfinite(self.error) or abs(self.deviation) < 2.0:
            return f'{told}; {self.images:,} images cannot tell that from chance'
        if off <= NO_MATTER:
            return f'{told}: so little does not matter'
        return f'{told}: it matters, train with --config.data.latent_scale={self.scale:.4f}'

    @property
    def deviation(self) -> float:
        """Distance of `scale` from the published constant, in standard errors."""
        return (self.scale - self.constant) / self.error


def measure(
    cache: latents.Cache, progress: Callable[[range], Iterable[int]] = lambda shards: shards
) -> Scale:
    """The scale of a cache; every shard is checked against its checksum on the way.

    With m_i and v_i the means of z and z^2 over image i, Var = mean(v) - mean(m)^2, whose standard
    error is that of v_i - 2 mean(m) m_i (delta method), and d(Var^(-1/2)) = -Var^(-3/2) / 2 dVar.

    Raises:
      UserError: the cache holds codes, or a shard is damaged.
    """
    tokenizer = learned.published(cache.manifest.contents.tokenizer.name)
    if tokenizer.spec.codes:
        raise UserError(f'{cache.path}: holds codes of {tokenizer.spec.title}, which have no scale')
    pairs = [_moments(cache.shard(n), tokenizer) for n in progress(range(len(cache.shards)))]
    m, v = (np.concatenate(columns) for columns in zip(*pairs, strict=True))
    mean, count = m.mean(), len(m)
    variance = v.mean() - mean**2
    # One image says nothing of how images differ.
    spread = (v - 2.0 * mean * m).std(ddof=1) / np.sqrt(count) if count > 1 else np.inf
    return Scale(
        scale=float(variance**-0.5),
        error=float(0.5 * variance**-1.5 * spread),
        mean=float(mean),
        constant=tokenizer.spec.scale,
        origin=tokenizer.spec.origin,
        images=count,
    )


def _moments(views, tokenizer, rows=256):
    """Mean of z and of z^2 for every image of (R, 2, h, w, c): two float64 arrays (R,)."""
    first, second = np.empty(len(views)), np.empty(len(views))
    for start in range(0, len(views), rows):  # float64 only of a few images at a time
        part = views[start : start + rows].astype(np.float64)
        axes = tuple(range(1, part.ndim))
        chosen = slice(start, start + rows)
        mean, variance = tokenizer.latent_moments(part)
        first[chosen] = mean.mean(axes)
        second[chosen] = np.square(mean).mean(axes) + variance.mean(axes)
    return first, second
