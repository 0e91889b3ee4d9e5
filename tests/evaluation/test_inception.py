"""The Inception network of FID: recorded outputs, resizing, and the ways in and out."""

import json
import pickle
import re
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emigm_jax.cli import main
from emigm_jax.convert import inception_tables, recognise, rules
from emigm_jax.errors import UserError
from emigm_jax.evaluation import inception, inception_plan
from emigm_jax.io.formats import graph_files, torch_files
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
    entries = inception_tables.entries(inception_tables.TORCH)
    assert sorted(source for e in entries for source in e.sources) == sorted(names)
    flat = rules.flatten(shapes)
    assert sorted(e.path for e in entries) == sorted(flat)
    assert len(names) == len(flat) == 472
    assert len(inception_plan.network()) == 94
    recorded = sum(x.size for path, x in flat.items() if path.endswith(('/mean', '/variance')))
    assert recorded == 34_432
    assert functional.parameter_count(shapes) - recorded == 23_850_960
    assert functional.parameter_count(shapes['fc']) == 2_065_392


def test_names_of_tensorflow():
    """Some of each kind of block (the map of torch-fidelity's converter)."""
    for ours, theirs in {
        'Conv2d_1a_3x3': 'conv',
        'Conv2d_4a_3x3': 'conv_4',
        'Mixed_5b.branch1x1': 'mixed/conv',
        'Mixed_5b.branch5x5_2': 'mixed/tower/conv_1',
        'Mixed_5d.branch3x3dbl_3': 'mixed_2/tower_1/conv_2',
        'Mixed_5d.branch_pool': 'mixed_2/tower_2/conv',
        'Mixed_6a.branch3x3': 'mixed_3/conv',
        'Mixed_6a.branch3x3dbl_2': 'mixed_3/tower/conv_1',
        'Mixed_6d.branch1x1': 'mixed_6/conv',
        'Mixed_6e.branch7x7dbl_5': 'mixed_7/tower_1/conv_4',
        'Mixed_7a.branch3x3_1': 'mixed_8/tower/conv',
        'Mixed_7a.branch7x7x3_4': 'mixed_8/tower_1/conv_3',
        'Mixed_7b.branch3x3_1': 'mixed_9/tower/conv',
        'Mixed_7b.branch3x3_2b': 'mixed_9/tower/mixed/conv_1',
        'Mixed_7c.branch3x3dbl_3a': 'mixed_10/tower_1/mixed/conv',
        'Mixed_7c.branch_pool': 'mixed_10/tower_2/conv',
    }.items():
        assert inception_tables.TENSORFLOW.names[ours] == theirs


# --- In and out ----------------------------------------------------------------------------------


def test_export_is_exact(official, converted, tmp_path):
    back = tmp_path / 'back.safetensors'
    assert convert(converted, back, '--to', 'safetensors') == 0
    again = torch_files.read(back)
    assert set(again) == set(official)
    for name, value in official.items():
        np.testing.assert_array_equal(again[name], value, strict=True)
    assert recognise.kind(again, 'x') == 'inception'


def test_counters_come_and_go(official, extractor):
    """Files saved again from PyTorch modules have `num_batches_tracked`; others do not."""
    counters = {
        name.replace('running_var', 'num_batches_tracked'): np.asarray(7, np.int64)
        for name in official
        if name.endswith('running_var')
    }
    made = inception_tables.read({**official, **counters}, 'x.pth')
    assert len(made.left_out) == len(made.counters) == 94
    same(made.params, extractor.params)
    tensors = inception_tables.official(made.params, made.counters)
    same(tensors, {**official, **counters})


def of_form(form, params):
    return rules.to_official(inception_tables.entries(form), params)


@pytest.mark.parametrize('wrap', [np.ascontiguousarray, jnp.asarray])
def test_pickle_of_jax_fid(extractor, wrap, tmp_path, capsys):
    flat = of_form(inception_tables.JAX_FID, extractor.params)
    tree = rules.unflatten({name: wrap(value) for name, value in flat.items()})
    assert set(tree['Mixed_6b']['branch_pool']) == {'conv', 'bn'}
    file = tmp_path / 'inception_v3_weights_fid.pickle'
    file.write_bytes(pickle.dumps(tree))
    made = inception_tables.read(torch_files.read(file), file)
    same(made.params, extractor.params)
    assert convert(file, tmp_path / 'out', '--kind', 'inception', '--dry-run') == 0
    assert 'names of jax-fid, 23,885,392 numbers' in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [file]


# A serialised GraphDef, written with the few rules of protocol buffers.


def varint(value):
    out = b''
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def node(name, operation, tensor=None):
    made = field(1, name.encode()) + field(2, operation.encode()) + field(3, b'an/input')
    made += field(5, field(1, b'dtype') + field(2, field(6, 1)))
    if tensor is not None:
        made += field(5, field(1, b'value') + field(2, field(8, tensor)))
    return field(1, made)


def constant(array, dtype=1):
    shape = b''.join(field(2, field(1, size)) for size in array.shape)
    return field(1, dtype) + field(2, shape) + field(4, array.tobytes())


def test_graph_of_tensorflow(extractor, tmp_path):
    tensors = of_form(inception_tables.TENSORFLOW, extractor.params)
    few = struct.pack('<f', 128.0)
    file = tmp_path / 'classify_image_graph_def.pb'
    file.write_bytes(
        node('DecodeJpeg/contents', 'Placeholder')
        + node('Sub/y', 'Const', field(1, 1) + field(2, b'') + varint(5 << 3 | 5) + few)
        + node('ResizeBilinear/size', 'Const', constant(np.zeros(2, np.int32), 3))
        + b''.join(node(name, 'Const', constant(value)) for name, value in tensors.items())
        + node('softmax', 'Softmax')
        + field(4, field(1, 21))
    )
    tree = torch_files.read(file)
    assert tree['Sub/y'] == 128.0 and 'ResizeBilinear/size' not in tree
    made = inception_tables.read(tree, file)
    same(made.params, extractor.params)
    assert set(made.left_out) == {'Sub/y'}
    file.write_bytes(file.read_bytes()[:1_000_000])
    assert 'cannot be read as a TensorFlow graph' in checkpoint_files.complaint(file)


def test_constants_of_graphs():
    floats = np.arange(6, dtype=np.float32)
    sizes = field(2, field(2, field(1, 2)) + field(2, field(1, 3)))
    for tensor, expected in {
        field(1, 1) + sizes + field(5, floats.tobytes()): floats.reshape(2, 3),
        field(1, 1) + sizes + field(5, floats[1:2].tobytes()): np.ones((2, 3)),
        field(1, 1) + sizes + field(4, floats.tobytes()): floats.reshape(2, 3),
    }.items():
        made = graph_files.read_graph(node('a', 'Const', tensor))
        np.testing.assert_array_equal(made['a'], expected)
    whole = node('a', 'Const', field(1, 1) + sizes + field(4, floats.tobytes()))
    for broken in (
        whole[:-1],
        node('a', 'Const', field(1, 1) + sizes + field(4, floats[1:].tobytes())),
        node('a', 'Const', field(1, 1) + sizes + field(5, floats[1:].tobytes())),
        node('a', 'Const', field(1, 1) + field(2, field(2, field(1, 2**64 - 1)))),
        field(1, b'\x0b'),
        field(1, b'\x08' + b'\xff' * 10),
    ):
        with pytest.raises(ValueError):
            graph_files.read_graph(broken)


# --- Refusals ------------------------------------------------------------------------------------


def test_misfits_are_listed_and_nothing_is_written(official, tmp_path, capsys):
    tensors = {name: value for name, value in official.items() if name.startswith(('Conv2d', 'fc'))}
    tensors['Conv2d_2a_3x3.conv.weight'] = np.zeros((32, 32, 3, 1), np.float32)
    tensors['left.over'] = np.zeros(3, np.float32)
    file = checkpoint_files.write_arrays(tmp_path / 'x.pth', tensors)
    with pytest.raises(rules.Misfit) as caught:
        inception_tables.read(torch_files.read(file), file)
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
