"""Scores that compare a set of generated samples with real ones, as feature vectors.

Everything is float64 NumPy on the host. Features may be pixels (as for the digits) or a network's.
"""

import numpy as np


def mean_and_covariance(features):
    """Mean (D,) and unbiased covariance (D, D) of features (M, D)."""
    features = np.asarray(features, np.float64)
    return features.mean(0), np.cov(features, rowvar=False)


def _root(covariance):
    """The symmetric square root. Eigenvalues that are rounding errors count as zero: the root
    of 1e-16 would be 1e-8."""
    values, vectors = np.linalg.eigh(covariance)
    noise = len(values) * np.finfo(values.dtype).eps * np.abs(values).max(initial=0.0)
    return (vectors * np.sqrt(np.where(values > noise, values, 0.0))) @ vectors.T


def frechet_distance(mean1, cov1, mean2, cov2):
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Heusel et al. 2017, Eq. 6).

    The trace of the root is the sum of the singular values of C1^(1/2) C2^(1/2), which stays
    real and exact to rounding for rank-deficient covariances too.
    """
    trace = np.linalg.svd(_root(cov1) @ _root(cov2), compute_uv=False).sum()
    return float(np.square(mean1 - mean2).sum() + np.trace(cov1) + np.trace(cov2) - 2.0 * trace)


def squared_distances(a, b):
    """Squared Euclidean distances (len(a), len(b))."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    d = np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2.0 * a @ b.T
    return np.maximum(d, 0.0)


def _radii(features, k):
    """Squared distance of every row to its k-th neighbour, itself not counted."""
    d = squared_distances(features, features)
    np.fill_diagonal(d, np.inf)
    return np.partition(d, k - 1, axis=1)[:, k - 1]


def precision_recall(real, fake, k=3):
    """Improved precision and recall (Kynkaanniemi et al. 2019) with k nearest neighbours.

    Precision: share of `fake` inside the union of balls around `real` rows that reach their k-th
    neighbour. Recall: the same with the roles exchanged.
    """
    between = squared_distances(real, fake)
    precision = (between <= _radii(real, k)[:, None]).any(0).mean()
    recall = (between <= _radii(fake, k)[None]).any(1).mean()
    return float(precision), float(recall)


def nearest_neighbour_accuracy(real, real_labels, fake, fake_labels):
    """Share of `fake` whose nearest real row carries the label that was asked for."""
    nearest = squared_distances(fake, real).argmin(1)
    return float((np.asarray(real_labels)[nearest] == np.asarray(fake_labels)).mean())


def compare(real, real_labels, fake, fake_labels):
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


def halves(features, labels, seed=0):
    """Scores of one random half of the real data against the other: what is as good as real."""
    order = np.random.Generator(np.random.Philox(key=seed)).permutation(len(features))
    first, second = order[: len(order) // 2], order[len(order) // 2 :]
    return compare(features[first], labels[first], features[second], labels[second])
