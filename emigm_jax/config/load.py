"""A config file and changes of single settings -> the settings of a run."""

import dataclasses
import itertools
import os
import pathlib
import types
from collections.abc import Mapping, Sequence
from typing import Any, cast

import ml_collections
from absl import flags
from ml_collections import config_flags

from emigm_jax.config import faults, nested, shipped
from emigm_jax.config.settings import Config
from emigm_jax.config.sweeps import Sweep
from emigm_jax.errors import UserError


def load_config(name: str, overrides: Sequence[str] = ()) -> Config:
    """Loads a config with `--config.NAME=VALUE` overrides and resolves it.

    Args:
      name: FILE.py[:VARIANT], or NAME[:VARIANT] of one that comes with the package.
      overrides: flags.

    Raises:
      UserError: no such file, name, variant or setting, or a value that makes no sense.
    """
    file, _, variant = shipped.located(name).partition(':')
    shown = f'--config {name}'
    config = _mutable(shown, _called('get_config', shown, file, variant))
    return _overridden(shown, file, config, overrides)


def load_sweep(name: str, overrides: Sequence[str] = ()) -> Sweep:
    """What `get_sweep` of a file gives, with `--config.NAME=VALUE` overrides of every point.

    Args:
      name: FILE.py[:VARIANT], or NAME[:VARIANT] of one that comes with the package.
      overrides: flags.

    Raises:
      UserError: as `load_config`.
    """
    file, _, variant = shipped.located(name, 'sweeps').partition(':')
    sweep = _called('get_sweep', name, file, variant)
    if not isinstance(sweep, Sweep):
        raise UserError(f'{name}: get_sweep returns no Sweep, but {sweep!r}')
    points = {
        point: _overridden(name, file, nested.mutable(config), overrides)
        for point, config in sweep.points.items()
    }
    return dataclasses.replace(sweep, points=points)


def varied(
    name: str, overrides: Sequence[str], vary: Mapping[str, Sequence[str]]
) -> dict[str, Config]:
    """Points of a sweep: a config with all combinations of some settings' values.

    Args:
      name: as in `load_config`.
      overrides: flags, for all of them.
      vary: {setting: its values as flags have them}.

    Returns:
      by 'schedule=exp+weight=mdm', a setting by its last word if no other has that; with nothing
      to vary by the name of the config.
    """
    last = [setting.rpartition('.')[2] for setting in vary]
    shown = [
        word if last.count(word) == 1 else setting for word, setting in zip(last, vary, strict=True)
    ]
    points = {}
    for values in itertools.product(*vary.values()):
        flags = [f'--config.{n}={value}' for n, value in zip(vary, values, strict=True)]
        title = '+'.join(f'{word}={value}' for word, value in zip(shown, values, strict=True))
        config = load_config(name, [*overrides, *flags])
        points[title or pathlib.Path(name.partition(':')[0]).stem] = config
    return points


def _overridden(shown, file, config, overrides):
    """The settings of a file's config with overrides, the file `shown` in messages."""
    given = config.to_dict()
    values, argv = flags.FlagValues(), ['emigm', *overrides]
    try:
        config_flags.DEFINE_config_dict('config', config, flag_values=values, sys_argv=argv)
        rest = values(argv)
        if rest[1:]:
            raise UserError(f'--config: unknown argument {rest[1]!r}; write --config.NAME=VALUE')
        resolved = cast('ml_collections.ConfigDict', values['config'].value)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        _check_names(nested.flatten(nested.as_dict(Config())), overrides)
        raise UserError(f'{shown}: {" ".join(str(error).split())}') from error
    try:
        return nested.resolve(resolved)
    except (UserError, TypeError, ValueError) as error:
        reason = faults.message(error)
        if overrides and _reason(given) != reason:
            raise UserError(reason) from error  # the file is not to blame
        raise UserError(f'{shown}: {reason}{faults.mention(file, reason)}') from error


def _reason(config):
    """Why a config makes no sense, or None."""
    try:
        nested.resolve(config)
    except (UserError, TypeError, ValueError) as error:
        return faults.message(error)
    return None


def _called(function: str, shown: str, file: str, variant: str) -> Any:
    """What a function of a file returns."""
    module = types.ModuleType('emigm_jax_config')
    module.__file__ = file
    try:
        exec(compile(pathlib.Path(file).read_bytes(), file, 'exec'), module.__dict__)
        if not callable(make := getattr(module, function, None)):
            raise UserError(f'has no function {function}')
        return make(variant) if variant else make()
    except (Exception, SystemExit) as error:  # of code that is the user's own
        where = faults.place(file, error, getattr(module, function, None))
        raise UserError(f'{shown}: {faults.message(error)}{where}') from error


def _mutable(shown: str, config: Any) -> ml_collections.ConfigDict:
    """What `get_config` returned, as a config that can be changed."""
    if isinstance(config, Config):
        return nested.mutable(config)
    if isinstance(config, ml_collections.ConfigDict):
        config = config.to_dict()
    if not isinstance(config, dict):
        raise UserError(f'{shown}: get_config returns no config, but {config!r}')
    return ml_collections.ConfigDict(nested.filled(config, nested.as_dict(Config())))


def _check_names(known, overrides):
    """Raises UserError where an override names none of the settings `known`."""
    for flag in overrides:
        name = flag.partition('=')[0].removeprefix('--config.')
        if name not in known:
            raise UserError(
                f'--config.{name}: no such setting{nested.near_setting(name, known)}; '
                '`emigm settings` lists them all'
            )


def config_of(
    source: Config | ml_collections.ConfigDict | Mapping | str | os.PathLike,
    settings: Mapping[str, Any],
) -> Config:
    """A `Config` from whatever stands for one, with single settings changed.

    Args:
      source: settings, an ml_collections config, a nested dict, or text as in `load_config`.
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
