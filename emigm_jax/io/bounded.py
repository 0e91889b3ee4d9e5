"""JSON of files that anybody may have written: checked for size, depth and types before use."""

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from emigm_jax.errors import printable

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_T = TypeVar('_T', bound='DataclassInstance')

MOST_BYTES = 2**26  # of a JSON file; the manifest of 100 million pictures has 4 MB
MOST_DEPTH = 50
_DIGITS = 19  # of a whole number: what 64 bits hold


def parsed(content: bytes | str) -> Any:
    """The value of a JSON text.

    Raises ValueError, in a few words, if it is none, larger or deeper nested than any that is
    written here, or has whole numbers beyond 64 bits, which arrays do not hold.
    """
    if len(content) > MOST_BYTES:
        raise ValueError(f'{len(content):,} bytes are more than any such file has')
    try:
        text = content if isinstance(content, str) else content.decode('utf-8-sig')
        value = _DECODER.decode(text)
    except RecursionError:
        raise ValueError(f'it is nested deeper than {MOST_DEPTH} levels') from None
    _check_depth(value)
    return value


def _whole(text):
    if len(text) > _DIGITS:
        raise ValueError(f'a number of {len(text)} digits is out of range')
    return int(text)


_DECODER = json.JSONDecoder(parse_int=_whole)


def _check_depth(value):
    """Level by level, as nothing else is sure to go so deep."""
    level = [value]
    for _ in range(MOST_DEPTH):
        level = [v for group in level for v in _values(group) if type(v) in (dict, list)]
        if not level:
            return
    raise ValueError(f'it is nested deeper than {MOST_DEPTH} levels')


def _values(value):
    if type(value) is dict:
        return value.values()
    return value if type(value) is list else ()


def typed(cls: type[_T], value: object) -> _T:
    """The dataclass `cls` whose fields a JSON object holds.

    Fields are whole numbers, none of them negative, texts, tuples of one of them or of tuples, or
    such dataclasses.

    Raises ValueError, in a few words, if one is missing, unknown or of another type.
    """
    if type(value) is not dict:
        raise ValueError(f'{_brief(value)} is no {cls.__name__}')
    hints, required = _fields(cls)
    if unknown := value.keys() - hints.keys():
        raise ValueError(f'{_brief(min(unknown))} is unknown')
    if missing := required - value.keys():
        raise ValueError(f'{min(missing)} is missing')
    return cls(**{name: _of_type(name, hints[name], each) for name, each in value.items()})


@functools.cache
def _fields(cls) -> tuple[Mapping[str, Any], frozenset[str]]:
    hints = typing.get_type_hints(cls)
    required = (f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING)
    return types.MappingProxyType(hints), frozenset(required)


def _of_type(name, kind, value):
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return typed(kind, value)
    if typing.get_origin(kind) is tuple:
        (each, _) = typing.get_args(kind)
        if type(value) not in (list, tuple):
            raise ValueError(f'{name} is {_brief(value)}, no list')
        alike = each in _WORDS and all(type(v) is each for v in value)
        if alike and (each is str or min(value, default=0) >= 0):  # there may be many
            return tuple(value)
        return tuple(_of_type(name, each, v) for v in value)
    if type(value) is not kind or (kind is int and value < 0):
        raise ValueError(f'{name} is {_brief(value)}, no {_WORDS[kind]}')
    return value


_WORDS = {int: 'count', str: 'text'}


def _brief(value):
    return printable(repr(value), 80)
