"""How far an FID can be trusted: what it would be without end, and its standard error.

Both need the features of every generated image, not only their sums, and compute many Frechet
distances: of 2048 features and 50,000 images, some 10 s each on two CPU cores.
"""

import numpy as np

from emigm_jax.errors import UserError
from emigm_jax.evaluation import scores

SMALLEST, POINTS = 5000, 15  # Chong & Forsyth
RESAMPLES = 20


def infinite(
    features: np.ndarray,
    mean: np.ndarray,
    covariance: np.ndarray,
    smallest: int = SMALLEST,
    points: int = POINTS,
    seed: int = 0,
) -> float:
    """FID extrapolated to infinitely many generated images (Chong & Forsyth 2020, Sec. 3.2).

    FID is biased upwards by about a/N, and a depends on the model. So the FIDs of `points` random
    subsets, their sizes evenly spaced from `smallest` to all, are fitted by a line in 1/N, whose
    value at 0 is the result. The bias of the reference statistics stays.

    Args:
      features: (N, D) of generated images.
      mean, covariance: (D,) and (D, D) of the reference.

    Raises:
      UserError: fewer than 2 * smallest images, from which no line can be drawn.
    """
    if len(features) < 2 * smallest:
        raise UserError(
            f'FID of infinitely many images needs at least {2 * smallest} images, '
            f'not {len(features)}'
        )
    rng = np.random.Generator(np.random.Philox(key=seed))
    distance = scores.frechet_distance_from(mean, covariance)
    sizes = np.linspace(smallest, len(features), points).astype(int)
    fids = []
    for size in sizes:
        subset = rng.choice(len(features), size, replace=False)
        fids.append(distance(*scores.mean_and_covariance(features[np.sort(subset)])))
    _, at_zero = np.polyfit(1.0 / sizes, fids, 1)
    return float(at_zero)


def standard_error(
    features: np.ndarray,
    mean: np.ndarray,
    covariance: np.ndarray,
    resamples: int = RESAMPLES,
    seed: int = 0,
    most: int = scores.MOST,
) -> float:
    """Bootstrap standard error of FID (Efron & Tibshirani 1993, Sec. 6.2).

    The standard deviation (ddof 1) of the FIDs of `resamples` sets of N images drawn with
    replacement. Their level is of no use, as repeated images add to the bias of FID. Of more than
    `most` images so many are drawn from as many, and the error, which falls with the root of their
    number, is taken to that of all (Bickel, Goetze & van Zwet 1997).

    Args:
      features: (N, D) of generated images.
      mean, covariance: (D,) and (D, D) of the reference.

    Raises:
      UserError: fewer than two images.
    """
    if len(features) < 2:
        raise UserError(f"FID's standard error needs at least 2 images, not {len(features)}")
    rng = np.random.Generator(np.random.Philox(key=seed))
    distance = scores.frechet_distance_from(mean, covariance)
    count, features = len(features), scores.some(features, most)
    n = len(features)
    fids = []
    for _ in range(resamples):
        times = np.bincount(rng.integers(n, size=n), minlength=n)
        fids.append(distance(*scores.mean_and_covariance(features, times)))
    return float(np.std(fids, ddof=1) * np.sqrt(n / count))
