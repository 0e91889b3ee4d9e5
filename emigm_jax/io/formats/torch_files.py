"""Reads other projects' checkpoints as plain trees of numpy arrays, without running any of them.

Formats are told apart by content, not by name: PyTorch files (the zip archive and the older bare
pickles), safetensors, Flax msgpack files, plain pickles of numpy arrays and .npy files. Pickles go
through the interpreter of `pickles`; PyTorch, h5py and the like are not needed.

Files are memory-mapped. Wherever a file holds the numbers as they are, the arrays are read-only
views of it that cost no memory until they are used, and so the file must stay as it is meanwhile.
"""

import functools
import os
import re
import struct
import zipfile
import zlib
from typing import Any

import msgpack
import numpy as np

from emigm_jax.errors import UserError
from emigm_jax.io.formats import arrays, data_files, local_files, numpy_files, pickles, trees

# What readers raise on malformed data; everything else is a bug and shows as one.
_DAMAGE = (
    ValueError,  # also Unicode, JSON and msgpack errors
    TypeError,
    LookupError,
    AttributeError,
    OverflowError,
    RecursionError,
    EOFError,
    NotImplementedError,
    struct.error,
    msgpack.OutOfData,
)


def read(path: os.PathLike | str) -> Any:
    """The content of a checkpoint file, or of a folder in the style of Hugging Face.

    Args:
      path: local, gs:// or hf://; the index of several files stands for them.
    Returns:
      nested dicts, lists, tuples and scalars, as the file holds them, with read-only numpy arrays
      in place of tensors (bfloat16 and float8 in the dtypes of ml_dtypes). An argparse.Namespace
      becomes the dict of its attributes, another object a `strangers.Placeholder` or the dict of
      its items. safetensors files and folders give {name: array}.
    Raises:
      UserError: the file is missing, damaged, of another kind, or its pickle asks for anything
        but data; in one line that starts with the path.
    """
    path = os.fspath(path)
    if path.endswith(local_files.INDEX):
        return local_files.read_shards(path, _read_file)
    if local_files.is_folder(path):
        return local_files.read_folder(path, _read_file)
    return _read_file(path)


def _read_file(path):
    mapping = local_files.map_file(path)
    fitting = next((row for row in _FORMATS if row[1](mapping)), None)
    if fitting is None:
        raise UserError(f'{path}: {_foreign(mapping)}')
    kind, _, reader = fitting
    try:
        return trees.checked(reader(mapping))
    except pickles.Refused as error:
        raise UserError(f'{path}: {error}') from error
    except _DAMAGE as error:
        reason = f'malformed data ({type(error).__name__})'
        if isinstance(error, ValueError):  # these have words of their own
            reason = ' '.join(str(error).split())[:200]
        raise UserError(
            f'{path}: cannot be read as {kind}: {reason}; '
            'if the file is cut short or damaged, fetch it again'
        ) from error


def read_config(folder: os.PathLike | str) -> dict[str, Any]:
    """What is in the `config.json` of a folder in the style of Hugging Face.

    Raises UserError if the file is missing or holds no JSON object.
    """
    return local_files.read_json(os.path.join(os.fspath(folder), 'config.json'))


# --- PyTorch -------------------------------------------------------------------------------------


def _strided(total, block):
    """What makes the array of a `pickles.Tensor`; it reads nothing outside of its storage.

    It raises ValueError if the storage leaves its block, or the tensor its storage, or if all
    tensors together would be much larger than the file.

    Args:
      total: bytes of the file.
      block: gives the bytes of a tensor's storage.
    """
    allowance = arrays.Allowance(total)

    def strided(tensor):
        storage, size = tensor.storage, tensor.dtype.itemsize
        arrays.check_counts([storage.total, storage.start, storage.numel, tensor.offset])
        arrays.check_counts(tensor.shape)
        arrays.check_counts(tensor.strides)
        raw, start, width = block(tensor), storage.start, storage.dtype.itemsize
        if start + storage.numel > storage.total or storage.total * width > len(raw):
            raise ValueError(f'storage {storage.key[:80]!a} is larger than its data')
        if 0 in tensor.shape:
            return np.empty(tensor.shape, tensor.dtype)
        steps = zip(tensor.shape, tensor.strides, strict=True)
        end = tensor.offset + sum((count - 1) * stride for count, stride in steps) + 1
        if end * size > storage.numel * width:
            raise ValueError(f'a tensor reaches outside its storage {storage.key[:80]!a}')
        allowance.charge(tensor.shape, tensor.dtype)
        # numpy checks the same bounds again, against the buffer that it is given.
        return np.ndarray(
            tensor.shape,
            tensor.dtype,
            raw[start * width : (start + storage.numel) * width],
            tensor.offset * size,
            [stride * size for stride in tensor.strides],
        )

    return strided


def _unit(dtype):
    """Bytes of which the order is turned round."""
    return dtype.itemsize // (2 if dtype.kind == 'c' else 1)


def _swapped(block, unit):
    """The bytes of big-endian numbers, turned round."""
    end = len(block) // unit * unit
    return np.frombuffer(block[:end], f'u{unit}').byteswap().data.cast('B').toreadonly()


def _read_zip(mapping):
    """The zip archive of torch.save: NAME/data.pkl and one entry NAME/data/KEY per storage."""
    try:
        with zipfile.ZipFile(mapping) as archive:
            entries = {info.filename: info for info in archive.infolist()}
    except zipfile.BadZipFile as error:
        raise ValueError('the directory at the end of the archive is missing') from error
    pickled = [name for name in entries if re.fullmatch(r'([^/]+/)?data\.pkl', name)]
    if len(pickled) != 1:
        raise ValueError('a zip archive without data.pkl is not from torch.save')
    if sum(info.file_size for info in entries.values()) > len(mapping):
        raise ValueError('its entries would be larger than the archive')
    prefix = pickled[0].removesuffix('data.pkl')
    blocks = functools.cache(lambda name: _entry(mapping, entries[name]))

    program = blocks(pickled[0])
    checksum = entries[pickled[0]].CRC
    if checksum and checksum != zlib.crc32(program):  # torch can be told to write 0 instead
        raise ValueError('data.pkl does not have its checksum')
    order = bytes(blocks(f'{prefix}byteorder')) if f'{prefix}byteorder' in entries else b'little'
    if order not in (b'little', b'big'):
        raise ValueError('the byte order is neither little nor big')

    @functools.cache
    def block(key, unit):
        name = f'{prefix}data/{key}'
        if name not in entries:
            raise ValueError(f'storage {key[:80]!a} is missing')
        return blocks(name) if order == b'little' else _swapped(blocks(name), unit)

    strided = _strided(len(mapping), lambda t: block(t.storage.key, _unit(t.dtype)))
    return pickles.plain(pickles.load(bytes(program)), strided)


def _entry(mapping, info):
    """The bytes of a zip entry, as a view of the file."""
    start = info.header_offset
    signature, name, extra = struct.unpack('<4s22xHH', mapping[start : start + 30])
    if signature != b'PK\x03\x04':
        raise ValueError('an entry is not where the directory of the archive says')
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise ValueError('its entries are compressed or encrypted, which torch.save never does')
    start += 30 + name + extra
    if start + info.file_size > len(mapping):
        raise ValueError('an entry ends behind the end of the file')
    return memoryview(mapping)[start : start + info.file_size]


_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001


def _read_pickle(mapping):
    """A plain pickle, or torch.save as it was before 1.6.

    The latter is five pickles in a row (magic number, version, platform, object, storage keys)
    and, in the order of the keys, an int64 count and the numbers of each storage, little-endian
    whatever the platform.
    """
    mapping.seek(0)
    first = pickles.load(mapping)
    if first.tree != _MAGIC:
        return pickles.plain(first, _no_tensor)
    if pickles.load(mapping).tree != _LEGACY_VERSION:
        raise ValueError('unknown version of the legacy format')
    pickles.load(mapping)
    loaded = pickles.load(mapping)
    keys = pickles.load(mapping).tree

    widths = {storage.key: storage.dtype.itemsize for storage in loaded.storages}
    blocks, start = {}, mapping.tell()
    for key in keys:
        count = int.from_bytes(mapping[start : start + 8], 'little', signed=True)
        end = start + 8 + count * widths[key]
        if not start + 8 <= end <= len(mapping):
            raise ValueError('a storage ends behind the end of the file')
        blocks[key] = memoryview(mapping)[start + 8 : end]
        start = end
    return pickles.plain(loaded, _strided(len(mapping), lambda t: blocks[t.storage.key]))


def _no_tensor(_tensor):
    raise ValueError('a PyTorch tensor without the file around it')


# --- Recognition ---------------------------------------------------------------------------------


def _is_pickle(mapping):
    # Protocols 2 to 5 say so; older ones begin with a container or a global and end with a stop.
    if mapping[0] == 0x80:
        return mapping[1:2] in (b'\x02', b'\x03', b'\x04', b'\x05')
    return mapping[-1:] == b'.' and bool(re.match(rb'[(\]}]|c[\w.]+\n[\w.]+\n', mapping))


def _is_safetensors(mapping):
    return 8 + int.from_bytes(mapping[:8], 'little') <= len(mapping) and mapping[8:9] == b'{'


def _is_msgpack(mapping):
    # A map (of up to 15, 2**16 or 2**32 entries) whose first key is a string.
    return bool(re.match(rb'(?s)([\x81-\x8f]|\xde..|\xdf.{4})[\xa0-\xbf\xd9-\xdb]', mapping))


_FORMATS = (
    ('a PyTorch archive', lambda mapping: mapping[:4] == b'PK\x03\x04', _read_zip),
    ('a NumPy file', lambda mapping: mapping[:6] == numpy_files.MAGIC, numpy_files.read),
    # Before pickles, which also may begin with the bytes of a length.
    ('safetensors', _is_safetensors, data_files.read_safetensors),
    ('a pickle', _is_pickle, _read_pickle),
    ('Flax msgpack', _is_msgpack, data_files.read_msgpack),
)

_FOREIGN = (
    (rb'version https://git-lfs', 'a git-lfs pointer, not the file it stands for: `git lfs pull`'),
    (rb'(?i)\s*<(!doctype|html|\?xml)', 'a web page saved in place of the file: download it again'),
    (rb'\x89PNG|\xff\xd8\xff|GIF8|RIFF', 'a picture'),
    (rb'\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd', 'a compressed file: unpack it first'),
    (rb'(?s).{257}ustar', 'a tar archive: unpack it first'),
    (rb'\x89HDF', 'an HDF5 file'),
    (rb'[\t\r\n\x20-\x7e\x80-\xff]{1,512}\Z', 'a text file'),
)


def _foreign(mapping):
    head = mapping[:512]
    what = next((what for pattern, what in _FOREIGN if re.match(pattern, head)), 'of unknown kind')
    known = '.pth, .ckpt, .safetensors, .npy, msgpack or a pickle'
    return f'is no checkpoint but {what} (expected {known})'
