"""What is found in a folder of one's own, and the settings that follow from it."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from emigm_jax.cli import main
from emigm_jax.config.load import load_config
from emigm_jax.config.settings import DataConfig
from emigm_jax.data import datasets, real, scale, sizes, survey
from emigm_jax.data.folder import ImageFolder
from emigm_jax.data.survey import Survey
from emigm_jax.errors import UserError
from emigm_jax.evaluation import evaluate, image_sets
from emigm_jax.tokenizers import codec, learned
from emigm_jax.tokenizers.learned import Learned
from support.pictures import png, scene
from support.small_tokenizers import SMALL

KL16 = learned.published('kl16').spec
OPEN = DataConfig('folder', 'x', image_size=0, patch=0, scale=0.0)


def write(root, sides, classes=('cat', 'dog'), seed=0):
    rng = np.random.default_rng(seed)
    for i, side in enumerate(sides):
        file = root / classes[i % len(classes)] / f'{i:03}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(Image.fromarray(scene(rng, *np.broadcast_to(side, 2)))))
    return root


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    root = write(tmp_path_factory.mktemp('mine') / 'pictures', [28] * 12 + [(50, 28)] * 8)
    (root / 'cat/torn.png').write_bytes(b'torn')
    (root / 'cat/notes.txt').write_text('')
    return root


def flags(root, *more):
    return [f'--config.data.path={root}', *more]


@pytest.mark.parametrize(
    ('sides', 'size', 'patch'),
    [
        ([8], 8, 2),
        ([28], 28, 4),
        ([32], 32, 4),
        ([500, 375, 640], 32, 4),
        ([17], 16, 2),
        ([3], 4, 2),  # masking needs two tokens per side
        ([64] * 19 + [20], 32, 4),  # a few small ones are enlarged
        ([64] * 5 + [20], 20, 2),
    ],
)
def test_sizes_of_pixels(sides, size, patch):
    found = survey.filled(OPEN, Survey(np.array([[s, s + 1] for s in sides]), []), None, 0)
    assert (found.image_size, found.patch) == (size, patch)


@pytest.mark.parametrize(
    ('settings', 'size', 'patch'),
    [
        (dict(image_size=64), 64, 8),
        (dict(image_size=30), 30, 3),
        (dict(image_size=31), 31, 1),  # a prime
        (dict(patch=5), 25, 5),
        (dict(image_size=20, patch=10), 20, 10),
    ],
)
def test_what_is_set_stays(settings, size, patch):
    config = dataclasses.replace(OPEN, **settings)
    found = survey.filled(config, Survey(np.array([[28, 28]]), []), None, 0)
    assert (found.image_size, found.patch) == (size, patch)


@pytest.mark.parametrize(('side', 'size'), [(64, 64), (300, 256), (70, 64), (20, 32)])
def test_sizes_with_a_tokenizer(side, size):
    found = survey.filled(OPEN, Survey(np.array([[side, side]]), []), KL16, 256)
    assert found.image_size == size


def test_a_folder_says_what_it_is(folder):
    config = load_config('folder', flags(folder))
    assert sizes.known(config).model.grid == 0
    data = datasets.dataset(config)
    spread = survey.deviation(ImageFolder(folder), 28)
    assert list(data.remarks) == [
        '21 pictures in 2 classes: cat (11), dog (10)',
        '21 looked at: 28 to 50 pixels wide, 28 to 28 high, the shorter side 28 in the middle',
        '1 of them cannot be read (cat/torn.png: no picture of a known kind)',
        'left out, as no pictures: .txt 1',
        'taken, as they suggest: --config.data.image_size=28 --config.data.patch=4 '
        f'--config.data.scale={round(1 / spread, 2)}',
    ]
    fitted = sizes.fitted(config, data)
    assert (fitted.model.grid, fitted.model.channels, fitted.model.classes) == (7, 48, 2)
    assert (fitted.data.image_size, fitted.data.patch) == (28, 4)
    rows = data.read(np.arange(4), np.zeros(4, bool))
    tokens = data.to_batch({}, rows, None).tokens
    assert tokens.shape == (4, 49, 48)
    # A run goes on with the very settings, and with those that were taken.
    again = sizes.fitted(fitted, datasets.dataset(fitted))
    assert again == fitted == sizes.fitted(config, datasets.dataset(config))


@pytest.mark.parametrize(
    ('size', 'named'),
    [
        (27, 'data.image_size model.grid model.channels model.classes'),
        (256, 'data.image_size data.patch data.scale model.grid model.channels model.classes'),
    ],
)
def test_all_misfits_are_named_at_once(folder, size, named):
    """As flags that can be pasted; sizes that most pictures do not have are none to keep."""
    own = flags(folder, '--config.data.name=folder', '--config.data.patch=4')
    own.append(f'--config.data.image_size={size}')
    with pytest.raises(UserError) as error:
        datasets.dataset(load_config('imagenet256:size=xs,tiny', own))
    message, _, said = str(error.value).rpartition(': say ')
    assert message.startswith(f'data.image_size = {size}, ')
    assert ('most pictures are smaller' in message) == (size == 256)
    changes = said.split()
    names = [flag.partition('=')[0].removeprefix('--config.') for flag in changes]
    assert names == named.split()
    data = datasets.dataset(load_config('imagenet256:size=xs,tiny', [*own, *changes]))
    assert data.settings.image_size == 28


def test_enlarging_scale_and_mirroring_are_said(folder):
    config = load_config('digits', flags(folder, '--config.data.name=folder'))
    remarks = '\n'.join(datasets.dataset(config).remarks)  # 256 pixels, the digits' scale
    assert (
        '20 of 20 are smaller than 256 pixels and enlarged; --config.data.image_size=28' in remarks
    )
    assert 'mirrored, by chance: --config.data.flip=False' in remarks
    assert 'tokens have a standard deviation of' in remarks
    assert 'the noise is made for 1: --config.data.scale=' in remarks
    assert not survey.enlarged(Survey(np.array([[28, 50]]), []), 28, '')
    assert not survey.scaled(0.0, 1.0) and survey.suggested_scale(0.0) == 1.0  # all alike


def test_nothing_can_be_read(tmp_path):
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a/x.jpg').write_bytes(b'no')
    with pytest.raises(UserError, match=r'not one of 1 pictures can be read \(a/x.jpg: no pic'):
        survey.look(ImageFolder(tmp_path))


def test_a_folder_needs_a_path(tmp_path, capsys):
    assert main.main(['train', '--config', 'folder', '--workdir', str(tmp_path / 'run')]) == 2
    assert 'say --config.data.path=FOLDER' in capsys.readouterr().err
    with pytest.raises(UserError, match='go with folder and tfds'):
        load_config('folder', ['--config.data.name=digits'])
    assert main.main(['settings', 'image_size', '--config', 'folder']) == 0


def test_a_tokenizer_sets_the_size(folder, tmp_path):
    network = Learned('kl16', SMALL['kl16'])
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), network.network.shapes())
    tokenizer = codec.Codec(network, zeros)
    codec.save(tmp_path / 'kl16', tokenizer)
    stride = tokenizer.spec.stride
    more = f'--config.data.tokenizer={tmp_path}/kl16'
    config = load_config('folder', flags(folder, more, '--config.data.latent_scale=0.5'))
    data = datasets.dataset(config)
    assert data.settings.image_size == 28 // stride * stride
    assert (data.grid, data.channels) == (28 // stride, tokenizer.spec.channels)
    assert data.remarks[-1] == f'taken, as they suggest: --config.data.image_size={28}'
    assert data.codec.spec.scale == 0.5
    raw = np.random.default_rng(0).standard_normal((1, 2, 2, 2 * data.channels), np.float32)
    ours, published = data.codec.to_tokens(raw), tokenizer.to_tokens(raw)
    np.testing.assert_allclose(ours / 0.5, published / tokenizer.spec.scale, rtol=1e-6)


@pytest.mark.parametrize(
    ('measured', 'error', 'says'),
    [
        (0.2325, 0.0001, 'cannot tell that from chance'),
        (0.30, 0.1, 'cannot tell that from chance'),
        (0.30, np.inf, 'cannot tell that from chance'),
        (0.24, 0.0001, 'does not matter'),
        (0.30, 0.001, 'it matters, train with --config.data.latent_scale=0.3000'),
        (0.15, 0.001, 'it matters, train with --config.data.latent_scale=0.1500'),
    ],
)
def test_the_verdict_on_a_scale(measured, error, says):
    found = scale.Scale(measured, error, 0.0, KL16.scale, KL16.origin, 100)
    assert says in found.verdict
    assert f'{0.2325 / measured:.2f}, the noise is made for 1' in found.verdict


def test_scores_in_pixels_of_a_folder(tmp_path):
    root = write(tmp_path / 'mine', [40] * 60)
    config = DataConfig('folder', str(root), image_size=32, patch=4)
    images = real.images(config)
    assert images.images.shape == (60, 8, 8, 3)
    assert images.class_names == ('cat', 'dog')
    source = ImageFolder(root)
    crop = lambda i: datasets.Pictures(source, config).read(np.array([i]), np.array([False]))
    crops = crop(0)['images']
    np.testing.assert_allclose(
        images.images[0], crops[0].reshape(8, 4, 8, 4, 3).mean((1, 3)), atol=1
    )
    every = np.stack([np.asarray(source.example(i).image.resize((32, 32))) for i in range(60)])
    same = image_sets.Generated(lambda labels, seeds: every[seeds], 60, 2, 'the real ones')
    result = evaluate.evaluate_in_pixels(same, images)
    assert result.scores['accuracy'] == 1.0 and result.scores['precision'] > 0.9
    noise = np.random.default_rng(1).integers(256, size=every.shape).astype(np.uint8)
    noisy = image_sets.Generated(lambda labels, seeds: noise[seeds], 60, 2, 'noise')
    worse = evaluate.evaluate_in_pixels(noisy, images)
    assert worse.scores['frechet_distance'] > 3 * result.scores['frechet_distance']
    with pytest.raises(UserError, match=r'at least 8 pictures, not 3; .*evaluation.every'):
        real.images(dataclasses.replace(config, path=str(write(tmp_path / 'few', [40] * 3))))
