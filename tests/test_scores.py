"""Scores with known answers."""

import numpy as np
import pytest

from emigm_jax.data import sources
from emigm_jax.evaluation import scores


def spd(rng, size, rank=None):
    a = rng.standard_normal((size, rank or size))
    return a @ a.T


@pytest.fixture
def rng():
    return np.random.Generator(np.random.Philox(key=0))


def test_frechet_distance_of_commuting_gaussians(rng):
    mean1, mean2 = rng.standard_normal((2, 12))
    basis = np.linalg.qr(rng.standard_normal((12, 12)))[0]
    values = rng.uniform(0.1, 3.0, (2, 12))
    cov1, cov2 = ((basis * v) @ basis.T for v in values)
    exact = (
        np.square(mean1 - mean2).sum() + np.square(np.sqrt(values[0]) - np.sqrt(values[1])).sum()
    )
    assert scores.frechet_distance(mean1, cov1, mean2, cov2) == pytest.approx(exact, rel=1e-10)


def test_frechet_distance_of_two_dimensions(rng):
    """tr (C1 C2)^(1/2) = sqrt(tr(C1 C2) + 2 sqrt(det(C1 C2))) in two dimensions."""
    cov1, cov2, zero = spd(rng, 2), spd(rng, 2), np.zeros(2)
    root = np.sqrt(np.trace(cov1 @ cov2) + 2 * np.sqrt(np.linalg.det(cov1 @ cov2)))
    exact = np.trace(cov1) + np.trace(cov2) - 2 * root
    assert scores.frechet_distance(zero, cov1, zero, cov2) == pytest.approx(exact, rel=1e-10)


def test_frechet_distance_of_deficient_covariances(rng):
    cov1, cov2, zero = spd(rng, 20, 3), spd(rng, 20, 5), np.zeros(20)
    assert scores.frechet_distance(zero, cov1, zero, cov1) == pytest.approx(0.0, abs=1e-10)
    there = scores.frechet_distance(zero, cov1, zero, cov2)
    back = scores.frechet_distance(zero, cov2, zero, cov1)
    assert 0 < there < np.trace(cov1) + np.trace(cov2)
    assert there == pytest.approx(back, rel=1e-10)


def test_precision_and_recall_of_known_sets():
    real = np.arange(10.0)[:, None]
    assert scores.precision_recall(real, real) == (1.0, 1.0)
    assert scores.precision_recall(real, real + 1000.0) == (0.0, 0.0)
    half = np.concatenate([real, real + 1000.0])  # half of the samples are far away
    assert scores.precision_recall(real, half)[0] == 0.5
    one_mode = 4.0 + 1e-3 * np.arange(10.0)[:, None]  # all samples at one place
    precision, recall = scores.precision_recall(real, one_mode)
    assert precision == 1.0
    assert recall <= 0.1


def test_nearest_neighbour_accuracy():
    real, labels = np.array([[0.0], [10.0]]), np.array([4, 7])
    fake = np.array([[1.0], [9.0], [2.0]])
    assert scores.nearest_neighbour_accuracy(real, labels, fake, [4, 7, 7]) == pytest.approx(2 / 3)


def test_real_halves_of_the_digits():
    data = sources.digits()
    halves = scores.halves(data.images.reshape(1797, -1) / 255.0, data.labels)
    assert halves['accuracy'] == pytest.approx(0.98, abs=0.01)
    assert halves['frechet_distance'] == pytest.approx(0.07, abs=0.02)
    assert halves['precision'] == pytest.approx(0.90, abs=0.02)
    assert halves['recall'] == pytest.approx(0.91, abs=0.02)
