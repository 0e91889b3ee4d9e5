"""`emigm evaluate` and `emigm prepare reference`, from files to a table, with formula weights."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from emigm_jax.cli import main, prepare
from emigm_jax.data.pictures import center_crop
from emigm_jax.errors import UserError
from emigm_jax.evaluation import inception, measure, metrics, references, score_table, scores
from emigm_jax.io import npz
from emigm_jax.tokenizers import codec
from emigm_jax.tokenizers.codec import Codec
from emigm_jax.tokenizers.learned import Learned
from support import narrow_inception
from support.pictures import scene, write_tfds
from support.processes import with_devices
from support.small_tokenizers import SMALL

pytestmark = pytest.mark.slow  # many programs and processes

SMOKE = f'--config={pathlib.Path(__file__).parents[2]}/configs/digits.py:smoke'
COUNT, SIDE = 22, 40


@pytest.fixture(scope='module')
def network(tmp_path_factory):
    """A converted Inception of few channels and random weights."""
    path = tmp_path_factory.mktemp('inception') / 'fid'
    with pytest.MonkeyPatch.context() as patch:
        narrow_inception.install(patch.setattr)
        inception.save(path, narrow_inception.random_weights())
        yield path


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
    run(
        'prepare',
        'reference',
        path,
        '--folder',
        pictures[0],
        '--inception',
        network,
        '--keep-features',
        '--batch-size',
        '8',
    )
    return path


def run(*command):
    assert main.main(list(map(str, command))) == 0


def evaluate(network, reference, *flags, metrics='fid,sfid,inception_score,precision_recall'):
    run(
        'evaluate',
        '--inception',
        network,
        '--reference',
        reference,
        '--metrics',
        metrics,
        '--batch-size',
        '8',
        *flags,
    )


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
    np.savez(
        tmp_path / 'VIRTUAL.npz',
        arr_0=arrays(pictures[0]),
        **{name: held[name] for name in ('mu', 'sigma', 'mu_s', 'sigma_s')},
    )
    evaluate(network, reference, '--npz', tmp_path / 'made.npz', '--out', tmp_path / 'a')
    evaluate(
        network, tmp_path / 'VIRTUAL.npz', '--npz', tmp_path / 'made.npz', '--out', tmp_path / 'b'
    )
    a, b = (json.loads((tmp_path / f'{n}/result.json').read_text()) for n in 'ab')
    for name in ('fid', 'sfid', 'precision', 'recall', 'inception_score'):
        np.testing.assert_allclose(a[name], b[name], rtol=1e-5)
    # As eMIGM and MAR publish it: no sFID, no precision and recall, and it says so.
    np.savez(tmp_path / 'mar.npz', mu=held['mu'].astype(np.float32), sigma=held['sigma'])
    capsys.readouterr()
    evaluate(
        network,
        tmp_path / 'mar.npz',
        '--npz',
        tmp_path / 'made.npz',
        '--out',
        tmp_path / 'c',
        metrics=f'{",".join(metrics.METRICS)}',
    )
    c = json.loads((tmp_path / 'c/result.json').read_text())
    np.testing.assert_allclose(c['fid'], a['fid'], rtol=1e-4)
    assert set(c['missing']) >= {'sfid', 'precision_recall', 'kid', 'fid_infinite'}
    shown = capsys.readouterr().out
    assert 'sfid: not computed, the reference has no mu_s' in shown
    assert references.read(tmp_path / 'mar.npz').fingerprint in shown


# Stops itself as by kill -9 after so many parts of 8 images.
DRIVER = """
import os, signal, sys
from emigm_jax.cli import main, prepare
from emigm_jax.evaluation import measure
from support import narrow_inception
narrow_inception.install()
saved, made = measure._saved, []
def counted(*arguments):
    totals = saved(*arguments)
    made.append(totals)
    if len(made) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return totals
measure._saved = counted
plan = measure.Plan
measure.Plan = lambda *a, **k: plan(*a, **{**k, 'part': 8})
sys.exit(main.main(sys.argv[2:]))
"""


def start(*command, parts=0, devices=8):
    """A command in a process of its own."""
    return subprocess.Popen(
        list(map(str, [sys.executable, '-c', DRIVER, parts, *command])),
        text=True,
        env={**with_devices(devices), 'PYTHONPATH': os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def start_two(*command, parts=0):
    """It as two processes of four devices each."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        place = f'127.0.0.1:{probe.getsockname()[1]}'
    flags = ('--coordinator', place, '--num-processes', 2, '--process-id')
    return [start(*command, *flags, i, parts=parts, devices=4) for i in range(2)]


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('digits')
    run('train', SMOKE, '--workdir', workdir)
    return workdir


SCORES = ('fid', 'sfid', 'inception_score', 'precision', 'recall')


def result(folder):
    return json.loads((folder / 'result.json').read_text())


def archived(file):
    """The images of an archive."""
    with np.load(file) as archive:
        return archive['arr_0']


@pytest.fixture(scope='module')
def command(network, reference, digits):
    """`emigm evaluate` of 26 images in batches of 8, so that the last one is a quarter full."""
    return (
        'evaluate',
        '--inception',
        network,
        '--reference',
        reference,
        '--checkpoint',
        digits,
        '--metrics',
        'fid,sfid,inception_score,precision_recall',
        '--batch-size',
        8,
        '--num-images',
        26,
        '--steps',
        2,
        '--solver-steps',
        2,
    )


def in_small_parts(patch):
    """Parts are of 8 images, as in the processes of `DRIVER`."""
    plan = measure.Plan
    patch.setattr(measure, 'Plan', lambda *a, **k: plan(*a, **{**k, 'part': 8}))


@pytest.fixture(scope='module')
def whole(command, tmp_path_factory):
    """The folder with its result and images, by one process of eight devices that nobody
    interrupts."""
    folder = tmp_path_factory.mktemp('whole')
    with pytest.MonkeyPatch.context() as patch:
        in_small_parts(patch)
        run(*command, '--out', folder, '--save-npz', folder / 'images.npz')
    return folder


def test_a_killed_evaluation_ends_with_the_same_numbers(
    command, whole, tmp_path, capsys, monkeypatch
):
    in_small_parts(monkeypatch)
    command = (*command, '--save-npz', tmp_path / 'killed.npz', '--out', tmp_path / 'killed')
    killed = start(*command, parts=2)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / 'killed/result.json').exists()
    # What a kill between two writes leaves: features that the totals do not know of.
    npz.write(
        tmp_path / 'killed/features/00000016.npz', {'arr_0': np.zeros((3, narrow_inception.WIDTH))}
    )
    npz.write(
        tmp_path / 'killed/features/00000020.npz', {'arr_0': np.zeros((3, narrow_inception.WIDTH))}
    )
    run(*command)
    resumed = result(tmp_path / 'killed')
    undisturbed = result(whole)
    assert {name: resumed[name] for name in SCORES} == {name: undisturbed[name] for name in SCORES}
    np.testing.assert_array_equal(archived(tmp_path / 'killed.npz'), archived(whole / 'images.npz'))
    assert 'NFE 2x' in capsys.readouterr().out
    # Asked once more, it makes nothing.
    run(*command)
    assert 'all made before' in capsys.readouterr().out
    # Other settings do not mix with what is there.
    assert main.main([*map(str, command), '--steps', '3']) == 2
    assert 'holds the measurement with' in capsys.readouterr().err


def test_two_processes_give_the_numbers_of_one(command, whole, tmp_path):
    """Two of four devices each, killed in the middle and started again."""
    command = (*command, '--save-npz', tmp_path / 'two.npz', '--out', tmp_path / 'two')
    first, second = start_two(*command, parts=2)
    first.communicate(timeout=600)
    second.kill()
    second.communicate()
    assert first.returncode == -signal.SIGKILL
    assert not (tmp_path / 'two/result.json').exists()
    told = [process.communicate(timeout=600) for process in start_two(*command)]
    two = result(tmp_path / 'two')
    alone = start(*command[:-4], '--out', tmp_path / 'one', devices=1)
    alone.communicate(timeout=600)
    assert alone.returncode == 0
    one, undisturbed = result(tmp_path / 'one'), result(whole)
    for name in SCORES:
        np.testing.assert_allclose(two[name], undisturbed[name], rtol=1e-6)
        np.testing.assert_allclose(one[name], undisturbed[name], rtol=1e-6)
    np.testing.assert_array_equal(archived(tmp_path / 'two.npz'), archived(whole / 'images.npz'))
    assert 'Inception Score' in told[0][0]
    assert 'FID' not in told[1][0] and 'images' not in told[1][1]  # one of them speaks


def test_what_one_process_cannot_read_ends_both(network, reference, pictures, tmp_path):
    shutil.copytree(pictures[1], tmp_path / 'torn')
    (tmp_path / 'torn/00013.png').write_bytes(b'no picture')  # in the share of the second
    processes = start_two(
        'evaluate',
        '--inception',
        network,
        '--reference',
        reference,
        '--metrics',
        'fid',
        '--batch-size',
        8,
        '--images',
        tmp_path / 'torn',
        '--out',
        tmp_path / 'out',
    )
    told = [process.communicate(timeout=600)[1] for process in processes]
    assert f'emigm: {tmp_path}/torn/00013.png: cannot be read' in told[0]
    # The second one may be told that the first one has left before it says the same.
    assert [process.returncode for process in processes] in ([2, 2], [2, 75])
    assert not (tmp_path / 'out/result.json').exists()


def test_save_npz_gives_the_images(network, reference, digits, tmp_path):
    evaluate(
        network,
        reference,
        '--checkpoint',
        digits,
        '--num-images',
        20,
        '--steps',
        2,
        '--solver-steps',
        2,
        '--out',
        tmp_path / 'a',
        '--save-npz',
        tmp_path / 'a.npz',
        metrics='fid',
    )
    assert np.load(tmp_path / 'a.npz')['arr_0'].shape == (20, 8, 8, 3)
    evaluate(
        network, reference, '--npz', tmp_path / 'a.npz', '--out', tmp_path / 'b', metrics='fid'
    )
    a, b = (json.loads((tmp_path / f'{n}/result.json').read_text()) for n in 'ab')
    np.testing.assert_allclose(a['fid'], b['fid'], rtol=1e-6)


def test_a_model_trained_on_a_cache_of_codes(network, tmp_path, capsys):
    """From picture files through a VQGAN's codes to FID, and to a report that shows both."""
    tokenizer, rng = Learned('vqgan', SMALL['vqgan']), np.random.default_rng(1)
    for i in range(COUNT):
        place = tmp_path / f'pictures/{"ab"[i % 2]}'
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene(rng, 20, 16)).save(place / f'{i}.png')
    normal = lambda s: (0.3 * rng.standard_normal(s.shape)).astype(s.dtype)
    codec.save(
        tmp_path / 'vqgan', Codec(tokenizer, jax.tree.map(normal, tokenizer.network.shapes()))
    )
    common = '--folder', tmp_path / 'pictures', '--image-size', 16
    run('prepare', 'latents', tmp_path / 'cache', '--tokenizer', tmp_path / 'vqgan', *common)
    kept = '--inception', network, '--keep-features', '--batch-size', 8
    run('prepare', 'reference', tmp_path / 'real.npz', *common, *kept)
    data = {'name': 'latents', 'path': tmp_path / 'cache', 'tokenizer': tmp_path / 'vqgan'}
    flags = (f'--config.data.{name}={value}' for name, value in data.items())
    sizes = (f'--config.model.{name}=0' for name in ('grid', 'classes', 'codes'))
    run('train', '--config=maskgit:size=b,tiny', *flags, *sizes, '--workdir', tmp_path / 'run')
    tokens = '--tokenizer', tmp_path / 'vqgan', '--num-images', 16
    made = '--out', tmp_path / 'a', '--save-npz', tmp_path / 'a.npz'
    evaluate(network, tmp_path / 'real.npz', '--checkpoint', tmp_path / 'run', *tokens, *made)
    assert np.load(tmp_path / 'a.npz')['arr_0'].shape == (16, 16, 16, 3)
    again = '--npz', tmp_path / 'a.npz', '--out', tmp_path / 'b'
    evaluate(network, tmp_path / 'real.npz', *again)
    a, b = (result(tmp_path / name) for name in 'ab')
    for name in SCORES:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-6, err_msg=name)
    # Untrained pictures of codes are far from the real ones, which are at no distance.
    assert a['fid'] > 0.1
    run('report', tmp_path / 'run', tmp_path / 'a', '--out', tmp_path / 'report')
    page = (tmp_path / 'report/report.html').read_text().replace('<wbr>', '')
    assert score_table.SCORES['fid'].text(a['fid']) in page and 'categorical' in page


def test_reference_of_a_tfds_data_set(network, tmp_path):
    written = write_tfds(tmp_path, 12, np.random.default_rng(0))
    run(
        'prepare',
        'reference',
        tmp_path / 'real.npz',
        '--tfds',
        written.name,
        '--data-dir',
        tmp_path,
        '--image-size',
        SIDE,
        '--inception',
        network,
        '--batch-size',
        8,
    )
    found = references.read(tmp_path / 'real.npz')
    crops = [center_crop(Image.fromarray(image), SIDE) for image in written.images]
    pool = np.asarray(inception.load(network).features(np.stack(crops)).pool, np.float64)
    for one, two in zip(
        (found.mean, found.covariance), scores.mean_and_covariance(pool), strict=True
    ):
        np.testing.assert_allclose(one, two, atol=1e-5 * np.abs(two).max())
    assert found.count == 12 and 'shapes train, centre crops of 40' in found.name


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
    with pytest.raises(UserError, match='--tfds: not allowed with argument --folder'):
        prepare.run(['reference', 'x.npz', '--folder', 'a', '--tfds', 'b'])
    with pytest.raises(UserError, match='--split goes with --tfds'):
        prepare.run(['reference', 'x.npz', '--folder', 'a', '--split', 'b', '--inception', 'c'])
    assert (
        main.main(
            [
                'prepare',
                'reference',
                str(reference),
                '--folder',
                str(pictures[0]),
                '--inception',
                str(network),
            ]
        )
        == 2
    )
    assert 'exists already' in capsys.readouterr().err
