"""Whether what a checkpoint says about itself has the form that everything here writes."""

from collections.abc import Callable, Mapping
from typing import Any

from emigm_jax.errors import printable


def _is(kind: type, *inside: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Whether a value is of a type, and of a list or an object every value as `inside` says."""

    def fits(value):
        if type(value) is not kind:
            return False
        values = value.values() if kind is dict else value
        return all(check(each) for check in inside for each in values)

    return fits


_text = _is(str)
_count = lambda value: type(value) is int and 0 <= value < 2**63

# entry of a description: what it must be; all others are read by nobody
_FORMS: Mapping[str, Callable[[Any], bool]] = {
    'config': _is(dict),
    'presets': _is(dict, _is(dict)),
    'source': _is(dict),
    'class_names': _is(list, _text),
    'data': _text,
    'versions': _is(dict, _text),
    'tokenizer': _is(dict),
    'inception': _is(dict),
    'counters': _is(dict, _count),
}
# of the source of a converted or exported model
_SOURCE: Mapping[str, Callable[[Any], bool]] = {'step': _count, 'unread': _is(dict, _text)}


def checked(description: Any) -> dict[str, Any]:
    """The description itself, JSON-like; {} in place of None.

    Raises ValueError, in a few words, if an entry is of another type than it is written in.
    """
    if description is None:
        return {}
    if type(description) is not dict:
        raise ValueError(f'its description is a {type(description).__name__}')
    _check(description, _FORMS)
    _check(description.get('source', {}), _SOURCE)
    return description


def _check(values, forms):
    for name, fits in forms.items():
        if name in values and not fits(values[name]):
            raise ValueError(f'its {name} cannot be {printable(repr(values[name]), 80)}')
