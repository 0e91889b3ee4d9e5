"""Configs that come with the package, found by name wherever it is installed."""

import os
import pathlib

from emigm_jax.errors import UserError, near

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]


def folder() -> pathlib.Path:
    """Where they lie: inside of the installed package, beside it in a checkout."""
    inside = _PACKAGE / 'configs'
    return inside if inside.is_dir() else _PACKAGE.parent / 'configs'


def names(below: str = '') -> list[str]:
    """What stands for each in place of a file; `below` is '' or 'sweeps'."""
    return sorted(_files(below))


def _files(below):
    """Files of configs, or those of sweeps, which lie in a folder of theirs or among configs."""
    files = [file for file in folder().glob('*.py') if not file.stem.startswith('_')]
    makes = {file.stem: file for file in files if ('get_sweep' in file.read_text()) == bool(below)}
    return makes | {file.stem: file for file in (folder() / below).glob('*.py') if below}


def located(name: str, below: str = '') -> str:
    """FILE.py[:VARIANT] of such a text, or of NAME[:VARIANT] of a shipped config.

    A file goes before a shipped config of the same name. `below` is '' or 'sweeps'.

    Raises:
      UserError: there is neither.
    """
    file, colon, variant = name.partition(':')
    path = pathlib.Path(os.path.expanduser(file))
    if path.is_file():
        return f'{path}{colon}{variant}'
    known = _files(below)
    if file in known:
        return f'{known[file]}{colon}{variant}'
    what, flag = ('sweep', '') if below else ('config', '--config ')
    raise UserError(
        f'{flag}{file}: no such file, and no {what} that comes with emigm_jax is called so'
        f'{near(pathlib.Path(file).stem, known)}; there are {", ".join(sorted(known))}'
    )
