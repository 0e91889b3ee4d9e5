"""From a folder of real picture files, or a TFDS data set, to a cache, a model and pictures."""

import json
import random
import re
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from emigm_jax.cli import main
from emigm_jax.config.settings import DataConfig
from emigm_jax.data import datasets, latents, pipeline
from emigm_jax.data.folder import ImageFolder
from emigm_jax.data.pictures import center_crop
from emigm_jax.tokenizers import codec
from emigm_jax.training import metrics
from support.caches import contents
from support.configs import CONFIG, SHORT
from support.pictures import write_folder, write_tfds
from support.processes import with_devices
from support.small_tokenizers import small


@pytest.fixture(scope='module')
def kl16(tmp_path_factory):
    tokenizer = small('kl16')
    path = tmp_path_factory.mktemp('kl16') / 'tokenizer'
    codec.save(path, tokenizer)
    return path


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp('pictures'), 200, np.random.default_rng(0))


def run(*command):
    assert main.main(list(map(str, command))) == 0


ALL_FLAGS = ('--image-size', '16', '--batch-size', '8', '--max-unreadable', '0.05')


def prepare(cache, *flags):
    run('prepare', 'latents', cache, *ALL_FLAGS, '--shard-rows', '64', *flags)


def train_and_sample(cache, kl16, classes, workdir):
    """Trains on a cache and draws pictures; returns the flags it trained with."""
    tiny = (
        '--config',
        CONFIG,
        *SHORT,
        '--config.data.name=latents',
        f'--config.data.path={cache}',
        f'--config.data.tokenizer={kl16}',
        '--config.model.grid=8',
        f'--config.model.classes={classes}',
    )
    run('train', *tiny, '--workdir', workdir)
    rows = metrics.read(workdir)
    assert all(0.0 <= row['data_wait'] <= 1.0 for row in rows)
    assert list((workdir / 'samples').glob('*.png'))
    out = workdir.with_name('out')
    run('sample', '--checkpoint', workdir, '--classes', '0,1', '--seeds', '0-1', '--out', out)
    (first,) = (out / 'images').glob('class_0001_*_seed_000000.png')
    with Image.open(first) as picture:
        assert picture.size == (16, 16)
    return tiny


@pytest.mark.slow
def test_pictures_to_cache_to_model_to_pictures(folder, kl16, tmp_path, capsys):
    cache, workdir = tmp_path / 'cache', tmp_path / 'run'
    prepare(cache, '--folder', folder.path, '--tokenizer', kl16)
    manifest = latents.read_manifest(cache)
    assert manifest.count == len(folder.readable)
    assert manifest.skipped == len(folder.unreadable) > 0
    names = [json.loads(line) for line in (cache / 'names.txt').read_text().splitlines()]
    assert names == folder.readable
    skipped = [json.loads(line) for line in (cache / 'skipped.jsonl').read_text().splitlines()]
    assert [entry['name'] for entry in skipped] == folder.unreadable

    # The latents are those of the crops, and labels those of the folders.
    source, tokenizer = ImageFolder(folder.path), codec.load(kl16)
    held = latents.Cache(cache)
    chosen = [0, 17, len(held) - 1]
    index = [i for i in range(len(source)) if source.name(i) in set(folder.readable)]
    crops = np.stack([center_crop(source.example(index[row]).image, 16) for row in chosen])
    for view in (0, 1):
        want = tokenizer.encode(crops[:, :, ::-1] if view else crops)
        got = held.take(chosen, [bool(view)] * 3).astype(np.float32)
        np.testing.assert_allclose(got, want, atol=2e-3 * np.abs(want).max())
    assert [source.class_names[held.labels[r]] for r in chosen] == [
        names[r].split('/')[0] for r in chosen
    ]

    tiny = train_and_sample(cache, kl16, len(source.class_names), workdir)

    # The same run goes on from a copy of its cache elsewhere, but from no other cache.
    more = ('--config.training.total=14 steps', '--workdir', workdir)
    moved = cache.rename(tmp_path / 'moved')
    run('train', *tiny, f'--config.data.path={moved}', *more)
    other = tmp_path / 'other'
    prepare(other, '--folder', folder.path, '--tokenizer', kl16, '--dtype', 'float32')
    capsys.readouterr()
    command = ('train', *tiny, f'--config.data.path={other}', *more)
    assert main.main(list(map(str, command))) == 2
    assert 'trained on other data' in capsys.readouterr().err


def started(*flags):
    """`emigm prepare latents` in a process of its own, with one device."""
    command = [sys.executable, '-m', 'emigm_jax.cli.main', 'prepare', 'latents', *map(str, flags)]
    return subprocess.Popen(command, env=with_devices(1))


@pytest.mark.slow
def test_two_processes(folder, kl16, tmp_path):
    flags = (*ALL_FLAGS, '--shard-rows', '16', '--folder', folder.path, '--tokenizer', kl16)
    one = started(tmp_path / 'one', *flags)
    with socket.create_server(('127.0.0.1', 0)) as free:
        together = ('--coordinator', f'127.0.0.1:{free.getsockname()[1]}', '--num-processes', '2')
    two = [started(tmp_path / 'two', *flags, *together, '--process-id', i) for i in (0, 1)]
    assert [process.wait(300) for process in (one, *two)] == [0, 0, 0]
    assert contents(tmp_path / 'two') == contents(tmp_path / 'one')


@pytest.mark.slow
def test_five_kills(folder, kl16, tmp_path):
    """kill -9 at random moments of the command, each before its end; the bytes are the same."""
    flags = (*ALL_FLAGS, '--shard-rows', '2', '--folder', folder.path, '--tokenizer', kl16)
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    assert started(whole, *flags).wait() == 0
    moments = random.Random(0)
    for _ in range(5):
        process, before = started(killed, *flags), set(killed.rglob('*'))
        new = moments.randrange(5)  # files written by then; 0: while it starts
        while len(set(killed.rglob('*')) - before) < new and process.poll() is None:
            time.sleep(0.001)
        time.sleep(moments.uniform(0.0, 0.02 if new else 3.0))
        assert process.poll() is None
        process.kill()
        process.wait()
        assert not (killed / 'manifest.json').exists()
    assert started(killed, *flags).wait() == 0
    assert contents(killed) == contents(whole)


@pytest.mark.slow
def test_training_on_pictures_directly(folder, kl16, tmp_path):
    common = (
        '--config',
        CONFIG,
        *SHORT,
        '--config.data.name=folder',
        f'--config.data.path={folder.path}',
        f'--config.model.classes={len(folder.classes)}',
    )
    run(
        'train',
        *common,
        '--config.model.grid=8',
        '--config.data.image_size=16',
        f'--config.data.tokenizer={kl16}',
        '--workdir',
        tmp_path / 'latent',
    )
    # With no tokenizer the tokens are patches of pixels.
    run(
        'train',
        *common,
        '--config.model.grid=2',
        '--config.data.image_size=8',
        '--config.data.patch=4',
        '--config.model.channels=48',
        '--workdir',
        tmp_path / 'pixels',
    )
    for name in ('latent', 'pixels'):
        assert all(np.isfinite(row['loss']) for row in metrics.read(tmp_path / name))
        assert list((tmp_path / name / 'samples').glob('*.png'))


@pytest.mark.slow
def test_pictures_are_encoded_in_the_step(folder, kl16):
    tokenizer = codec.load(kl16, batch=3)
    config = DataConfig('folder', str(folder.path), str(kl16), image_size=16)
    data = datasets.Pictures(ImageFolder(folder.path), config)
    rows = next(pipeline.host_rows(data, 5, 0, 0, 1))
    key = jax.random.key(0)
    got = jax.jit(data.to_batch)(data.params, rows, key)
    want = tokenizer.to_tokens(tokenizer.encode(rows['images']), key)
    np.testing.assert_allclose(got.tokens, want, atol=1e-4)
    np.testing.assert_array_equal(got.labels, rows['labels'])


def test_rows_of_pictures(folder, capsys):
    source = ImageFolder(folder.path)
    data = datasets.Pictures(source, DataConfig('folder', str(folder.path), image_size=8, patch=4))
    names = [source.name(i) for i in range(len(source))]
    torn = names.index(folder.unreadable[0])
    image = lambda index, mirrored: data.read(np.array([index]), np.array([mirrored]))['images'][0]
    stood_in = image(torn, False)
    stand_in = next(i for i in range(torn, len(names)) if names[i] in set(folder.readable))
    np.testing.assert_array_equal(stood_in, center_crop(source.example(stand_in).image, 8))
    assert f'cannot read {folder.unreadable[0]}' in capsys.readouterr().out
    image(torn, True)
    assert not capsys.readouterr().out  # once is enough
    np.testing.assert_array_equal(image(torn, True), stood_in[:, ::-1])
    # Batches are those rows, in the order of the pipeline, mirrored by chance.
    batches = pipeline.host_rows(data, 8, 0, 3, 5)
    for step, batch in zip((3, 4), batches, strict=True):
        for index, got in zip(
            pipeline.indices(len(source), 8, 0, step), batch['images'], strict=True
        ):
            assert any(np.array_equal(got, image(int(index), view)) for view in (False, True))


def test_tfds(kl16, tmp_path):
    data = write_tfds(tmp_path / 'tfds', 24, np.random.default_rng(1))
    flags = ('--tfds', data.name, '--data-dir', tmp_path / 'tfds', '--tokenizer', kl16)
    prepare(tmp_path / 'cache', *flags)
    assert latents.read_manifest(tmp_path / 'cache').count == 24
    np.testing.assert_array_equal(latents.Cache(tmp_path / 'cache').labels, data.labels)


@pytest.mark.slow
def test_tfds_to_cache_to_model_to_pictures(kl16, tmp_path):
    data = write_tfds(tmp_path / 'tfds', 24, np.random.default_rng(1))
    flags = ('--tfds', data.name, '--data-dir', tmp_path / 'tfds', '--tokenizer', kl16)
    prepare(tmp_path / 'cache', *flags)
    train_and_sample(tmp_path / 'cache', kl16, 3, tmp_path / 'run')


def test_official_files(tmp_path, kl16):
    """Per-image files in the official layout give what they hold, channels last."""
    rng, want = np.random.default_rng(2), []
    tokenizer = codec.load(kl16)
    channels = 2 * tokenizer.spec.channels
    for label in range(2):
        (tmp_path / f'npz/n0{label}').mkdir(parents=True)
        for i in range(5):
            views = rng.standard_normal((2, channels, 4, 4)).astype(np.float32)
            file = tmp_path / f'npz/n0{label}/n0{label}_{i}.JPEG.npz'
            np.savez(file, moments=views[0], moments_flip=views[1])
            want.append(views.transpose(0, 2, 3, 1))
    (tmp_path / 'npz/n01/torn.JPEG.npz').write_bytes(b'PK\x03\x04')
    run(
        'prepare',
        'latents',
        tmp_path / 'cache',
        '--from-npz',
        tmp_path / 'npz',
        '--tokenizer',
        kl16,
        '--dtype',
        'float32',
        '--max-unreadable',
        '0.2',
    )
    cache = latents.Cache(tmp_path / 'cache')
    for view in (0, 1):
        got = cache.take(range(10), [bool(view)] * 10)
        np.testing.assert_array_equal(got, np.stack(want)[:, view])
    assert cache.labels.tolist() == [0] * 5 + [1] * 5
    assert cache.manifest.contents.image_size == 4 * tokenizer.spec.stride
    names = (tmp_path / 'cache/names.txt').read_text().splitlines()
    assert names[5] == '"n01/n01_0.JPEG"'


def test_dc_ae_files_were_scaled(tmp_path):
    tokenizer = small('dc_ae')
    codec.save(tmp_path / 'dc_ae', tokenizer)
    (tmp_path / 'npz/n01').mkdir(parents=True)
    raw = np.random.default_rng(3).standard_normal((2, tokenizer.spec.channels, 2, 2))
    held = (raw * 0.3189).astype(np.float32)
    np.savez(tmp_path / 'npz/n01/a.JPEG.npz', moments=held[0], moments_flip=held[1])
    run(
        'prepare',
        'latents',
        tmp_path / 'cache',
        '--from-npz',
        tmp_path / 'npz',
        '--tokenizer',
        tmp_path / 'dc_ae',
        '--dtype',
        'float32',
    )
    got = latents.Cache(tmp_path / 'cache').take([0, 0], [False, True])
    np.testing.assert_allclose(got, raw.transpose(0, 2, 3, 1), rtol=1e-6)


@pytest.mark.parametrize(
    ('command', 'says'),
    [
        (
            ('latents', 'x', '--tokenizer', 'KL16'),
            'one of the arguments --folder --tfds --from-npz is required',
        ),
        (('latents', 'x', '--folder', 'y'), 'are required: --tokenizer'),
        (('latents',), 'are required: target, --tokenizer'),
        (('latent', 'x'), "'prepare latent' (did you mean 'latents'?)"),
        (('latents', 'x', '--folder', 'nowhere', '--tokenizer', 'KL16'), 'nowhere'),
        (('latents', 'x', '--folder', 'y', '--split', 'train', '--tokenizer', 'KL16'), '--tfds'),
        (('latents', 'x', '--from-npz', 'nowhere', '--tokenizer', 'KL16'), 'no such folder'),
        (
            ('latents', 'x', '--folder', 'FOLDER', '--tokenizer', 'KL16', '--image-size', '41'),
            'no multiple of the 2 pixels',
        ),
        (
            ('latents', 'x', '--folder', 'FOLDER', '--tokenizer', 'KL16', '--worker', '4/4'),
            "must look like '0/4'",
        ),
        (
            ('latents', 'x', '--folder', 'FOLDER', '--tokenizer', 'KL16', '--shard-rows', '0'),
            '--shard-rows: must be at least 1',
        ),
        (
            ('latents', 'x', '--folder', 'FOLDER', '--tokenizer', 'KL16', '--image-size', '0'),
            '--image-size: must be at least 1',
        ),
        (
            ('latents', 'x', '--folder', 'FOLDER', '--tokenizer', 'KL16', '--image-size', '32'),
            'more than the share 0.001',
        ),
        (('stats', 'nowhere'), 'no finished latent cache'),
        (('stats', 'nowhere', '--dtype', 'float16'), 'unrecognized arguments: --dtype float16'),
    ],
)
def test_refusals(command, says, folder, kl16, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = {'KL16': str(kl16), 'FOLDER': str(folder.path)}
    assert main.main(['prepare', *(places.get(word, word) for word in command)]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith('emigm: ')
    assert re.search(re.escape(says), message)
    assert jax.device_count() == 8
