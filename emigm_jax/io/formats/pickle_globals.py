"""The globals that a pickle may name, and what they build: inert values.

None of them gets imported: what stands for those in `CALLS` checks its arguments and puts them
together. Tensors come out as descriptions (`Tensor`), as their bytes lie outside the pickle, and
what people save beside them as mere names (`strangers`). Any other global is refused.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, TypeVar

import numpy as np

from emigm_jax.io.formats.arrays import DTYPES, EXTENDED, array
from emigm_jax.io.formats.strangers import Stranger

_T = TypeVar('_T')

STORAGES = {
    'torch.DoubleStorage': 'float64',
    'torch.FloatStorage': 'float32',
    'torch.HalfStorage': 'float16',
    'torch.BFloat16Storage': 'bfloat16',
    'torch.LongStorage': 'int64',
    'torch.IntStorage': 'int32',
    'torch.ShortStorage': 'int16',
    'torch.CharStorage': 'int8',
    'torch.ByteStorage': 'uint8',
    'torch.BoolStorage': 'bool',
    'torch.ComplexDoubleStorage': 'complex128',
    'torch.ComplexFloatStorage': 'complex64',
    'torch.UntypedStorage': 'uint8',
    'torch.storage.UntypedStorage': 'uint8',
}

LONGEST = 500  # characters of a name


class Refused(ValueError):
    """The pickle asks for something that no checkpoint needs; nothing of it has run."""


def asks_for(name: str) -> Refused:
    """The refusal of a global. The name is the file's own text: it is cut, and on one line."""
    return Refused(
        f'refuses to load: the pickle asks for {ascii(name[:200])[1:-1]}, which no checkpoint '
        'needs; nothing of it was run (a file of the tensors alone, as torch.save makes of '
        'model.state_dict(), or safetensors can be read)'
    )


@dataclasses.dataclass(frozen=True)
class Name:
    """A global that the tables know, as a mere name."""

    text: str


@dataclasses.dataclass(frozen=True)
class Storage:
    """A run of `numel` elements from element `start` on, in the stored block `key` of `total`."""

    key: str
    dtype: np.dtype
    total: int
    start: int
    numel: int


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A strided view of a storage; `offset` and `strides` count elements, nothing is checked."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclasses.dataclass
class Dtype:
    """A numpy dtype; its byte order follows in a BUILD."""

    value: np.dtype


@dataclasses.dataclass
class Array:
    """A numpy array; its content follows in a BUILD. One of objects is a list of them."""

    value: np.ndarray | list | Stranger | None = None


class _Ordered(dict):
    """An OrderedDict; attributes set on it (torch's `_metadata`) are dropped."""


class _Namespace(dict):
    """The attributes of an argparse.Namespace or types.SimpleNamespace."""


def expect(value: Any, *kinds: type[_T]) -> _T:
    """The value, if it is of exactly one of the kinds; else raises ValueError."""
    if type(value) not in kinds:
        raise ValueError(f'found a {type(value).__name__} instead of a {kinds[0].__name__}')
    return value


def storage_of(identity: object) -> Storage:
    """The storage that a persistent id describes; a legacy id may name a part of a storage."""
    match identity:
        case ('storage', Name(kind), str(key), _, int(total), *view) if kind in STORAGES:
            dtype = DTYPES[STORAGES[kind]]
        case _:
            raise Refused('refuses to load: the pickle has a persistent id that is no storage')
    match view:
        case [] | [None]:
            return Storage(key, dtype, total, 0, total)
        case [(str(), int(start), int(numel))]:
            return Storage(key, dtype, total, start, numel)
    raise ValueError('a storage has an unknown kind of view')


def _tensor(storage, offset, shape, strides, *rest):
    """`rest` is [requires_grad, [hooks, [metadata]]]."""
    return _view(expect(storage, Storage).dtype, (storage, offset, shape, strides), rest[2:])


def _tensor_v3(storage, offset, shape, strides, *rest):
    """`rest` is requires_grad, hooks, dtype, [metadata]."""
    _grad, _hooks, dtype, *metadata = rest
    dtype = DTYPES[expect(dtype, str).removeprefix('torch.')]
    return _view(dtype, (storage, offset, shape, strides), metadata)


def _view(dtype, place, metadata):
    storage, offset, shape, strides = place
    if any(metadata):
        raise ValueError('a tensor is a conjugated or negated view; save a clone of it')
    shape, strides = expect(shape, tuple), expect(strides, tuple)
    return Tensor(expect(storage, Storage), dtype, offset, shape, strides)


def _parameter(data, _grad=False, _hooks=None, _state=None):
    return expect(data, Tensor)


def _of_type(function, _type, arguments, _state=None):
    """A tensor of a subclass, or with attributes; both are dropped."""
    if type(function) is not Name or function.text not in _TENSORS:
        raise Refused('refuses to load: the pickle makes a tensor by something that makes none')
    return _TENSORS[function.text](*expect(arguments, tuple))


def joined(*parts: Any) -> str:
    """Parts of a name with dots between them; ValueError if it is longer than any name is.

    A pickle has long texts once and joins them, again and again, with few bytes each.
    """
    if sum(len(expect(part, str)) for part in parts) > LONGEST:
        raise ValueError(f'a name has more than {LONGEST} characters')
    return '.'.join(parts)


def _attribute(owner, name):
    """A member of an enumeration, in pickles of Python 3.11 and of flags."""
    if type(owner) is not Stranger:
        raise asks_for('builtins.getattr')
    return Stranger(joined(owner.name, name))


def _device(kind, index=None):
    return joined(kind) if index is None else f'{joined(kind)}:{expect(index, int)}'


def _encode(text, encoding):
    """Bytes in a pickle of protocol 2 and lower, which has no other way to write them."""
    if encoding not in ('latin1', 'latin-1'):
        raise ValueError('bytes are written in an encoding other than latin1')
    return expect(text, str).encode('latin1')


def _dtype(code, _align=False, _copy=True):
    if type(code) is Name:
        return Dtype(EXTENDED[code.text.removeprefix('ml_dtypes.')])
    if re.fullmatch(r'[SUMmO]\d{1,9}', expect(code, str)):  # text, times, objects
        return Stranger(f'numpy.dtype {code}')
    if not re.fullmatch(r'[biufc]\d{1,2}', code):
        raise ValueError('a numpy array holds something other than numbers')
    return Dtype(np.dtype(code))


def _frombuffer(raw, dtype, shape, order):
    expect(raw, bytes, bytearray)
    return Array(_numbers(raw, dtype, shape, order))


def _scalar(dtype, raw):
    value = _numbers(expect(raw, bytes, Stranger), dtype, ())
    return value if type(value) is Stranger else value[()]


def _numbers(raw: Any, dtype: Any, shape: Any, order: Literal['C', 'F'] = 'C') -> Any:
    """An array; where there are no numbers in it, a list of its objects, or a mere name."""
    if type(dtype) is not Stranger:
        return array(raw, expect(dtype, Dtype).value, expect(shape, tuple), order)
    if type(raw) is list:
        return raw[0] if shape == () and len(raw) == 1 else raw
    return dtype


_SCALARS = (str, int, float, bool, bytes, type(None))
# Numbers are found by their remainders: of larger ones, or of tuples of several, any number can
# be made that look alike, and a dict that holds them takes the square of its size to be filled.
_MOST, _MOST_OF_SEVERAL, _SEVERAL = 2**60, 2**15, 4


def _key(value):
    if type(value) is Stranger:
        return value
    if type(value) is not tuple:
        return _number_below(_MOST, expect(value, *_SCALARS, tuple, Stranger))
    numbers = [_number_below(_MOST_OF_SEVERAL, expect(v, *_SCALARS)) for v in value]
    if len([v for v in numbers if type(v) is not str]) > _SEVERAL or float in map(type, value):
        raise ValueError('a key is a tuple of many numbers, or of numbers that are not whole')
    return value


def _number_below(most, value):
    if type(value) is int and not -most < value < most:
        raise ValueError('a key is a number out of range')
    return value


def keyed(pairs: Iterable[tuple[Any, Any]], into: dict[Any, Any]) -> dict[Any, Any]:
    """`into` with the (key, value) `pairs` set.

    Keys are scalars, flat tuples of scalars or names: hashing a deep tuple recurses.
    """
    for key, value in pairs:
        into[key if type(key) is str else _key(key)] = value
    return into


def in_twos(items: Sequence[_T]) -> Iterator[tuple[_T, _T]]:
    """(a, b), (c, d), ... of a list a, b, c, d, ..."""
    return zip(items[::2], items[1::2], strict=True)


def members(items: Iterable[Any] = ()) -> list[Any]:
    """The items, each once and fit to be put in a set."""
    return list(keyed(((item, None) for item in items), {}))


_TENSORS = {
    'torch._utils._rebuild_tensor': _tensor,
    'torch._utils._rebuild_tensor_v2': _tensor,
    'torch._utils._rebuild_tensor_v3': _tensor_v3,
    'torch._utils._rebuild_parameter': _parameter,
    'torch._utils._rebuild_parameter_with_state': _parameter,
}
# global: what a call of it gives
CALLS = {
    **_TENSORS,
    'torch._tensor._rebuild_from_type_v2': _of_type,
    'torch.Size': lambda sizes=(): tuple(expect(sizes, tuple, list)),
    'torch.device': _device,
    'collections.OrderedDict': lambda pairs=(): keyed(pairs, _Ordered()),
    'argparse.Namespace': lambda: _Namespace(),
    'types.SimpleNamespace': lambda: _Namespace(),
    '_codecs.encode': _encode,
    'numpy.dtype': _dtype,
}
# The same things under the names that different versions of Python and numpy gave them.
for _home in ('__builtin__', 'builtins'):
    CALLS[f'{_home}.set'] = lambda items=(): set(members(items))
    CALLS[f'{_home}.frozenset'] = lambda items=(): frozenset(members(items))
    CALLS[f'{_home}.complex'] = lambda re, im: complex(expect(re, float), expect(im, float))
    CALLS[f'{_home}.bytes'] = lambda: b''
    CALLS[f'{_home}.getattr'] = _attribute
for _home in ('numpy.core', 'numpy._core'):
    CALLS[f'{_home}.multiarray._reconstruct'] = lambda _type, _shape, _code: Array()
    CALLS[f'{_home}.multiarray.scalar'] = _scalar
    CALLS[f'{_home}.numeric._frombuffer'] = _frombuffer

# every global that may be named without a refusal
NAMES = {*CALLS, *STORAGES, 'numpy.ndarray', *(f'ml_dtypes.{name}' for name in EXTENDED)}
# these are values: they become strings
WORDS = {f'{home}.{name}' for name in DTYPES for home in ('torch', 'numpy')}


def _build_namespace(namespace, state):
    attributes = expect(state, dict)
    for name in attributes:
        expect(name, str)
    namespace.update(attributes)


def _build_dtype(dtype, state):
    match state:
        case (int(), '<' | '>' | '|' as order, None, None, None, *_):
            dtype.value = dtype.value.newbyteorder(order)
        case _:
            raise ValueError('a numpy array holds records')


def _build_array(target, state):
    *_, shape, dtype, fortran, raw = expect(state, tuple)
    target.value = _numbers(expect(raw, bytes, list), dtype, shape, 'F' if fortran else 'C')


# type: what a BUILD does to a value of it, given the state
BUILDS = {
    _Ordered: lambda _target, _state: None,
    _Namespace: _build_namespace,
    Dtype: _build_dtype,
    Array: _build_array,
    Stranger: lambda _target, _state: None,
}
