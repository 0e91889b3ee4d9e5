"""One pass over images: every image once, in bounded memory, interrupted or not."""

import re
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from emigm_jax.data.tfds_source import TFDS
from emigm_jax.errors import UserError
from emigm_jax.evaluation import (
    image_sets,
    inception,
    measure,
    metrics,
    references,
    scores,
    statistics,
)
from emigm_jax.io import npz
from emigm_jax.parallel import agreement
from emigm_jax.parallel import batches as spread
from support.pictures import KINDS, png, scene, write_tfds

WIDTH = 12  # of the features of the network below
SHIFTS = {'pool': np.full(WIDTH, 0.4)}


class Network:
    """Stands for Inception, with features that can be computed by hand."""

    def __init__(self):
        self.add = statistics.adder(spread.mesh())

    def __call__(self, images):
        pool = jnp.asarray(pool_of(images))
        logits = jnp.tile(pool, (1, 84))
        return inception.Features(pool, logits, pool)


def pool_of(images):
    return np.asarray(images, np.float32).reshape(len(images), -1)[:, :WIDTH] / np.float32(255.0)


class Made:
    """Images that are a function of their number; `held` counts how many batches are in memory."""

    def __init__(self, count, broken=()):
        self.count, self.broken, self.held, self.arrays = count, broken, 0, 0
        self._batches = []

    def __len__(self):
        return self.count

    def image(self, i):
        return np.random.default_rng(i).integers(256, size=(2, 2, 3)).astype(np.uint8)

    def all(self):
        return np.stack([self.image(i) for i in range(self.count)])

    def batches(self, pieces, size):
        for piece in pieces:
            self.held = max(self.held, sum(b() is not None for b in self._batches))
            self.arrays = max(self.arrays, len(jax.live_arrays()))
            made = range(piece.start, piece.stop)
            if set(self.broken) & set(made):
                raise UserError('a picture is broken')
            batch = np.stack([self.image(i) for i in made])
            self._batches.append(weakref.ref(batch))
            yield batch
            del batch


@pytest.fixture(scope='module')
def network():
    return Network()


def plan(*names, **more):
    return measure.Plan(names or ('fid', 'inception_score'), batch=16, part=64, **more)


@pytest.mark.parametrize('count', [16, 45, 130])
def test_every_image_counts_once(network, count, tmp_path):
    images, shown = Made(count), []
    found = measure.totals(
        images, tmp_path / 'a', {}, network, SHIFTS, plan('precision_recall'), shown.append
    )
    exact = pool_of(images.all())
    np.testing.assert_array_equal(found.features, exact)
    assert statistics.count(found.totals) == found.done == sum(shown) == count
    for one, two in zip(
        statistics.moments(found.totals), scores.mean_and_covariance(exact), strict=True
    ):
        np.testing.assert_allclose(one, two, atol=1e-6)
    np.testing.assert_array_equal(measure.each(images, lambda rows: network(rows).pool, 16), exact)
    np.testing.assert_array_equal(measure.each(images, np.asarray, 16), images.all())


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_end_it_at_once(value, network, tmp_path):
    class Broken(Network):
        def __call__(self, images):
            features = super().__call__(images)
            return features._replace(pool=features.pool.at[3, 5].set(value))

    shown = []
    with pytest.raises(UserError, match='the pool features are not finite'):
        measure.totals(Made(250), tmp_path / 'a', {}, Broken(), SHIFTS, plan(), shown.append)
    assert sum(shown) == 64  # a part
    assert not (tmp_path / 'a').exists()


def test_an_interruption_changes_nothing(network, tmp_path):
    settings, wanted = {'of': 'this test'}, plan('inception_score', 'precision_recall')
    go = lambda images, name: measure.totals(
        images, tmp_path / name, settings, network, SHIFTS, wanted
    )
    whole = go(Made(250), 'whole')
    with pytest.raises(UserError, match='broken'):
        go(Made(250, broken=[170]), 'parts')
    assert statistics.count(statistics.load(tmp_path / 'parts' / measure.TOTALS)) == 128
    parts = go(Made(250), 'parts')
    assert (whole.done, parts.done) == (250, 122)
    jax.tree.map(np.testing.assert_array_equal, (whole[:2]), (parts[:2]))
    again = go(Made(250, broken=range(250)), 'parts')  # nothing is asked for
    assert again.done == 0
    jax.tree.map(np.testing.assert_array_equal, (whole[:2]), (again[:2]))


def test_memory_does_not_grow_with_the_images(network, tmp_path):
    """But by a part's features or images where they are asked for."""
    go = lambda images, name, **more: measure.totals(
        images, tmp_path / name, {}, network, SHIFTS, plan('fid', **more)
    )
    go(Made(16), 'compiled')
    few, many = Made(160), Made(960)
    go(few, 'few')
    go(many, 'many')
    assert many.held == few.held <= 2
    assert many.arrays == few.arrays
    assert {path.name for path in (tmp_path / 'many').iterdir()} == {'settings.json', 'totals.npz'}
    kept = Made(960)
    go(kept, 'kept', keep_images=True)
    assert 3 <= kept.held <= 6  # of 60; a part has 4
    npz.write_rows(tmp_path / 'all.npz', 960, measure.stored(tmp_path / 'kept', 'images'))
    np.testing.assert_array_equal(np.load(tmp_path / 'all.npz')['arr_0'], kept.all())
    with pytest.raises(UserError, match='only 960 of 961 rows'):
        npz.write_rows(tmp_path / 'b.npz', 961, measure.stored(tmp_path / 'kept', 'images'))
    assert not list(tmp_path.glob('b.npz*'))


def test_too_few_images_for_a_metric(network, tmp_path):
    names = tuple(metrics.METRICS)
    found = measure.once(Made(3), network, SHIFTS, plan(*names))
    reference = references.Reference(np.zeros(WIDTH), np.eye(WIDTH), 'made up', '0')
    values, missing = metrics.compute(
        metrics.Inputs(found.totals, reference, found.features, pool_of(Made(9).all())), names
    )
    assert set(values) == {'fid', 'fid_standard_error'}
    assert missing['inception_score'] == 'the Inception Score needs at least 10 images, not 3'
    assert 'more than 3 generated images, not 3' in missing['precision_recall']
    assert 'at least 1000 generated images, not 3' in missing['kid']
    assert 'at least 10000 images, not 3' in missing['fid_infinite']
    assert 'no mu_s and sigma_s' in missing['sfid']


@pytest.mark.parametrize('processes', [1, 2, 3, 8])
@pytest.mark.parametrize(('start', 'count'), [(0, 48), (0, 50), (48, 49), (24, 71)])
def test_shares_of_processes(monkeypatch, processes, start, count):
    monkeypatch.setattr(jax, 'process_count', lambda: processes)
    batches = []
    for process in range(processes):
        monkeypatch.setattr(jax, 'process_index', lambda process=process: process)
        batches.append(agreement.pieces(start, count, 24))
    made = []
    for pieces in zip(*batches, strict=True):  # as many batches everywhere
        assert len({(piece.first, piece.last) for piece in pieces}) == 1
        for piece in pieces:
            assert 1 <= piece.stop - piece.start <= 24 // processes
            made += range(piece.start, piece.stop) if piece.counts else []
    assert made == list(range(start, count))


def test_processes_fail_together(monkeypatch):
    """What one of two says to the other, which is played here."""
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    other = b''
    told = lambda rows: np.concatenate([rows, agreement._padded(other)])
    monkeypatch.setattr(agreement, 'gather', told)
    assert agreement.agreed(lambda: 3) == 3
    agreement.check_same('the images', [1, 2])
    assert agreement.from_first({'fid': 7.25}) == {'fid': 7.25}
    for kind, mark in agreement._FAILED.items():
        for text in ('', 'torn.png: cannot be read'):  # an error without a word is one, too
            other = mark + text.encode()
            with pytest.raises(kind, match=f'^{re.escape(text)}$') as raised:
                agreement.agreed(lambda: 3)
            assert type(raised.value) is kind
    other = b''
    monkeypatch.setattr(agreement, 'from_first', lambda value: 'x')
    with pytest.raises(UserError, match='the images'):
        agreement.check_same('the images', [1, 2])


# --- Pictures ------------------------------------------------------------------------------------


def test_files_of_all_kinds_become_rgb(tmp_path):
    rng = np.random.default_rng(0)
    for i, (ending, make) in enumerate(KINDS):
        (tmp_path / f'{i}{ending}').write_bytes(make(Image.fromarray(scene(rng, 20, 20))))
    images = image_sets.Pictures(image_sets.Below(tmp_path), tmp_path)
    made = list(images.batches([slice(0, 3), slice(3, 4), slice(6, 8)], 3))
    assert [batch.shape for batch in made] == [(3, 20, 20, 3), (1, 20, 20, 3), (2, 20, 20, 3)]
    assert {batch.dtype for batch in made} == {np.dtype(np.uint8)}
    grey = made[0][2]
    np.testing.assert_array_equal(grey[..., 0], grey[..., 1])
    assert made[2].std() > 20  # 16 bits were not clipped to white


def test_sizes_that_differ_are_found_from_anywhere(tmp_path):
    rng = np.random.default_rng(0)
    for i, side in enumerate((16, 16, 24, 24)):
        (tmp_path / f'{i}.png').write_bytes(png(Image.fromarray(scene(rng, side, side))))
    images = image_sets.Pictures(image_sets.Below(tmp_path), tmp_path)
    for pieces in ([slice(0, 4)], [slice(2, 4)]):  # the second one as after an interruption
        with pytest.raises(UserError, match=r'2\.png: .* several sizes \(16x16 and 24x24\)'):
            list(images.batches(pieces, 4))
    cropped = image_sets.Pictures(image_sets.Below(tmp_path), tmp_path, 16)
    assert next(cropped.batches([slice(0, 4)], 4)).shape == (4, 16, 16, 3)
    assert cropped.fingerprint() != images.fingerprint()


def test_pictures_of_a_tfds_data_set(tmp_path):
    written = write_tfds(tmp_path, 9, np.random.default_rng(0))
    images = image_sets.Pictures(TFDS(written.name, 'train', tmp_path), 'shapes train', 20)
    assert len(images) == 9
    assert next(images.batches([slice(0, 9)], 9)).shape == (9, 20, 20, 3)
