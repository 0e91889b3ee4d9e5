"""The Kernel Inception Distance (Binkowski et al. 2018), as torch-fidelity computes it."""

import numpy as np

from emigm_jax.errors import UserError

SUBSETS, SIZE = 100, 1000
_SEED = 2020


def kernel_distance(
    fake: np.ndarray, real: np.ndarray, subsets: int = SUBSETS, size: int = SIZE
) -> tuple[float, float]:
    """(mean, standard deviation with ddof 0) of the squared MMD over random subsets.

    The kernel is (x.y / D + 1)^3 and the estimator the unbiased one (their Eq. 4), so a small
    distance can come out negative. The subsets are those of torch-fidelity 0.4, where the generated
    images are the first input; exchanging the two changes the result within its noise.

    Args:
      fake: (N, D) features of generated images.
      real: (M, D) features of real images.

    Raises:
      UserError: fewer rows than `size`.
    """
    for what, rows in (('generated', fake), ('real', real)):
        if len(rows) < size:
            raise UserError(f'KID needs at least {size} {what} images, not {len(rows)}')
    rng = np.random.RandomState(_SEED)
    distances = []
    for _ in range(subsets):
        x = np.asarray(fake)[rng.choice(len(fake), size, replace=False)].astype(np.float64)
        y = np.asarray(real)[rng.choice(len(real), size, replace=False)].astype(np.float64)
        distances.append(_off_diagonal_mean(x) + _off_diagonal_mean(y) - 2.0 * _kernel(x, y).mean())
    return float(np.mean(distances)), float(np.std(distances))


def _kernel(x, y):
    k = x @ y.T
    k /= x.shape[1]
    k += 1.0
    return k * k * k


def _off_diagonal_mean(x):
    k = _kernel(x, x)
    return (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))
