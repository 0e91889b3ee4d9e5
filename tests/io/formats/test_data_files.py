"""safetensors, Flax files and folders; and files that are damaged or no checkpoints."""

import json
import pickle
import tracemalloc

import ml_dtypes
import msgpack
import numpy as np
import pytest

from emigm_jax.errors import UserError
from emigm_jax.io.formats.torch_files import read, read_config
from support.checkpoint_files import (
    SIX,
    build,
    call,
    complaint,
    storage,
    tensor,
    write_legacy,
    write_safetensors,
    write_zip,
)

# --- safetensors, folders, Flax ------------------------------------------------------------------


def header(**entries):
    keys = ('dtype', 'shape', 'data_offsets')
    return {name: dict(zip(keys, row, strict=False)) for name, row in entries.items()}


def test_safetensors(tmp_path):
    rows = header(
        a=('F32', [2, 3], [0, 24]), b=('BF16', [3], [24, 30]), c=('F8_E4M3', [], [30, 31])
    )
    data = SIX.tobytes() + SIX[:3].astype(ml_dtypes.bfloat16).tobytes() + b'\x38'
    for pad in range(640):  # whatever the length of the header looks like
        rows['__metadata__'] = {'pad': 'x' * pad}
        if pad % 50 == 0 or len(json.dumps(rows)) == 0x280:
            got = read(write_safetensors(tmp_path / 'a', rows, data))
            assert list(got) == ['a', 'b', 'c'] and got['c'] == 1 and got['c'].shape == ()
            np.testing.assert_array_equal(got['a'], SIX.reshape(2, 3))
            np.testing.assert_array_equal(got['b'], SIX[:3].astype(ml_dtypes.bfloat16))


BROKEN = {
    'short': header(a=('F32', [7], [0, 28])),
    'misfit': header(a=('F32', [5], [0, 24])),
    'negative': header(a=('F32', [1], [-8, -4])),
    'huge': header(a=('F32', [2**40, 2**40], [0, 24])),
    'dtype': header(a=('F4', [6], [0, 24])),
    'entry': header(a=('F32', [6])),
    'list': [1],
    'json': b'{"a": ',
    'deep': b'{"a":' + b'[' * 100_000,
}


@pytest.mark.parametrize('case', BROKEN)
def test_broken_safetensors(tmp_path, case):
    complaint(write_safetensors(tmp_path / 'a', BROKEN[case], SIX.tobytes()))


def test_folders(tmp_path):
    (tmp_path / 'config.json').write_text('{"model_name": "tiny"}')
    assert read_config(tmp_path) == {'model_name': 'tiny'}
    one = header(x=('F32', [6], [0, 24]), y=('F32', [3], [0, 12]))
    write_safetensors(tmp_path / 'part-1.safetensors', one, SIX.tobytes())
    write_safetensors(tmp_path / 'part-2.safetensors', one, SIX[::-1].tobytes())
    index = tmp_path / 'model.safetensors.index.json'
    index.write_text('{"weight_map": {"x": "part-1.safetensors", "y": "part-2.safetensors"}}')
    got = read(tmp_path)
    np.testing.assert_array_equal(got['x'], SIX)
    np.testing.assert_array_equal(got['y'], [5, 4, 3])
    for name in (str(index), index):  # its own name stands for the folder's
        assert list(read(name)) == ['x', 'y']
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'list.pkl').write_bytes(pickle.dumps([1]))

    for places, word in (
        ({'z': 'part-1.safetensors'}, '1 tensors are not'),
        ({'x': '../part-1.safetensors'}, 'outside its folder'),
        ({'x': '..'}, 'outside its folder'),
        ({'x': '.'}, 'outside its folder'),
        ({'x': ''}, 'outside its folder'),
        ({'x': '/etc/passwd'}, 'outside its folder'),
        ({'x': 'a\\..\\b'}, 'outside its folder'),
        ({'x': 'gs://bucket'}, 'outside its folder'),
        ({'x': 'a\0b'}, 'outside its folder'),
        ({'x': 'folder'}, 'Is a directory'),
        ({'x': 'list.pkl'}, 'without a table of tensors: list.pkl'),
        ({'x': 'part-3.safetensors'}, 'no such file'),
        (None, 'weight_map'),
    ):
        index.write_text(json.dumps({'weight_map': places}))
        for path in (tmp_path, index):
            with pytest.raises(UserError, match=word):
                read(path)
    write_safetensors(tmp_path / 'model.safetensors', one, SIX.tobytes())
    assert list(read(str(tmp_path))) == ['x', 'y']
    for name in ('model.safetensors', index.name):
        (tmp_path / name).unlink()
    for name in ('pytorch_model.bin', 'diffusion_pytorch_model.bin.index.json'):
        part = write_zip(tmp_path / 'part-1.bin', {'x': tensor((6,), (1,))}, [SIX])
        (tmp_path / name).write_bytes(
            b'{"weight_map": {"x": "part-1.bin"}}' if 'index' in name else part.read_bytes()
        )
        assert list(read(tmp_path)) == ['x']
        (tmp_path / name).unlink()
    with pytest.raises(UserError, match=r'none of model\.safetensors, .*name the file itself'):
        read(tmp_path)
    (tmp_path / 'config.json').write_text('[')
    with pytest.raises(UserError, match='JSON'):
        read_config(tmp_path)


def test_flax_files(tmp_path, monkeypatch):
    serialization = pytest.importorskip('flax.serialization')
    monkeypatch.setattr(serialization, 'MAX_CHUNK_SIZE', 64)
    tree = {
        'kernel': SIX.reshape(2, 3),
        'half': SIX.astype(ml_dtypes.bfloat16),
        'chunked': np.arange(60, dtype=np.int64).reshape(3, 20),
        'nested': {'scalar': np.float32(2.5), 'complex': 1 + 2j, 'step': 7, 'name': 'é'},
    }
    (tmp_path / 'a').write_bytes(serialization.msgpack_serialize(tree))
    got = read(tmp_path / 'a')
    assert got['nested'] == tree['nested'] and type(got['nested']['scalar']) is np.float32
    for name in ('kernel', 'half', 'chunked'):
        np.testing.assert_array_equal(got[name], tree[name])
        assert got[name].dtype == tree[name].dtype and not got[name].flags.writeable


def big_files(folder):
    """Files of each format of nearly one array of four megabytes."""
    serialization = pytest.importorskip('flax.serialization')
    large, few = np.arange(2**20, dtype=np.float32), SIX
    blocks, sizes = [large, few], (large.size, few.size)
    stored = [storage('torch.FloatStorage', str(i), n) for i, n in enumerate(sizes)]
    tensors = {f'x{i}': tensor((n,), (1,), 0, stored[i]) for i, n in enumerate(sizes)}
    end = large.nbytes + few.nbytes
    rows = {
        'x0': ('F32', [large.size], [0, large.nbytes]),
        'x1': ('F32', [few.size], [large.nbytes, end]),
    }
    (folder / 'd').write_bytes(serialization.msgpack_serialize({'x0': large, 'x1': few}))
    (folder / 'hub').mkdir()
    data = b''.join(block.tobytes() for block in blocks)
    write_safetensors(folder / 'hub/model.safetensors', header(**rows), data)
    return [
        write_zip(folder / 'a', tensors, blocks),
        write_zip(folder / 'big-endian', tensors, [b.byteswap() for b in blocks], b'big'),
        write_legacy(folder / 'b', tensors, blocks),
        write_safetensors(folder / 'c', header(**rows), data),
        folder / 'd',
        folder / 'hub',
    ]


@pytest.mark.parametrize('index', range(6))
def test_memory_stays_below_the_file_and_a_half(tmp_path, index):
    path = big_files(tmp_path)[index]
    tracemalloc.start()
    tree = read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tree['x0'][-1], tree['x1'][-1]) == (2**20 - 1, 5)
    assert peak < 1.5 * 2**22


CHUNKS = {'__msgpack_chunked_array__': True, 'shape': {'0': 2**40}}
MESSAGES = {
    'bomb': msgpack.ExtType(1, msgpack.packb(((2**40,), 'float32', b''))),
    'objects': msgpack.ExtType(1, msgpack.packb(((1,), 'object', bytes(8)))),
    'records': msgpack.ExtType(1, msgpack.packb(((1,), 'f4,f4', bytes(8)))),
    'negative': msgpack.ExtType(1, msgpack.packb(((-1, -1), 'float32', bytes(4)))),
    'scalar': msgpack.ExtType(3, msgpack.packb(((2,), 'float32', bytes(4)))),
    'code': msgpack.ExtType(9, b''),
    'no array': msgpack.ExtType(1, msgpack.packb({'a': 1})),
    'short': msgpack.ExtType(1, b'\x93\x91'),
    'wide': msgpack.ExtType(1, b'\x93\xdd\xff\xff\xff\xff'),
    'no bytes': msgpack.ExtType(1, msgpack.packb(((1,), 'float32'))),
    'text for bytes': msgpack.ExtType(1, msgpack.packb(((1,), 'float32', 'abcd'))),
    'more behind': msgpack.ExtType(1, msgpack.packb(((1,), 'float32', bytes(4))) + b'\x00'),
    'no chunks': CHUNKS | {'chunks': {}},
    'odd chunks': CHUNKS | {'chunks': {'0': 1}},
}


@pytest.mark.parametrize('case', MESSAGES)
def test_broken_flax_files(tmp_path, case):
    (tmp_path / 'a').write_bytes(msgpack.packb({'x': MESSAGES[case]}))
    complaint(tmp_path / 'a')


# --- Damaged and foreign files -------------------------------------------------------------------


def samples(folder):
    """One good file of each format."""
    value = {'x': tensor((2, 3), (3, 1)), 'args': build(call('argparse.Namespace'), {'a': 1})}
    entry = {'dtype': 'F32', 'shape': [6], 'data_offsets': [0, 24]}
    array = msgpack.ExtType(1, msgpack.packb(((6,), 'float32', SIX.tobytes())))
    (folder / 'd').write_bytes(msgpack.packb({'a': {'x': array}}))
    (folder / 'e').write_bytes(pickle.dumps({'x': SIX}))
    return [
        write_zip(folder / 'a', value, [SIX]),
        write_legacy(folder / 'b', value, [SIX]),
        write_safetensors(folder / 'c', {'x': entry}, SIX.tobytes()),
        folder / 'd',
        folder / 'e',
    ]


@pytest.mark.parametrize('index', range(5))
def test_truncated_and_corrupted_files(tmp_path, index):
    path = samples(tmp_path)[index]
    whole = path.read_bytes()
    read(path)
    for length in range(0, len(whole), 3):
        path.write_bytes(whole[:length])
        complaint(path)
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 300):
        damaged = bytearray(whole)
        damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            read(path)  # the damage may be to a number or a name, which no reader can tell
        except UserError as error:
            assert '\n' not in str(error)


FOREIGN = {
    'git-lfs pointer': b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n',
    'web page': b'\n<!DOCTYPE html><html></html>',
    'picture': b'\x89PNG\r\n\x1a\n' + bytes(20),
    'compressed': b'\x1f\x8b\x08' + bytes(20),
    'HDF5': b'\x89HDF\r\n\x1a\n' + bytes(20),
    'text': b'can this be a checkpoint? (No.)\n',
    'unknown kind': bytes(20),
    'empty': b'',
}


@pytest.mark.parametrize('what', FOREIGN)
def test_foreign_files_are_named(tmp_path, what):
    (tmp_path / 'a.pth').write_bytes(FOREIGN[what])
    assert what in complaint(tmp_path / 'a.pth')


def test_missing_files(tmp_path):
    assert 'no such file' in complaint(tmp_path / 'a.pth')
    assert 'holds none of model.safetensors' in complaint(tmp_path)
    assert 'no such file' in complaint(str(tmp_path / 'a.pth'))
