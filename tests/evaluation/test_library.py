"""Measuring from Python: sets of images in, a `Result` out; with a network computed by hand."""

import json
import typing

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import emigm_jax as em
from emigm_jax.data import sources
from emigm_jax.errors import UserError
from emigm_jax.evaluation import (
    evaluate,
    image_sets,
    inception,
    measure,
    references,
    scores,
    statistics,
)
from emigm_jax.evaluation.evaluator import Work
from emigm_jax.evaluation.result import Result
from emigm_jax.io import npz
from emigm_jax.parallel import batches as spread
from support.pictures import scene

WIDTH, COUNT, SIDE = 12, 30, 16
EXTRACTOR = inception.Extractor({'w': np.ones(3, np.float32)})


class Network:
    """Stands for Inception."""

    def __init__(self, params):
        self.add = statistics.adder(spread.mesh())

    def __call__(self, images):
        pool = jnp.asarray(pool_of(images))
        return inception.Features(pool, jnp.tile(pool, (1, 84)), pool)


def pool_of(images):
    return np.asarray(images, np.float32).reshape(len(images), -1)[:, ::64] / np.float32(255.0)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Two folders of pictures, and their pixels."""
    monkeypatch.setattr(measure, 'Network', Network)
    rng, held = np.random.default_rng(0), {}
    for name in ('first', 'second'):
        (tmp_path / name).mkdir()
        held[tmp_path / name] = np.stack([scene(rng, SIDE, SIDE) for _ in range(COUNT)])
        for i, image in enumerate(held[tmp_path / name]):
            Image.fromarray(image).save(tmp_path / name / f'{i:02}.png')
    return held


def fid_of(first, second):
    moments = [scores.mean_and_covariance(pool_of(images)) for images in (first, second)]
    return pytest.approx(scores.frechet_distance(*moments[0], *moments[1]), rel=1e-5)


def test_fid_of_two_folders(folders, tmp_path):
    (one, first), (two, second) = folders.items()
    measured = evaluate.fid(one, two, inception=EXTRACTOR, batch_size=8)
    assert measured == fid_of(first, second) and measured > 1e-3
    npz.write(tmp_path / 'second.npz', {'arr_0': second})
    assert evaluate.fid(one, tmp_path / 'second.npz', inception=EXTRACTOR) == fid_of(first, second)
    assert evaluate.fid(one, one, inception=EXTRACTOR) == pytest.approx(0.0, abs=1e-6)
    crops = [images[:, 4:12, 4:12] for images in (first, second)]
    with pytest.MonkeyPatch.context() as patch:  # centre crops without a resize
        patch.setattr(image_sets, 'center_crop', lambda image, size: np.asarray(image)[4:12, 4:12])
        cropped = evaluate.fid(one, two, inception=EXTRACTOR, image_size=8)
    assert cropped == fid_of(*crops)
    with pytest.raises(UserError, match='no such file'):
        evaluate.fid(one, tmp_path / 'nowhere.npz', inception=EXTRACTOR)


def test_fid_takes_statistics(folders, tmp_path, monkeypatch):
    (one, first), (_, second) = folders.items()
    mean, covariance = scores.mean_and_covariance(pool_of(second))
    known = references.Reference(mean, covariance, 'second', '0')
    monkeypatch.setattr(references, 'read', lambda path: known)
    npz.write(tmp_path / 'adm.npz', {'ref_mu': mean, 'ref_sigma': covariance, 'arr_0': second})
    assert evaluate.fid(one, tmp_path / 'adm.npz', inception=EXTRACTOR) == fid_of(first, second)


def test_an_evaluation_goes_on_in_its_folder(folders, tmp_path):
    (one, first), (two, second) = folders.items()
    mean, covariance = scores.mean_and_covariance(pool_of(second))
    npz.write(tmp_path / 'real.npz', {'arr_0': second})
    images = npz.members(tmp_path / 'real.npz')['arr_0']
    reference = references.Reference(mean, covariance, 'second', 'f00d', images=images)
    said = []
    work = Work(batch_size=8, folder=tmp_path / 'out', say=said.append)
    known = dict(reference=reference, inception=EXTRACTOR, metrics=('fid', 'sfid', 'kid'))
    result = evaluate.evaluate(image_sets.folder(one), **known, work=work)
    assert result.scores == {'fid': fid_of(first, second)}
    assert result.seconds_per_image > 0 and result.images == COUNT
    assert result.missing['sfid'].startswith('the reference has no mu_s')
    assert 'at least 1000 generated images' in result.missing['kid']
    assert result.settings['content'] == image_sets.folder(one).fingerprint()
    assert said == [f'features of the 30 images in {tmp_path}/real.npz', 'computing the metrics']
    again = evaluate.evaluate(image_sets.folder(one), **known, work=work)
    assert again.seconds_per_image is None and again.scores == result.scores
    with pytest.raises(UserError, match='holds the measurement with content'):
        evaluate.evaluate(image_sets.folder(two), **known, work=work)
    with pytest.raises(UserError, match="did you mean 'fid'"):
        evaluate.evaluate(image_sets.folder(one), **{**known, 'metrics': ('fod',)})


def test_a_result_is_never_missing():
    for function in (em.evaluate, evaluate.evaluate, evaluate.evaluate_digits):
        assert typing.get_type_hints(function)['return'] is Result


def test_digits_in_pixels(folders):
    real = sources.digits()
    order = np.argsort(real.labels, kind='stable')
    by_class = [order[real.labels[order] == label] for label in range(10)]
    taken = lambda label, seed: real.images[by_class[label][seed % 6]]
    pick = lambda labels, seeds: np.stack(list(map(taken, labels, seeds)))
    images = image_sets.Generated(pick, 60, 10, 'real digits')
    result = evaluate.evaluate_digits(images, Work(batch_size=16, about={'step': 3}))
    assert result.scores['accuracy'] == result.scores['precision'] == 1.0
    assert result.real_halves.keys() == result.scores.keys()
    assert result.to_json()['step'] == 3
    assert images.fingerprint() != image_sets.Generated(pick, 60, 10, 'others').fingerprint()
    with pytest.raises(UserError, match='without classes'):
        evaluate.evaluate_digits(image_sets.folder(next(iter(folders))))


AGAINST = Result(
    scores={'fid': 3.25, 'kid_std': 1e-4},
    images=50,
    settings={'source': 'npz', 'images': 50},
    missing={'sfid': 'why'},
    reference={'name': 'real', 'fingerprint': 'f00d'},
)
PIXELS = Result({'accuracy': 0.5}, 20, 0.1, {'step': 3, 'nfe': 7}, real_halves={'accuracy': 0.9})


@pytest.mark.parametrize(
    'result, names',
    [
        (AGAINST, 'fid kid_std images seconds_per_image settings missing reference'),
        (PIXELS, 'accuracy images seconds_per_image step nfe real_halves'),
    ],
)
def test_json(result, names):
    held = json.loads(json.dumps(result.to_json()))
    assert held.keys() == set(names.split())
    assert Result.from_json(held) == result
    with pytest.raises(UserError, match='lacks seconds_per_image'):
        Result.from_json({'images': 3})
