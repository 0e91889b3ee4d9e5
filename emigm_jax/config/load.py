"""A config file and changes of single settings -> the settings of a run."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import ml_collections
from absl import flags
from ml_collections import config_flags

from emigm_jax.config import nested
from emigm_jax.config.settings import Config
from emigm_jax.errors import UserError


def load_config(name: str, overrides: Sequence[str] = ()) -> Config:
    """Loads FILE.py[:VARIANT] with `--config.NAME=VALUE` overrides and resolves it.

    Raises:
      UserError: no such file, variant or setting, or a value that makes no sense.
    """
    file = name.split(':', 1)[0]
    if not pathlib.Path(file).is_file():
        raise UserError(f'--config {file}: no such file')
    values = flags.FlagValues()
    argv = ['emigm', f'--config={name}', *overrides]
    config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=argv)
    try:
        rest = values(argv)
        if rest[1:]:
            raise UserError(f'--config: unknown argument {rest[1]!r}; write --config.NAME=VALUE')
        return nested.resolve(cast('ml_collections.ConfigDict', values['config'].value))
    except UserError:
        raise
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, SyntaxError) as error:
        if overrides:
            _check_names(load_config(name), overrides)
        reason = ' '.join(str(error).split())
        raise UserError(f'--config {name}: {reason}') from error


def _check_names(config, overrides):
    """Raises UserError where an override names a setting that a `Config` does not have."""
    settings = nested.flatten(nested.as_dict(config))
    for flag in overrides:
        name = flag.partition('=')[0].removeprefix('--config.')
        if name not in settings:
            raise UserError(
                f'--config.{name}: no such setting{nested.near_setting(name, settings)}; '
                '`emigm settings` lists them all'
            )


def config_of(
    source: Config | ml_collections.ConfigDict | Mapping | str | os.PathLike,
    settings: Mapping[str, Any],
) -> Config:
    """A `Config` from whatever stands for one, with single settings changed.

    Args:
      source: settings, an ml_collections config, a nested dict, or 'FILE.py[:VARIANT]'.
      settings: {'training.total': '100 steps', ...}.

    Raises:
      UserError: as `load_config`.
    """
    if isinstance(source, (str, os.PathLike)):
        source = load_config(os.fspath(source))
    if not isinstance(source, Config):
        source = nested.resolve(source)
    values = nested.as_dict(source)
    names = nested.flatten(values).keys()
    for name, value in settings.items():
        if name not in names:
            raise UserError(f'no setting {name!r}{nested.near_setting(name, names)}')
        *groups, field = name.split('.')
        place = values
        for group in groups:
            place = place[group]
        place[field] = value
    return nested.resolve(values)
