"""Scores that compare a set of generated samples with real ones, as feature vectors.

Everything is NumPy on the host, in float64 unless said. Features may be pixels (as for the digits)
or a network's.
"""

from collections.abc import Callable

import numpy as np

from emigm_jax.errors import UserError

_BLOCK = 2**25  # numbers in a block of distances: 128 MiB in float32
MOST = 50_000  # rows of a set, as published scores have, where work grows faster than the set


def mean_and_covariance(
    features: np.ndarray, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and unbiased covariance (D, D) of features (M, D), in float64, by blocks.

    `weights` (M,) counts every row so many times; None: once.

    Raises:
      UserError: fewer than two rows.
    """
    features = np.asarray(features)
    weights = np.ones(len(features)) if weights is None else np.asarray(weights, np.float64)
    total = weights.sum()
    if total < 2:
        raise UserError(f'a covariance needs at least 2 samples, not {round(total)}')
    blocks = [slice(i, i + 4096) for i in range(0, len(features), 4096)]
    mean = sum(weights[b] @ features[b].astype(np.float64) for b in blocks) / total
    outer = np.zeros((features.shape[1],) * 2)
    for block in blocks:
        centred = features[block].astype(np.float64) - mean
        outer = outer + (centred * weights[block, None]).T @ centred
    return mean, (outer + outer.T) / (2.0 * (total - 1.0))


def _factor(covariance):
    """A (D, r) with covariance = A A^T: the Cholesky factor, or that of its r eigenvectors.

    Eigenvalues that are rounding errors count as zero: the root of 1e-16 would be 1e-8.
    """
    noise = len(covariance) * np.finfo(np.float64).eps
    try:
        lower = np.linalg.cholesky(covariance)  # many times as fast as eigenvectors
        # A deficient covariance may pass by its rounding errors. No eigenvalue is below this:
        smallest = 1.0 / np.square(np.linalg.inv(lower)).sum()
        if smallest > noise * np.trace(covariance):
            return lower
    except np.linalg.LinAlgError:
        pass  # not positive definite
    values, vectors = np.linalg.eigh(covariance)
    kept = values > noise * np.abs(values).max(initial=0.0)
    return vectors[:, kept] * np.sqrt(values[kept])


def frechet_distance(
    mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray
) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Heusel et al. 2017, Eq. 6).

    With C = A A^T the trace of the root is the sum of the singular values of A1^T A2, which stays
    real and exact to rounding for rank-deficient covariances too. The eigenvalues of C1 C2, which
    others take the roots of, lose half of the digits there.
    """
    return frechet_distance_from(mean1, cov1)(mean2, cov2)


def frechet_distance_from(
    mean1: np.ndarray, cov1: np.ndarray
) -> Callable[[np.ndarray, np.ndarray], float]:
    """`frechet_distance` from a fixed first Gaussian to (mean, covariance)."""
    factor1 = _factor(cov1)

    def distance(mean2, cov2):
        trace = np.linalg.svd(factor1.T @ _factor(cov2), compute_uv=False).sum()
        shift = np.square(mean1 - mean2).sum()
        return float(shift + np.trace(cov1) + np.trace(cov2) - 2.0 * trace)

    return distance


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances (len(a), len(b)); in float32 if both are, else in float64."""
    a, b = np.asarray(a), np.asarray(b)
    dtype = np.float32 if a.dtype == b.dtype == np.float32 else np.float64
    a, b = a.astype(dtype, copy=False), b.astype(dtype, copy=False)
    d = a @ b.T
    d *= -2.0
    d += np.square(a).sum(1)[:, None]
    d += np.square(b).sum(1)
    return np.maximum(d, 0.0, out=d)


def some(rows: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the rows (N, D): all, or a random subset, the same each time."""
    if len(rows) <= most:
        return rows
    rng = np.random.Generator(np.random.Philox(key=0))
    return rows[np.sort(rng.choice(len(rows), most, replace=False))]


def _distances_by_rows(a, b):
    """Yields (slice of rows of a, their squared distances to all rows of b), memory bounded."""
    rows = max(1, _BLOCK // len(b))
    for start in range(0, len(a), rows):
        block = slice(start, min(start + rows, len(a)))
        yield block, squared_distances(a[block], b)


def _radii(features, k):
    """Squared distance (M,) of every row to its k-th neighbour, itself not counted."""
    radii = []
    for block, d in _distances_by_rows(features, features):
        d[np.arange(len(d)), np.arange(block.start, block.stop)] = np.inf
        radii.append(np.partition(d, k - 1, axis=1)[:, k - 1])
    return np.concatenate(radii)


def precision_recall(
    real: np.ndarray, fake: np.ndarray, k: int = 3, most: int = MOST
) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019) with k nearest neighbours.

    Precision: share of `fake` inside the union of balls around `real` rows that reach their k-th
    neighbour. Recall: the same with the roles exchanged. Distances of float32 features are
    computed in float32. ADM's tool has 10,000 real and 50,000 generated images here and computes
    in float16, so that its third decimal is its own.

    Args:
      real: (M, D) features.
      fake: (N, D) features.
      k: which neighbour.
      most: rows of either; of more, `some` are taken, as both scores depend on how many there are.

    Raises:
      UserError: not more than k rows of either.
    """
    real, fake = (some(np.asarray(rows), most) for rows in (real, fake))
    for what, rows in (('real', real), ('generated', fake)):
        if len(rows) <= k:
            raise UserError(
                f'precision and recall with k = {k} need more than {k} {what} images, '
                f'not {len(rows)}'
            )
    # Distances do not change, but lose fewer digits when the origin is near the data.
    centre = real.mean(0, dtype=np.float64).astype(np.result_type(real, np.float32))
    real, fake = real - centre, fake - centre
    real_radii, fake_radii = _radii(real, k), _radii(fake, k)
    inside_real = np.zeros(len(fake), bool)
    covered = np.zeros(len(real), bool)
    for block, d in _distances_by_rows(real, fake):
        inside_real |= (d <= real_radii[block, None]).any(0)
        covered[block] = (d <= fake_radii).any(1)
    return float(inside_real.mean()), float(covered.mean())


def nearest_neighbour_accuracy(
    real: np.ndarray, real_labels: np.ndarray, fake: np.ndarray, fake_labels: np.ndarray
) -> float:
    """Share of `fake` whose nearest real row carries the label that was asked for."""
    nearest = squared_distances(fake, real).argmin(1)
    return float((np.asarray(real_labels)[nearest] == np.asarray(fake_labels)).mean())


def compare(
    real: np.ndarray, real_labels: np.ndarray, fake: np.ndarray, fake_labels: np.ndarray
) -> dict[str, float]:
    """All scores of one set against the other: {accuracy, frechet_distance, precision, recall}."""
    precision, recall = precision_recall(real, fake)
    return {
        'accuracy': nearest_neighbour_accuracy(real, real_labels, fake, fake_labels),
        'frechet_distance': frechet_distance(
            *mean_and_covariance(real), *mean_and_covariance(fake)
        ),
        'precision': precision,
        'recall': recall,
    }


def halves(features: np.ndarray, labels: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Scores of one random half of the real data against the other: what is as good as real."""
    order = np.random.Generator(np.random.Philox(key=seed)).permutation(len(features))
    first, second = order[: len(order) // 2], order[len(order) // 2 :]
    return compare(features[first], labels[first], features[second], labels[second])
