"""The Inception network of FID: recorded outputs, resizing, and the ways in and out."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from emigm_jax.checkpoints import store
from emigm_jax.cli import main
from emigm_jax.conversion import convert as library
from emigm_jax.conversion import inception as names_of
from emigm_jax.conversion import kinds, rules
from emigm_jax.conversion.options import Kind, Options
from emigm_jax.errors import UserError
from emigm_jax.evaluation import inception, inception_plan
from emigm_jax.io.formats import torch_files
from emigm_jax.nn import functional
from support import checkpoint_files, golden

TOLERANCE = 1e-4  # of the standard deviation
GAIN = 2.0  # of the recorded weights


def convert(*arguments):
    return main.main(['convert', *map(str, arguments)])


def refusal(capsys, *arguments):
    capsys.readouterr()
    assert convert(*arguments) == 2
    message = capsys.readouterr().err.strip()
    assert '\n' not in message and message.startswith('emigm: ')
    return message


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope='module')
def official():
    """The recorded network's weights, {name: array}."""
    return golden.formula().state_dict(golden.path('inception_fid_keys.json'), GAIN)


@pytest.fixture(scope='module')
def pth(official, tmp_path_factory):
    """They as a file of PyTorch."""
    path = tmp_path_factory.mktemp('official') / 'pt_inception-2015-12-05-6726825d.pth'
    return checkpoint_files.write_arrays(path, official)


@pytest.fixture(scope='module')
def converted(pth):
    """And as a checkpoint of ours."""
    target = pth.with_name('fid-inception')
    assert convert(pth, target) == 0
    return target


@pytest.fixture(scope='module')
def extractor(converted):
    return inception.load(converted)


@pytest.fixture(scope='module')
def shapes():
    return inception.network().shapes()


def images(side):
    image = golden.formula().image(f'inception_{side}', (2, 3, side, side))
    return np.round((image + 1) / 2 * 255).astype(np.uint8).transpose(0, 2, 3, 1)


# --- Numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize('side', [32, 256, 512])
def test_recorded_outputs(extractor, side):
    data = golden.arrays('inception_fid_outputs.npz')
    made = extractor.features(images(side))
    golden.close(made.pool, data[f'pool_{side}'], TOLERANCE)
    golden.close(made.logits, data[f'logits_unbiased_{side}'], TOLERANCE)
    # In the order rows, columns, channels: sFID's statistics depend on it.
    golden.close(made.spatial, data[f'spatial_nhwc_{side}'].reshape(2, -1), TOLERANCE)
    assert {x.dtype for x in made} == {np.dtype('float32')}


@pytest.mark.slow
def test_usual_preprocessing_would_fail(extractor):
    """The test above can tell: a half-pixel resize, or another range, is far off."""
    expected = golden.arrays('inception_fid_outputs.npz')['pool_256']
    run = jax.jit(lambda params, pixels: inception.network().bind(params)(pixels).pool)
    pixels = images(256).astype(np.float32)
    centred = jax.image.resize(pixels, (2, 299, 299, 3), 'bilinear')
    right = inception.preprocess(jnp.asarray(images(256)))
    wrong = {
        'half-pixel': (centred - 128.0) / 128.0,
        'range': (right * 128.0 + 128.0) / 127.5 - 1.0,
    }
    for name, x in wrong.items():
        error = np.abs(run(extractor.params, x) - expected).max() / expected.std()
        assert error > 50 * TOLERANCE, (name, error)
    golden.close(run(extractor.params, right), expected, TOLERANCE)


def test_every_product_is_exact(shapes):
    """In the program itself: on TPU the default would be bfloat16, on GPU TF32."""
    pictures = jax.ShapeDtypeStruct((2, 40, 40, 3), jnp.uint8)
    text = jax.jit(inception.features).lower(shapes, pictures).as_text()
    products = re.findall(r'stablehlo\.(convolution|dot_general)\b.*', text)
    assert products.count('convolution') == len(inception_plan.network()) == 94
    assert products.count('dot_general') == 3  # resize of rows, of columns; logits
    for line in text.splitlines():
        if re.search(r'stablehlo\.(convolution|dot_general)\b', line):
            assert re.search(r'HIGHEST.*HIGHEST', line), line
    assert not re.search(r'bf16|f16', text)


@pytest.mark.parametrize('size', [(1, 5), (32, 48), (299, 256), (512, 300)])
def test_resize_is_that_of_tensorflow_1(size):
    """Against the definition, pixel by pixel in float64 from exact positions."""
    pictures = np.random.default_rng(0).integers(256, size=(1, *size, 3)).astype(np.uint8)

    def along(x, axis):
        source = x.shape[axis]
        rows = []
        for i in range(299):
            low, rest = divmod(i * source, 299)  # position i * source / 299
            high = min(low + 1, source - 1)
            rows.append(x.take(low, axis) * (299 - rest) / 299 + x.take(high, axis) * rest / 299)
        return np.stack(rows, axis)

    expected = (along(along(pictures.astype(np.float64), 1), 2) - 128.0) / 128.0
    made = np.asarray(inception.preprocess(jnp.asarray(pictures)))
    assert made.shape == (1, 299, 299, 3)
    assert np.abs(made - expected).max() < 1e-4  # of [-1, 1); positions are float32
    for side in size:
        weights = inception.resize_weights(side)
        np.testing.assert_allclose(weights.sum(1), 1.0, atol=1e-6)
        assert ((weights != 0).sum(1) <= 2).all()


def test_images_that_are_none(extractor):
    for wrong in (
        np.zeros((2, 8, 8), np.uint8),
        np.zeros((2, 8, 8, 1), np.uint8),
        np.zeros((0, 8, 8, 3), np.uint8),
    ):
        with pytest.raises(UserError, match='shape'):
            extractor.features(wrong)
    with pytest.raises(UserError, match='uint8'):
        extractor.features(np.zeros((1, 8, 8, 3), np.float32))


# --- Names ---------------------------------------------------------------------------------------


def test_official_names_and_counts(shapes):
    with open(golden.path('inception_fid_keys.json')) as file:
        names = {name: tuple(shape) for name, shape in json.load(file).items()}
    entries = names_of.entries()
    assert sorted(source for e in entries for source in e.sources) == sorted(names)
    flat = traverse_util.flatten_dict(shapes, sep='/')
    assert sorted(e.path for e in entries) == sorted(flat)
    assert len(names) == len(flat) == 472
    assert len(inception_plan.network()) == 94
    recorded = sum(x.size for path, x in flat.items() if path.endswith(('/mean', '/variance')))
    assert recorded == 34_432
    assert functional.parameter_count(shapes) - recorded == 23_850_960
    assert functional.parameter_count(shapes['fc']) == 2_065_392


# --- In and out ----------------------------------------------------------------------------------


def test_export_is_exact(official, converted, tmp_path):
    back = tmp_path / 'back.safetensors'
    assert convert(converted, back, '--to', 'safetensors') == 0
    again = torch_files.read(back)
    assert set(again) == set(official)
    for name, value in official.items():
        np.testing.assert_array_equal(again[name], value, strict=True)
    assert list(kinds.recognise(again, 'x')) == [Kind.INCEPTION]


def test_counters_come_and_go(official, extractor, tmp_path):
    """Files saved again from PyTorch modules have `num_batches_tracked`; others do not."""
    counters = {
        name.replace('running_var', 'num_batches_tracked'): np.asarray(7, np.int64)
        for name in official
        if name.endswith('running_var')
    }
    made = names_of.read({'': {**official, **counters}}, 'x.pth', Options())
    assert len(made.left_out) == len(made.facts['counters']) == 94
    same(made.params, extractor.params)
    made.save(tmp_path / 'counted')
    same(
        names_of.export('counted', store.checkpoint(tmp_path / 'counted'), '').tensors,
        {**official, **counters},
    )


# --- Refusals ------------------------------------------------------------------------------------


def test_misfits_are_listed_and_nothing_is_written(official, tmp_path, capsys):
    tensors = {name: value for name, value in official.items() if name.startswith(('Conv2d', 'fc'))}
    tensors['Conv2d_2a_3x3.conv.weight'] = np.zeros((32, 32, 3, 1), np.float32)
    tensors['left.over'] = np.zeros(3, np.float32)
    file = checkpoint_files.write_arrays(tmp_path / 'x.pth', tensors)
    with pytest.raises(rules.Misfit) as caught:
        library.read(file)
    rows = caught.value.rows
    assert ('unexpected', 'left.over', '') in rows
    assert sum(problem == 'missing' for problem, _, _ in rows) == 472 - 27
    assert [name for problem, name, _ in rows if problem == 'misshapen'] == [
        'Conv2d_2a_3x3.conv.weight'
    ]
    assert 'Inception of FID: does not fit' in refusal(capsys, file, tmp_path / 'out')
    assert list(tmp_path.iterdir()) == [file]


def test_other_files_and_kinds(pth, converted, tmp_path, capsys):
    classes = {
        'Conv2d_1a_3x3.conv.weight': np.zeros((32, 3, 3, 3)),
        'fc.weight': np.zeros((1000, 4)),
    }
    other = checkpoint_files.write_arrays(tmp_path / 'torchvision.pth', classes)
    emigm = golden.path('emigm_tiny_release.pth')
    out = tmp_path / 'out'
    for arguments, says in [
        ((other, out), '1000 classes'),
        ((pth, out, '--kind', 'kl16'), 'is no kl16, its tensors are those of the Inception'),
        ((emigm, out, '--kind', 'inception'), 'is no inception'),
        ((pth, out, '--weights', 'model'), 'does not apply to the Inception network'),
        ((pth, converted), 'exists already'),
        ((converted, tmp_path / 'x', '--to', 'safetensors', '--weights', 'ema'), 'not apply'),
    ]:
        assert says in refusal(capsys, *arguments)
        assert list(tmp_path.iterdir()) == [other]
    assert main.main(['sample', '--checkpoint', str(converted), '--out', str(out)]) == 2
    assert 'holds no model' in capsys.readouterr().err


def test_loading_something_else(tmp_path):
    with pytest.raises(UserError, match='emigm convert'):
        inception.load(tmp_path / 'nowhere')
    assert convert(golden.path('emigm_tiny_release.pth'), tmp_path / 'emigm', '--heads', '4') == 0
    with pytest.raises(UserError, match='holds no Inception network'):
        inception.load(tmp_path / 'emigm')
