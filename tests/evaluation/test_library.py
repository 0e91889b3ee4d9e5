"""Measuring from Python: sets of images in, a `Result` out; with a network computed by hand."""

import functools
import json
import os
import typing

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import emigm_jax as em
from emigm_jax.cli import evaluate as command
from emigm_jax.cli import main
from emigm_jax.config.settings import EvaluationConfig
from emigm_jax.data import sources
from emigm_jax.errors import UserError
from emigm_jax.evaluation import (
    evaluate,
    image_sets,
    inception,
    make_reference,
    measure,
    online,
    references,
    scores,
    statistics,
)
from emigm_jax.evaluation.evaluator import Work
from emigm_jax.evaluation.result import Result
from emigm_jax.evaluation.score_table import SCORES
from emigm_jax.io import access, npz
from emigm_jax.parallel import batches as spread
from support.pictures import scene

WIDTH, COUNT, SIDE = 12, 30, 16
EXTRACTOR = inception.Extractor({'w': np.ones(3, np.float32)})


@functools.cache
def adder():
    return statistics.adder(spread.mesh())  # compiled once for all


class Network:
    """Stands for Inception."""

    def __init__(self, params):
        self.add = adder()

    def __call__(self, images):
        pool = jnp.asarray(pool_of(images))
        return inception.Features(pool, jnp.tile(pool, (1, 84)), pool)


def pool_of(images):
    flat = np.asarray(images, np.float32).reshape(len(images), -1) / np.float32(255.0)
    return flat[:, :: flat.shape[1] // WIDTH]


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Two folders of pictures, and their pixels."""
    monkeypatch.setattr(measure, 'Network', Network)
    monkeypatch.setattr(references, 'POOL', WIDTH)
    pairs = (('mu', 'sigma', WIDTH), ('mu_s', 'sigma_s', WIDTH))
    monkeypatch.setattr(references, '_PAIRS', pairs)
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


def listing(folder):
    return sorted(str(f.relative_to(folder)) for f in folder.rglob('*'))


def test_a_folder_is_a_reference(folders, tmp_path, monkeypatch):
    """Its statistics are made once, and again when anything changes that decides them."""
    (one, first), (two, second) = folders.items()
    pictures, said, made = listing(two), [], []
    monkeypatch.setattr(make_reference, 'KEPT_FEATURES', COUNT)
    real = make_reference.measured_anew
    monkeypatch.setattr(
        make_reference, 'measured_anew', lambda *rest: made.append(0) or real(*rest)
    )

    def fid():
        work = Work(batch_size=8, say=said.append)
        known = dict(reference=two, inception=EXTRACTOR, metrics=('fid', 'sfid', 'kid'))
        return evaluate.evaluate(image_sets.folder(one), **known, work=work)

    result = fid()
    assert result.scores['fid'] == fid_of(first, second) and 'sfid' in result.scores
    assert 'at least 1000 generated' in result.missing['kid']  # the real ones have features
    kept = tmp_path / 'second.fid-16.npz'
    assert said[0] == f'statistics of the 30 pictures in {two} -> {kept}'
    assert result.reference['name'] == f'30 images of {two}, centre crops of 16'
    assert listing(two) == pictures
    assert sorted(f.name for f in tmp_path.iterdir()) == ['first', 'second', kept.name]
    assert fid().scores == result.scores and len(made) == 1

    def opened(extractor=EXTRACTOR, side=SIDE):
        return make_reference.opened(two, extractor, lambda: side, Work(batch_size=8))

    changed = two / pictures[0]
    os.utime(changed, (1, 1))  # another picture of that name and size may lie there
    same = opened().fingerprint
    assert opened().fingerprint == same and len(made) == 2
    opened(inception.Extractor({'w': np.zeros(3, np.float32)}))
    assert opened().features.shape == (COUNT, WIDTH) and len(made) == 4
    changed.rename(two / 'renamed.png')
    opened()
    opened()
    assert len(made) == 5
    kept.write_bytes(kept.read_bytes()[:1000])
    opened()
    assert len(made) == 6
    monkeypatch.setattr(make_reference, 'KEPT_FEATURES', COUNT - 1)
    assert opened(side=8).name.endswith('centre crops of 8')
    assert opened(side=8).features is None and len(made) == 7  # too many to keep them all
    assert opened().fingerprint != opened(side=8).fingerprint and len(made) == 7
    assert not [f for f in tmp_path.iterdir() if f.name.startswith('.')]


def test_sides_of_images():
    """What the pictures of a reference are cropped to."""
    made = lambda labels, seeds: np.zeros((len(labels), 8, 8, 1), np.uint8)
    assert image_sets.side(image_sets.Generated(made, 4, 2, ''), 2) == 8
    assert image_sets.side(image_sets.Generated(None, 4, 2, '', 256), 2) == 256
    wide = lambda labels, seeds: np.zeros((len(labels), 8, 12, 3), np.uint8)
    assert image_sets.side(image_sets.Generated(wide, 4, 2, ''), 2) is None


def test_what_is_kept_beside_own_pictures_is_not_left_out(folders):
    folder = next(iter(folders))
    assert image_sets.folder(folder).passed_over == {}
    (folder / 'notes.json').write_text('{}')
    assert image_sets.folder(folder).passed_over == {'.json': 1}
    (folder / 'settings.json').write_text('{}')  # as `files.claim` writes it
    assert image_sets.folder(folder).passed_over == {'.json': 1}


def test_folders_that_are_no_references(folders, tmp_path, monkeypatch):
    one, two = folders
    known = dict(inception=EXTRACTOR, metrics=('fid',), work=Work(batch_size=8))
    np.savez(tmp_path / 'second.fid-16.npz', mu=np.zeros(3))
    with pytest.raises(UserError, match=r'second\.fid-16\.npz: was not made here'):
        evaluate.evaluate(image_sets.folder(one), reference=two, **known)
    (tmp_path / 'second.fid-16.npz').unlink()
    for name, says in (('few', 'at least 2 images'), ('none', 'holds no pictures')):
        (tmp_path / name).mkdir()
        if name == 'few':
            Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / name / 'a.png')
        with pytest.raises(UserError, match=says):
            evaluate.evaluate(image_sets.folder(one), reference=tmp_path / name, **known)
    with pytest.raises(UserError, match='no such file'):
        evaluate.evaluate(image_sets.folder(one), reference=tmp_path / 'nowhere', **known)
    (two / '30.png').symlink_to('nowhere')
    (two / '31.png').write_bytes(b'torn')
    says = r'30\.png: cannot be read \(No such .*\), nor can 31\.png \(no picture .*\); mend or'
    with pytest.raises(UserError, match=says):
        evaluate.evaluate(image_sets.folder(one), reference=two, **known)

    def full(path, write=True):
        raise UserError(f'{path}: cannot be reached or written (Read-only file system)')

    monkeypatch.setattr(access, 'probe', full)
    with pytest.raises(UserError, match=r'Read-only.*`emigm prepare reference FILE\.npz --folder'):
        evaluate.evaluate(image_sets.folder(one), reference=two, **known)
    assert sorted(f.name for f in tmp_path.iterdir()) == ['few', 'first', 'none', 'second']


def test_fid_keeps_the_statistics_of_the_second_folder(folders, tmp_path, monkeypatch):
    (one, first), (two, second) = folders.items()
    expected = evaluate.fid(one, two, inception=EXTRACTOR)
    assert expected == fid_of(first, second)
    assert sorted(f.name for f in tmp_path.iterdir()) == [
        *('first', 'second', 'second.fid-uncropped.npz'),
    ]
    monkeypatch.setattr(make_reference, '_made', None)
    assert evaluate.fid(one, two, inception=EXTRACTOR) == expected


def test_the_command_takes_a_folder(folders, tmp_path, monkeypatch, capsys):
    (one, first), (two, second) = folders.items()
    monkeypatch.setattr(inception, 'load', lambda place: EXTRACTOR)
    command = ['evaluate', '--images', one, '--reference', two, '--inception', 'x']
    command += ['--metrics', 'fid', '--out', tmp_path / 'out', '--batch-size', 8]
    assert main.main(list(map(str, command))) == 0
    shown = capsys.readouterr().out
    assert f'statistics of the 30 pictures in {two} -> {two}.fid-16.npz' in shown
    assert f'30 images against 30 images of {two}, centre crops of 16' in shown
    result = json.loads((tmp_path / 'out/result.json').read_text())
    assert result['fid'] == fid_of(first, second)


def test_a_folder_while_training(folders, monkeypatch):
    _, (two, second) = folders.items()
    monkeypatch.setattr(inception, 'opened', lambda place: EXTRACTOR)
    settings = EvaluationConfig(
        every='1 step', reference=str(two), inception='x', metrics='fid', num_images=20
    )
    maker = lambda params: lambda labels, seeds: second[seeds]
    measured = online.online(settings, 10, maker, side=SIDE)({}, 3)
    assert measured == {'fid': fid_of(second[:20], second)}
    assert two.with_name('second.fid-16.npz').exists()


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


@pytest.mark.parametrize(
    'part',
    [
        {'fid': 'low'},
        {'fid': None},
        {'recall': True},
        {'images': '50'},
        {'seconds_per_image': []},
        {'settings': 3},
        {'missing': ['sfid']},
        {'real_halves': 0.5},
    ],
)
def test_json_of_something_else(part):
    (name,) = part
    with pytest.raises(UserError, match=f'is no result of an evaluation: its {name} is'):
        Result.from_json({**AGAINST.to_json(), **part})


def test_no_score_prints_as_minus_zero(capsys):
    reference = {'name': 'real', 'fingerprint': 'f00d'}
    below = dict.fromkeys(SCORES, -1e-9)
    command._print(Result(below, 50, settings={'source': 'npz'}, reference=reference), {})
    half = {'accuracy': -1e-9}
    by_class = {'cat': -1e-9, 'dog': 0.5}
    facts = {'step': 3, 'weights': '0.99', 'nfe': 7, 'accuracy_by_class': by_class}
    command._print_in_pixels(Result(half, 20, 0.1, facts, real_halves=half))
    out = capsys.readouterr().out
    assert out.count(' 0.000') >= len(SCORES) - 2 and '-0' not in out
