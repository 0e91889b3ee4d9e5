"""Scores with known answers."""

import numpy as np
import pytest

from emigm_jax.data import sources
from emigm_jax.errors import UserError
from emigm_jax.evaluation import fid, kid, scores


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


@pytest.mark.parametrize('flat', [1, 7])
def test_frechet_distance_of_one_deficient_covariance(rng, flat):
    """Flat along some axes of a basis, so the roots can be written down; with one flat axis the
    Cholesky factorisation of every other covariance succeeds, by a pivot of rounding errors."""
    zero = np.zeros(12)
    for _ in range(8):
        values1, values2 = rng.uniform(0.1, 3.0, (2, 12))
        values2[:flat] = 0.0
        exact = np.square(np.sqrt(values1) - np.sqrt(values2)).sum()
        basis = np.linalg.qr(rng.standard_normal((12, 12)))[0]
        cov1, cov2 = ((basis * v) @ basis.T for v in (values1, values2))
        assert scores.frechet_distance(zero, cov1, zero, cov2) == pytest.approx(exact, rel=1e-10)
        assert scores.frechet_distance(zero, cov2, zero, cov1) == pytest.approx(exact, rel=1e-10)


def test_a_constant_set_has_a_distance(rng):
    mean, zero = rng.standard_normal(3), np.zeros(3)
    found = scores.frechet_distance(zero, np.zeros((3, 3)), mean, 2.0 * np.eye(3))
    assert found == pytest.approx(np.square(mean).sum() + 6.0, rel=1e-10)


def test_mean_and_covariance_by_blocks(rng):
    features = rng.standard_normal((9000, 5), np.float32)
    mean, covariance = scores.mean_and_covariance(features)
    np.testing.assert_allclose(mean, features.mean(0, dtype=np.float64), atol=1e-15)
    exact = np.cov(features, rowvar=False, dtype=np.float64)
    np.testing.assert_allclose(covariance, exact, atol=1e-14)
    times = rng.integers(0, 3, 9000)
    weighted = scores.mean_and_covariance(features, times)
    repeated = scores.mean_and_covariance(np.repeat(features, times, axis=0))
    for one, two in zip(weighted, repeated, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-14)
    with pytest.raises(UserError, match='at least 2 samples, not 1'):
        scores.mean_and_covariance(features[:1])


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


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_precision_and_recall_by_blocks(rng, monkeypatch, dtype):
    """Blocks of a few rows, some of them partial, against all distances at once by loops."""
    real = rng.standard_normal((53, 4)).astype(dtype)
    fake = 1.3 * rng.standard_normal((37, 4)).astype(dtype) + dtype(0.4)
    fake[3] = real[7]  # at distance 0
    whole = scores.precision_recall(real, fake)
    monkeypatch.setattr(scores, '_BLOCK', 200)
    assert scores.precision_recall(real, fake) == whole

    radius = lambda rows: [sorted(np.linalg.norm(rows - x, axis=1))[3] for x in rows]
    inside = lambda x, rows, radii: (np.linalg.norm(rows - x, axis=1) <= radii).any()
    precision = np.mean([inside(x, real, radius(real)) for x in fake])
    recall = np.mean([inside(x, fake, radius(fake)) for x in real])
    assert whole == pytest.approx((precision, recall))
    assert 0.2 < precision < 1.0 and 0.2 < recall < 1.0


def test_precision_and_recall_of_too_few(rng):
    with pytest.raises(UserError, match='more than 3 generated images, not 3'):
        scores.precision_recall(rng.standard_normal((9, 2)), rng.standard_normal((3, 2)))


def test_kernel_distance_by_loops(rng):
    fake, real = rng.standard_normal((30, 5)) + 0.5, rng.standard_normal((40, 5))
    kernel = lambda x, y: (sum(a * b for a, b in zip(x, y, strict=True)) / 5 + 1) ** 3
    state, found, m = np.random.RandomState(2020), [], 8
    for _ in range(3):
        x, y = fake[state.choice(30, m, replace=False)], real[state.choice(40, m, replace=False)]
        pairs = [(i, j) for i in range(m) for j in range(m)]
        within = lambda z: sum(kernel(z[i], z[j]) for i, j in pairs if i != j) / (m * (m - 1))  # noqa: B023
        found.append(within(x) + within(y) - 2 * sum(kernel(x[i], y[j]) for i, j in pairs) / m**2)
    exact = np.mean(found), np.std(found)
    assert kid.kernel_distance(fake, real, subsets=3, size=m) == pytest.approx(exact, rel=1e-10)
    with pytest.raises(UserError, match='at least 31 generated images, not 30'):
        kid.kernel_distance(fake, real, size=31)


def test_kernel_distance_is_unbiased(rng):
    same, other = rng.standard_normal((2, 2000, 6))
    mean, spread = kid.kernel_distance(same, other, subsets=40, size=200)
    assert abs(mean) < spread
    assert kid.kernel_distance(same + 0.5, other, subsets=40, size=200)[0] > 5 * spread


def test_fid_of_infinitely_many(rng):
    """Samples of the reference itself: the distance is 0, what is measured is the bias."""
    features, zero, one = rng.standard_normal((8000, 12)), np.zeros(12), np.eye(12)
    biased = scores.frechet_distance(zero, one, *scores.mean_and_covariance(features[:500]))
    found = fid.infinite(features, zero, one, smallest=500)
    assert biased > 0.05
    assert abs(found) < 0.1 * biased
    with pytest.raises(UserError, match='at least 10000 images, not 8000'):
        fid.infinite(features, zero, one)


def test_standard_error_of_fid(rng):
    """Against the spread of the FIDs of many independent samples."""
    zero, one = np.zeros(3), np.eye(3)
    samples = 1.5 * rng.standard_normal((200, 400, 3)) + 0.5
    distances = [
        scores.frechet_distance(zero, one, *scores.mean_and_covariance(s)) for s in samples
    ]
    error = fid.standard_error(samples[0], zero, one, resamples=200)
    assert error == pytest.approx(np.std(distances, ddof=1), rel=0.3)
    with pytest.raises(UserError, match='at least 2 images, not 1'):
        fid.standard_error(samples[0, :1], zero, one)


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


def test_a_million_images_cost_what_fifty_thousand_do(rng, monkeypatch):
    """Counted at a size at which nobody waits: 200 in place of 50,000."""
    most, measured = 200, []
    inner = scores.squared_distances
    count = lambda a, b: measured.append(len(a) * len(b)) or inner(a, b)
    monkeypatch.setattr(scores, 'squared_distances', count)
    real, fake = rng.standard_normal((2, 4000, 3))
    found = scores.precision_recall(real, fake, most=most)
    assert sum(measured) <= 3 * most**2
    assert found == scores.precision_recall(scores.some(real, most), scores.some(fake, most))
    assert len(scores.some(real, most)) == most
    assert scores.some(real, 4000) is real

    zero, one = np.zeros(3), np.eye(3)
    summed = []
    add = scores.mean_and_covariance
    monkeypatch.setattr(
        scores, 'mean_and_covariance', lambda f, w: summed.append(len(f)) or add(f, w)
    )
    shifted = fake + 0.5
    whole, part = (fid.standard_error(shifted, zero, one, 100, most=m) for m in (4000, 1000))
    assert summed == [4000] * 100 + [1000] * 100
    assert part == pytest.approx(whole, rel=0.3)
