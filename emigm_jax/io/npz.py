"""npz files: written whole or not at all, and read row by row where they are large."""

import contextlib
import dataclasses
import io
import math
import os
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any

import numpy as np
from numpy.typing import ArrayLike

from emigm_jax.errors import UserError
from emigm_jax.io import files, hub, paths
from emigm_jax.io.formats import arrays

# What zipfile and zlib raise on damaged files.
_DAMAGE = (
    *(ValueError, LookupError, EOFError, RuntimeError, OverflowError, AssertionError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)
# bz2 and lzma, which NumPy never writes, give gigabytes for a kilobyte, and all of them at once.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# Numbers are hardly compressed, but a kilobyte of zeros may stand for a megabyte. What is read at
# once has at most so many times the bytes that it takes in the file, and some more.
_DENSEST, _SPARE = 100, 2**28
_SMALL = 2**26  # bytes of an array that `loads` gives
_MEMBERS = 1000  # arrays in a file, at most
_HEADERS = {(1, 0): 2, (2, 0): 4}  # format: bytes of the length of its header
_LONGEST = 2**14  # bytes of a header, characters of a text


@contextlib.contextmanager
def _one_line(path):
    """Turns what goes wrong with the file at `path` into one line."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f'{path}: no such file') from error
    except OSError as error:
        raise UserError(f'{path}: no access ({error.strerror or error})') from error
    except MemoryError as error:
        raise UserError(f'{path}: its arrays do not fit into memory') from error
    except _DAMAGE as error:
        raise UserError(
            f'{path}: the npz file is damaged ({_reason(error)}); fetch it again'
        ) from error


def _reason(error):
    return ' '.join(str(error).split())[:160]


def is_npz(path: os.PathLike | str) -> bool:
    """Whether the file at `path` (local or gs://) is an npz file, not another kind of archive."""
    with _one_line(path):
        with paths.absolute(path).open('rb') as file:
            if file.read(4) != b'PK\x03\x04':
                return False
        with _opened(path) as archive:
            return bool(_names(archive))


def write(path: os.PathLike | str, named: Mapping[str, ArrayLike]) -> None:
    """Writes {name: array} to `path` (local or gs://), which is replaced if it exists.

    Raises:
      UserError: the place cannot be written.
    """
    values: dict[str, Any] = {**named}
    with _replacing(path) as file:
        np.savez(file, **values)


def npy(array: np.ndarray) -> list[bytes | memoryview]:
    """The content of an .npy file, as `np.save` writes it, in two pieces; no number is copied."""
    array = np.ascontiguousarray(array)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    return [header.getvalue(), array.reshape(-1).view(np.uint8).data]


def write_rows(path: os.PathLike | str, count: int, parts: Iterable[np.ndarray]) -> None:
    """Writes arr_0 of `count` rows, which come in parts and never are in memory together.

    Raises:
      UserError: the place cannot be written, or the parts hold more or fewer rows.
    """
    written = 0
    with (
        _replacing(path) as file,
        zipfile.ZipFile(file, 'w') as archive,
        archive.open('arr_0.npy', 'w', force_zip64=True) as member,
    ):
        for part in parts:
            if not written:
                shape = (count, *part.shape[1:])
                facts = dict(descr=part.dtype.str, fortran_order=False, shape=shape)
                np.lib.format.write_array_header_1_0(member, facts)
            member.write(np.ascontiguousarray(part).data)
            written += len(part)
        if written != count:
            raise UserError(f'{path}: cannot be written, only {written} of {count} rows are there')


@contextlib.contextmanager
def _replacing(path):
    """As `files.replacing`; a missing folder is taken for a misspelt one."""
    hub.check_not_target(path)
    path = paths.absolute(path)
    if not files.remote(path) and not path.parent.is_dir():
        raise UserError(f'{path}: cannot be written, its folder does not exist')
    with files.replacing(path) as file:
        yield file


@dataclasses.dataclass(frozen=True)
class Rows:
    """An array in an npz file that is read only when asked for, in whole or some rows at a time."""

    path: str
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    columns: bool = False  # stored column by column, as Fortran does

    def __len__(self) -> int:
        return self.shape[0]

    def slices(self, pieces: Iterable[slice]) -> Iterator[np.ndarray]:
        """Yields the rows of slices, which come in rising order."""
        if self.columns:  # no row lies in one piece
            whole = self.read()
            yield from (whole[piece] for piece in pieces)
            return
        width, at = math.prod(self.shape[1:]) * self.dtype.itemsize, 0
        with self._content() as file:
            for piece in pieces:
                file.seek((piece.start - at) * width, os.SEEK_CUR)
                at, rows = piece.stop, piece.stop - piece.start
                yield self._array(file.read(rows * width), (rows, *self.shape[1:]))

    def read(self) -> np.ndarray:
        """The whole array."""
        with self._content(whole=True) as file:
            if self.columns:
                return self._array(file.read(), self.shape[::-1]).T
            return self._array(file.read(), self.shape)

    def text(self) -> str:
        """The one text that it is.

        Raises UserError if it is something else.
        """
        if self.shape or self.dtype.kind != 'U' or self.dtype.itemsize > 4 * _LONGEST:
            raise UserError(f'{self.path}: {self.name} is no text')
        with _one_line(self.path):  # a code point may be none
            return str(self.read())

    def whole(self) -> int:
        """The one whole number that it is, not negative.

        Raises UserError if it is something else.
        """
        if self.shape or self.dtype.kind not in 'iu' or (number := int(self.read())) < 0:
            raise UserError(f'{self.path}: {self.name} is no count')
        return number

    @contextlib.contextmanager
    def _content(self, whole=False):
        with (
            _one_line(self.path),
            _opened(self.path) as archive,
            _entry(archive, self.name) as file,
        ):
            if header(file) != (self.shape, self.columns, self.dtype):
                raise ValueError(f'{self.name} changed while it was read')
            if self.dtype.hasobject:
                raise ValueError(f'{self.name} holds Python objects, not numbers')
            if self.dtype.kind != 'U':
                arrays.check_dtype(self.dtype)
            info = archive.getinfo(f'{self.name}.npy')
            self._check(info.file_size - file.tell(), self.shape)
            if whole and info.file_size > _SPARE + _DENSEST * info.compress_size:
                raise ValueError(f'{self.name} has {info.file_size:,} bytes of nearly nothing')
            yield file

    def _array(self, data, shape):
        self._check(len(data), shape)
        # Python takes any number for a character, and breaks later.
        if self.dtype.kind == 'U':
            letters = np.frombuffer(data, f'{self.dtype.byteorder}u4')
            if letters.max(initial=0) > sys.maxunicode:
                raise ValueError(f'{self.name} is no text')
        return np.frombuffer(data, self.dtype).reshape(shape)

    def _check(self, size, shape):
        if size != math.prod(shape) * self.dtype.itemsize:
            raise ValueError(f'{self.name} does not have the size its header says')


def members(path: os.PathLike | str) -> dict[str, Rows]:
    """The arrays of an npz file by name (local or gs://); only the headers are read.

    Raises:
      UserError: no such file, or a damaged one; reading an array that holds no numbers.
    """
    with _one_line(path), _opened(path) as archive:
        return {name: _member(path, archive, name) for name in _names(archive)}


@contextlib.contextmanager
def _opened(path):
    with paths.absolute(path).open('rb') as file, zipfile.ZipFile(file) as archive:
        yield archive


def _names(archive):
    names = [n.removesuffix('.npy') for n in archive.namelist() if n.endswith('.npy')]
    if len(names) > _MEMBERS:
        raise ValueError(f'{len(names):,} arrays')
    return names


def _entry(archive, name):
    info = archive.getinfo(f'{name}.npy')
    if info.compress_type not in _METHODS:
        raise ValueError(f'{name} is compressed in a way that NumPy never writes')
    if archive.fp is None or info.compress_size > archive.fp.seek(0, os.SEEK_END):
        raise ValueError(f'{name} ends behind the end of the file')
    return archive.open(info)


def _member(path, archive, name):
    with _entry(archive, name) as file:
        shape, columns, dtype = header(file)
    return Rows(str(path), name, shape, dtype, columns)


def header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, whether it is stored column by column, dtype) at the start of an .npy file.

    The dtype may be any. Raises ValueError if it is no such file.
    """
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f'an array is in the unknown format {version}')
    length = file.read(_HEADERS[version])
    size = int.from_bytes(length, 'little')
    if size > _LONGEST:
        raise ValueError(f'an array has a header of {size:,} bytes')
    text = io.BytesIO(length + file.read(size))
    read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    try:
        shape, columns, dtype = read[version[0]](text)
    except Exception as error:  # NumPy parses it as Python, which has many
        raise ValueError('the header of an array is malformed') from error
    arrays.check_counts(shape)
    return shape, columns, dtype


def array(content: bytes) -> np.ndarray:
    """The array in the content of an .npy file, read-only.

    Raises ValueError if it is none, of no numbers, or has not the size that it says.
    """
    file = io.BytesIO(content)
    shape, columns, dtype = header(file)
    return arrays.array(memoryview(content)[file.tell() :], dtype, shape, 'F' if columns else 'C')


def loads(content: bytes, names: Iterable[str]) -> list[np.ndarray]:
    """Arrays of the content of a small npz file, by name.

    Raises ValueError, in a few words, if one of them is not there or damaged.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            read = []
            for name in names:
                with _entry(archive, name) as file:
                    if archive.getinfo(f'{name}.npy').file_size > _SMALL:
                        raise ValueError(f'{name} is larger than any of its kind')
                    read.append(array(file.read()))
            return read
    except _DAMAGE as error:
        raise ValueError(_reason(error)) from error
