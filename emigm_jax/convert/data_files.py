"""Checkpoint formats that hold numbers and no program: safetensors and the msgpack of Flax.

Readers take the bytes of a whole file, best a memory map, as arrays are views of it.
"""

import json

import msgpack
import numpy as np

from emigm_jax.convert import arrays

_SAFETENSORS = {
    'F64': 'float64',
    'F32': 'float32',
    'F16': 'float16',
    'BF16': 'bfloat16',
    'I64': 'int64',
    'I32': 'int32',
    'I16': 'int16',
    'I8': 'int8',
    'U64': 'uint64',
    'U32': 'uint32',
    'U16': 'uint16',
    'U8': 'uint8',
    'BOOL': 'bool',
    'C64': 'complex64',
    'F8_E4M3': 'float8_e4m3fn',
    'F8_E5M2': 'float8_e5m2',
    'F8_E8M0': 'float8_e8m0fnu',
}
_CHUNKED = '__msgpack_chunked_array__'  # in Flax


def read_safetensors(mapping):
    """An uint64 length, a JSON header of that length, and the data its offsets refer to."""
    start = 8 + int.from_bytes(mapping[:8], 'little')
    header = json.loads(mapping[8:start])
    data = memoryview(mapping)[start:]

    def tensor(dtype, shape, data_offsets):
        begin, end = data_offsets
        arrays.check_counts([begin, end])
        if dtype not in _SAFETENSORS:
            raise ValueError(f'the dtype {dtype!a} is not supported')
        return arrays.array(data[begin:end], arrays.DTYPES[_SAFETENSORS[dtype]], shape)

    return {name: tensor(**row) for name, row in header.items() if name != '__metadata__'}


def read_msgpack(mapping):
    """flax.serialization.to_bytes: msgpack with arrays and scalars as extension types."""
    # Lists are as long as the rank of an array: a header may not make room for millions.
    tree = msgpack.unpackb(mapping, ext_hook=_extension, max_array_len=2**16)
    return _joined(tree)


def _extension(code, data):
    if code == 2:
        return complex(*msgpack.unpackb(data))
    if code not in (1, 3):
        raise ValueError(f'unknown extension type {code}')
    shape, name, raw = msgpack.unpackb(data, raw=True)
    dtype = arrays.DTYPES[name.decode('ascii')]
    value = arrays.array(raw, dtype, shape)
    return value if code == 1 else value[()]


def _joined(tree):
    """The tree with arrays put together that Flax cut in pieces, as msgpack ends at 4 GiB."""
    if not isinstance(tree, dict):
        return tree
    tree = {key: _joined(value) for key, value in tree.items()}
    if _CHUNKED not in tree:
        return tree
    shape, chunks = (
        [tree[part][str(i)] for i in range(len(tree[part]))] for part in ('shape', 'chunks')
    )
    whole = np.concatenate(chunks)
    return arrays.array(memoryview(whole.view(np.uint8)), whole.dtype, shape)
