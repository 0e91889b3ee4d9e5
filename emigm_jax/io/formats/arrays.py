"""The arrays that checkpoints hold: their dtypes, and checked views of their bytes."""

import math
from collections.abc import Sequence
from typing import Literal

import ml_dtypes
import numpy as np

MAX_DIMENSIONS = 64  # numpy's own limit

_FLOAT8 = ('float8_e4m3fn', 'float8_e4m3fnuz', 'float8_e5m2', 'float8_e5m2fnuz', 'float8_e8m0fnu')
_NATIVE = (
    *('float64', 'float32', 'float16', 'complex128', 'complex64', 'bool'),
    *('int64', 'int32', 'int16', 'int8', 'uint64', 'uint32', 'uint16', 'uint8'),
)

EXTENDED = {name: np.dtype(getattr(ml_dtypes, name)) for name in ('bfloat16', *_FLOAT8)}
"""The dtypes that numpy itself does not have."""

DTYPES = EXTENDED | {name: np.dtype(name) for name in _NATIVE}
"""Every dtype that is read, by the name that torch, numpy and ml_dtypes share."""

_KNOWN = frozenset(DTYPES.values())


def array(
    raw: bytes | bytearray | memoryview,
    dtype: np.dtype,
    shape: Sequence[int],
    order: Literal['C', 'F'] = 'C',
) -> np.ndarray:
    """The buffer `raw` as a read-only array, sharing its memory.

    Raises ValueError unless `raw` holds exactly the bytes that `shape` and `dtype` call for, and
    the dtype, in any byte order, is one of `DTYPES`.
    """
    check_counts(shape)
    check_dtype(dtype)
    if math.prod(shape) * dtype.itemsize != memoryview(raw).nbytes:
        raise ValueError(f'an array of shape {list(shape)} has the wrong number of bytes')
    result = np.ndarray(shape, dtype, raw, order=order)
    result.flags.writeable = False
    return result


def check_counts(counts: Sequence[object]) -> None:
    """Raises ValueError unless `counts` are few integers of 63 bits, none of them negative."""
    if len(counts) > MAX_DIMENSIONS or any(type(n) is not int or n >> 63 for n in counts):
        raise ValueError('a shape, stride or offset is no list of sizes')


def check_dtype(dtype: np.dtype) -> None:
    """Raises ValueError unless it is one of `DTYPES`, in any byte order."""
    if dtype.newbyteorder('=') not in _KNOWN:
        raise ValueError(f'an array holds no plain numbers, but {str(dtype)[:80]!a}')


class Allowance:
    """Bounds the bytes that the arrays of a file have, which may be views of the same bytes.

    Tensors may be tied, or a row that is repeated; but a few bytes could stand for any number.
    """

    TIMES = 4  # the file's own size

    def __init__(self, size: int):
        self._left = self.TIMES * size + 2**20

    def charge(self, shape: Sequence[int], dtype: np.dtype) -> None:
        """Raises ValueError if one more array of this form is too much."""
        self._left -= math.prod(shape) * dtype.itemsize
        if self._left < 0:
            raise ValueError(f'its arrays would be more than {self.TIMES} times as large as it')
