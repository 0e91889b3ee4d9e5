"""Settings as the query of a link, and back."""

import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from emigm_jax.data import class_names
from emigm_jax.errors import UserError
from emigm_jax.playground.settings import NULL, Offer, Settings


def number(value: float) -> str:
    """The shortest text that is read as the same number."""
    return short if float(short := f'{value:g}') == value else repr(value)


def listed(labels: Sequence[int]) -> str:
    """Labels as `emigm sample --classes` takes them."""
    return ','.join('none' if label == NULL else str(label) for label in labels)


# How each setting is written.
_WRITTEN: dict[str, Callable[[Any], str]] = {
    'classes': listed,
    'edited': listed,
    'guidance': number,
    'interval': lambda pair: ','.join(map(number, pair)),
}


def query(offer: Offer, settings: Settings) -> str:
    """What stands behind the '?' of a link: all that differs from what a page begins with."""
    start = offer.start(settings.preset)
    fields = {
        name: _WRITTEN.get(name, str)(value)
        for name, value in vars(settings).items()
        if value != getattr(start, name) or (name == 'preset' and value != offer.preset)
    }
    return urllib.parse.urlencode(fields, safe=',')


def settings(offer: Offer, fields: Mapping[str, str]) -> Settings:
    """The settings that the fields of a query say; names of others are not heeded.

    Raises:
      UserError: a field says nothing that there is.
    """
    preset = fields.get('preset', offer.preset)
    if preset not in offer.presets:
        raise UserError(f'the link: no preset {preset!r}, there are {", ".join(offer.presets[1:])}')
    read = _readers(offer)
    try:
        values = {name: read[name](fields[name]) for name in read if name in fields}
    except ValueError as error:
        raise UserError(f'the link: {error}') from error
    return Settings(**vars(offer.start(preset)) | values)


def _readers(offer):
    """{setting: what reads its text}."""
    return {
        'classes': lambda text: _labels(offer, text),
        'edited': lambda text: _labels(offer, text),
        'seeds': str,
        'steps': int,
        'guidance': float,
        'interval': _pair,
        'order': lambda text: _one_of(offer.orders, text),
    }


def _labels(offer, text):
    model = offer.model
    names = (*model.saved.class_names, *model.class_names)
    return tuple(model.labels(class_names.chosen(text, names, model.classes)))


def _pair(text):
    low, high = map(float, text.split(','))
    return low, high


def _one_of(names, text):
    if text not in names:
        raise ValueError(f'no {text!r}, there are {", ".join(names)}')
    return text
