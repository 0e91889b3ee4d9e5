"""Reference statistics in every layout, written and read back; and files that hold none."""

import pathlib
import pickle

import numpy as np
import pytest

from emigm_jax.errors import UserError
from emigm_jax.evaluation import metrics, references, statistics
from support import checkpoint_files


def moments_of(size, seed):
    """A mean and a covariance of full rank, cheap at any size."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    a = rng.standard_normal((size, 4))
    return rng.standard_normal(size), a @ a.T + np.diag(rng.uniform(0.5, 1.5, size))


POOL, SPATIAL = moments_of(2048, 1), moments_of(2023, 2)
IMAGES = np.random.Generator(np.random.Philox(key=3)).integers(0, 256, (5, 8, 8, 3), np.uint8)


def narrow(pair):
    return tuple(x.astype(np.float32) for x in pair)


def write_adm(path, images=IMAGES):
    pool, spatial = dict(zip(('mu', 'sigma'), POOL, strict=True)), narrow(SPATIAL)
    np.savez(path, arr_0=images, **pool, mu_s=spatial[0], sigma_s=spatial[1], arr_1=np.arange(5))


def write_mar(path):
    np.savez(path, mu=narrow(POOL)[0], sigma=POOL[1])


def write_mean_flow(path):
    np.savez_compressed(path, ref_mu=POOL[0], ref_sigma=POOL[1])


def write_edm(path):
    with open(path, 'wb') as file:
        pickle.dump({'fid': {'mu': POOL[0], 'sigma': POOL[1]}}, file)


def write_torch_fidelity(path):
    checkpoint_files.write_arrays(path, {'mu': POOL[0], 'sigma': POOL[1]})


@pytest.mark.parametrize(
    'write, name, tolerance',
    [
        (write_adm, 'VIRTUAL_imagenet256_labeled.npz', 0),
        (write_mar, 'fid_stats.npz', 1e-6),
        (write_mean_flow, 'stats.npz', 0),
        (write_edm, 'stats.pkl', 0),
        (write_torch_fidelity, 'cache.pt', 1e-6),
    ],
)
def test_layouts_of_others(tmp_path, write, name, tolerance):
    path = tmp_path / name
    write(path)
    found = references.read(path)
    for array, exact in zip((found.mean, found.covariance), POOL, strict=True):
        assert array.dtype == np.float64
        np.testing.assert_allclose(array, exact, rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(found.covariance, found.covariance.T)
    assert found.name == name
    assert found.features is None and found.count is None
    assert (found.spatial_mean is None) == (write is not write_adm)
    assert (found.images is None) == (write is not write_adm)


def test_spatial_statistics_and_images_of_adm(tmp_path):
    write_adm(tmp_path / 'adm.npz')
    found = references.read(str(tmp_path / 'adm.npz'))
    assert found.spatial_mean.dtype == np.float64
    np.testing.assert_allclose(found.spatial_covariance, SPATIAL[1], rtol=1e-6, atol=1e-6)
    assert len(found.images) == 5 and found.images.shape == IMAGES.shape
    pieces = [slice(0, 2), slice(2, 3), slice(4, 5)]
    for piece, rows in zip(pieces, found.images.slices(pieces), strict=True):
        np.testing.assert_array_equal(rows, IMAGES[piece])
    np.testing.assert_array_equal(found.images.read(), IMAGES)


def test_images_are_not_read_before_they_are_asked_for(tmp_path):
    """Damage to the images shows when they are read."""
    path = tmp_path / 'adm.npz'
    images = np.tile(IMAGES, (40, 4, 4, 1))
    write_adm(path, images)
    data = path.read_bytes()
    at = data.index(images.tobytes()) + images.nbytes - 64
    path.write_bytes(data[:at] + bytes(64) + data[at + 64 :])
    found = references.read(path)
    np.testing.assert_array_equal(found.mean, POOL[0])
    with pytest.raises(UserError, match='damaged'):
        found.images.read()


def test_own_layout(tmp_path):
    path = tmp_path / 'own.npz'
    features = np.random.Generator(np.random.Philox(key=4)).standard_normal((7, 2048), np.float32)
    more = dict(source='digits, 8 pixels', count=1797)
    references.write(path, POOL, spatial=SPATIAL, features=features, **more)
    found = references.read(path)
    for array, exact in zip((found.mean, found.spatial_mean), (POOL[0], SPATIAL[0]), strict=True):
        np.testing.assert_array_equal(array, exact)
    np.testing.assert_array_equal(found.covariance, POOL[1])
    np.testing.assert_array_equal(found.spatial_covariance, SPATIAL[1])
    np.testing.assert_array_equal(found.features.read(), features)
    assert (found.name, found.count) == ('digits, 8 pixels', 1797)
    assert [f.name for f in tmp_path.iterdir()] == ['own.npz']

    references.write(path, POOL, **more)  # replaces the file
    plain = references.read(path)
    assert plain.spatial_mean is None and plain.features is None
    assert len(plain.fingerprint) == 16 and plain.fingerprint != found.fingerprint
    np.savez(tmp_path / 'same.npz', mu=POOL[0], sigma=POOL[1])
    assert references.read(tmp_path / 'same.npz').fingerprint == plain.fingerprint

    with np.load(path) as file:
        changed = {**file, 'mu': POOL[0] + 1e-9}
    np.savez(path, **changed)
    with pytest.raises(UserError, match='fingerprint'):
        references.read(path)


def put(array, index, value):
    array = array.copy()
    array[index] = value
    return array


BAD_ARRAYS = {
    'no statistics': (dict(arr_0=IMAGES), 'no reference statistics but arr_0'),
    'only the mean': (dict(mu=POOL[0]), 'no reference statistics but mu'),
    'another network': (
        dict(mu=np.zeros(768), sigma=np.eye(768)),
        r'mu must be real numbers of shape \(2048,\)',
    ),
    'a wrong covariance': (dict(mu=POOL[0], sigma=np.zeros((2048, 1))), 'sigma must be'),
    'a wrong spatial mean': (
        dict(mu=POOL[0], sigma=POOL[1], mu_s=np.zeros(7), sigma_s=np.eye(7)),
        r'mu_s must be real numbers of shape \(2023,\)',
    ),
    'integers': (dict(mu=np.zeros(2048, np.int64), sigma=POOL[1]), 'not int64'),
    'NaN': (dict(mu=put(POOL[0], 5, np.nan), sigma=POOL[1]), 'mu holds NaN'),
    'infinity': (dict(mu=POOL[0], sigma=put(POOL[1], (3, 4), np.inf)), 'sigma holds NaN'),
    'asymmetry': (dict(mu=POOL[0], sigma=put(POOL[1], (3, 4), 9.0)), 'not symmetric'),
    'a negative variance': (dict(mu=POOL[0], sigma=put(POOL[1], (3, 3), -9.0)), 'negative var'),
    'images in float': (
        dict(mu=POOL[0], sigma=POOL[1], arr_0=IMAGES / 255),
        'arr_0 must be uint8 images',
    ),
    'other features': (
        dict(mu=POOL[0], sigma=POOL[1], features=np.zeros((3, 768))),
        'features must be real numbers',
    ),
    'objects': (
        dict(mu=np.array([{}]), sigma=POOL[1]),
        r'mu must be real numbers .*, not object \(1,\)',
    ),
}


def complaint(path):
    with pytest.raises(UserError) as caught:
        references.read(path)
    line = str(caught.value)
    assert line.startswith(f'{path}: ') and '\n' not in line
    return line


@pytest.mark.parametrize('what', BAD_ARRAYS)
def test_bad_numbers(tmp_path, what):
    arrays, match = BAD_ARRAYS[what]
    np.savez(tmp_path / 'bad.npz', **arrays)
    with pytest.raises(UserError, match=match):
        references.read(tmp_path / 'bad.npz')
    complaint(tmp_path / 'bad.npz')


def test_bad_files(tmp_path):
    path = tmp_path / 'file.npz'
    assert 'no such file' in complaint(path)
    path.write_bytes(b'')
    assert 'empty' in complaint(path)
    path.write_bytes(b'<!doctype html><title>Quota exceeded</title>')
    assert 'a web page' in complaint(path)
    write_mar(path)
    path.write_bytes(path.read_bytes()[:10_000])
    assert 'damaged' in complaint(path)
    path.write_bytes(pickle.dumps({'fid': {'mu': print}}))
    assert 'refuses to load' in complaint(path)
    path.write_bytes(pickle.dumps([1, 2]))
    assert 'holds a list' in complaint(path)
    assert 'no access' in complaint(tmp_path)


def test_what_cannot_be_written(tmp_path):
    more = dict(source='x', count=3)
    with pytest.raises(UserError, match='mu must be'):
        references.write(tmp_path / 'a.npz', (np.zeros(3), np.eye(3)), **more)
    with pytest.raises(UserError, match='features must be'):
        references.write(tmp_path / 'a.npz', POOL, features=np.zeros((2, 3)), **more)
    with pytest.raises(UserError, match='cannot be written'):
        references.write(tmp_path / 'missing' / 'a.npz', POOL, **more)
    assert not list(tmp_path.iterdir())


def reference_of(features, size=2048):
    return references.Reference(np.zeros(size), np.eye(size), 'made up', '0' * 16)


def test_a_metric_is_computed_or_says_why_not():
    """Small features: the table of metrics does not know their size."""
    rng = np.random.Generator(np.random.Philox(key=5))
    features = rng.standard_normal((40, 6))
    mean, outer = features.sum(0), features.T @ features
    moments = {'pool': statistics.Moments(mean, outer)}
    sums = statistics.Sums(np.float64(40), moments, splits=None)
    totals = statistics.Totals({'pool': np.zeros(6)}, sums)
    inputs = metrics.Inputs(totals, reference_of(features, 6))
    values, missing = metrics.compute(inputs, tuple(metrics.METRICS))
    assert values.keys() == {'fid'} and 0 < values['fid'] < 5
    assert missing == {
        'sfid': 'the reference has no mu_s and sigma_s, as those of ADM have',
        'inception_score': 'the Inception Score was not summed',
        'kid': 'the features of the generated images were not kept',
        'precision_recall': 'the reference has no features of real images',
        'fid_infinite': 'the features of the generated images were not kept',
        'fid_standard_error': 'the features of the generated images were not kept',
    }
    kept = metrics.Inputs(inputs.totals, inputs.reference, features, features)
    values, missing = metrics.compute(kept, tuple(metrics.METRICS))
    assert values['precision'] == values['recall'] == 1.0
    assert 0 < values['fid_standard_error'] < values['fid']
    assert missing['kid'] == 'KID needs at least 1000 generated images, not 40'
    assert missing['fid_infinite'].endswith('at least 10000 images, not 40')
    with pytest.raises(UserError, match="'fid'"):
        metrics.compute(kept, ['fud'])
    broken = metrics.Inputs(inputs.totals, inputs.reference, features * np.nan, features)
    _, missing = metrics.compute(broken, ['precision_recall'])
    assert missing == {'precision_recall': 'the features of generated images are not finite'}
    assert statistics.count(kept.totals) == 40


@pytest.mark.parametrize(('dtype', 'order'), [('float16', 'C'), ('float32', 'F'), ('>f8', 'F')])
def test_numbers_of_any_width_and_order(tmp_path, dtype, order):
    mean, covariance = (np.asarray(x, dtype, order) for x in POOL)
    np.savez(tmp_path / 'a.npz', mu=mean, sigma=covariance)
    found = references.read(tmp_path / 'a.npz')
    assert found.covariance.dtype == np.float64
    tolerance = 0 if np.dtype(dtype).itemsize == 8 else float(np.finfo(dtype).eps)
    np.testing.assert_allclose(found.covariance, POOL[1], rtol=tolerance, atol=tolerance)


def write_dict(path):
    np.save(path, {'mu': POOL[0], 'sigma': POOL[1], 'path': pathlib.Path('celeba'), 3: None})


def write_fidelity_cache(path):
    """As torch.save writes arrays of numpy: in the pickle, in its second protocol."""
    checkpoint_files.write_zip(path, pickle.dumps(dict(mu=POOL[0], sigma=POOL[1], n=5), 2))


def write_more(path):
    extra = dict(config=np.array({'size': 256}), names=np.array(['a', 'b']), when=np.float64(3))
    np.savez(path, mu=POOL[0], sigma=POOL[1], objects=np.array([{}, None]), **extra)


def write_batch_of_one(path):
    checkpoint_files.write_arrays(path, {'mu': POOL[0][None], 'sigma': POOL[1][None]})


def write_renamed_pickle(path):
    path.write_bytes(pickle.dumps({'ref_mu': POOL[0], 'ref_sigma': np.asfortranarray(POOL[1])}))


@pytest.mark.parametrize(
    'write, name, tolerance',
    [
        (write_dict, 'celebahq_stat.npy', 0),
        (write_fidelity_cache, 'cache.pt', 0),
        (write_more, 'more.npz', 0),
        (write_batch_of_one, 'one.pt', 1e-6),
        (write_renamed_pickle, 'stats.pkl', 0),
    ],
)
def test_files_that_people_have(tmp_path, write, name, tolerance):
    write(tmp_path / name)
    found = references.read(tmp_path / name)
    for array, exact in zip((found.mean, found.covariance), POOL, strict=True):
        np.testing.assert_allclose(array, exact, rtol=tolerance, atol=tolerance)
    assert found.name == name and found.images is None


def test_images_stored_column_by_column(tmp_path):
    np.savez(tmp_path / 'a.npz', mu=POOL[0], sigma=POOL[1], arr_0=np.asfortranarray(IMAGES))
    images = references.read(tmp_path / 'a.npz').images
    pieces = [slice(0, 2), slice(3, 5)]
    for piece, rows in zip(pieces, images.slices(pieces), strict=True):
        np.testing.assert_array_equal(rows, IMAGES[piece])


def test_npy_files_without_statistics(tmp_path):
    path = tmp_path / 'a.npy'
    np.save(path, POOL[0])
    assert 'holds a ndarray, no statistics' in complaint(path)
    np.save(path, {'mu': POOL[0], 3: 4})
    assert 'no reference statistics but mu, 3' in complaint(path)
    path.write_bytes(path.read_bytes()[:1000])
    assert 'cannot be read as a NumPy file' in complaint(path)
    np.save(path, {'mu': print})
    assert 'refuses to load' in complaint(path)
