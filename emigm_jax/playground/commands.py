"""The command that makes the same pictures."""

import shlex
from typing import Any

from emigm_jax.playground.links import listed, number
from emigm_jax.playground.settings import Offer, Settings

PICTURE, MASK = 'picture.png', 'mask.png'  # that the page hands out


def sample(offer: Offer, settings: Settings) -> str:
    """What draws the pictures."""
    return _line('sample', offer, settings, {'classes': listed(settings.classes)})


def edit(offer: Offer, settings: Settings) -> str:
    """What edits `PICTURE` where `MASK` is white."""
    files = {'picture': PICTURE, 'mask': MASK}
    return _line('edit', offer, settings, files | {'classes': listed(settings.edited)})


def _line(command, offer, settings, what):
    """`emigm COMMAND --FLAG VALUE ...`; a flag whose value could pass for one is joined to it."""
    flags = {
        **offer.model.opened_by,
        **what,
        'seeds': settings.seeds.replace(' ', ''),
        **({'preset': settings.preset} if settings.preset else {}),
        **{name: _text(value) for name, value in offer.options(settings).items()},
    }
    words = []
    for name, value in flags.items():
        flag = f'--{name.replace("_", "-")}'
        words += [f'{flag}={value}'] if value.startswith('-') else [flag, value]
    return shlex.join(['emigm', command, *words])


def _text(value: Any) -> str:
    if isinstance(value, float):
        return number(value)
    if isinstance(value, tuple | list):
        return ','.join(map(_text, value))
    return str(value)
