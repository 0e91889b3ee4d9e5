"""A project that lives in a bucket: pictures, caches, tokenizers, runs, samples, scores."""

import io
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from emigm_jax.checkpoints import copy, runs
from emigm_jax.cli import main
from emigm_jax.data import copies, latents
from emigm_jax.evaluation import references
from emigm_jax.io import files, npz, paths
from emigm_jax.training import metrics
from support.caches import GOOD, Made, make
from support.runs import run, state  # noqa: F401 (fixtures)

ROOT = pathlib.Path(__file__).parents[2]
SMOKE = f'--config={ROOT}/configs/digits.py:smoke'
pytestmark = pytest.mark.filterwarnings('ignore:Sending a large body:ResourceWarning')


def emigm(*command):
    assert main.main(list(map(str, command))) == 0


def read(path):
    return paths.absolute(path).read_bytes()


def names(path):
    return sorted(copy.listing(path))


def test_a_cache_in_a_bucket(bucket, tmp_path):
    class Killed(Made):
        def rows(self, start, stop):
            if start == 24:
                raise KeyboardInterrupt
            yield from super().rows(start, stop)

    with pytest.raises(KeyboardInterrupt):
        make(f'{bucket}/cache', Killed())
    assert not paths.absolute(f'{bucket}/cache/manifest.json').exists()
    rows = Made()
    make(f'{bucket}/cache', rows)
    assert rows.asked == [24, 32, 40, 48]  # what was there stays
    make(tmp_path / 'cache')
    assert names(f'{bucket}/cache') == names(tmp_path / 'cache')
    for name in names(tmp_path / 'cache'):
        assert read(f'{bucket}/cache/{name}') == (tmp_path / 'cache' / name).read_bytes()

    order = np.random.default_rng(0).permutation(len(GOOD))
    want = latents.Cache(tmp_path / 'cache').take(order, order % 2 == 1)
    cache = latents.Cache(f'{bucket}/cache')
    np.testing.assert_array_equal(cache.take(order, order % 2 == 1), want)
    cache.verify()
    copied = latents.Cache(copies.copied(f'{bucket}/cache', tmp_path / 'copy'))
    np.testing.assert_array_equal(copied.take(order, order % 2 == 1), want)


def test_references_in_a_bucket(bucket):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, references.POOL)).astype(np.float32)
    mean, covariance = features.mean(0, np.float64), np.cov(features, rowvar=False)
    path = f'{bucket}/reference.npz'
    references.write(path, (mean, covariance), source='noise', count=40, features=features)
    found = references.read(path)
    np.testing.assert_array_equal(found.mean, mean)
    np.testing.assert_array_equal(found.covariance, covariance)
    np.testing.assert_array_equal(found.features.read(), features)


@pytest.mark.slow
def test_a_model_is_exported_sampled_and_scored(
    run,
    bucket,
    capsys,
):
    model = f'{bucket}/model'
    emigm('checkpoint', 'export', run, model)
    flags = ('--classes', '3,7', '--seeds', '0-2,9', '--batch-size', '3', '--steps', '1')
    emigm('sample', '--checkpoint', model, '--out', f'{bucket}/samples', *flags)
    assert len(names(f'{bucket}/samples')) == 8 + 3
    there = npz.members(f'{bucket}/samples/samples.npz')['images'].read()
    assert there.shape == (8, 8, 8, 1)
    with Image.open(
        io.BytesIO(read(f'{bucket}/samples/images/class_0007_seed_000009.png'))
    ) as image:
        np.testing.assert_array_equal(np.asarray(image), there[-1, ..., 0])

    flags = ('--num-images', '20', '--steps', '1', '--json', f'{bucket}/s.json')
    emigm('evaluate', '--checkpoint', model, *flags)
    assert json.loads(read(f'{bucket}/s.json'))['images'] == 20
    command = ['sample', '--checkpoint', model, '--out', 'gs://nobody-has-this/x']
    assert main.main(command) == 2
    assert 'there is no bucket' in capsys.readouterr().err


TRAIN = (
    'train',
    SMOKE,
    '--config.training.total=24 steps',
    '--config.training.log_every=1 step',
    '--config.training.checkpoint_every=4 steps',
    '--config.training.sample_every=12 steps',
    '--config.training.keep=2',
    # As in other tests, which have compiled it, and with grids that are drawn at once.
    '--config.optimizer.lr_schedule=constant',
    '--config.sampling.reveal.steps=1',
)


@pytest.mark.slow
def test_a_killed_run_goes_on(bucket, tmp_path):
    """Killed whenever a new checkpoint shows up; the end is bitwise that of an undisturbed run."""
    command = [sys.executable, '-m', 'emigm_jax.cli.main', *TRAIN]
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    emigm(*TRAIN, '--workdir', tmp_path / 'whole')
    workdir, kills, seen = f'{bucket}/run', 0, set()
    while True:
        with open(tmp_path / 'log', 'w') as log:
            process = subprocess.Popen(
                [*command, '--workdir', workdir], env=env, stdout=log, stderr=log
            )
            while process.poll() is None:
                # Not `iterdir`: a folder of objects is gone while its last step is replaced.
                here = {name.split('/')[0] for name in copy.listing(f'{workdir}/checkpoints')}
                if here - seen and kills < 2:  # perhaps still being written
                    seen |= here
                    kills += 1
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                time.sleep(0.02)
        if process.returncode != -signal.SIGKILL:
            break
    assert process.returncode == 0, (tmp_path / 'log').read_text()
    assert kills == 2

    ends = [runs.find(place) for place in (workdir, tmp_path / 'whole')]
    assert [end.step for end in ends] == [24, 24]
    for weights in ('0.5', 'params'):
        left, right = (end.load_params(weights)[0] for end in ends)
        jax.tree.map(np.testing.assert_array_equal, left, right)
    assert len(runs.finished(workdir)) == 2  # Orbax deletes in a bucket, too
    lines = {line['step']: line['loss'] for line in metrics.read(workdir)}
    whole = {line['step']: line['loss'] for line in metrics.read(tmp_path / 'whole')}
    assert all(whole[step] == loss for step, loss in lines.items())
    assert 24 in lines
    assert {'config.json', 'parameters.txt', 'samples/00000024.png'} <= set(names(workdir))
    assert any(name.startswith('tensorboard/events') for name in names(workdir))


@pytest.mark.slow
def test_pictures_to_cache_to_model_to_pictures(bucket, tmp_path):

    from emigm_jax.tokenizers import codec
    from support.configs import CONFIG, SHORT
    from support.pictures import write_folder
    from support.small_tokenizers import small

    tokenizer = small('kl16')
    codec.save(f'{bucket}/kl16', tokenizer)
    folder = write_folder(tmp_path / 'pictures', 80, np.random.default_rng(0))
    for path in pathlib.Path(folder.path).rglob('*'):
        if path.is_file():
            name = path.relative_to(folder.path).as_posix()
            files.write(f'{bucket}/pictures/{name}', [path.read_bytes()])
    emigm(
        'prepare',
        'latents',
        f'{bucket}/cache',
        '--folder',
        f'{bucket}/pictures',
        '--tokenizer',
        f'{bucket}/kl16',
        '--image-size',
        '16',
        '--batch-size',
        '8',
        '--shard-rows',
        '64',
        '--max-unreadable',
        '0.05',
    )
    emigm('prepare', 'stats', f'{bucket}/cache')
    assert latents.read_manifest(f'{bucket}/cache').count == len(folder.readable)

    tiny = (
        '--config',
        CONFIG,
        *SHORT,
        '--config.data.name=latents',
        '--config.model.grid=8',
        f'--config.data.path={bucket}/cache',
        f'--config.data.tokenizer={bucket}/kl16',
        f'--config.model.classes={len(folder.classes)}',
    )
    emigm('train', *tiny, '--workdir', f'{bucket}/run')
    emigm('train', *tiny, '--workdir', f'{bucket}/copied', f'--config.data.local_copy={tmp_path}/c')
    losses = [[row['loss'] for row in metrics.read(f'{bucket}/{r}')] for r in ('run', 'copied')]
    assert losses[0] == losses[1]
    assert (tmp_path / 'c/manifest.json').exists()

    # Out as PyTorch users have it, in again, and pictures of both.
    emigm('convert', f'{bucket}/run', tmp_path / 'm.safetensors', '--to', 'safetensors')
    emigm('convert', tmp_path / 'm.safetensors', f'{bucket}/model', '--heads', '2')
    flags = (
        '--tokenizer',
        f'{bucket}/kl16',
        '--classes',
        '0,1',
        '--seeds',
        '0-1',
        '--steps',
        '2',
        '--solver-steps',
        '2',
        '--guidance',
        '1',
    )
    emigm('sample', '--checkpoint', f'{bucket}/run', '--out', f'{bucket}/a', *flags)
    emigm('sample', '--checkpoint', f'{bucket}/model', '--out', f'{bucket}/b', *flags)
    # A file of tensors has no names of classes.
    unnamed = [re.sub(r'_n\d\d', '', name) for name in names(f'{bucket}/a')]
    assert names(f'{bucket}/b') == unnamed != names(f'{bucket}/a')
    pictures = [npz.members(f'{bucket}/{n}/samples.npz')['images'].read() for n in 'ab']
    assert pictures[0].shape == (4, 16, 16, 3)
    np.testing.assert_array_equal(*pictures)
