"""PyTorch files and plain pickles of other projects, read rightly."""

import argparse
import pickle
import tracemalloc
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest

from emigm_jax.io.formats.arrays import DTYPES
from emigm_jax.io.formats.pickle_globals import STORAGES
from emigm_jax.io.formats.torch_files import read
from support import golden
from support.checkpoint_files import (
    SIX,
    build,
    call,
    complaint,
    glob,
    storage,
    tensor,
    write_legacy,
    write_zip,
)

# --- Tensors -------------------------------------------------------------------------------------


@pytest.mark.parametrize('order', ['little', 'big'])
@pytest.mark.parametrize('kind', sorted(STORAGES))
def test_storages_of_every_dtype(tmp_path, kind, order):
    dtype = DTYPES[STORAGES[kind]]
    numbers = np.array([0, 1, 1, 0, 1, 0] if dtype.kind == 'b' else range(6)).astype(dtype)
    block = numbers
    if order == 'big':
        unit = dtype.itemsize // (2 if dtype.kind == 'c' else 1)
        block = numbers.view(f'u{unit}').byteswap()
    value = tensor((2, 3), (3, 1), stored=storage(kind))
    got = read(write_zip(tmp_path / 'a.pth', value, [block], order.encode()))
    assert got.dtype == dtype and got.dtype.isnative and not got.flags.writeable
    np.testing.assert_array_equal(got, numbers.reshape(2, 3))


@pytest.mark.parametrize('name', sorted(DTYPES))
def test_untyped_storages_of_every_dtype(tmp_path, name):
    dtype = DTYPES[name]
    numbers = np.array([1, 2, 1, 1]).astype(dtype)  # float8_e8m0fnu has no zero
    stored = storage('torch.storage.UntypedStorage', '0', numbers.nbytes)
    rest = (False, call('collections.OrderedDict'), glob(f'torch.{name}'))
    value = call('torch._utils._rebuild_tensor_v3', stored, 1, (3,), (1,), *rest)
    got = read(write_zip(tmp_path / 'a.pth', value, [numbers]))
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, numbers[1:])


@pytest.mark.parametrize('write', [write_zip, write_legacy])
def test_views_share_one_storage(tmp_path, write):
    parameter = call('torch._utils._rebuild_parameter', tensor((3, 2), (1, 3)), True, None)
    value = {
        'whole': tensor((2, 3), (3, 1)),
        'transposed': parameter,
        'row': call('torch._utils._rebuild_tensor', storage(), 3, (3,), (1,)),
        'repeated': tensor((4, 2), (0, 1), 1),
        'scalar': tensor((), (), 5),
        'empty': tensor((0, 3), (3, 1)),
    }
    got = read(write(tmp_path / 'a.pth', value, [SIX]))
    np.testing.assert_array_equal(got['whole'], SIX.reshape(2, 3))
    np.testing.assert_array_equal(got['transposed'], SIX.reshape(2, 3).T)
    np.testing.assert_array_equal(got['row'], SIX[3:])
    np.testing.assert_array_equal(got['repeated'], [[1, 2]] * 4)
    assert got['scalar'] == 5 and got['scalar'].shape == () and got['empty'].shape == (0, 3)
    assert np.shares_memory(got['whole'], got['transposed'])
    assert not any(array.flags.writeable for key, array in got.items() if key != 'empty')


def test_legacy_storage_views_and_odd_places(tmp_path):
    """Legacy numbers lie anywhere in the file: unaligned arrays must still count right."""
    stored = [storage('torch.BFloat16Storage', '0', 6, ('v', start, 3)) for start in (1, 3)]
    value = {'a': tensor((2,), (1,), 1, stored[0]), 'b': tensor((3,), (1,), 0, stored[1])}
    value['pad'] = tensor((1,), (1,), 0, storage('torch.ByteStorage', '1', 1))
    value['c'] = tensor((6,), (1,), 0, storage('torch.FloatStorage', '2'))
    blocks = [SIX.astype(ml_dtypes.bfloat16), np.uint8([7]), SIX]
    got = read(write_legacy(tmp_path / 'a.pt', value, blocks))
    np.testing.assert_array_equal(got['a'].astype(np.float32), [2, 3])
    np.testing.assert_array_equal(got['b'].astype(np.float32), [3, 4, 5])
    np.testing.assert_array_equal(got['c'] + 1, SIX + 1)


OUTSIDE = {
    'offset': tensor((6,), (1,), 1),
    'negative offset': tensor((2,), (1,), -1),
    'stride': tensor((2, 3), (4, 1)),
    'negative stride': tensor((3,), (-1,), 5),
    'huge stride': tensor((2,), (2**62,)),
    'huge offset': tensor((1,), (1,), 2**70),
    'huge shape': tensor((2**40, 2**40), (1, 1)),
    'huge empty': tensor((0, 2**62, 2**62), (1, 1, 1)),
    'negative shape': tensor((-2, -3), (3, 1)),
    'too few strides': tensor((2, 3), (1,)),
    'too many dimensions': tensor((1,) * 99, (1,) * 99),
    'a float offset': tensor((1,), (1,), None),
    'storage larger than its data': tensor((7,), (1,), 0, storage(numel=7)),
    'negative storage': tensor((0,), (1,), 0, storage(numel=-1)),
    'view outside': tensor((3,), (1,), 0, storage('torch.FloatStorage', '0', 6, ('v', 4, 3))),
    'view before': tensor((1,), (1,), 0, storage('torch.FloatStorage', '0', 6, ('v', -1, 3))),
    'outside a view': tensor((3,), (1,), 0, storage('torch.FloatStorage', '0', 6, ('v', 1, 2))),
    'missing storage': tensor((1,), (1,), 0, storage(key='7')),
}


@pytest.mark.parametrize('write', [write_zip, write_legacy])
@pytest.mark.parametrize('case', OUTSIDE)
def test_nothing_is_read_outside_a_storage(tmp_path, case, write):
    complaint(write(tmp_path / 'a.pth', {'x': OUTSIDE[case]}, [SIX, SIX]))


def test_arrays_of_an_archive_cost_no_memory(tmp_path):
    count = 2**23
    value = tensor((count,), (1,), 0, storage('torch.FloatStorage', '0', count))
    path = write_zip(tmp_path / 'a.pth', value, [np.zeros(count, np.float32)])
    tracemalloc.start()
    got = read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert got.nbytes == 2**25 and peak < 2**20


def test_archives_that_torch_would_not_write(tmp_path):
    packed = write_zip(tmp_path / 'a.pth', {'a': 1}, compression=zipfile.ZIP_DEFLATED)
    assert 'compressed' in complaint(packed)
    assert 'byte order' in complaint(write_zip(tmp_path / 'a.pth', {'a': 1}, byteorder=b'?'))
    np.savez(tmp_path / 'b.npz', a=1)
    assert 'without data.pkl' in complaint(tmp_path / 'b.npz')
    path = write_zip(tmp_path / 'c.pth', {'key': 1})
    path.write_bytes(path.read_bytes().replace(b'key', b'kex', 1))
    assert 'checksum' in complaint(path)


# --- Everything else a pickle of numbers may hold ------------------------------------------------


@pytest.mark.parametrize('protocol', range(6))
def test_plain_pickles_of_arrays(tmp_path, protocol):
    arrays = {
        'c': np.arange(6.0).reshape(2, 3),
        'f': np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
        'half': SIX.astype(ml_dtypes.bfloat16),
        'big': np.arange(3, dtype='>f4'),
        'flag': np.array([True, False]),
        'none': np.zeros((0, 2), np.float32),
        'rank 0': np.array(2.5),
        'scalar': np.float32(1.5),
    }
    others = {'list': [1, (2.5, None), 'é'], 'set': {1, 2}, 'bytes': b'\xff', 'complex': 1 + 2j}
    others |= {'dtype': np.dtype('float32'), 3: True}
    (tmp_path / 'a').write_bytes(pickle.dumps({'layer': arrays, **others}, protocol))
    got = read(tmp_path / 'a')
    layer = got.pop('layer')
    assert got == {**others, 'dtype': 'float32'} and list(layer) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(layer[name], array)
        assert layer[name].dtype == array.dtype and layer[name].shape == array.shape
    assert not any(layer[name].flags.writeable for name in arrays if name != 'scalar')


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_namespaces_and_ordered_dicts_are_dicts(tmp_path, protocol):
    space = argparse.Namespace(lr=1e-4, inner=argparse.Namespace(names=['a']), items=3)
    value = {'args': space, 'state': OrderedDict(a=1, items=OrderedDict())}
    (tmp_path / 'a').write_bytes(pickle.dumps(value, protocol))
    got = read(tmp_path / 'a')
    expected = {'lr': 1e-4, 'inner': {'names': ['a']}, 'items': 3}
    assert got == {'args': expected, 'state': {'a': 1, 'items': {}}}
    assert type(got['args']) is dict and type(got['state']) is dict


def test_torch_values_become_inert(tmp_path):
    state = build(call('collections.OrderedDict'), {'_metadata': {'items': 1}})
    values = {
        'dtype': glob('torch.bfloat16'),
        'device': call('torch.device', 'cuda', 1),
        'size': call('torch.Size', (2, 3)),
        'state': state,
        'pairs': call('collections.OrderedDict', [['a', 1]]),
    }
    expected = {'dtype': 'torch.bfloat16', 'device': 'cuda:1', 'size': (2, 3)}
    expected |= {'state': {}, 'pairs': {'a': 1}}
    assert read(write_zip(tmp_path / 'a.pth', values)) == expected


# --- Real files ----------------------------------------------------------------------------------


def flat(tree, prefix=()):
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        if isinstance(value, (dict, list, tuple)):
            yield from flat(value, (*prefix, key))
        else:
            yield (*prefix, key), value


def test_golden_files():
    release = read(golden.path('emigm_tiny_release.pth'))
    training = read(golden.path('emigm_tiny_training.pth'))
    assert set(release) == {'model_ema'}
    assert set(training) == {'model', 'model_ema', 'optimizer', 'epoch', 'scaler', 'args'}
    assert training['args'] == {'model': 'emigm_tiny', 'diffloss_d': 2, 'diffloss_w': 48}
    assert training['model'].keys() == training['model_ema'].keys()
    for value in (*release['model_ema'].values(), *training['model'].values()):
        assert value.dtype == np.float32 and np.isfinite(value).all()
    assert not np.array_equal(*(release['model_ema'][k][0] for k in ('mask_token', 'fake_latent')))
    moments = [value for key, value in flat(training['optimizer']) if key[-1] == 'exp_avg']
    assert sum(m.size for m in moments) <= sum(v.size for v in training['model'].values())


def compare(tree, torch_tree, torch):
    expected = dict(flat(torch_tree))
    got = dict(flat(tree))
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, torch.Tensor):
            width = f'int{8 * value.element_size()}'
            value = value.detach()
            assert tuple(value.shape) == got[key].shape
            assert str(value.dtype) == f'torch.{got[key].dtype}'
            bits = value.contiguous().view(getattr(torch, width)) if value.numel() else value
            theirs = np.frombuffer(bytes(bits.numpy().tobytes()), np.uint8)
            np.testing.assert_array_equal(np.frombuffer(got[key].tobytes(), np.uint8), theirs)
        else:
            assert str(got[key]) == str(value)


@pytest.mark.parametrize('name', ['emigm_tiny_release', 'emigm_tiny_training', 'mar_tiny'])
def test_golden_files_agree_with_torch(name):
    torch = pytest.importorskip('torch')
    path = golden.path(f'{name}.pth')
    expected = torch.load(path, weights_only=False)
    if 'args' in expected:
        expected['args'] = vars(expected['args'])
    compare(read(path), expected, torch)


@pytest.mark.parametrize('new', [True, False])
def test_files_that_torch_writes(tmp_path, new):
    torch = pytest.importorskip('torch')
    dtypes = [getattr(torch, name) for name in DTYPES if 'complex128' not in name]
    base = torch.arange(24.0).reshape(2, 3, 4)
    layer = torch.nn.Linear(3, 2)
    tree = {
        'dtypes': {str(dtype): torch.tensor([0, 1, 1]).to(dtype) for dtype in dtypes},
        'views': [base, base[1], base.permute(2, 0, 1), base[:, 1:, ::2], base[0, 0, 0]],
        'empty': torch.zeros(0, 3),
        'expanded': torch.ones(1, 3).expand(4, 3),
        'parameter': layer.weight,
        'layer': layer.state_dict(),
        'optimizer': torch.optim.AdamW(layer.parameters()).state_dict(),
        'numpy': np.float64(1.5),
        'device': torch.device('cuda:1'),
        'size': torch.Size([1, 2]),
        'dtype': torch.float16,
    }
    torch.save(tree, tmp_path / 'a.pth', _use_new_zipfile_serialization=new)
    compare(read(tmp_path / 'a.pth'), tree, torch)
