"""Writes checkpoint files that hold whatever a test says, well formed or not."""

import json
import struct
import zipfile

import numpy as np
import pytest

from emigm_jax.errors import UserError
from emigm_jax.io.formats.torch_files import read


class Op:
    """Values and opcodes to be written one after the other."""

    def __init__(self, *parts):
        self.parts = parts


def glob(name):
    module, _, attribute = name.rpartition('.')
    return Op(b'c%s\n%s\n' % (module.encode(), attribute.encode()))


def call(function, *arguments):
    return Op(glob(function) if isinstance(function, str) else function, arguments, b'R')


def build(target, state):
    return Op(target, state, b'b')


def emit(value):
    match value:
        case Op():
            return b''.join(p if isinstance(p, bytes) else emit(p) for p in value.parts)
        case None | bool():
            return {None: b'N', True: b'\x88', False: b'\x89'}[value]
        case int():
            raw = value.to_bytes(value.bit_length() // 8 + 1, 'little', signed=True)
            return b'\x8a%c%s' % (len(raw), raw)
        case str():
            return b'X' + struct.pack('<I', len(value.encode())) + value.encode()
        case bytes():
            return b'B' + struct.pack('<I', len(value)) + value
        case tuple() | list():
            return b'(' + b''.join(map(emit, value)) + (b't' if type(value) is tuple else b'l')
        case dict():
            return b'(' + b''.join(emit(x) for pair in value.items() for x in pair) + b'd'


def dumps(value):
    return b'\x80\x02' + emit(value) + b'.'


def storage(kind='torch.FloatStorage', key='0', numel=6, *view):
    return Op(('storage', glob(kind), key, 'cpu', numel, *view), b'Q')


def tensor(shape, strides, offset=0, stored=None):
    stored = stored or storage()
    rest = (False, call('collections.OrderedDict'))
    return call('torch._utils._rebuild_tensor_v2', stored, offset, shape, strides, *rest)


def write_zip(path, value, blocks=(), byteorder=b'little', compression=zipfile.ZIP_STORED):
    program = value if isinstance(value, bytes) else dumps(value)
    with zipfile.ZipFile(path, 'w', compression) as archive:
        archive.writestr('archive/data.pkl', program)
        archive.writestr('archive/byteorder', byteorder)
        for key, block in enumerate(blocks):
            archive.writestr(f'archive/data/{key}', np.asarray(block).tobytes())
    return path


def write_arrays(path, tree):
    """Writes nested dicts of float32 arrays as torch.save does."""
    blocks = []

    def stored(value):
        if isinstance(value, dict):
            return {k: stored(v) for k, v in value.items()}
        blocks.append(np.ascontiguousarray(value, np.float32))
        strides = tuple(s // 4 for s in blocks[-1].strides)
        block = storage('torch.FloatStorage', str(len(blocks) - 1), blocks[-1].size)
        return tensor(blocks[-1].shape, strides, 0, block)

    return write_zip(path, stored(tree), blocks)


def write_legacy(path, value, blocks=()):
    blocks = [np.asarray(block) for block in blocks]
    heads = (0x1950A86A20F9469CFC6C, 1001, {'little_endian': True}, value)
    program = b''.join(map(dumps, heads)) + dumps([str(key) for key in range(len(blocks))])
    data = b''.join(struct.pack('<q', block.size) + block.tobytes() for block in blocks)
    path.write_bytes(program + data)
    return path


def write_safetensors(path, header, data=b''):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack('<Q', len(text)) + text + data)
    return path


def complaint(path):
    """The single line with which the file is turned away."""
    with pytest.raises(UserError) as caught:
        read(path)
    line = str(caught.value)
    assert line.startswith(f'{path}: ') and '\n' not in line and len(line) < 600 + len(str(path))
    return line


# The numbers that most of the files hold.
SIX = np.arange(6, dtype=np.float32)
