"""Settings as nested dicts: as ml_collections configs hold them, and as checkpoints carry them.

`configs/*.py` start from `defaults()` and change what they need; `resolve` turns the result into
dataclasses, and every wrong name or value into one line. `as_dict` is what checkpoints carry.
"""

import contextlib
import dataclasses
import difflib
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import ml_collections

from emigm_jax.config.settings import Config
from emigm_jax.core import setting
from emigm_jax.errors import Reasons, UserError, near

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_Settings = TypeVar('_Settings', bound='DataclassInstance')


def mutable(settings: 'DataclassInstance') -> ml_collections.ConfigDict:
    """Settings that can be changed, with known names and types; no others can be added."""
    return ml_collections.ConfigDict(as_dict(settings)).lock()


def defaults() -> ml_collections.ConfigDict:
    """The default settings, `mutable`."""
    return mutable(Config())


def as_dict(settings: 'DataclassInstance') -> dict[str, Any]:
    """Settings -> nested dict of plain values (tuples stay tuples)."""
    return dataclasses.asdict(settings)


def resolve(config: ml_collections.ConfigDict | Mapping[str, Any]) -> Config:
    """An ml_collections config or a nested dict, resolved.

    Raises:
      UserError: an unknown name, a value of the wrong type, or one that makes no sense.
    """
    if isinstance(config, ml_collections.ConfigDict):
        config = config.to_dict()
    return build(Config, config)


def filled(values: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Nested `values`, and those of `others` where there are none."""
    groups = {
        name: filled(value, others[name])
        for name, value in values.items()
        if isinstance(value, Mapping) and isinstance(others.get(name), Mapping)
    }
    return {**others, **values, **groups}


def build(cls: type[_Settings], values: Mapping[str, Any], prefix: str = '') -> _Settings:
    """Nested dict -> frozen settings of class `cls`; raises as `resolve`, with all reasons."""
    default, reasons = cls(), Reasons()
    fields, built = {f.name: setting.declared(f) for f in dataclasses.fields(cls)}, {}
    for name, value in values.items():
        path = f'{prefix}{name}'
        with reasons.checking():
            if name not in fields:
                raise UserError(f'unknown setting {path}{near(name, fields)}')
            built[name] = _coerce(path, value, getattr(default, name))
            if (declared := fields[name]) is not None:
                declared.validate(path, built[name])
    reasons.check()
    return cls(**built)


def _coerce(path, value, default):
    kind = type(default)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise UserError(f'{path} is a group of settings, not {value!r}')
        return build(kind, value, f'{path}.')
    if kind is tuple and isinstance(value, (list, tuple)):
        for each in value:
            _coerce(path, each, default[0] if default else 0)
        return tuple(value)  # as written: 0 and 0.0 name different averages
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # beyond any float: refused below
            return float(value)
    if type(value) is not kind:
        raise UserError(f'{path} must be {kind.__name__}, not {value!r}')
    return value


def near_setting(name: str, names: Collection[str]) -> str:
    """' (did you mean ...?)' of dotted names: one resembles `name`, or its last part does."""
    last = lambda name: name.rpartition('.')[2]
    known = {**{last(each): each for each in names}, **{each: each for each in names}}
    for wanted in (name, last(name)):
        if matches := difflib.get_close_matches(wanted, known, n=1):
            return f' (did you mean {known[matches[0]]!r}?)'
    return ''


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dict -> {'group.name': value}."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= {f'{name}.{below}': each for below, each in flatten(value).items()}
        else:
            flat[name] = value
    return flat
