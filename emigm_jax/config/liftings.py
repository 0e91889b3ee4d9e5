"""Saved configs of older code, lifted to what this code reads.

Every saved config has a version beside it. Who changes a setting so that an older config would be
refused, or would mean something else (a new name or place, another default), adds a row. A new
setting needs none if its default is what the code did before.
"""

from collections.abc import Callable, Mapping
from typing import Any

from emigm_jax.errors import UserError

KEY = 'config_version'  # of a checkpoint's description, which holds the config, too


def _imagenet_sizes(config: dict[str, Any]) -> dict[str, Any]:
    """Sizes that a config left out were those of KL-16 on ImageNet at 256 pixels."""
    sizes = {'grid': 16, 'channels': 16, 'classes': 1000}
    return {**config, 'model': {**sizes, **config.get('model', {})}}


def _seeds(config: dict[str, Any]) -> dict[str, Any]:
    """Of a seed, negative ones included, only the last 32 bits counted."""

    def cut(group):
        seed = group.get('seed')
        return {**group, 'seed': seed % 2**32} if isinstance(seed, int) else group

    sampling = config.get('sampling')
    return cut({**config, 'sampling': cut(sampling)} if isinstance(sampling, dict) else config)


def _no_warmup(config: dict[str, Any]) -> dict[str, Any]:
    """Averages had no warm-up."""
    return {**config, 'optimizer': {'ema_warmup': False, **config.get('optimizer', {})}}


def _permuted(config: dict[str, Any]) -> dict[str, Any]:
    """The order of an epoch was a permutation, however many examples there were."""
    return {**config, 'data': {'order': 'permuted', **config.get('data', {})}}


# version: what lifts a nested config of that version to the next one. Configs from before there
# were versions are of version 0.
LIFTINGS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    0: _imagenet_sizes,
    1: _seeds,
    2: _no_warmup,
    3: _permuted,
}
VERSION = len(LIFTINGS)  # of the configs that this code reads and writes


def lifted(
    config: Mapping[str, Any],
    version: object,
    liftings: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = LIFTINGS,
) -> dict[str, Any]:
    """A saved nested config as this code would have written it.

    Args:
      config: as it was saved.
      version: that was saved beside it.
      liftings: as `LIFTINGS`.

    Raises:
      UserError: the version is none, or is of code that is newer than this one.
    """
    if type(version) is not int or version < 0:
        raise UserError(f'its config is of version {version!r}, which is no version')
    if version > len(liftings):
        raise UserError(
            f'was written by a newer emigm_jax (its config is of version {version}, this one reads '
            f'up to {len(liftings)}): update emigm_jax'
        )
    values = dict(config)
    for name in ('model', 'sampling', 'optimizer', 'data'):
        if not isinstance(values.get(name, {}), dict):
            raise UserError(f'{name} is a group of settings, not {values[name]!r}')
    for step in range(version, len(liftings)):
        values = liftings[step](values)
    return values
