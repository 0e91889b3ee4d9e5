"""Configs that come with the package, found by name wherever it is installed."""

import os
import pathlib

from emigm_jax.errors import UserError, near

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]


def folder() -> pathlib.Path:
    """Where they lie: inside of the installed package, beside it in a checkout."""
    inside = _PACKAGE / 'configs'
    return inside if inside.is_dir() else _PACKAGE.parent / 'configs'


def names() -> list[str]:
    """What stands for each in place of a file."""
    return sorted(file.stem for file in folder().glob('*.py') if not file.stem.startswith('_'))


def located(name: str) -> str:
    """FILE.py[:VARIANT] of such a text, or of NAME[:VARIANT] of a shipped config.

    A file goes before a shipped config of the same name.

    Raises:
      UserError: there is neither.
    """
    file, colon, variant = name.partition(':')
    path = pathlib.Path(os.path.expanduser(file))
    if path.is_file():
        return f'{path}{colon}{variant}'
    if file in names():
        return f'{folder() / file}.py{colon}{variant}'
    raise UserError(
        f'--config {file}: no such file, and no config that comes with emigm_jax is called so'
        f'{near(pathlib.Path(file).stem, names())}; there are {", ".join(names())}'
    )
