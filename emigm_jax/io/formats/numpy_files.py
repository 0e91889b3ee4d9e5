"""A single .npy file: an array, or an object, which comes as data and nothing of it is run."""

import io
import mmap
from typing import Any

import numpy as np

from emigm_jax.io import npz
from emigm_jax.io.formats import arrays, pickles

MAGIC = b'\x93NUMPY'
_HEAD = 2**16  # bytes; more than any header of an array takes


def read(mapping: mmap.mmap) -> Any:
    """An array that is a view of the file; or what is in an array of objects, as `np.save` writes a
    dict: it is a pickle behind the header."""
    head = io.BytesIO(mapping[:_HEAD])
    shape, columns, dtype = npz.header(head)
    if dtype.hasobject:
        return pickles.plain(pickles.load(mapping[head.tell() :]), _no_tensor)
    data = memoryview(mapping)[head.tell() :]
    return arrays.array(data, np.dtype(dtype), shape, 'F' if columns else 'C')


def _no_tensor(_tensor):
    raise ValueError('a PyTorch tensor in a file of NumPy')
