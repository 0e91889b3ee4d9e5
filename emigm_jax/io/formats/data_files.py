"""Checkpoint formats that hold numbers and no program: safetensors and the msgpack of Flax.

Readers take the bytes of a whole file, best a memory map, as arrays are views of it.
"""

import mmap
import os
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np

from emigm_jax.errors import UserError
from emigm_jax.io import bounded, files
from emigm_jax.io.formats import arrays

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
_HEAD = 1024  # bytes; more than shape and dtype of an array take
# Room is made for lists before they are read, level by level: no shape has more elements.
_LISTS = 2**10


def read_safetensors(mapping: bytes | mmap.mmap) -> dict[str, np.ndarray]:
    """An uint64 length, a JSON header of that length, and the data its offsets refer to.

    The library's own loader for NumPy (safetensors 0.8) copies every array and knows no float8.
    """
    start = 8 + int.from_bytes(mapping[:8], 'little')
    header = bounded.parsed(mapping[8:start])
    data = memoryview(mapping)[start:]
    allowance = arrays.Allowance(len(mapping))

    def tensor(dtype, shape, data_offsets):
        begin, end = data_offsets
        arrays.check_counts([begin, end])
        if dtype not in _SAFETENSORS:
            raise ValueError(f'the dtype {str(dtype)[:80]!a} is not supported')
        array = arrays.array(data[begin:end], arrays.DTYPES[_SAFETENSORS[dtype]], shape)
        allowance.charge(array.shape, array.dtype)
        return array

    notes = header.pop('__metadata__', None)
    tensors = {name: tensor(**row) for name, row in header.items()}
    # Of tensors that are one, only one is stored; the notes say {other name: stored name}.
    twins = notes.items() if isinstance(notes, dict) else ()
    others = {
        other: tensors[name]
        for other, name in twins
        if isinstance(name, str) and name in tensors and other not in tensors
    }
    for array in others.values():
        allowance.charge(array.shape, array.dtype)
    return tensors | others


def write_safetensors(path: os.PathLike | str, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes arrays by name to `path`, local or gs://, whole or not at all.

    Raises:
      UserError: the place cannot be written.
    """
    import safetensors
    from safetensors import numpy

    tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    folder = None if files.remote(path) else os.path.dirname(path)
    try:
        with tempfile.TemporaryDirectory(prefix='.partial-', dir=folder) as folder:
            partial = os.path.join(folder, 'partial')
            numpy.save_file(tensors, partial)
            _mode_of_new_files(partial)  # the library gives it to its owner alone
            if files.remote(path):
                with open(partial, 'rb') as f:
                    files.write(path, iter(lambda: f.read(2**24), b''))
            else:
                os.replace(partial, path)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f'{path}: cannot be written ({" ".join(str(error).split())})') from error


def _mode_of_new_files(path):
    """Gives a file the mode that opening a new one beside it gives: what the umask says."""
    plain = f'{path}.mode'
    open(plain, 'wb').close()
    shutil.copymode(plain, path)


def read_msgpack(mapping: bytes | mmap.mmap) -> Any:
    """flax.serialization.to_bytes: msgpack with arrays and scalars as extension types.

    flax.serialization.msgpack_restore copies each array once more, so that a file of one array
    takes twice its size, and lets records and unknown extension types through.
    """
    return _joined(msgpack.unpackb(mapping, ext_hook=_extension, max_array_len=_LISTS))


def _extension(code, data):
    if code == 2:
        return complex(*msgpack.unpackb(data, max_array_len=2, max_map_len=0))
    if code not in (1, 3):
        raise ValueError(f'unknown extension type {code}')
    head = msgpack.Unpacker(max_buffer_size=_HEAD)
    head.feed(data[:_HEAD])
    head.read_array_header()
    shape, name, start = head.unpack(), head.unpack(), head.tell()
    # The bytes stay where they are, as they may be gigabytes; their own header is skipped.
    start += {0xC4: 2, 0xC5: 3, 0xC6: 5}[data[start]]
    value = arrays.array(memoryview(data)[start:], arrays.DTYPES[name], shape)
    return value if code == 1 else value[()]


def _joined(tree):
    """The tree with arrays put together that Flax cut in pieces, as msgpack ends at 4 GiB."""
    if not isinstance(tree, dict):
        return tree
    tree = {key: _joined(value) for key, value in tree.items()}
    if _CHUNKED not in tree:
        return tree
    shape, chunks = ([tree[k][str(i)] for i in range(len(tree[k]))] for k in ('shape', 'chunks'))
    array = np.concatenate(chunks).reshape(shape)
    array.flags.writeable = False
    return array
