"""`emigm evaluate` and `emigm prepare reference`, from files to a table, with formula weights."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from pictures import scene
from PIL import Image

from emigm_jax.cli import main
from emigm_jax.evaluation import inception, measure, metrics, npz, references, scores

pytestmark = pytest.mark.slow  # Inception at full size, and many decompositions

SMOKE = f'--config={pathlib.Path(__file__).parents[1]}/configs/digits.py:smoke'
COUNT, SIDE = 22, 40


@pytest.fixture(scope='module')
def network(tmp_path_factory):
    """A converted Inception of random weights."""
    rng = np.random.default_rng(7)

    def weight(shape):
        if len(shape.shape) == 1:  # of batch norm, and the last bias
            return (1.0 + 0.1 * rng.standard_normal(shape.shape)).astype(np.float32)
        scale = np.sqrt(2.0 / np.prod(shape.shape[:-1]))
        return (scale * rng.standard_normal(shape.shape)).astype(np.float32)

    path = tmp_path_factory.mktemp('inception') / 'fid'
    inception.save(path, jax.tree.map(weight, inception.network().shapes()))
    return path


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    """Two folders of COUNT pictures: (real, generated)."""
    rng, folders = np.random.default_rng(0), []
    for name in ('real', 'made'):
        folder = tmp_path_factory.mktemp(name)
        for i in range(COUNT):
            Image.fromarray(scene(rng, SIDE, SIDE)).save(folder / f'{i:05}.png')
        folders.append(folder)
    return folders


@pytest.fixture(scope='module')
def reference(network, pictures, tmp_path_factory):
    path = tmp_path_factory.mktemp('reference') / 'real.npz'
    run('prepare', 'reference', path, '--folder', pictures[0], '--inception', network,
        '--keep-features', '--batch-size', '8')  # fmt: skip
    return path


def run(*command):
    assert main.main(list(map(str, command))) == 0


def evaluate(network, reference, *flags, metrics='fid,sfid,inception_score,precision_recall'):
    run('evaluate', '--inception', network, '--reference', reference, '--metrics', metrics,
        '--batch-size', '8', *flags)  # fmt: skip


def arrays(folder):
    return np.stack([np.asarray(Image.open(p)) for p in sorted(folder.iterdir())])


def test_numbers_are_those_of_the_definitions(network, reference, pictures, tmp_path, capsys):
    evaluate(network, reference, '--images', pictures[1], '--out', tmp_path / 'out')
    result = json.loads((tmp_path / 'out/result.json').read_text())
    extractor = inception.load(network)
    real, made = (
        [np.asarray(x, np.float64) for x in extractor.features(arrays(p))] for p in pictures
    )
    for name, part, tolerance in (('fid', 0, 1e-4), ('sfid', 2, 1e-4)):
        want = scores.frechet_distance(
            *scores.mean_and_covariance(real[part]), *scores.mean_and_covariance(made[part])
        )
        np.testing.assert_allclose(result[name], want, rtol=tolerance)
    assert (result['precision'], result['recall']) == scores.precision_recall(real[0], made[0])
    assert 1.0 < result['inception_score'] < 10.0
    assert result['images'] == COUNT
    shown = capsys.readouterr().out
    assert f'FID {"":24}{result["fid"]:12.3f}' in shown
    # The same set against itself.
    evaluate(network, reference, '--images', pictures[0], '--out', tmp_path / 'same')
    same = json.loads((tmp_path / 'same/result.json').read_text())
    assert abs(same['fid']) < 1e-4 * result['fid']
    assert (same['precision'], same['recall']) == (1.0, 1.0)


def test_npz_and_other_references(network, reference, pictures, tmp_path, capsys):
    np.savez(tmp_path / 'made.npz', arr_0=arrays(pictures[1]))
    held = {name: rows.read() for name, rows in npz.members(reference).items()}
    # As ADM publishes it: statistics and images, from which precision and recall are computed.
    np.savez(tmp_path / 'VIRTUAL.npz', arr_0=arrays(pictures[0]),
             **{name: held[name] for name in ('mu', 'sigma', 'mu_s', 'sigma_s')})  # fmt: skip
    evaluate(network, reference, '--npz', tmp_path / 'made.npz', '--out', tmp_path / 'a')
    evaluate(network, tmp_path / 'VIRTUAL.npz', '--npz', tmp_path / 'made.npz', '--out',
             tmp_path / 'b')  # fmt: skip
    a, b = (json.loads((tmp_path / f'{n}/result.json').read_text()) for n in 'ab')
    for name in ('fid', 'sfid', 'precision', 'recall', 'inception_score'):
        np.testing.assert_allclose(a[name], b[name], rtol=1e-5)
    # As eMIGM and MAR publish it: no sFID, no precision and recall, and it says so.
    np.savez(tmp_path / 'mar.npz', mu=held['mu'].astype(np.float32), sigma=held['sigma'])
    capsys.readouterr()
    evaluate(network, tmp_path / 'mar.npz', '--npz', tmp_path / 'made.npz', '--out',
             tmp_path / 'c', metrics=f'{",".join(metrics.METRICS)}')  # fmt: skip
    c = json.loads((tmp_path / 'c/result.json').read_text())
    np.testing.assert_allclose(c['fid'], a['fid'], rtol=1e-4)
    assert set(c['missing']) >= {'sfid', 'precision_recall', 'kid', 'fid_infinite'}
    shown = capsys.readouterr().out
    assert 'sfid: not computed, the reference has no mu_s' in shown
    assert references.read(tmp_path / 'mar.npz').fingerprint in shown


# Stops itself as by kill -9 after its second part.
KILLED = """
import os, signal, sys
from emigm_jax.cli import main
from emigm_jax.evaluation import measure, statistics
save, parts = statistics.save, []
def counted(path, totals):
    save(path, totals)
    parts.append(path)
    if len(parts) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
statistics.save = counted
measure.Plan.part = 8
plan = measure.Plan
measure.Plan = lambda *a, **k: plan(*a, **{**k, 'part': 8})
main.main(sys.argv[1:])
"""


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('digits')
    run('train', SMOKE, '--workdir', workdir)
    return workdir


def test_a_killed_evaluation_ends_with_the_same_numbers(
    network, reference, digits, tmp_path, monkeypatch, capsys
):
    flags = ('--checkpoint', digits, '--num-images', 30, '--steps', 2, '--solver-steps', 2)
    plan = measure.Plan
    monkeypatch.setattr(measure, 'Plan', lambda *a, **k: plan(*a, **{**k, 'part': 8}))
    evaluate(network, reference, *flags, '--out', tmp_path / 'whole')
    command = [sys.executable, '-c', KILLED, 'evaluate', '--inception', network, '--reference',
               reference, '--metrics', 'fid,sfid,inception_score,precision_recall',
               '--batch-size', '8', *flags, '--out', tmp_path / 'killed']  # fmt: skip
    killed = subprocess.run(list(map(str, command)), check=False, env=dict(os.environ))
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / 'killed/result.json').exists()
    evaluate(network, reference, *flags, '--out', tmp_path / 'killed')
    whole, resumed = (
        json.loads((tmp_path / f'{n}/result.json').read_text()) for n in ('whole', 'killed')
    )
    for name in ('fid', 'sfid', 'inception_score', 'precision', 'recall'):
        assert whole[name] == resumed[name]
    assert 'NFE 2x' in capsys.readouterr().out
    # Other settings do not mix with what is there.
    command = ['evaluate', '--inception', network, '--reference', reference, *flags[:-1], 3,
               '--out', tmp_path / 'killed']  # fmt: skip
    assert main.main(list(map(str, command))) == 2
    assert 'holds the measurement with' in capsys.readouterr().err


def test_save_npz_gives_the_images(network, reference, digits, tmp_path):
    evaluate(network, reference, '--checkpoint', digits, '--num-images', 20, '--steps', 2,
             '--solver-steps', 2, '--out', tmp_path / 'a', '--save-npz', tmp_path / 'a.npz',
             metrics='fid')  # fmt: skip
    assert np.load(tmp_path / 'a.npz')['arr_0'].shape == (20, 8, 8, 3)
    evaluate(network, reference, '--npz', tmp_path / 'a.npz', '--out', tmp_path / 'b',
             metrics='fid')  # fmt: skip
    a, b = (json.loads((tmp_path / f'{n}/result.json').read_text()) for n in 'ab')
    np.testing.assert_allclose(a['fid'], b['fid'], rtol=1e-6)


def test_refusals(network, reference, pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mixed = tmp_path / 'mixed'
    mixed.mkdir()
    for i, side in enumerate([16] * 10 + [24] * 10):
        Image.fromarray(scene(np.random.default_rng(i), side, side)).save(mixed / f'{i:02}.png')
    torn = tmp_path / 'torn'
    torn.mkdir()
    for i in range(12):
        (torn / f'{i:02}.png').write_bytes(b'\x89PNG')
    (tmp_path / 'empty').mkdir()
    np.savez(tmp_path / 'float.npz', arr_0=np.zeros((3, 8, 8, 3)))
    np.savez(tmp_path / 'small.npz', mu=np.zeros(10), sigma=np.eye(10))
    full = ('--inception', network, '--reference', reference)
    for command, says in [
        (('--images', pictures[1], '--reference', reference), '--inception is required'),
        (('--images', pictures[1], '--inception', network), '--reference is required'),
        (('--images', mixed, *full), 'several sizes (16x16 and 24x24)'),
        (('--images', torn, *full), 'torn/00.png: cannot be read'),
        (('--images', 'empty', *full), 'holds no pictures'),
        (('--images', 'nowhere', *full), 'no such folder'),
        (('--npz', 'float.npz', *full), 'float64'),
        (('--npz', 'nowhere.npz', *full), 'nowhere.npz'),
        (('--images', pictures[1], *full, '--metrics', 'fod'), "did you mean 'fid'"),
        (('--images', pictures[1], '--inception', network, '--reference', 'small.npz'), 'mu'),
        (('--images', pictures[1], *full, '--compare', 'paper'), '--checkpoint'),
        (('--images', pictures[1], *full, '--num-images', '3'), '--checkpoint'),
        (('--images', pictures[1], *full, '--json', 'no/x.json'), 'its folder does not exist'),
    ]:
        assert main.main(['evaluate', *map(str, command), '--out', 'out']) == 2
        message = capsys.readouterr().err.strip().splitlines()[-1]
        assert message.startswith('emigm: ')
        assert says in message
    assert main.main(['prepare', 'reference', str(reference), '--folder', str(pictures[0]),
                      '--inception', str(network)]) == 2  # fmt: skip
    assert 'exists already' in capsys.readouterr().err
